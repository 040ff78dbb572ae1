"""No file under a megabyte makes ``inspect`` take the time of forty times WORK more than an honest one (2 s or so), or 500 MB of memory.

Each runs in a process of its own, forked from one without torch. ``pytest -s`` shows the figures.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import pickletools
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

import cnet_deploy
from cnet_deploy.files import digest
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build_random
from tests.cases import exhaustive
from tests.forks import Done, Forks

from .helpers import ARCHITECTURE, REFERENCE, STEM, saved, training_state
from .test_pickles import legacy_container, text

MAX_FILE, MAX_TIMES, MAX_MEMORY = 1 << 20, 40.0, 500 << 20
WORK = json.dumps([1] * 100_000)  # to be read and written again: what a machine's speed is told by
LIGHT = ("cli.inspect", "workflows.inspect", "workflows.plot_groups")  # no torch, whose memory would be theirs


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("light"), modules=LIGHT)
    yield forks
    forks.close()


def cost(light: Forks, *arguments: Path | str, folder: Path) -> Done:
    """``inspect`` in a process of its own, and what it took."""
    done = light.run("inspect", *arguments, cwd=folder, env={"PATH": ""})
    assert done.code >= 0, f"it ended with {done.code}: {done.stderr[-500:]}"
    return done


@functools.cache
def onnx_model() -> bytes:
    proto = helper.make_model(
        helper.make_graph([helper.make_node("Flatten", ["x"], ["y"])], "g", [], []), opset_imports=[helper.make_opsetid("", 17)]
    )
    return bytes(proto.SerializeToString())


# ---- what a file may be filled with -----------------------------------------------------------------------------------


def filled(part: bytes, end: bytes = b".", start: bytes = b"\x80\x02", size: int = MAX_FILE - 1000) -> bytes:
    """A pickle of one part again and again."""
    return start + part * ((size - len(start) - len(end)) // len(part)) + end


def times(count: int, part: bytes, end: bytes = b".", start: bytes = b"\x80\x02") -> bytes:
    return start + part * count + end


MANY = 140_000  # instructions: just under what is looked at


def numbered(count: int, entry: Callable[[int], bytes], start: bytes = b"\x80\x02}(", end: bytes = b"u.") -> bytes:
    return start + b"".join(map(entry, range(count))) + end


def colliding(number: int) -> bytes:
    """A whole number whose hash is 0."""
    value = (number + 1) * ((1 << 61) - 1)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(raw)]) + raw


PAIRS = b"](" + b"K\x01K\x02\x86" * 20_000 + b"eq\x01"
ROW = b"](" + b"K\x01" * 50_000 + b"eq\x01"
AGAIN = b"q\x020" + b"h\x02h\x01\x85R0" * 10_000 + b"}."
SHAPED = b"ctorch._utils\n_rebuild_meta_tensor_no_storage\nctorch\nfloat32\nN\x86R"  # a tensor in few bytes
KEPT = b"\x80\x02" + SHAPED + b"q\x000"
ANCHOR = "features.init_conv.weight"


def shared(levels: int = 8, width: int = 300) -> bytes:
    """A list of one list many times, and so on: few bytes, and more ways through it than there are atoms."""
    base = 200  # of the memo, where a file's own entries are not disturbed
    lists = b"".join(b"(" + bytes([104, base + level]) * width + bytes([108, 113, base + level + 1, 48]) for level in range(levels))
    return bytes([93, 113, base, 48]) + lists + bytes([104, base + levels])


def beside_a_tensor(name: str, value: bytes) -> bytes:
    """A state dict of one tensor, and a value beside it."""
    return b"\x80\x02}" + text("state_dict") + b"}(" + text(ANCHOR) + SHAPED + text(name) + value + b"us."


def arrays_of_one_text(length: int, count: int = 19_000) -> bytes:
    dtype = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85" + dtype
    made += b"\x89X" + struct.pack("<I", length) + b"a" * length + b"tb"
    return numbered(count, lambda n: b"U\x07a.%05dh\x00" % n, b"\x80\x02" + made + b"q\x000}(")


def storages_within(count: int) -> bytes:
    """A pickle of tensors, not of torch.save, whose storages all differ."""
    one = bytes_within(pickle.dumps(torch.zeros(1), 4))
    start = b"\x80\x04U\x78" + b"x" * 120 + b"0ctorch.storage\n_load_from_bytes\nq\x000("
    return numbered(count, lambda n: b"h\x00B" + struct.pack("<I", len(one)) + one[:-4] + struct.pack("<I", n) + b"\x85R", start, b"l.")


def bytes_within(data: bytes) -> bytes:
    return next(value for opcode, value, _ in pickletools.genops(data) if "BINBYTES" in opcode.name)


PICKLES: dict[str, Callable[[], bytes]] = {
    "lists of one list": lambda: beside_a_tensor("extra", shared()),
    "networks by the thousand": lambda: numbered(20_000, lambda n: text(f"p{n:05d}.{ANCHOR}") + b"h\x00", KEPT + b"}("),
    "networks in networks": lambda: KEPT + b"}(" + b"".join(text("a." * n + ANCHOR) + b"h\x00" for n in range(31))
    + numbered(8_000, lambda n: text(f"{'a.' * 31}{n:05d}") + b"h\x00", b""),
    "one name of many words in many dictionaries": lambda: numbered(
        20_000, lambda n: b"U\x05%05d}h\x01h\x00s" % n, KEPT + text("a." * 250_000) + b"q\x010}("
    ),
    "a long key of many dictionaries": lambda: numbered(
        18_000, lambda n: b"U\x05%05d}" % n, b"\x80\x02}" + text("k" * 600_000) + b"}(", b"us."
    ),
    "one shape of many tensors": lambda: legacy_tensors(11_000, 100_000),
    "arrays of one text": lambda: arrays_of_one_text(700_000),
    "marks": lambda: filled(b"("),
    "nothing": lambda: filled(b"N0"),
    "dictionaries": lambda: filled(b"}"),
    "sets": lambda: filled(b"\x8f", start=b"\x80\x04"),
    "copies of the top": lambda: filled(b"2", start=b"\x80\x02N"),
    "lists in lists": lambda: times(MANY // 2, b"]", b"a" * (MANY // 2 - 1) + b"."),
    "memo": lambda: numbered(MANY // 2, lambda n: b"r" + struct.pack("<I", n), b"\x80\x02N", b"."),
    "memo of large numbers": lambda: numbered(MANY // 2, lambda n: b"r" + struct.pack("<I", (1 << 31) + n * 7919), b"\x80\x02N", b"."),
    "names": lambda: times(MANY // 2, b"ctorch\nSize\n0", b"N."),
    "other names": lambda: numbered(40_000, lambda n: b"cevil\nn%d\n0" % n, b"\x80\x02", b"N."),
    "calls": lambda: times(30_000, b"ccollections\nOrderedDict\n)R0", b"}."),
    "calls of one name": lambda: times(MANY // 4, b"h\x01)R0", b"}.", b"\x80\x02ccollections\nOrderedDict\nq\x010"),
    "a number of a megabyte": lambda: b"\x80\x02\x8b" + struct.pack("<i", 1_000_000) + b"\x7f" * 1_000_000 + b".",
    "a number of a megabyte for an epoch": lambda: saved({"state_dict": training_state(), "epoch": 1}, legacy=True).replace(
        text("epoch") + b"q", text("epoch") + b"\x8b" + struct.pack("<i", 900_000) + b"\x7f" * 900_000 + b"0" + b"q", 1
    ),
    "digits": lambda: b"I" + b"9" * 1_000_000 + b"\n.",
    "digits of a long": lambda: b"L" + b"9" * 1_000_000 + b"L\n.",
    "digits in hexadecimal": lambda: b"I0x" + b"f" * 1_000_000 + b"\n.",
    "many numbers of 4,000 digits": lambda: (b"I" + b"9" * 4000 + b"\n0") * 240 + b"N.",
    "digits of a fraction": lambda: b"F" + b"9" * 1_000_000 + b"\n.",
    "escapes": lambda: b"S'" + b"\\x41" * 250_000 + b"'\n.",
    "a text in a list again and again": lambda: b"\x80\x02" + text("x" * 700_000) + b"q\x01](" + b"h\x01" * MANY + b"e.",
    "a text encoded again and again": lambda: b"\x80\x02" + text("x" * 500_000) + b"q\x010c_codecs\nencode\nq\x020"
    + b"](" + b"h\x02h\x01\x85R" * (MANY // 5) + b"e.",
    "a text for a name": lambda: b"\x80\x04\x8c\x05torchX" + struct.pack("<I", 900_000) + b"x" * 900_000 + b"\x93.",
    "a dictionary made of one list again and again": lambda: b"\x80\x02" + PAIRS + b"0ccollections\nOrderedDict\n" + AGAIN,
    "a set made of one list again and again": lambda: b"\x80\x02" + ROW + b"0c__builtin__\nset\n" + AGAIN,
    "keys of one hash": lambda: numbered(60_000, lambda n: colliding(n) + b"N"),
    "elements of one hash": lambda: numbered(60_000, colliding, b"\x80\x04\x8f(", b"\x90."),
    "keys that share keys": lambda: b"\x80\x02}K\x01" + b"q\x01h\x01\x86" * 90 + b"Ns.",
    "keys of a text each": lambda: numbered(60_000, lambda n: b"U\x06%06dN" % n),
    "one long key again and again": lambda: b"\x80\x02}(" + (b"X" + struct.pack("<I", 5000) + b"x" * 5000 + b"N") * 200 + b"u.",
    "bytes that are not there": lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "text that is not there": lambda: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b".",
    "a frame of terabytes": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "frames": lambda: times(100_000, b"\x95" + bytes(8), b"N.", b"\x80\x04"),
    "attributes": lambda: times(MANY // 3, b"}Nb", b".", b"\x80\x02ccollections\nOrderedDict\n)R"),
    "storages": lambda: numbered(20_000, lambda n: b"h\x00(h\x01h\x02U\x05%05dU\x03cpuK\x01NtQ" % n,
                                 b"\x80\x02U\x01xq\x00U\x07storageq\x01ctorch\nFloatStorage\nq\x02}(", b"u."),
    "pickles in a row": lambda: legacy_container(filled(b"N0", size=300_000)) + filled(b"N0", size=300_000) * 2,
    "nonsense": lambda: np.random.default_rng(0).bytes(MAX_FILE - 100),
    "zeros": lambda: bytes(MAX_FILE - 100),
}  # fmt: skip


def zip_of(names: Iterator[str] | list[str], content: bytes = b"", compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name) if compression == zipfile.ZIP_STORED else name, content)
    return buffer.getvalue()


def directory_of(entries: int) -> bytes:
    """Only a directory: all entries lie at one place."""
    whole = zip_of(["data.pkl"], b"N.")
    at, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    entry = whole[at:end].replace(b"data.pkl", b"12345678")
    made = [whole[at:end], *(entry.replace(b"12345678", b"%08d" % number) for number in range(entries))]
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, min(len(made), 65535), min(len(made), 65535), sum(map(len, made)), at, 0)
    return whole[:at] + b"".join(made) + tail


def expanded(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, more: dict[str, Any] | None = None) -> bytes:
    one = torch.ones((1,) * len(shape), dtype=dtype).expand(shape)
    return saved({**training_state(), **{f"x{number}": one for number in range(count)}, **(more or {})})


def masks(mask: torch.Tensor, layers: int = 4, stage: float = 0) -> bytes:
    """A dense block whose layers all have this mask."""
    state: dict[str, Any] = {STEM: torch.ones(8, 3, 3, 3), "classifier.weight": torch.ones(10, 8)}
    for number in range(1, layers + 1):
        name = f"features.denseblock_1.denselayer_{number}"
        state |= {
            f"{name}.conv_1.norm.weight": torch.ones(8), f"{name}.conv_1.conv.weight": torch.ones(8, 8, 1, 1),
            f"{name}.conv_1._mask": mask, f"{name}.conv_1._stage": torch.tensor(stage), f"{name}.conv_1._count": torch.tensor(stage),
            f"{name}.conv_2.conv.weight": torch.ones(4, 4, 3, 3),
        }  # fmt: skip
    return saved({"state_dict": state})


def shifted(rows: int, columns: int) -> torch.Tensor:
    """Each row is the one before, shifted by one: a mask that never repeats, from few numbers."""
    numbers = torch.rand(rows + columns, generator=torch.Generator().manual_seed(0)) > 0.5
    return numbers.as_strided((rows, columns, 1, 1), (1, 1, 1, 1))


def blocks(count: int, layers: int) -> bytes:
    one = torch.ones(1)
    names = (
        f"features.denseblock_{block}.denselayer_{layer}.conv_1.norm.weight"
        for block in range(1, count + 1)
        for layer in range(1, layers + 1)
    )
    return saved({STEM: torch.ones(8, 3, 3, 3)} | dict.fromkeys(names, one), legacy=True)


def long_network() -> bytes:
    """As many layers as a file has room for, every one of them as it should be but the last."""
    arch = Architecture((600,), (4,), group_1x1=2, group_3x3=2, condense_factor=1, classes=10, stem_stride=1, input_size=(32, 32))
    from cnet_deploy.checkpoints.recognise import expected_shapes

    one = torch.ones(1)
    made: dict[tuple[int, ...], torch.Tensor] = {}
    state = {name: made.setdefault(shape, one.expand(shape)) for name, shape in expected_shapes(arch, "training").items()}
    return saved({"state_dict": state}, legacy=True)


def legacy_tensors(count: int, sides: int) -> bytes:
    start = b"\x80\x02(" + b"K\x01" * sides + b"tq\x010(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x01tQq\x020"
    start += b"ctorch._utils\n_rebuild_tensor_v2\nq\x030(h\x02K\x00h\x01h\x01\x89)tq\x050"
    return numbered(count, lambda n: b"U\x07a.%05dh\x03h\x05R" % n, start + b"}(")


def zipped(data: bytes) -> bytes:
    """Gzipped, with so many bytes behind it that as much as possible is unpacked."""
    return gzip.compress(data + np.random.default_rng(0).bytes(MAX_FILE - 180_000))


MAGIC_BY_A_CALL = (
    b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b"q\x000ctorch.nn.parameter\nParameter\nh\x00\x85R."
    + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
)  # fmt: skip
BIG = 25 << 20
CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "a long text, gzipped": lambda: zipped(b"\x80\x02X" + struct.pack("<I", BIG + 4) + "\U0001f600".encode() + b"a" * BIG + b"0N."),
    "a directory of a million entries, gzipped": lambda: gzip.compress(directory_of(300_000)),
    "a directory of a million entries, zipped": lambda: zip_of(["a.pth"], directory_of(250_000), zipfile.ZIP_DEFLATED),
    "tensors by the hundred thousand, gzipped": lambda: zipped(
        safetensors_of(b"{" + b",".join(b'"%d":' % n + ENTRY for n in range(60_000)) + b"}")
    ),
    "metadata of ours, gzipped": lambda: zipped(
        legacy_container(
            b"\x80\x02}" + text("cnet_deploy") + b"X" + struct.pack("<I", BIG // 3 * 3 + 1) + b"[" + b"{}," * (BIG // 3) + b"s."
        )
    ),
    "a dictionary of one list, gzipped": lambda: zipped(b"\x80\x02" + PAIRS + b"0ccollections\nOrderedDict\n" + AGAIN + bytes(BIG)),
    "arrays of one text, gzipped": lambda: zipped(arrays_of_one_text(BIG)),
    "pickles behind a magic number made by a call, gzipped": lambda: zipped(MAGIC_BY_A_CALL + b"\x80\x02" + b"N0" * (BIG // 2) + b"}."),
    "storages in a pickle": lambda: storages_within(3_300),
    "lists of one list for the classes": lambda: saved({"epoch": 1, "state_dict": training_state()}, legacy=True).replace(
        b"X\x0a\x00\x00\x00state_dict", text("classes") + shared() + text("state_dict"), 1
    ),
    "a directory of 16,000 entries": lambda: directory_of(16_000),
    "10,000 empty entries": lambda: zip_of([f"{number:05d}" for number in range(9_900)]),
    "10,000 pickles": lambda: zip_of([f"{number:04d}/data.pkl" for number in range(8_000)]),
    "a bomb": lambda: zip_of(["a/data.pkl"], bytes(900 << 20), zipfile.ZIP_DEFLATED),
    "a bomb of instructions": lambda: zip_of(["a/data.pkl"], b"N0" * (8 << 20), zipfile.ZIP_DEFLATED),
    "a bomb of text": lambda: zip_of(["a/data.pkl"], b"\x80\x02" + text("x" * (15 << 20)) + b".", zipfile.ZIP_DEFLATED),
    "a bomb of a number": lambda: zip_of(["a/data.pkl"], b"\x80\x02\x8b\0\0\xf0\0" + b"\x7f" * (15 << 20) + b".", zipfile.ZIP_DEFLATED),
    "16 MB each": lambda: expanded(1000, (4 << 20,)),
    "16 MB each of small numbers": lambda: expanded(1000, (16 << 20,), torch.uint8),
    "1 MB each of bfloat16": lambda: expanded(1000, (1 << 19,), torch.bfloat16),
    "thousands of views": lambda: saved(dict.fromkeys(map(str, range(9000)), torch.ones(3000)), legacy=True),
    "dimensions": lambda: expanded(1, (1,) * 60),
    "a mask of a million rows": lambda: masks(torch.ones(1, 1, 1, 1).expand(1 << 22, 1, 1, 1), 1),
    "a mask of millions of rows": lambda: masks(torch.ones(1, 1, 1, 1, dtype=torch.bool).expand(1 << 24, 1, 1, 1), 1),
    "hundreds of masks of thousands of rows": lambda: masks(torch.ones(1, 1, 1, 1, dtype=torch.bool).expand(1 << 16, 1, 1, 1), 250),
    "a mask of a million columns": lambda: masks(torch.ones(1, 1, 1, 1).expand(1, 1 << 22, 1, 1), 1),
    "a mask of many divisors": lambda: masks(shifted(55_440, 250), 1),
    "a mask of many divisors and few columns": lambda: masks(shifted(55_440, 1), 250),
    "a mask of many dashes": lambda: masks(shifted(8, 1_000_000), 2),
    "masks that are just drawn": lambda: masks(shifted(8, 40_000), 4),
    "masks that have begun": lambda: masks(shifted(55_440, 250), 1, 1.0),
    "40,000 names of one tensor": lambda: saved(dict.fromkeys(map(str, range(40_000)), torch.ones(1)), legacy=True),
    "20,000 names of one tensor": lambda: saved(dict.fromkeys(map(str, range(20_000)), torch.ones(1)), legacy=True),
    "9,999 layers": lambda: blocks(1, 9999),
    "9,000 blocks": lambda: blocks(9000, 1),
    "a long network": long_network,
}  # fmt: skip


def safetensors_of(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + body


ENTRY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


def described(entries: bytes) -> bytes:
    """A header with these entries as its metadata."""
    return b'{"__metadata__":{' + entries + b'},"a":' + ENTRY + b"}"


SAFETENSORS: dict[str, Callable[[], bytes]] = {
    "empty tensors": lambda: safetensors_of(b"{" + b",".join(b'"%d":' % n + ENTRY for n in range(18_000)) + b"}"),
    "deep": lambda: safetensors_of(b'{"a":' * 170_000 + b"1" + b"}" * 170_000),
    "deep lists": lambda: safetensors_of(b'{"__metadata__":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    "metadata": lambda: safetensors_of(described(b",".join(b'"%06d":""' % n for n in range(80_000)))),
    "our metadata, deep": lambda: safetensors_of(described(b'"cnet_deploy":"' + b"[" * 1_000_000 + b'"')),
    "our metadata, long": lambda: safetensors_of(described(b'"cnet_deploy":"' + b"9" * 1_000_000 + b'"')),
    "a long name": lambda: safetensors_of(b'{"' + b"x" * 1_000_000 + b'":' + ENTRY + b"}"),
    "many dimensions": lambda: safetensors_of(b'{"a":{"dtype":"F32","shape":[' + b"0," * 400_000 + b'0],"data_offsets":[0,0]}}'),
    "escapes": lambda: safetensors_of(b'{"' + b"\\u0000" * 160_000 + b'":' + ENTRY + b"}"),
    "spaces": lambda: safetensors_of(b"{" + b" " * 1_000_000 + b"}"),
}  # fmt: skip


def field(number: int, content: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    made = b""
    while value > 127:
        made, value = made + bytes([value & 127 | 128]), value >> 7
    return made + bytes([value])


def told(architecture: bytes) -> bytes:
    """A model's metadata with this as its architecture."""
    return field(PROPS, field(1, b"cnet_deploy.architecture") + field(2, architecture))


GRAPH, NODE, INITIALIZER, OPSET, PROPS = 7, 1, 5, 8, 14
ROOM = MAX_FILE - 2000


def graph_of(content: bytes) -> bytes:
    """A model with these fields in its graph, beside one honest node."""
    return onnx_model() + field(GRAPH, content)


def subgraphs(depth: int) -> bytes:
    made = b""
    for _ in range(depth):
        made = field(NODE, field(5, field(6, made)))  # node.attribute.g
    return graph_of(made)


ONNX: dict[str, Callable[[], bytes]] = {
    "empty nodes": lambda: graph_of(field(NODE, b"") * (ROOM // 2)),
    "nodes of many kinds": lambda: graph_of(b"".join(field(NODE, field(4, b"%05x" % n)) for n in range(100_000))),
    "empty initializers": lambda: graph_of(field(INITIALIZER, b"") * (ROOM // 2)),
    "giant tensors": lambda: graph_of(b"".join(field(INITIALIZER, b"\x08" + varint(1 << 62) + b"\x10\x01") for _ in range(50_000))),
    "tensors of dimensions": lambda: graph_of(field(INITIALIZER, field(1, b"\x01" * (ROOM - 100)))),
    "numbers of a tensor": lambda: graph_of(field(INITIALIZER, field(5, b"\x01" * (ROOM - 100)))),
    "a tensor elsewhere": lambda: graph_of(field(INITIALIZER, b"\x70\x01" + field(13, field(1, b"location") + field(2, b"/etc/passwd")))),
    "strings": lambda: graph_of(field(INITIALIZER, field(6, b"") * (ROOM // 2 - 100))),
    "subgraphs": lambda: subgraphs(15),
    "deep subgraphs": lambda: subgraphs(3000),
    "opsets": lambda: onnx_model() + field(OPSET, b"") * (ROOM // 2),
    "opsets of many names": lambda: onnx_model() + b"".join(field(OPSET, field(1, b"%06x" % n)) for n in range(60_000)),
    "metadata": lambda: onnx_model() + field(PROPS, b"") * (ROOM // 2),
    "metadata of ours": lambda: onnx_model() + b"".join(field(PROPS, field(1, b"cnet_deploy.%05x" % n)) for n in range(45_000)),
    "an architecture without end": lambda: onnx_model() + told(b"[" * (ROOM - 100)),
    "an architecture of stages": lambda: onnx_model() + told(json.dumps({"stages": [1] * 9_999, "growth": [4] * 9_999}).encode()),
    "an architecture of layers": lambda: onnx_model() + told(json.dumps({"stages": [9_999], "growth": [4]}).encode()),
    "a producer": lambda: onnx_model() + field(2, b"\x1b" * (ROOM - 100)),
    "fields that nobody knows": lambda: onnx_model() + b"".join(varint(1000 << 3) + b"\x01" for _ in range(300_000)),
    "groups that nobody knows": lambda: onnx_model() + varint(1000 << 3 | 3) * 500_000,
}  # fmt: skip


@functools.cache
def honest_manifest() -> str:
    with tempfile.TemporaryDirectory() as folder:
        out = cnet_deploy.export(build_random(ARCHITECTURE), "onnx", Path(folder) / "m.onnx")
        return Path(f"{out.path}.json").read_text()


def manifest_of(**changes: Any) -> bytes:
    """A manifest that fits its artifact (4 bytes) in everything else."""
    whole = json.loads(honest_manifest()) | {"target": "native", "sha256": digest(b"\x7fELF"), "bytes": 4} | changes
    return json.dumps(whole).encode()


def with_details(details: bytes) -> bytes:
    return manifest_of(details={"x": "DETAILS"}).replace(b'{"x": "DETAILS"}', details)


BULK = MAX_FILE - 10_000
MANIFESTS: dict[str, Callable[[], bytes]] = {
    "deep": lambda: with_details(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "as deep as JSON is read": lambda: with_details(b'{"a":' * 900 + b"1" + b"}" * 900),
    "rather deep": lambda: with_details(b'{"a":' + b"[" * 300 + b"]" * 300 + b"}"),
    "giant numbers": lambda: with_details(b'{"a": [' + b",".join([b"9" * 4200] * 240) + b"]}"),
    "digits": lambda: with_details(b'{"a": ' + b"9" * BULK + b"}"),
    "a long text": lambda: with_details(b'{"a": "' + b"x" * BULK + b'"}'),
    "a long text of controls": lambda: with_details(b'{"a": "' + b"\\u001b" * (BULK // 6) + b'"}'),
    "many keys": lambda: with_details(b"{" + b",".join(b'"%06d":1' % n for n in range(BULK // 11)) + b"}"),
    "many empty lists": lambda: with_details(b'{"a": [' + b",".join([b"[]"] * (BULK // 3)) + b"]}"),
    "many numbers": lambda: with_details(b'{"a": [' + b",".join([b"1"] * (BULK // 2)) + b"]}"),
    "many fractions": lambda: with_details(b'{"a": [' + b",".join([b"1e9"] * (BULK // 4)) + b"]}"),
    "many comparisons": lambda: manifest_of(verification=[{}] * (BULK // 4)),
    "many libraries": lambda: manifest_of(libraries={str(n): "" for n in range(BULK // 14)}),
    "stages": lambda: manifest_of(architecture=ARCHITECTURE.to_dict() | {"stages": [1] * 100_000, "growth": [4] * 100_000}),
    "layers": lambda: manifest_of(architecture=ARCHITECTURE.to_dict() | {"stages": [9_997, 1, 1]}),
    "a proof": lambda: manifest_of(proof={"logits": [[0] * (BULK // 4)]}),
    "spaces": lambda: b" " * BULK + manifest_of(),
}  # fmt: skip

_MAKERS = {"legacy": PICKLES, "file": CHECKPOINTS, "safetensors": SAFETENSORS, "onnx": ONNX, "manifest": MANIFESTS}
FILES = {"safetensors": "model.safetensors", "onnx": "model.onnx", "manifest": "model.so"}
PLOT = ("--plot", "groups.svg")
OPTIONS: dict[str, list[tuple[str, ...]]] = {
    "legacy": [()], "file": [PLOT], "safetensors": [()], "onnx": [(), ("--json",)], "manifest": [(), ("--json",)]
}  # fmt: skip
WHOLE = int(os.environ.get("CNET_KILLS", "2")) >= 100  # as `make attack` has it: each file in every way in which it may be looked at


def ways(kind: str, number: int) -> Sequence[tuple[str, ...]]:
    """All of them; or, in the suite, one of them in turn."""
    return OPTIONS[kind] if WHOLE else [OPTIONS[kind][number % len(OPTIONS[kind])]]


ATTACKS = [
    pytest.param(kind, name, options, marks=[exhaustive] if number % 12 else [])
    for kind, makers in _MAKERS.items()
    for number, name in enumerate(makers)
    for options in ways(kind, number)
]


@pytest.fixture(scope="module")
def honest(light: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Seconds of an honest small file of each kind, looked at as hostile ones are, the fewest of three."""
    folder = tmp_path_factory.mktemp("honest")
    (folder / "m.onnx").write_bytes(onnx_model())
    (folder / "m.so").write_bytes(b"\x7fELF")
    (folder / "m.so.json").write_bytes(manifest_of())
    files = {"checkpoint": (REFERENCE,), "file": (REFERENCE, *PLOT), "onnx": (folder / "m.onnx",), "manifest": (folder / "m.so",)}
    found = {}
    for kind, arguments in files.items():
        costs = [cost(light, *arguments, folder=folder) for _ in range(3)]
        assert not any(done.code for done in costs), costs[0]
        found[kind] = min(done.processor for done in costs)
    return found


def work() -> float:
    """Seconds of processor time that WORK takes now."""
    begun = time.process_time()
    json.dumps(json.loads(WORK), indent=1)
    return time.process_time() - begun


@pytest.mark.parametrize(("kind", "name", "options"), ATTACKS, ids=lambda part: " ".join(part) if isinstance(part, tuple) else part)
def test_time_and_memory_are_bounded(
    tmp_path: Path, light: Forks, honest: dict[str, float], kind: str, name: str, options: tuple[str, ...]
) -> None:  # fmt: skip
    content = _MAKERS[kind][name]()
    content = legacy_container(content) if kind == "legacy" else content
    assert len(content) < MAX_FILE
    file = FILES.get(kind, "checkpoint.pth.tar")
    (tmp_path / file).write_bytes(b"\x7fELF" if kind == "manifest" else content)
    if kind == "manifest":
        (tmp_path / f"{file}.json").write_bytes(content)
    for _ in range(3):  # the fewest of three, as for an honest file: what else the machine does only adds to it
        unit = work()
        done = cost(light, file, *options, folder=tmp_path)
        beyond, memory, said = done.processor - honest.get(kind, honest["checkpoint"]), done.memory, done.stdout + done.stderr
        if (ratio := beyond / unit) < MAX_TIMES:
            break
    print(
        f"\n{beyond:6.2f} s {ratio:6.1f} times {memory / (1 << 20):5.0f} MB  exit {done.code}  {kind}: {name} {' '.join(options)} | "
        f"{said.strip()[:100]}"
    )
    assert done.code in (0, 4), said[-500:]
    assert memory < MAX_MEMORY and ratio < MAX_TIMES
