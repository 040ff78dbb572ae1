"""Pickles that run code when they are loaded the trusting way. Each is shown to be live first; its canary stays unborn.

Nothing in a pickle is called. Where code stands beside the weights, the weights are read and `inspect` names it; among them, it is refused.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import pickletools
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import cnet_deploy as cd

from .helpers import REFERENCE, one_line, refused, refused_checkpoint, run_apart, saved, training_state, written

COMMANDS = {
    "inspect": lambda path: ("inspect", path),
    "convert": lambda path: ("convert", path),
    "export": lambda path: ("export", path, "--onnx"),
    "verify": lambda path: ("verify", path, REFERENCE),
}


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def touch(canary: Path) -> Call:
    return Call(os.system, f"touch {canary}")


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def legacy_container(stream: bytes) -> bytes:
    """The row of pickles that torch's legacy reader wants: magic number, protocol, system, the object, keys of storages."""
    return b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {})) + stream + pickle.dumps([], 2)


def short(value: str) -> bytes:
    """SHORT_BINUNICODE, of protocol 4."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


SYSTEM = b"cposix\nsystem\n"
# Every way in which a pickle calls something: opcodes around a shell command.
STREAMS: dict[str, Callable[[str], bytes]] = {
    "REDUCE": lambda command: SYSTEM + text(command) + b"\x85R.",
    "INST": lambda command: b"(S'" + command.encode() + b"'\niposix\nsystem\n.",
    "OBJ": lambda command: b"(csubprocess\ngetoutput\n" + text(command) + b"o.",
    "NEWOBJ": lambda command: b"\x80\x02cbuiltins\nbytes\ncbuiltins\nmap\n" + SYSTEM + b"]" + text(command) + b"a\x86\x81\x85\x81.",
    "BUILD": lambda command: b"\x80\x02cargparse\nNamespace\n)\x81}" + text("__setstate__") + SYSTEM + b"sb" + text(command) + b"b.",
    "BUILD on an allowed class": lambda command: b"\x80\x02ccollections\nOrderedDict\n)R}"
    + text("__setstate__") + SYSTEM + b"sb" + text(command) + b"b.",
    "eval": lambda command: b"c__builtin__\neval\n" + text(f"__import__('os').system({command!r})") + b"\x85R.",
    "getattr chain": lambda command: b"cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text("os") + b"\x85R"
    + text("system") + b"\x86R" + text(command) + b"\x85R.",
    "STACK_GLOBAL": lambda command: b"\x80\x04" + short("posix") + short("system") + b"\x93" + text(command) + b"\x85R.",
    "STACK_GLOBAL from the memo": lambda command: b"\x80\x04]\x94" + short("posix") + b"\x94" + short("system") + b"\x94000h\x01h\x02\x93"
    + text(command) + b"\x85R.",
    "STACK_GLOBAL behind a decoy": lambda command: b"\x80\x04" + short("posix") + short("system") + short("torch")
    + short("FloatStorage") + b"00\x93" + text(command) + b"\x85R.",
    "a harmless pickle first": lambda command: pickle.dumps(1) + SYSTEM + text(command) + b"\x85R.",
}  # fmt: skip
WANTED = {"OBJ": "subprocess.getoutput", "NEWOBJ": "builtins.map", "eval": "__builtin__.eval", "getattr chain": "builtins.getattr"}


def beside(code: bytes, data: bytes) -> bytes:
    """A checkpoint of torch.save with the object of a pickle (``code``) as one more entry, "args", of its dictionary."""
    body = code.removeprefix(b"\x80\x02").removeprefix(b"\x80\x04")[:-1]
    entry = text("args") + body + b"s."
    if data[:2] != b"PK":
        parts, stream = [], io.BytesIO(data)
        for _ in range(5):
            start = stream.tell()
            list(pickletools.genops(stream))
            parts.append(data[start : stream.tell()])
        return b"".join([*parts[:3], parts[3][:-1] + entry, parts[4], data[stream.tell() :]])
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for item in old.infolist():
            content = old.read(item)
            new.writestr(item, content[:-1] + entry if item.filename.endswith("/data.pkl") else content)
    return out.getvalue()


def assert_live(canary: Path, load: Callable[[], object]) -> None:
    """The attack works where nobody guards: else its refusal shows nothing."""
    load()
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize("name", STREAMS)
def test_every_way_to_call_is_refused_by_name(folder: Path, canary: Path, name: str) -> None:
    """Where there is nothing but the call."""
    data = STREAMS[name](f"touch {canary}")
    stream = io.BytesIO(data)
    loads = 2 if name.startswith("a harmless") else 1
    assert_live(canary, lambda: [pickle.load(stream) for _ in range(loads)])
    says = ("a text file",) if name == "INST" else (WANTED.get(name, "posix.system"), "expected a state dict", "nothing of it was run")
    refused_checkpoint(written(folder, data), *says)
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
@pytest.mark.parametrize("name", [name for name in STREAMS if name not in ("a harmless pickle first", "STACK_GLOBAL from the memo")])
def test_every_way_to_call_beside_the_weights_is_left_inert(folder: Path, canary: Path, name: str, legacy: bool) -> None:
    """The weights are read, nothing is called, and `inspect` says what would have run."""
    code = STREAMS[name](f"touch {canary}")
    path = written(folder, beside(code, saved({"state_dict": training_state()}, legacy=legacy)))
    assert_live(canary, lambda: torch.load(path, weights_only=False))
    inspection = cd.inspect(path)
    wanted = WANTED.get(name, "posix.system")
    assert {one.name for one in inspection.inert if one.runs_code} >= {wanted}
    assert f"{wanted} (WOULD RUN CODE" in inspection.summary()
    assert all(torch.equal(value, training_state()[key]) for key, value in cd.load(path).state_dict().items())
    assert not canary.exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
def test_code_deep_inside_a_real_state_dict(folder: Path, canary: Path, legacy: bool, command: str) -> None:
    data = saved({"epoch": 1, "state_dict": training_state(**{"features.evil": {"deeper": [touch(canary)]}})}, legacy=legacy)
    assert_live(canary, lambda: torch.load(io.BytesIO(data), weights_only=False))
    path = written(folder, data)
    refused(*COMMANDS[command](path), file=path, says=("posix.system",))
    assert not canary.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_bare_pickles_of_every_protocol(folder: Path, canary: Path, protocol: int) -> None:
    data = pickle.dumps({"state_dict": {"w": touch(canary)}}, protocol)
    assert_live(canary, lambda: pickle.loads(data))
    refused_checkpoint(written(folder, data), "posix.system")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "model.pt", "model"])
def test_code_under_another_suffix(folder: Path, canary: Path, name: str) -> None:
    path = written(folder, saved(touch(canary)), name)
    refused("inspect", path)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["images.bin", "image.png"])
def test_code_in_place_of_images(folder: Path, canary: Path, name: str) -> None:
    path = written(folder, saved(touch(canary)), name)
    refused("convert", REFERENCE, "--images", path, "-o", folder / "out.safetensors", file=path)
    assert not canary.exists()


def test_the_legacy_tar_container(folder: Path, canary: Path) -> None:
    path = folder / "checkpoint.pth.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(touch(canary))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    refused_checkpoint(path, "is a tar archive", "tar xf")
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "zip"])
def test_a_whole_pickled_module(tmp_path: Path, legacy: bool) -> None:
    path = written(tmp_path, saved(nn.Linear(2, 2), legacy=legacy))
    refused_checkpoint(path, "whole pickled module", "torch.nn.modules.linear.Linear", "state_dict()")


def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.trace(nn.ReLU(), torch.zeros(1)), str(path))
    refused_checkpoint(path, "is a TorchScript program", "expected a checkpoint", "state_dict()")


@pytest.mark.parametrize("name", ["args", "features.args"])
def test_objects_among_the_weights(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, {"state_dict": training_state(**{name: argparse.Namespace(lr=0.1)})})
    refused_checkpoint(path, name, "argparse.Namespace", "expected a state dict")


@pytest.mark.parametrize("attribute", ["items", "get", "keys"])
def test_attributes_that_hide_a_dictionary_method(tmp_path: Path, attribute: str) -> None:
    """BUILD fills the ``__dict__`` of an OrderedDict, which torch's own reader allows."""
    data = b"\x80\x02ccollections\nOrderedDict\n)R(" + text("state_dict") + b"K\x01u}" + text(attribute) + b"K\x01sb."
    refused_checkpoint(written(tmp_path, legacy_container(data)), "expected a state dict")


def test_attributes_that_hide_a_tensor_method(tmp_path: Path) -> None:
    weight = torch.zeros(8, 3, 3, 3)
    weight.detach = 1  # type: ignore[method-assign, assignment]
    loaded = cd.load(written(tmp_path, training_state(**{"features.init_conv.weight": weight})))
    assert torch.equal(loaded.state_dict()["features.init_conv.weight"], torch.zeros(8, 3, 3, 3))


@pytest.mark.parametrize("depth", [500, 5_000, 1_000_000])
def test_a_key_nested_deeper_than_the_stack(tmp_path: Path, depth: int) -> None:
    """Hashing a tuple recurses in C; in a process of its own, since it may take the process down."""
    path = written(tmp_path, legacy_container(b"\x80\x02})" + b"\x85" * depth + b"K\x01s."))
    done = run_apart("inspect", path)
    assert done.returncode == 4, (done.returncode, done.stderr[-300:])
    one_line(done.stderr)


@pytest.mark.parametrize("length", [2_000, 60_000])
def test_a_long_name_neither_floods_nor_stalls(tmp_path: Path, length: int) -> None:
    """torch's own message searches the name with a regular expression whose time is quadratic in its length."""
    stream = b"\x80\x02cposix\n" + b"s" * length + b"\n)R."
    refused("convert", written(tmp_path, stream), says=(f"a name of {length + 6} characters",), seconds=2)


@pytest.mark.parametrize("name", [b"posix\nsys\x1b[31mtem\n", b"po\x9bsix\nsystem\n", "pos\u202eix\nsystem\n".encode()])
def test_control_characters_in_a_wanted_name(tmp_path: Path, name: bytes) -> None:
    refused_checkpoint(written(tmp_path, b"c" + name + b")R."))


@pytest.mark.parametrize("container", ["bare", "zip", "twice"])
def test_code_in_a_file_within_a_pickle(folder: Path, canary: Path, container: str) -> None:
    """torch.storage._load_from_bytes loads bytes of the pickle the usual way: `inspect` looks into them."""
    inner = saved(touch(canary))
    inner = saved(Call(torch.storage._load_from_bytes, inner)) if container == "twice" else inner
    whole = {"state_dict": training_state(), "args": Call(torch.storage._load_from_bytes, inner)}
    data = saved(whole) if container != "bare" else pickle.dumps({**whole, "state_dict": {"a.b": 1}})
    assert_live(canary, lambda: torch.load(io.BytesIO(data), weights_only=False) if container != "bare" else pickle.loads(data))
    path = written(folder, data)
    if container == "bare":
        refused_checkpoint(path)
    else:
        wanted = "torch.storage._load_from_bytes" if container == "twice" else "posix.system"
        assert (wanted, True) in [(one.name, one.runs_code) for one in cd.inspect(path).inert]
    assert not canary.exists()


def test_a_magic_number_that_is_made_by_a_call(tmp_path: Path) -> None:
    """Only where the scan sees the magic number does it look at all of a file's pickles."""
    number = b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
    first = number + b"q\x000ctorch.nn.parameter\nParameter\nh\x00\x85R."
    rest = pickle.dumps(1001, 2) + pickle.dumps({}, 2) + b"\x80\x02" + b"N0" * 100_000 + SYSTEM + b"." + pickle.dumps([], 2)
    refused_checkpoint(written(tmp_path, first + rest), "does not begin as files of torch.save do")


def test_a_tensor_that_is_changed_after_it_was_built(tmp_path: Path) -> None:
    """BUILD with four values would make it another view of another storage, here one of zeros."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2), "b": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue()
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x02NtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02\x85K\x01\x85\x89NtR"
    stream = b"\x80\x02}" + text("a") + tensor + b"(" + storage + b"K\x01K\x01\x85K\x01\x85tbs."
    content = legacy_container(stream)[: -len(pickle.dumps([], 2))] + pickle.dumps(["0"], 2) + data[-16:]
    refused_checkpoint(written(tmp_path, content), "a tensor is changed after it was built")
