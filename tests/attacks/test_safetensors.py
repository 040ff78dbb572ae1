"""Safetensors files whose header lies about its tensors, or whose metadata lies about the network."""

from __future__ import annotations

import copy
import functools
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cnet_deploy.checkpoints.load import load
from cnet_deploy.checkpoints.metadata import METADATA_KEY, own_metadata
from cnet_deploy.models.build import build

from .helpers import ARCHITECTURE, group_conv_state, refused, training_state, written

NAME = "model.safetensors"


def file_of(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    """Length, header and body, whatever they claim."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


HEADERS = {
    "shorter than a length": b"abc",
    "length 0": file_of(b""),
    "length of exabytes": file_of({}, length=1 << 63),
    "length beyond the file": file_of({"a": entry()}, length=1000),
    "no tensor": file_of({}),
    "no JSON": file_of(b"{not json}"),
    "a list": file_of([1, 2]),
    "deeply nested": file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "no UTF-8": file_of(b'{"\xff\xfe": 1}'),
    "overlapping offsets": file_of({"a": entry(), "b": entry()}, bytes(4)),
    "offsets with a hole": file_of({"a": entry(), "b": entry(data_offsets=[8, 12])}, bytes(12)),
    "offsets backwards": file_of({"a": entry(data_offsets=[4, 0])}, bytes(4)),
    "offsets beyond the file": file_of({"a": entry(shape=[1 << 40], data_offsets=[0, 1 << 42])}, bytes(4)),
    "negative shape": file_of({"a": entry(shape=[-1])}, bytes(4)),
    "shape that overflows": file_of({"a": entry(shape=[1 << 62, 1 << 62])}, bytes(4)),
    "shape that is no list": file_of({"a": entry(shape="1")}, bytes(4)),
    "unknown type": file_of({"a": entry(dtype="\x1b[31mF32\n")}, bytes(4)),
    "type without a tensor in torch": file_of({"a": entry(dtype="F6_E2M3", shape=[16], data_offsets=[0, 12])}, bytes(12)),
    "metadata that is a list": file_of({"__metadata__": [1], "a": entry()}, bytes(4)),
    "name with an escape": file_of({"\x1b[31m\nfeatures": entry()}, bytes(4)),
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("command", ["inspect", "convert"])
def test_headers_that_lie(tmp_path: Path, kind: str, command: str) -> None:
    arguments = ("-o", tmp_path / "out.safetensors") if command == "convert" else ()
    refused(command, written(tmp_path, HEADERS[kind], NAME), *arguments)


@functools.cache
def _honest() -> str:
    """The metadata that the package writes itself, as JSON."""
    return own_metadata(build(ARCHITECTURE, "training"))


def with_metadata(folder: Path, own: Any) -> Path:
    """A training checkpoint of ours with this metadata."""
    text = own if isinstance(own, str) else json.dumps(own)
    return written(folder, safetensors.torch.save(training_state(), {METADATA_KEY: text}), NAME)


def changed(part: str, key: str | None, value: Any) -> dict[str, Any]:
    own = copy.deepcopy(json.loads(_honest()))
    if key is None:
        own[part] = value
    else:
        own[part][key] = value
    return own


def test_honest_metadata_loads(tmp_path: Path) -> None:
    assert load(with_metadata(tmp_path, json.loads(_honest()))).form == "training"


@pytest.mark.parametrize(
    "own", ["", "{", "5", "null", "[" * 100_000, "9" * 5000, {"version": 1}, {"version": 99}], ids=lambda own: str(own)[:20]
)
def test_metadata_that_is_not_ours(tmp_path: Path, own: Any) -> None:
    path = with_metadata(tmp_path, own)
    refused("convert", path, "-o", tmp_path / "out.safetensors", file=path)


INFINITY = float("inf")
LIES = [
    ("form", None, "group-conv"),
    ("architecture", None, []),
    ("architecture", "growth", [4, 4, 8]),
    ("architecture", "classes", 100),
    ("architecture", "condense_factor", 4),
    ("architecture", "kind", "densenet"),
    ("architecture", "kind", {"\x1b[31m": 1}),
    ("architecture", "stages", [0] * 100_000),
    ("architecture", "stages", [10**400, 1, 1]),
    ("architecture", "classifier_keep", float("nan")),
    ("architecture", "input_size", [1 << 23, 1 << 23]),
    ("architecture", "stem_stride", 1 << 20),
    ("architecture", "\x1b[31m\n", 1),
    ("preprocessing", None, 5),
    ("preprocessing", "crop", [INFINITY, 1]),
    ("preprocessing", "resize", INFINITY),
    ("preprocessing", "resize", -5),
    ("preprocessing", "mean", [10**400] * 3),
    ("preprocessing", "mean", "\x1b[31mabc"),
    ("preprocessing", "std", [0, 0, 0]),
    ("preprocessing", "std", [float("nan")] * 3),
    ("source", None, []),
    ("source", "form", "other"),
    ("class_names", None, ["a"]),
    ("class_names", None, [""] * 10),
    ("training", None, 5),
    ("training", None, {"class_names": ["\x1b[31m"]}),
    ("source", "name", 5),
]


@pytest.mark.parametrize(("part", "key", "value"), LIES, ids=lambda part: repr(part)[:24])
def test_metadata_that_the_tensors_belie(tmp_path: Path, part: str, key: str | None, value: Any) -> None:
    path = with_metadata(tmp_path, changed(part, key, value))
    refused("convert", path, "-o", tmp_path / "out.safetensors", file=path)


@pytest.mark.parametrize("key", ["form", "\x1b[2J", "x\nform"])
def test_what_inspect_prints_of_foreign_metadata(tmp_path: Path, key: str) -> None:
    from click.testing import CliRunner

    from cnet_deploy.cli import main

    path = written(tmp_path, safetensors.torch.save(group_conv_state(), {key: "training\nform: training\x1b[31m" + "x" * 5000}), NAME)
    result = CliRunner().invoke(main, ["inspect", str(path)], color=True)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.removesuffix("\n").split("\n")
    assert all(line.isprintable() and len(line) <= 1000 for line in lines)
    assert not [line for line in lines if line == "form: training"]


def test_an_index_that_is_not_whole(tmp_path: Path) -> None:
    state = group_conv_state(**{"classifier.index": torch.arange(10, dtype=torch.float32)})
    path = written(tmp_path, safetensors.torch.save(state), NAME)
    refused("convert", path, "-o", tmp_path / "out.safetensors", file=path, says=("expected whole numbers",))
