"""int8 in ONNX: what runtimes compute of it, against its definition in numpy and against onnxruntime's own quantisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters import onnx as exporter
from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.exporters.onnx.quantized import build_quantized
from cnet_deploy.files.onnx_outline import outline, require_plain
from cnet_deploy.files.onnx_weights import weights_precision
from cnet_deploy.models.build import build_named, build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.calibration import Calibration, calibrate
from cnet_deploy.program.forms import rewrite
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import DenseLayer, Program
from cnet_deploy.program.quantize import Quantization
from cnet_deploy.sessions import open_session
from tests.builders import TINY, TINY_V2, VARIETIES, noise
from tests.cases import few, long

Array = np.ndarray[Any, Any]


def made(arch: cd.Architecture = TINY) -> tuple[Program, Array, Quantization]:
    model = build_random(arch)
    program, images = lower(model), noise(model, 8)
    return program, images, Quantization(calibrate(program, images))


def run(model: onnx.ModelProto, batch: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": batch})[0]


def as_defined(model: onnx.ModelProto, batch: Array) -> Array:
    """The graph as the ONNX standard defines it."""
    return np.asarray(ReferenceEvaluator(model).run(None, {"input": batch})[0])


def error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("arch", few(VARIETIES, 3), ids=lambda arch: arch.summary())
def test_near_the_network_for_any_batch(arch: cd.Architecture) -> None:
    program, images, quantization = made(arch)
    graph = build_quantized(program, quantization)
    for size in (1, 3):
        assert error(run(graph, images[:size]), program.run(images[:size])) < 0.06
    fixed = build_quantized(program, quantization, batch=3)
    assert error(run(fixed, images[:3]), run(graph, images[:3])) < 0.01


@pytest.mark.parametrize("form", few(["dense", "absorbed", "gather"]))
def test_forms(form: str) -> None:
    program, images, quantization = made(replace(TINY, kind="densenet_lgc", transition_channels=(16, 16)))
    rewritten = rewrite(program, form)
    if form != "gather":
        with pytest.raises(InputRefused, match="of this one in another form; calibrate this one"):
            build_quantized(rewritten, quantization)
    graph = build_quantized(rewritten, Quantization(calibrate(rewritten, images)))
    assert error(run(graph, images), program.run(images)) < 0.06
    assert outline(graph.SerializeToString()).remarks() == []
    require_plain(graph.SerializeToString())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_agree_with_the_standard(runtime: str, tmp_path: Path) -> None:
    """A value at the middle of two integers may go to either, so logits are equal but for a part of what int8 changes."""
    program, images, quantization = made()
    graph = build_quantized(program, quantization)
    defined = as_defined(build_quantized(program, quantization, opset=21), images[:2])  # the oldest that the package has in numpy
    exact = program.run(images[:2])
    if runtime == "openvino":
        pytest.importorskip("openvino", reason="needs the extra: cnet-deploy[openvino]")
    path = tmp_path / "m.onnx"
    assert exporter.write(program, path, precision="int8", quantization=quantization).precision == "int8"
    assert path.read_bytes() == graph.SerializeToString(deterministic=True)
    with open_session(path, backend=runtime) as session:
        found = session.run(images[:2])
    assert error(found, defined) < 0.02 and error(defined, exact) < 0.06


def test_what_is_in_integers() -> None:
    program, _, quantization = made()
    graph = build_quantized(program, quantization, batch=1)
    assert [entry.version for entry in graph.opset_import] == [17]
    given = {name: node for node in graph.graph.node for name in node.output}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert weights[node.input[2]].dtype == np.int8 and not weights[node.input[2]].any()  # the only zero point that TensorRT takes
            assert (weights[node.input[1]] > 0).all()
        elif node.op_type == "Conv" and node.input[0] != "input":
            assert [given[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            whole = weights[given[node.input[1]].input[0]]
            assert whole.dtype == np.int8 and np.abs(whole.astype(int)).reshape(len(whole), -1).max(1).tolist() == [127] * len(whole)
    assert weights["classifier.weight"].dtype == np.int8


def test_kept_layers_are_those_of_fp32() -> None:
    program, images, quantization = made()
    plain = {tensor.name: tensor for tensor in build_graph(program).graph.initializer}
    first = next(layer.name for layer in program.body if isinstance(layer, DenseLayer))
    graph = build_quantized(program, replace(quantization, kept=frozenset([first])))
    given = {name: node.op_type for node in graph.graph.node for name in node.output}
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv" and node.name.startswith(f"{first}.")]
    assert len(convolutions) == 2
    kept = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in convolutions:
        assert "DequantizeLinear" not in [given.get(name) for name in node.input]
        assert kept[node.input[1]] == plain[node.input[1]]
    everything = frozenset(layer.name for layer in program.body if isinstance(layer, DenseLayer))
    exact = program.run(images)
    errors = [
        error(run(build_quantized(program, replace(quantization, kept=some)), images), exact) for some in (frozenset[str](), everything)
    ]
    assert errors[1] < 0.02 and errors[1] < errors[0]


def test_planes_that_are_always_one_value() -> None:
    """Dead channels, a layer whose planes are constant, and weights of 0: scales stay finite and above 0."""
    program, images, _ = made()
    body = list(program.body)
    layer = body[0]
    assert isinstance(layer, DenseLayer)
    conv = layer.pointwise
    dead = replace(conv, scale=np.zeros_like(conv.scale), shift=-np.ones_like(conv.shift), bias=np.full_like(conv.bias, -1))
    body[0] = replace(layer, pointwise=dead, weight=np.zeros_like(layer.weight))
    program = replace(program, body=tuple(body))
    graph = build_quantized(program, Quantization(calibrate(program, images)))
    for tensor in graph.graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert np.isfinite(values).all(), tensor.name
        assert not tensor.name.endswith("weight.scale") or (values > 0).all(), tensor.name
    assert error(run(graph, images), program.run(images)) < 0.06
    black = np.zeros_like(images)
    assert np.isfinite(run(build_quantized(program, Quantization(calibrate(program, black))), images)).all()


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    program, images, quantization = made()
    again = Quantization(calibrate(program, images))
    for name, given in (("a", quantization), ("b", again)):
        exporter.write(program, tmp_path / name, precision="int8", quantization=given)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_says_that_it_is_int8(tmp_path: Path) -> None:
    program, images, quantization = made()
    plain, path = build_graph(program).SerializeToString(), tmp_path / "m.onnx"
    exporter.write(program, path, precision="int8", quantization=quantization)
    data = path.read_bytes()
    require_plain(data)
    found, expected = exporter.inspect(data), exporter.inspect(plain)
    assert found.precision == "int8" and found.multiply_adds == expected.multiply_adds and found.params == expected.params
    assert "runs" not in found.details
    assert (weights_precision(plain), weights_precision(data)) == ("fp32", "int8")
    with open_session(path, backend="onnxruntime") as session:
        assert session.precision == "int8" and session.run(images).shape == (8, 10)


def test_quantisation_in_files_of_others_is_counted(tmp_path: Path) -> None:
    """A DequantizeLinear without inputs or outputs, and one initializer that two of them read."""
    program, _, quantization = made()
    expected = exporter.inspect(build_graph(program).SerializeToString())
    model = build_quantized(program, quantization)
    nodes = model.graph.node
    first = next(
        node
        for node in nodes
        if node.op_type == "DequantizeLinear" and node.output[0] in {n.input[1] for n in nodes if n.op_type == "Conv"}
    )
    again = onnx.helper.make_node("DequantizeLinear", list(first.input), ["again"])
    nodes.insert(0, again)
    assert exporter.inspect(model.SerializeToString()).multiply_adds == expected.multiply_adds
    nodes.append(onnx.helper.make_node("DequantizeLinear", [], []))
    nodes.append(onnx.helper.make_node("DequantizeLinear", [first.input[0]], []))
    assert exporter.inspect(model.SerializeToString()).precision == "int8"


def refusals() -> Iterator[tuple[str, dict[str, Any], str]]:
    program, _, quantization = made()
    other = made(replace(TINY, growth=(16, 8, 16)))[2]
    yield "no images", {"network": program}, "--calibrate DATA"
    yield (
        "not of the family",
        {"network": build_named("mobilenet-1.0-224"), "quantization": quantization},
        "networks of the CondenseNet family",
    )
    yield "unknown layer", {"network": program, "quantization": replace(quantization, kept=frozenset(["x"]))}, "no layer is called x"
    yield (
        "another network",
        {"network": program, "quantization": other},
        "is of another network, or of this one in another form; calibrate this one",
    )
    yield "opset", {"network": program, "quantization": quantization, "opset": 16}, "expected 17 to 22"


def test_what_is_refused(tmp_path: Path) -> None:
    for name, options, words in refusals():
        with pytest.raises(InputRefused, match=words):
            exporter.write(path=tmp_path / "m.onnx", precision="int8", **options)
        assert list(tmp_path.iterdir()) == [], name


@long
def test_nearer_than_onnxruntime_s_own(converted: DenselyConnected, tmp_path: Path) -> None:
    """The example's network, the same calibration images: answers as fp32's more often, logits nearer to them."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    program = lower(converted)
    images = program.preprocessing.apply(np.random.default_rng(0).integers(0, 256, (64, *program.architecture.image_shape), np.uint8))
    plain, theirs = tmp_path / "plain.onnx", tmp_path / "theirs.onnx"
    onnx.save(build_graph(program), plain)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter([{"input": images[place : place + 8]} for place in range(0, 32, 8)])

        def get_next(self) -> dict[str, Array]:  # called by quantize_static
            return next(self._left, {})

    quantize_static(
        plain, theirs, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )  # fmt: skip
    calibration: Calibration = calibrate(program, images[:32])
    exact = program.run(images)
    ours, own = run(build_quantized(program, Quantization(calibration)), images), run(onnx.load(theirs), images)
    assert weights_precision(theirs.read_bytes()) == "int8"
    assert np.abs(ours - exact).mean() < np.abs(own - exact).mean()
    assert (ours.argmax(1) == exact.argmax(1)).mean() >= (own.argmax(1) == exact.argmax(1)).mean()


def test_condensenet_v2_has_no_integers() -> None:
    program = lower(build_random(TINY))
    images = np.zeros((1, *TINY.image_shape), np.float32)
    with pytest.raises(InputRefused, match="a CondenseNet V2 has no form in integers yet"):
        build_quantized(lower(build_random(TINY_V2)), Quantization(calibrate(program, images)))
