"""Datasets made to run code, to fill the memory or never to end: each is refused in one printable line, and nothing else happens."""

from __future__ import annotations

import copyreg
import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cnet_deploy.array_pickles import read_arrays
from cnet_deploy.datasets import FolderDataset, open_dataset
from cnet_deploy.errors import InputRefused
from cnet_deploy.loading import batches
from cnet_deploy.preprocessing import Preprocessing
from tests.builders import TINY

from .helpers import MESSAGE_LIMIT, ROOT, within
from .test_pickles import STREAMS, WANTED, Call, assert_live, legacy_container, text

CIFAR = Preprocessing.of(TINY)
SYSTEM = b"cposix\nsystem\n"
ENCODE, DTYPE = b"c_codecs\nencode\n", b"cnumpy\ndtype\n"
RECONSTRUCT, NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"
EMPTY = RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87R"
BYTES = DTYPE + b"U\x02u1K\x00K\x01\x87R"
MEMORY = 500 << 20  # bytes beyond what the interpreter has when all is imported


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that appears if code ran; outside the folder of the hostile file."""
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "files"
    path.mkdir()
    yield path
    for file in path.iterdir():
        if file.is_file() and file.stat().st_size > 1 << 20:
            file.unlink()


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


# --- pickles that call


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("a harmless pickle first", "BUILD on an allowed class")])
def test_every_way_to_call_is_refused_by_name(folder: Path, canary: Path, name: str) -> None:
    data = STREAMS[name](f"touch {canary}")
    assert_live(canary, lambda: pickle.loads(data))
    refused_pickle(folder, data, WANTED.get(name, "posix.system"), "which can run code")
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", ["test_batch", "batches.meta", "data_batch_4"])
def test_code_among_the_arrays_of_any_file(folder: Path, canary: Path, name: str, protocol: int) -> None:
    data = pickle.dumps({"data": [np.zeros((1, 3072), np.uint8)], "labels": [Call(os.system, f"touch {canary}")]}, protocol)
    assert_live(canary, lambda: pickle.loads(data))
    for other in ("test_batch", *(f"data_batch_{n}" for n in range(1, 6))):
        (folder / other).write_bytes(pickle.dumps({"data": np.zeros((10_000, 3072), np.uint8), "labels": [0] * 10_000}, 4))
        if name != "data_batch_4":
            break
    (folder / name).write_bytes(data)
    refused(lambda: open_dataset(folder, "train" if name == "data_batch_4" else "val"), name, "posix.system, which can run code")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (b"\x80\x04cbuiltins\nbytes\ncbuiltins\nmap\n" + SYSTEM + b"]%s\x61\x86}\x92\x85}\x92.", "builtins.map"),
        (b"\x80\x02ccopyreg\n__newobj__\n%s\x85R.", "copyreg.__newobj__"),
        (b"\x80\x02cnumpy\nload\n%s\x85R.", "numpy.load"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n%s\x85R.", "numpy.core.multiarray.scalar"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct.__globals__\n%s\x85R.", "_reconstruct.__globals__"),
        (b"\x80\x02c_codecs\ndecode\n%s\x85R.", "_codecs.decode"),
        (b"\x80\x02c_codecs\nregister\n%s\x85R.", "_codecs.register"),
    ],
)  # fmt: skip
def test_neighbours_of_the_allowed_names(folder: Path, call: bytes, wanted: str) -> None:
    refused_pickle(folder, call.replace(b"%s", text("any")), wanted)


def test_extensions_that_the_process_knows(folder: Path, canary: Path) -> None:
    """An extension that was used once is kept, and given out without a look at its name."""
    copyreg.add_extension("posix", "system", 77)
    try:
        data = b"\x80\x02\x82\x4d" + text(f"touch {canary}") + b"\x85R."
        assert_live(canary, lambda: pickle.loads(data))
        for form in (data, data.replace(b"\x82\x4d", b"\x83\x4d\x00"), data.replace(b"\x82\x4d", b"\x84\x4d\x00\x00\x00")):
            refused_pickle(folder, form, "extension 77")
    finally:
        copyreg.remove_extension("posix", "system", 77)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"Pposix.system\n.", "persistent"),
        (b"U\x05posixQ.", "persistent"),
        (b"\x80\x05\x97.", "out-of-band"),
        (b"\x80\x05]\x98.", "memoryview"),
        (b"\x80\x02\x82\x01.", "extension 1"),
        (b"PK\x03\x04" + bytes(40), ""),
    ],
)
def test_opcodes_that_arrays_have_no_use_for(folder: Path, data: bytes, says: str) -> None:
    refused_pickle(folder, data, "is truncated, damaged or none of CIFAR's Python files", says)


# Allowed names alone: nothing of theirs is called, changed or subclassed.
INERT = {
    "_reconstruct of another class": holding(RECONSTRUCT + ENCODE + b"K\x00\x85U\x01b\x87R"),
    "_reconstruct never filled": holding(EMPTY),
    "NEWOBJ of an allowed name": holding(NDARRAY + b")\x81"),
    "NEWOBJ_EX of an allowed name": b"\x80\x04}U\x04data" + NDARRAY + b")}\x92s.",
    "NEWOBJ of text": holding(b"U\x03any)\x81"),
    "OBJ of text": holding(b"(U\x03anyo"),
    "REDUCE of text": holding(b"U\x03any)R"),
    "BUILD changes a name": holding(ENCODE + b"}U\x04nameU\x0cposix.systemsb"),
    "BUILD sets an attribute": holding(ENCODE + b"N}U\x04nameU\x0cposix.systems\x86b"),
    "BUILD hides a method": holding(ENCODE + b"N}U\x08__call__" + NDARRAY + b"s\x86b"),
    "BUILD of an array's class": holding(EMPTY + b"N}U\x09__class__" + NDARRAY + b"s\x86b"),
    "BUILD of a list": holding(b"]}U\x06appendNsb"),
    "BUILD of text": holding(b"U\x03any}U\x01aK\x01sb"),
    "APPEND to a name": holding(NDARRAY + b"K\x01a"),
    "SETITEM of a name": holding(NDARRAY + b"U\x01aK\x01s"),
    "an array of itself": holding(EMPTY + b"q\x01(K\x01K\x01\x85h\x01\x89h\x01tb"),
    "another codec": holding(ENCODE + b"U\x01aU\x03hex\x86R"),
    "a codec that unpacks": holding(ENCODE + b"U\x01aU\x03zip\x86R"),
    "a codec that is no text": holding(ENCODE + b"U\x01aK\x01\x86R"),
    "encoding a number": holding(ENCODE + b"K\x01U\x06latin1\x86R"),
    "encoding what is no Latin-1": holding(ENCODE + text("\u20ac") + b"U\x06latin1\x86R"),
    "encoding nothing": holding(ENCODE + b")R"),
    "a dtype of nothing": holding(DTYPE + b")R"),
    "raw data that is no Latin-1": holding(array(text("\u20ac"))),
    "raw data of numbers": holding(array(b"K\x05")),
    "raw data of an array": holding(array(EMPTY)),
    "objects": holding(array(b"](K\x01K\x02e", dtype=DTYPE + b"U\x02O8K\x00K\x01\x87R")),
    "objects in bytes": holding(array(b"U\x08\xef\xbe\xad\xde\xef\xbe\xad\xde", b"K\x01\x85", DTYPE + b"U\x01OK\x00K\x01\x87R")),
    "a dtype of fields": holding(array(b"U\x01a", dtype=DTYPE + b"](U\x01aU\x01O\x86e\x85R")),
    "a dtype of a dtype": holding(array(b"U\x01a", dtype=DTYPE + BYTES + b"\x85R")),
    "a dtype of a terabyte": holding(array(b"U\x01a", dtype=DTYPE + b"U\x0eS1000000000000\x85R")),
    "a dtype that is a name": holding(array(b"U\x01a", dtype=DTYPE)),
    "a dtype of a number": holding(array(b"U\x01a", dtype=DTYPE + b"K\x01\x85R")),
    "a dtype with escapes": holding(array(b"U\x01a", dtype=DTYPE + b"U\x0a\x1b[31mu1\n\r\x9b\x85R")),
    "a dtype of no text": holding(array(b"U\x01a", dtype=DTYPE + b"\x80\x03C\x02u1\x85R")),
    "a long dtype": holding(array(b"U\x01a", dtype=DTYPE + b"T" + struct.pack("<i", 1 << 20) + bytes(1 << 20) + b"\x85R")),
    "a dtype of number without end": holding(array(b"U\x01a", dtype=DTYPE + long_number(80_000) + b"\x85R")),
    "a shape of terabytes": holding(array(b"U\x01a", b"\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85")),
    "a shape beyond all numbers": holding(array(b"U\x01a", long_number(200) + b"\x85")),
    "a shape without end": holding(array(b"U\x01a", long_number(80_000) + b"\x85")),
    "a shape below nothing": holding(array(b"U\x01a", b"J\xfe\xff\xff\xff\x85")),
    "a shape of a hundred": holding(array(b"U\x01a", b"(" + b"K\x01" * 100 + b"t")),
    "a shape of text": holding(array(b"U\x01a", b"U\x04many")),
    "a shape of itself": holding(array(b"U\x01a", b"]q\x05h\x05a")),
    "_frombuffer of too little": holding(b"cnumpy._core.numeric\n_frombuffer\nU\x01a\x85R"),
    "_frombuffer of objects": holding(b"cnumpy._core.numeric\n_frombuffer\n(U\x08abcdefgh" + DTYPE + b"U\x01O\x85RK\x01\x85U\x01CtR"),
    "bytes that are not there": b"\x80\x04}U\x04data\x8e" + struct.pack("<Q", 10**12) + b"s.",
    "a bytearray that is not there": b"\x80\x05}U\x04data\x96" + struct.pack("<Q", 10**12) + b"s.",
    "a bytearray beyond its frame": b"\x80\x05\x95" + struct.pack("<Q", 12) + b"}U\x04data\x96" + struct.pack("<Q", 10**12) + b"s.",
    "text that is not there": b"\x80\x04}U\x04data\x8d" + struct.pack("<Q", 10**12) + b"s.",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 10**15) + b"}U\x04dataK\x01",
    "a frame in a frame": b"\x80\x04\x95" + struct.pack("<Q", 100) + b"}\x95" + struct.pack("<Q", 2) + b"K\x01" + bytes(80) + b".",
    "a negative length": b"\x80\x02}U\x04dataT\xff\xff\xff\xffs.",
    "a negative number": b"\x80\x02}U\x04data\x8b\xff\xff\xff\xffs.",
    "a memo far away": b"\x80\x02}r\xff\xff\xff\xffU\x04dataj\xfe\xff\xff\xffs.",
    "a memo below nothing": b"\x80\x02}p-1\n.",
    "an unfinished mark": b"\x80\x02(((.",
    "nothing to pop": b"\x80\x020000.",
    "a future protocol": b"\x80\xff}.",
    "no dictionary": b"\x80\x02].",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "a key that is a name": holding(b"K\x01", ENCODE),
    "a key of bytes": b"\x80\x03}C\x04dataK\x01s.",
    "a key of an array": holding(b"K\x01", EMPTY),
    "keys of DICT": b"\x80\x02(K\x01K\x01d.",
    "keys of SETITEMS": b"\x80\x02}(U\x01aK\x01K\x01K\x01u.",
    "a key without its value": b"\x80\x02}(U\x01aK\x01U\x01bu.",
    "a set": b"\x80\x04\x8f(" + laughs(22) + b"\x90.",
    "a frozen set": b"\x80\x04(" + laughs(22) + b"\x91.",
    "a key without end": holding(b"K\x01", laughs(22)),
    "a key without end in DICT": b"\x80\x02(" + laughs(22) + b"K\x01d.",
    "a shape without end of pairs": holding(array(b"U\x01a", laughs(22))),
    "raw data without end": holding(array(laughs(22))),
    "a codec without end": holding(ENCODE + b"U\x01a" + laughs(22) + b"\x86R"),
    "nested deep": holding(b"]" * 50_000 + b"a" * 49_999),
    "tuples nested deep": holding(b")" + b"\x85" * 400_000),
    "half a million instructions": holding(b"K\x01" + b"K\x010" * 300_000),
}  # fmt: skip


@pytest.mark.parametrize("name", INERT)
def test_hostile_arguments_of_allowed_names(folder: Path, name: str) -> None:
    refused_pickle(folder, INERT[name])


@pytest.mark.parametrize("dtype", [DTYPE + laughs(22) + b"\x85R", laughs(22), DTYPE + long_number(80_000) + b"\x85R", b"N"])
def test_dtypes_that_are_too_long_to_be_told(folder: Path, dtype: bytes) -> None:
    refused_pickle(folder, holding(array(b"U\x01a", dtype=dtype)), "its array is of no known type; expected bytes (u1)")


@pytest.mark.parametrize("value", [NDARRAY, array(b"U\x00", b"K\x00\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x86"), b"]q\x01h\x01a"])
def test_values_that_do_nothing_but_are_no_images(folder: Path, value: bytes) -> None:
    """A name alone, an array of nothing times very much, a list of itself."""
    (folder / "test_batch").write_bytes(holding(value))
    with within(10):
        assert list(read_arrays(folder / "test_batch")) == ["data"]
    refused(lambda: open_dataset(folder), "test_batch: has data ")


def test_lists_that_grow_deep_behind_the_memo(folder: Path) -> None:
    """Each list is put into the one before it after that was remembered as empty, so that no opcode shows how deep they lie."""
    count = 60_000
    data = b"\x80\x02" + b"".join(b"]r" + struct.pack("<I", n) for n in range(count))
    data += b"".join(b"j" + struct.pack("<I", n) + b"j" + struct.pack("<I", n + 1) + b"a0" for n in range(count - 1))
    deep = data + b"}(U\x04data" + array(b"j\x00\x00\x00\x00") + b"U\x06labelsj\x00\x00\x00\x00u."
    refused_pickle(folder, deep)


@pytest.mark.parametrize(
    ("label", "says"),
    [
        (long_number(80_000), "has label of int"),  # too long to be printed
        (laughs(22), "has label of tuple"),
        (laughs(22, b"]", b"2\x86"), "has label of tuple"),
        (b"]q\x00h\x00a", "has label of list"),
        (ENCODE, "has label of _Maker"),
        (EMPTY, "has label of _Array"),
        (b"U\x05\x1b[31m", "has label of str"),
        (b"\x88", "has label of bool"),
        (b"G" + struct.pack(">d", float("nan")), "has label of float"),
    ],
)  # fmt: skip
def test_hostile_labels(folder: Path, label: bytes, says: str) -> None:
    pixels = b"T" + struct.pack("<i", 10_000 * 3072) + bytes(10_000 * 3072)
    data = array(pixels, b"M\x10\x27M\x00\x0c\x86")
    labels = b"](" + b"K\x01" * 9_999 + label + b"e"
    (folder / "test_batch").write_bytes(b"\x80\x02}(U\x04data" + data + b"U\x06labels" + labels + b"u.")
    refused(lambda: open_dataset(folder), f"test_batch: {says}; expected 0 to 9")


def test_a_pickle_inside_the_containers_of_torch(folder: Path, canary: Path) -> None:
    """The reader of arrays takes the first pickle alone; none is run."""
    refused_pickle(folder, legacy_container(STREAMS["REDUCE"](f"touch {canary}")), "posix.system")
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    [b"posix\nsys\x1b[31mtem", b"posix\nsystem\r", "pos\u202eix\nsystem".encode(), b"posix\n" + b"s" * 60_000, b"a b c\nd e"],
)
def test_hostile_names(folder: Path, name: bytes) -> None:
    refused_pickle(folder, b"\x80\x02c" + name + b"\n)R.")
    refused_pickle(folder, b"\x80\x02(i" + name + b"\n.")


# --- memory: each in a process of its own, whose address space is bounded

LIMITED = """
import resource, sys
import numpy, cnet_deploy.datasets, cnet_deploy.array_pickles
from cnet_deploy.errors import InputRefused
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
try:
    cnet_deploy.datasets.open_dataset(sys.argv[1])
except InputRefused as error:
    print(error)
"""


def refused_apart(folder: Path, *says: str) -> None:
    """Refused for what it is and not for want of memory, in a process that has little of it."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(MEMORY)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    line = plain(done.stdout.removesuffix("\n"))
    assert "MemoryError" not in line
    for words in says:
        assert words in line, line


MEGABYTE = b"T" + struct.pack("<i", 1 << 20) + bytes(1 << 20)
# One megabyte, named again and again, each time to be made into another copy.
COPIES = {
    "encoded": b"\x80\x02}U\x04data](" + ENCODE + b"q\x00" + MEGABYTE + b"q\x01U\x06latin1q\x02\x86R"
    + b"h\x00h\x01h\x02\x86R" * 5_000 + b"es.",
    "under many keys": b"\x80\x02}(U\x04data" + array(MEGABYTE, b"J\x00\x00\x10\x00\x85") + b"q\x01"
    + b"".join(b"U\x04%04dh\x01" % n for n in range(5_000)) + b"u.",
    "as dtypes": b"\x80\x03}U\x04data]" + DTYPE + b"q\x00B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x01\x85Ra("
    + b"h\x00h\x01\x85R" * 5_000 + b"es.",
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_one_text(folder: Path, name: str) -> None:
    (folder / "test_batch").write_bytes(COPIES[name])
    refused_apart(folder, "test_batch: ")


def test_a_gzip_bomb(folder: Path) -> None:
    """A gigabyte of zeros in a megabyte, behind a header that claims as much."""
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(b"\0\0\x08\x03" + struct.pack(">3I", 1 << 20, 32, 32))
    packed += b"".join(packer.compress(bytes(1 << 20)) for _ in range(1 << 10)) + packer.flush()
    for name in ("images-idx3", "labels-idx1"):
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(packed)
    refused_apart(folder, "t10k-images-idx3-ubyte.gz: unpacks to more than")


@pytest.mark.parametrize(
    "name", ["t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz", "test_batch", "test_batch.bin", "test.bin"]
)  # fmt: skip
def test_files_of_terabytes_that_take_no_space(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(3 << 30)
    refused_apart(folder, f"{name}: has {3 << 30} bytes; expected")


@pytest.mark.parametrize("name", ["batches.meta.txt", "batches.meta"])
def test_class_names_of_gigabytes(folder: Path, name: str) -> None:
    if name == "batches.meta":
        (folder / "test_batch").write_bytes(pickle.dumps({"data": np.zeros((10_000, 3072), np.uint8), "labels": [0] * 10_000}, 4))
    else:
        (folder / "test_batch.bin").write_bytes(bytes(3073 * 10_000))
    with (folder / name).open("wb") as file:
        file.truncate(3 << 30)
    refused_apart(folder, f"{name}: has {3 << 30} bytes; expected at most")


# --- idx files

TERABYTES = [(1 << 32) - 1] * 3
IMAGES = b"\0\0\x08\x03" + struct.pack(">3I", 2, 28, 28) + bytes(2 * 28 * 28)
LABELS = b"\0\0\x08\x01" + struct.pack(">I", 2) + bytes(2)


@pytest.mark.parametrize(
    "images",
    [
        b"\0\0\x08\x03" + struct.pack(">3I", *TERABYTES) + bytes(100),
        b"\0\0\x08\x03" + struct.pack(">3I", 1 << 31, 1 << 31, 4),  # 2^64: nothing, to whoever counts in 64 bits
        b"\0\0\x08\x03" + struct.pack(">3I", 0, *TERABYTES[:2]),
        b"\0\0\x08\xff" + b"\xff" * 1020,
        b"\0\0\x08\x00",
        b"\0\0\x08\x03",
        b"\0",
        b"\x1f\x8b",
        b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"a" * (1 << 20),  # a name without end
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\xff\xff",
        gzip.compress(b"", mtime=0) * 50_000,
        gzip.compress(gzip.compress(IMAGES, mtime=0), mtime=0),
        gzip.compress(IMAGES, mtime=0) + gzip.compress(IMAGES, mtime=0),
        gzip.compress(b"", mtime=0),
    ],
    ids=lambda images: f"{len(images)}-{hashlib.sha256(images).hexdigest()[:6]}",
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_hostile_idx_files(folder: Path, images: bytes, suffix: str) -> None:
    (folder / f"t10k-images-idx3-ubyte{suffix}").write_bytes(images)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(LABELS)
    refused(lambda: open_dataset(folder), f"t10k-images-idx3-ubyte{suffix}: ")


# --- folders


@pytest.mark.parametrize("name", ["test_batch", "test_batch.bin", "test.bin", "t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_what_is_no_file(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(name),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    make[kind]()
    refused(lambda: open_dataset(folder), name)


@pytest.mark.parametrize("name", ["batches.meta.txt", "batches.meta"])
def test_class_names_that_are_a_pipe(folder: Path, name: str) -> None:
    """Nobody waits for it; classes are numbered as where there is none."""
    if name == "batches.meta":
        (folder / "test_batch").write_bytes(pickle.dumps({"data": np.zeros((10_000, 3072), np.uint8), "labels": [0] * 10_000}, 4))
    else:
        (folder / "test_batch.bin").write_bytes(bytes(3073 * 10_000))
    os.mkfifo(folder / name)
    with within(10):
        assert open_dataset(folder).class_names == tuple("0123456789")


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32)).save(path, "PNG")


def test_pipes_folders_and_loops_in_place_of_images(folder: Path) -> None:
    """They are passed over, and nothing is opened before it is asked for."""
    image(folder / "a" / "good.png")
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "folder.png").mkdir()
    (folder / "a" / "loop.png").symlink_to("loop.png")
    (folder / "a" / "nothing.png").symlink_to("nowhere.png")
    (folder / "a" / "device.png").symlink_to("/dev/zero")
    (folder / "a" / "round").symlink_to(folder)
    (folder / "a" / "self").symlink_to(".")
    with within(10):
        found = open_dataset(folder)
    assert isinstance(found, FolderDataset)
    assert {file.name for file in found.files} == {"good.png"}
    (folder / "a" / "good.png").unlink()
    refused(lambda: open_dataset(folder), f"{folder / 'a'}: holds no images")


def test_a_class_that_is_the_folder_itself(folder: Path) -> None:
    """A link to a folder is a class like any other; what lies in it is found once and no further."""
    image(folder / "a" / "good.png")
    (folder / "b").symlink_to(folder)
    (folder / "c").symlink_to("c")
    with within(10):
        found = open_dataset(folder)
    assert found.class_names == ("a", "b") and sorted(set(found.labels.tolist())) == [0, 1] and len(found) <= 4


def test_an_image_that_became_a_pipe(folder: Path) -> None:
    image(folder / "a" / "1.png")
    image(folder / "a" / "2.png")
    dataset = open_dataset(folder)
    (folder / "a" / "1.png").unlink()
    os.mkfifo(folder / "a" / "1.png")
    with within(10):
        (batch,) = batches(dataset, [CIFAR], [0, 1], 2)
    assert len(batch.labels) == 1 and "1.png: is a device or pipe" in plain(*batch.refused)


HOSTILE_NAMES = [b"a\nb", b"\x1b[31mred", b"\xff\xfe", "\u202eright".encode(), b"\x9b31m", b" ", b"\r"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_are_not_for_printing(folder: Path, name: bytes) -> None:
    inside = folder / os.fsdecode(name)
    (inside / os.fsdecode(name)).mkdir(parents=True)
    refused(lambda: open_dataset(folder), "holds no images")
    refused(lambda: open_dataset(inside), "holds no images")
    refused(lambda: open_dataset(inside, "train"), "has no folder train")
    broken = inside / os.fsdecode(name + b".png")
    broken.write_bytes(b"no image")
    dataset = open_dataset(folder)
    assert len(dataset) == 1
    refused(lambda: dataset.image(0, CIFAR), "is no image that can be read")
    (batch,) = batches(dataset, [CIFAR], [0], 1)
    assert "is no image that can be read" in plain(*batch.refused)
    for file in ("test_batch", "test_batch.bin", "t10k-images-idx3-ubyte"):
        (inside / file).write_bytes(b"no data")
        refused(lambda: open_dataset(inside), file)
        (inside / file).unlink()


def test_folders_nested_deeper_than_the_stack(folder: Path) -> None:
    """Few readers of folders are written without recursion."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(1_100):
            Path("a").mkdir()
            os.chdir("a")
        os.chdir(folder)
        before = sys.getrecursionlimit()
        with within(20):
            refused(lambda: open_dataset(folder), str(folder))
        assert sys.getrecursionlimit() == before
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", str(folder / "a")], check=True)


def test_images_that_are_bombs(folder: Path) -> None:
    """A few kilobytes that claim 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    (folder / "a").mkdir()
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")
    (folder / "a" / "bomb.png").write_bytes(data)
    dataset = open_dataset(folder)
    refused(lambda: dataset.image(0, CIFAR), "bomb.png: is no image that can be read")


# --- any damage at all

BOUNDED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SMALL = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 300], "names": ["a", "b"], "batch_label": "testing"}
WHOLE = [pickle.dumps(SMALL, protocol) for protocol in (0, 2, 4, 5)]
Changes = list[tuple[int, int, bytes]]
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4)


def changed(data: bytes, changes: Changes) -> bytes:
    """Some bytes taken out at some places and others put in."""
    for place, length, instead in changes:
        at = place % (len(data) + 1)
        data = data[:at] + instead + data[at + length :]
    return data


def survives(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused in one line; any other end fails."""
    with within(10), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read()
        except InputRefused as error:
            plain(str(error))
            return None


@BOUNDED
@given(st.sampled_from(WHOLE), CHANGES)
def test_any_change_to_a_pickle(tmp_path_factory: pytest.TempPathFactory, whole: bytes, changes: Changes) -> None:
    path = tmp_path_factory.getbasetemp() / "changed_pickle"
    path.write_bytes(changed(whole, changes))
    found = survives(lambda: read_arrays(path))
    if found is not None:
        assert isinstance(found, dict) and all(type(key) is str for key in found)
        assert all(value.dtype == np.uint8 and value.nbytes <= 12 for value in found.values() if isinstance(value, np.ndarray))


@BOUNDED
@given(st.booleans(), CHANGES)
def test_any_change_to_an_idx_file(tmp_path_factory: pytest.TempPathFactory, packed: bool, changes: Changes) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed_idx"
    folder.mkdir(exist_ok=True)
    (folder / "t10k-images-idx3-ubyte").write_bytes(changed(gzip.compress(IMAGES, mtime=0) if packed else IMAGES, changes))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(changed(LABELS, changes[:1]))
    found = survives(lambda: open_dataset(folder))
    if found is not None:
        assert found.pixels.shape[1:] == (3, 32, 32) and len(found.pixels) == len(found.labels) and found.labels.max() < 10


def test_what_is_not_changed_is_read(tmp_path: Path) -> None:
    """So that the two above have something to lose."""
    for whole in WHOLE:
        (tmp_path / "file").write_bytes(whole)
        assert read_arrays(tmp_path / "file")["data"].tolist() == SMALL["data"].tolist()  # type: ignore[attr-defined]
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(gzip.compress(IMAGES, mtime=0))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(LABELS)
    assert len(open_dataset(tmp_path)) == 2
