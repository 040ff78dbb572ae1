"""What hostile datasets are made of, opcode by opcode, and the claim that they are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.cifar_pickle import read_arrays
from cnet_deploy.images.datasets import open_dataset
from cnet_deploy.images.preprocessing import Preprocessing
from tests.builders import TINY

from .helpers import MESSAGE_LIMIT, within

CIFAR = Preprocessing.of(TINY.input_size, TINY.classes)


ENCODE, DTYPE = b"c_codecs\nencode\n", b"cnumpy\ndtype\n"


RECONSTRUCT, NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"


EMPTY = RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87R"


BYTES = DTYPE + b"U\x02u1K\x00K\x01\x87R"


def plain(message: str) -> str:
    """One line that is short and harmless to print."""
    assert message.isprintable(), f"control characters in {message[:300]!r}"
    assert len(message) <= MESSAGE_LIMIT, f"{len(message)} characters: {message[:300]}"
    return message


def refused(call: Callable[[], object], *says: str, seconds: float = 20) -> str:
    """The line with which something is refused; any other end fails."""
    with within(seconds), pytest.raises(InputRefused) as caught:
        call()
    line = plain(str(caught.value))
    for words in says:
        assert words in line, f"{words!r} is not in: {line}"
    return line


def refused_pickle(folder: Path, data: bytes, *says: str) -> None:
    """Refused by the reader of arrays, and wherever such a file may stand in a dataset."""
    for name in ("test_batch", "batches.meta"):
        (folder / name).write_bytes(data)
    refused(lambda: read_arrays(folder / "test_batch"), str(folder), *says)
    refused(lambda: open_dataset(folder), "test_batch", *says)


def array(raw: bytes, shape: bytes = b"K\x01K\x01\x86", dtype: bytes = BYTES, columns: bytes = b"\x89") -> bytes:
    """The opcodes of an array as Python 2 writes it, each part as it is given."""
    return EMPTY + b"(K\x01" + shape + dtype + columns + raw + b"tb"


def holding(value: bytes, key: bytes = b"U\x04data") -> bytes:
    """The opcodes of a dictionary with one value."""
    return b"\x80\x02}" + key + value + b"s."


def laughs(depth: int, item: bytes = b"U\x02ha", pair: bytes = b"2\x86") -> bytes:
    """A pair of the same pair of the same pair …: small, but without end for whoever walks through it."""
    return item + pair * depth


def long_number(bits: int) -> bytes:
    raw = (1 << bits).to_bytes(bits // 8 + 1, "little")
    return b"\x8b" + struct.pack("<i", len(raw)) + raw


IMAGES = b"\0\0\x08\x03" + struct.pack(">3I", 2, 28, 28) + bytes(2 * 28 * 28)


LABELS = b"\0\0\x08\x01" + struct.pack(">I", 2) + bytes(2)
