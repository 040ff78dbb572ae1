"""Figures that don't flicker: counted in the file itself, and compared with before and after."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import cnet_deploy as cd
from cnet_deploy.benchmarks.sweep.figures import Figures, changes, figures_of
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build_named, build_random
from cnet_deploy.program.forms import dense_pointwise
from cnet_deploy.program.lower import lower
from tests.builders import TINY
from tests.cases import exhaustive


@pytest.mark.parametrize("arch", [TINY, NAMED["condensenet-50"], replace(TINY, classifier_keep=0.5)], ids=lambda a: a.summary()[:30])
def test_multiply_adds_of_the_graph_are_those_of_the_architecture(arch: Architecture, tmp_path: Path) -> None:
    for batch in (None, 3):
        path = cd.export(build_random(arch), "onnx", tmp_path / "m.onnx", **({} if batch is None else {"batch": batch})).path
        found = figures_of(path)
        assert found.multiply_adds == arch.cost().macs
        assert found.precision == "fp32" and found.bytes == path.stat().st_size
        assert found.operators["Gemm"] == 1 and found.operators["Conv"] > 2


@exhaustive("test_multiply_adds_of_the_graph_are_those_of_the_architecture")
def test_networks_outside_the_family(tmp_path: Path) -> None:
    path = cd.export(build_named("mobilenet-1.0-224"), "onnx", tmp_path / "m.onnx", batch=1).path
    assert figures_of(path).multiply_adds == 568_740_352  # MobileNet's own 569 millions


def test_a_graph_that_does_more_is_seen_whatever_its_metadata_say(converted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    program = lower(converted)
    paths = [tmp_path / "plain.onnx", tmp_path / "dense.onnx"]
    for path, source in zip(paths, (program, dense_pointwise(program)), strict=True):
        path.write_bytes(build_graph(source).SerializeToString())
    plain, dense = map(figures_of, paths)
    found = {change.what: change for change in changes(plain, dense)}
    assert found["multiply-adds"].worse and found["parameters"].worse and found["bytes"].worse
    assert str(found["multiply-adds"]).startswith("multiply-adds: 10,929,") and "-> " in str(found["multiply-adds"])
    assert {change.what for change in changes(dense, plain) if change.worse} == {"operators"}  # gathers and shuffles instead
    assert changes(plain, plain) == []


def test_native_libraries_and_models(converted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from cnet_deploy.checkpoints.save import save

    save(converted, tmp_path / "m.safetensors")
    model = figures_of(tmp_path / "m.safetensors")
    native = figures_of(cd.export(converted, "native", tmp_path / "m.so").path)
    assert model.multiply_adds == native.multiply_adds == converted.architecture.cost().macs
    assert native.operators == {"Stem": 1, "DenseLayer": 12, "Transition": 2, "Pool": 1, "Head": 1} and native.precision == "fp32"
    bf16 = figures_of(cd.export(converted, "native", tmp_path / "b.so", precision="bf16", cpu="host").path)
    assert [str(change) for change in changes(native, bf16) if change.what == "precision"] == ["precision: fp32 -> bf16 (worse)"]


BASE = Figures(".onnx", 1000, 10, 20, "fp32", {"Conv": 3, "Relu": 2})


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (replace(BASE, bytes=1010), {"bytes": False}),
        (replace(BASE, bytes=1011), {"bytes": True}),
        (replace(BASE, params=21), {"parameters": True}),
        (replace(BASE, params=19, multiply_adds=9), {"parameters": False, "multiply-adds": False}),
        (replace(BASE, operators={"Conv": 3, "Clip": 2}), {"operators": False, "operator Clip": False, "operator Relu": False}),
        (replace(BASE, operators={"Conv": 4, "Relu": 2}), {"operators": True, "operator Conv": False}),
        (replace(BASE, precision="fp16"), {"precision": True}),
        (
            replace(BASE, precision="int8", operators={"QLinearConv": 3, "DequantizeLinear": 9}, params=2, bytes=300),
            {"precision": True, "bytes": False},
        ),
        (Figures(".onnx", 1000), {}),
        (replace(BASE, format=".so", bytes=99999, params=1), {}),
    ],
)
def test_what_is_worse(head: Figures, found: dict[str, bool]) -> None:
    assert {change.what: change.worse for change in changes(BASE, head)} == found


@pytest.mark.parametrize("name", ["fp16", "bf16", "int8"])
def test_the_precision_of_a_file_without_a_manifest(tmp_path: Path, name: str) -> None:
    model = onnx.load_from_string(build_graph(lower(build_random(TINY))).SerializeToString())
    types = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16, "int8": TensorProto.INT8}
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = np.zeros(tensor.dims, np.int8) if name == "int8" else numpy_helper.to_array(tensor)
            kept = tensor.name
            tensor.CopyFrom(helper.make_tensor(kept, types[name], tensor.dims, values.flatten().tolist()))
    (tmp_path / "b.onnx").write_bytes(model.SerializeToString())
    base, head = figures_of(tmp_path / "a.onnx"), figures_of(tmp_path / "b.onnx")
    assert (base.precision, head.precision) == ("fp32", name)
    assert {change.what for change in changes(base, head)} == {"precision", "bytes"}


def test_damage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\0damage")
    with pytest.raises(InputRefused, match="no readable ONNX model"):
        figures_of(tmp_path / "m.onnx")
