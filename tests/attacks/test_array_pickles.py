"""Pickles of arrays made to run code or to be more than they are: each is refused in one printable line, and nothing else happens."""

from __future__ import annotations

import copyreg
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from cnet_deploy.images.cifar_pickle import read_arrays
from cnet_deploy.images.datasets import open_dataset
from tests.cases import few

from .dataset_files import (
    BYTES,
    DTYPE,
    EMPTY,
    ENCODE,
    NDARRAY,
    RECONSTRUCT,
    array,
    holding,
    laughs,
    long_number,
    refused,
    refused_pickle,
)
from .helpers import within
from .test_pickles import STREAMS, WANTED, Call, assert_live, legacy_container, text

SYSTEM = b"cposix\nsystem\n"


@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("a harmless pickle first", "BUILD on an allowed class")])
def test_every_way_to_call_is_refused_by_name(folder: Path, canary: Path, name: str) -> None:
    data = STREAMS[name](f"touch {canary}")
    assert_live(canary, lambda: pickle.loads(data))
    refused_pickle(folder, data, WANTED.get(name, "posix.system"), "which can run code")
    assert not canary.exists()


@pytest.mark.parametrize("protocol", few([2, 0, 1, 3, 4, 5], 2))
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
)
def test_neighbours_of_the_allowed_names(folder: Path, call: bytes, wanted: str) -> None:
    refused_pickle(folder, call.replace(b"%s", text("any")), wanted)


def test_extensions_that_the_process_knows(folder: Path, canary: Path) -> None:
    """An extension that was used once is kept, and given out without a look at its name."""
    copyreg.add_extension("posix", "system", 77)
    try:
        data = b"\x80\x02\x82\x4d" + text(f"touch {canary}") + b"\x85R."
        assert_live(canary, lambda: pickle.loads(data))
        for form in (data, data.replace(b"\x82\x4d", b"\x83\x4d\x00"), data.replace(b"\x82\x4d", b"\x84\x4d\x00\x00\x00")):
            refused_pickle(folder, form, "the opcode EXT")
    finally:
        copyreg.remove_extension("posix", "system", 77)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"Pposix.system\n.", "persistent"),
        (b"U\x05posixQ.", "persistent"),
        (b"\x80\x05\x97.", "the opcode NEXT_BUFFER"),
        (b"\x80\x05]\x98.", "the opcode READONLY_BUFFER"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"PK\x03\x04" + bytes(40), ""),
    ],
)
def test_opcodes_that_arrays_have_no_use_for(folder: Path, data: bytes, says: str) -> None:
    refused_pickle(folder, data, "is truncated, damaged or not one of CIFAR's Python files", says)


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
}


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
    refused(lambda: open_dataset(folder), " under data; expected bytes of shape [N, 3072]")


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
        (long_number(80_000), "has a label of too many digits"),  # too long to be printed
        (laughs(22), "has a label that is not a whole number"),
        (laughs(22, b"]", b"2\x86"), "has a label that is not a whole number"),
        (b"]q\x00h\x00a", "has a label that is not a whole number"),
        (ENCODE, "has a label that is not a whole number"),
        (EMPTY, "has a label that is not a whole number"),
        (b"U\x05\x1b[31m", "has a label that is not a whole number"),
        (b"\x88", "has a label that is not a whole number"),
        (b"G" + struct.pack(">d", float("nan")), "has a label that is not a whole number"),
    ],
)
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
