"""The fields of a message in the wire format of Protocol Buffers (protobuf.dev/programming-guides/encoding), without a library for it."""

from __future__ import annotations

from collections.abc import Iterator

Value = int | memoryview


class NoMessage(ValueError):
    """The bytes are no message."""


def fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """The fields of a message: their number, and an integer or bytes. Raises NoMessage for anything else."""
    place, end = 0, len(message)
    while place < end:
        if (key := message[place]) < 0x80:  # as nearly all are
            place += 1
        else:
            key, place = varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = varint(message, place)
            yield number, value
            continue
        if wire == 2:
            if place < end and (length := message[place]) < 0x80:
                place += 1
            else:
                length, place = varint(message, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise NoMessage
        if not number or length > end - place:
            raise NoMessage
        yield number, message[place : place + length]
        place += length


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """The integer at ``place``, and the place after it. Raises NoMessage where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise NoMessage
