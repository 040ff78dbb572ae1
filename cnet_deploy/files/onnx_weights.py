"""The precision of an ONNX file's weights, from its bytes alone.

Without the onnx package, whose import takes longer than opening a network. The format is that of onnx.proto; field numbers are its own.
"""

from __future__ import annotations

from collections.abc import Iterator

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUT, _OPERATOR = 1, 4  # of a NodeProto
_TYPE, _NAME = 2, 8  # of a TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MULTIPLY = (b"Conv", b"Gemm", b"MatMul")
_PRECISIONS = {1: "fp32", 11: "fp32", 10: "fp16", 16: "bf16"}  # of TensorProto.DataType; doubles are no less exact than floats
_EXACT_FIRST = ("fp32", "fp16", "bf16")
_MOST_FIELDS = 1 << 18  # the paper's largest networks have some 20,000


def weights_precision(data: bytes) -> str | None:
    """The most exact precision among the weights that convolutions and matrix products read: "fp32", "fp16" or "bf16".

    None where no such weight is found: in a file that is damaged, that has more fields than any network, or that computes its weights.
    """
    budget = _Budget()
    types: dict[bytes, int] = {}
    read: set[bytes] = set()
    try:
        for number, graph in budget.fields(memoryview(data)):
            if number != _GRAPH or isinstance(graph, int):
                continue
            for kind, part in budget.fields(graph):
                if kind not in (_NODE, _INITIALIZER) or isinstance(part, int):
                    continue
                entries = list(budget.fields(part))
                if kind == _INITIALIZER:
                    types[_text(entries, _NAME)] = next((value for key, value in entries if key == _TYPE and isinstance(value, int)), 0)
                elif _text(entries, _OPERATOR) in _MULTIPLY:
                    inputs = [bytes(value) for key, value in entries if key == _INPUT and not isinstance(value, int)]
                    read.update(inputs[1:2])
    except (ValueError, IndexError):
        return None
    found = {_PRECISIONS.get(types[name]) for name in read if name in types}
    return next((name for name in _EXACT_FIRST if name in found), None)


def _text(entries: list[tuple[int, memoryview | int]], wanted: int) -> bytes:
    return next((bytes(value) for key, value in entries if key == wanted and not isinstance(value, int)), b"")


class _Budget:
    """Reads messages, at most so many fields in all."""

    def __init__(self) -> None:
        self.left = _MOST_FIELDS

    def fields(self, message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
        """The number and value of each field. Raises ValueError and IndexError for what is no message."""
        place = 0
        while place < len(message):
            self.left -= 1
            if self.left < 0:
                raise ValueError("too many fields")
            tag, place = _varint(message, place)
            kind = tag & 7
            if kind == _VARINT:
                value, place = _varint(message, place)
                yield tag >> 3, value
                continue
            if kind == _BYTES:
                length, place = _varint(message, place)
            elif kind in (_FIXED64, _FIXED32):
                length = 8 if kind == _FIXED64 else 4
            else:
                raise ValueError("no field")
            if place + length > len(message):
                raise ValueError("ends too early")
            yield tag >> 3, message[place : place + length]
            place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("no number")
