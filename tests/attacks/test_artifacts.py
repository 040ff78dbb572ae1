"""ONNX files that are damaged, that reach for other files or that lie, and manifests that belong to something else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import cnet_deploy
from cnet_deploy.models.build import build_random
from tests.cases import few, long

from .helpers import ARCHITECTURE, group_conv_state, refused, run_apart, written

Proto = onnx.ModelProto


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """A whole artifact and its manifest."""
    out = tmp_path_factory.mktemp("whole") / "model.onnx"
    cnet_deploy.export(build_random(ARCHITECTURE), "onnx", out)
    return out.read_bytes(), json.loads(Path(f"{out}.json").read_text())


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """The model that the artifacts claim to come from."""
    folder = tmp_path / "reference"
    folder.mkdir()
    return written(folder, group_conv_state())


def artifact(folder: Path, content: bytes | Proto, manifest: Any = None) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    if manifest is not None:
        Path(f"{path}.json").write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    return path


def test_the_whole_artifact_verifies(folder: Path, reference: Path, exported: tuple[bytes, dict[str, Any]]) -> None:
    assert all(comparison.passed for comparison in cnet_deploy.verify(artifact(folder, *exported), reference))


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("content", [b"\x08\x07garbage", b"just some text\n", bytes(1000), b"\xff" * 1000, b"PK\x03\x04", b"{}"])
def test_garbage(folder: Path, reference: Path, command: str, content: bytes) -> None:
    path = artifact(folder, content)
    refused(command, path, *([reference] if command == "verify" else []))


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.7, 0.999])
def test_truncations(folder: Path, reference: Path, exported: tuple[bytes, dict[str, Any]], command: str, part: float) -> None:
    path = artifact(folder, exported[0][: int(part * len(exported[0]))])
    refused(command, path, *([reference] if command == "verify" else []))


def external(model: bytes, location: str) -> Proto:
    """The model with its first weight moved into another file."""
    proto = onnx.load_model_from_string(model)
    weight = proto.graph.initializer[0]
    size = len(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(size)}.items():
        weight.external_data.add(key=key, value=value)
    return proto


@pytest.mark.parametrize(
    "location", few(["../secret", "link", "/etc/passwd", "{folder}/../secret", "beside", "../../../../../../etc/passwd"], 3)
)
def test_weights_in_other_files(folder: Path, reference: Path, exported: tuple[bytes, dict[str, Any]], location: str) -> None:
    """An artifact is one file: its digest says nothing of others, and what they hold is none of its business."""
    secret = os.urandom(1 << 16)
    (folder.parent / "secret").write_bytes(secret)
    (folder / "beside").write_bytes(secret)
    (folder / "link").symlink_to(folder.parent / "secret")
    refused("verify", artifact(folder, external(exported[0], location.format(folder=folder))), reference)


def described(model: bytes, **changes: str) -> Proto:
    """The model with other metadata inside."""
    proto = onnx.load_model_from_string(model)
    for entry in proto.metadata_props:
        entry.value = changes.get(entry.key.removeprefix("cnet_deploy."), entry.value)
    return proto


PREPROCESSING = {"statistics": "x", "mean": [0, 0, 0], "std": [1, 1, 1], "resize": None, "crop": [32, 32]}
BAD_METADATA = {
    "no JSON": "{",
    "deeply nested": "[" * 100_000,
    "a number": "5",
    "a list": "[1]",
    "escapes": '{"\\u001b[31m\\n": 1}',
    "digits without end": "9" * 5000,
    "infinite": json.dumps(PREPROCESSING | {"crop": [float("inf"), 1]}),
}


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("key", ["architecture", "preprocessing"])
@pytest.mark.parametrize("kind", BAD_METADATA)
def test_metadata_inside_that_is_none(
    folder: Path, reference: Path, exported: tuple[bytes, dict[str, Any]], command: str, key: str, kind: str
) -> None:
    path = artifact(folder, described(exported[0], **{key: BAD_METADATA[kind]}))
    refused(command, path, *([reference] if command == "verify" else []))


@pytest.mark.parametrize("change", [{"classes": 100}, {"input_size": [64, 64]}, {"classifier_keep": 1e-9}], ids=str)
def test_an_architecture_that_the_graph_belies(
    folder: Path, reference: Path, exported: tuple[bytes, dict[str, Any]], change: dict[str, Any]
) -> None:
    lie = json.dumps(exported[1]["architecture"] | change)
    refused("verify", artifact(folder, described(exported[0], architecture=lie)), reference)


def graph(nodes: list[onnx.NodeProto], *, inputs: tuple[Any, ...] = ("N", 3, 32, 32), **constants: list[int]) -> Proto:
    return helper.make_model(
        helper.make_graph(
            nodes, "graph",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, inputs)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
            [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip


node = helper.make_node
GRAPHS: dict[str, Callable[[], Proto]] = {
    "no nodes": lambda: graph([]),
    "unknown operator": lambda: graph([node("\x1b[31mEvil\n", ["input"], ["logits"], name="a\nb\x1b[2J")]),
    "another output": lambda: graph([node("Flatten", ["input"], ["logits"])]),
    "input of terabytes": lambda: graph([node("Flatten", ["input"], ["logits"])], inputs=("N", 3, 1 << 30, 1 << 30)),
    "negative input": lambda: graph([node("Flatten", ["input"], ["logits"])], inputs=("N", 3, -1, 32)),
    "fails as it runs": lambda: graph(
        [node("Shape", ["input"], ["n"]), node("Reshape", ["input", "n2"], ["x"]), node("Reshape", ["x", "n2"], ["logits"])], n2=[-1, 10]
    ),
    "output of terabytes": lambda: graph([node("ConstantOfShape", ["n"], ["logits"])], n=[1 << 40, 10]),
    "output of other rows": lambda: graph([node("ConstantOfShape", ["n"], ["logits"])], n=[7, 10]),
}


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_that_are_no_network(folder: Path, reference: Path, kind: str) -> None:
    refused("verify", artifact(folder, GRAPHS[kind]()), reference)


@long
def test_the_runtime_adds_no_lines_of_its_own(folder: Path, reference: Path) -> None:
    """onnxruntime logs to the process's stderr, which only a process of its own shows."""
    done = run_apart("verify", artifact(folder, GRAPHS["output of terabytes"]()), reference)
    assert done.stderr.count("\n") == 1, done.stderr[:500]


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "of another artifact": lambda whole: whole | {"sha256": "0" * 64},
    "escapes for a digest": lambda whole: whole | {"sha256": "\x1b[31m\nx"},
    "no text": lambda _: "hello",
    "empty": lambda _: "",
    "deeply nested": lambda _: "[" * 100_000,
    "huge": lambda whole: " " * (4 << 20) + json.dumps(whole),
    "digits without end": lambda _: '{"a":' + "9" * 5000 + "}",
    "another version": lambda whole: whole | {"cnet_deploy_manifest": 2},
    "unknown entry": lambda whole: whole | {"\x1b[31m\n": 1},
    "missing digest": lambda whole: {key: value for key, value in whole.items() if key != "sha256"},
    "digest that is a number": lambda whole: whole | {"sha256": 5},
    "another size": lambda whole: whole | {"bytes": 1},
    "another architecture": lambda whole: whole | {"architecture": whole["architecture"] | {"classes": 100}},
    "architecture that is a list": lambda whole: whole | {"architecture": [1]},
    "architecture that is an empty list": lambda whole: whole | {"architecture": []},
    "architecture that is a list of its names": lambda whole: whole | {"architecture": ["stages"]},
    "infinite preprocessing": lambda whole: whole | {"preprocessing": PREPROCESSING | {"crop": [float("inf"), 1]}},
    "verification that is text": lambda whole: whole | {"verification": "passed"},
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifests_that_lie(folder: Path, reference: Path, exported: tuple[bytes, dict[str, Any]], kind: str) -> None:
    path = artifact(folder, exported[0], MANIFESTS[kind](exported[1]))
    refused("verify", path, reference)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "pipe"])
def test_manifests_that_are_no_file(
    folder: Path, reference: Path, exported: tuple[bytes, dict[str, Any]], make: Callable[[Path], None]
) -> None:
    path = artifact(folder, exported[0])
    make(Path(f"{path}.json"))
    refused("verify", path, reference, seconds=2)
