"""The emitted ONNX: right in onnxruntime, static where it must be, the same bytes every time."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts.onnx_metadata import read_metadata
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.onnx.graph import OPSETS, build_graph
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.forms import rewrite
from cnet_deploy.program.lower import lower
from tests.builders import TINY, TINY_DENSENET, TINY_V2, VARIETIES, VARIETIES_V2, logits, noise
from tests.cases import few, long


def run(model: onnx.ModelProto, batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": batch})[0]


@pytest.mark.parametrize("arch", [*VARIETIES, *few(VARIETIES_V2, 3)], ids=lambda arch: arch.summary())
def test_onnxruntime_computes_what_torch_does(arch: cd.Architecture) -> None:
    model = build_random(arch)
    graph = build_graph(lower(model))
    for size in (1, 3):
        expected = logits(model, noise(model, size))
        assert np.abs(run(graph, noise(model, size)) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset: int) -> None:
    model = build_random(TINY)
    graph = build_graph(lower(model), opset=opset)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]
    expected = logits(model, noise(model))
    assert np.abs(run(graph, noise(model)) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 8), (21, 10)])
def test_the_oldest_format_that_holds_the_opset(opset: int, ir_version: int) -> None:
    assert build_graph(lower(build_random(TINY)), opset=opset).ir_version == ir_version


@pytest.mark.parametrize("arch", [TINY, TINY_V2], ids=lambda arch: arch.kind)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_only_the_batch_is_ever_dynamic(arch: cd.Architecture, batch: int | None) -> None:
    graph = build_graph(lower(build_random(arch)), batch=batch).graph
    first = [d.dim_param or d.dim_value for d in graph.input[0].type.tensor_type.shape.dim]
    last = [d.dim_param or d.dim_value for d in graph.output[0].type.tensor_type.shape.dim]
    assert first == [batch or "batch", 3, 32, 32]
    assert last == [batch or "batch", 10]
    inferred = onnx.shape_inference.infer_shapes(build_graph(lower(build_random(arch)), batch=batch), strict_mode=True)
    for value in inferred.graph.value_info:
        assert all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim[1:]), value.name
    assert not {"Reshape", "Transpose", "Shape"} & {node.op_type for node in graph.node}


def test_a_static_batch_refuses_another() -> None:
    model = build_random(TINY)
    with pytest.raises(Exception, match="Got: 2 Expected: 3"):
        run(build_graph(lower(model), batch=3), noise(model, 2))


def test_nothing_is_gathered_where_all_is_kept() -> None:
    def gathers(arch: cd.Architecture) -> int:
        return Counter(node.op_type for node in build_graph(lower(build_random(arch))).graph.node)["Gather"]

    layers = sum(TINY.stages)
    assert gathers(replace(TINY, classifier_keep=0.5)) == 2 * layers + 1
    assert gathers(TINY_DENSENET) == 0


def test_nodes_and_weights_are_named_after_their_layers() -> None:
    graph = build_graph(lower(build_random(TINY))).graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert "features.denseblock_2.denselayer_1.conv_1.conv" in names
    weights = {tensor.name for tensor in graph.initializer}
    assert {"features.denseblock_2.denselayer_1.conv_1.index", "classifier.weight"} <= weights


V2_NODES = {
    "features.denseblock_3.denselayer_1.se": ["GlobalAveragePool", "Relu", "Sigmoid", "Mul"],
    "features.denseblock_3.denselayer_1.se.squeeze": ["Conv"],
    "features.denseblock_3.denselayer_1.se.expand": ["Conv"],
    "features.denseblock_3.denselayer_1.sfr": ["HardSwish", "Conv", "Add"],
    "features.denseblock_3.denselayer_1.sfr.norm": ["BatchNormalization"],
    "features.denseblock_1.denselayer_1.sfr": ["Relu", "Conv", "Add"],
    "features.se_last": ["Relu", "Sigmoid", "Mul"],
    "features.se_last.squeeze": ["Gemm"],
    "fc": ["Gemm", "HardSwish"],
    "classifier": ["Gemm"],
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_nodes_of_condensenet_v2(precision: str) -> None:
    """The update is one dense 1x1 and an addition: several of its groups may write one channel."""
    program = lower(build_random(TINY_V2))
    graph = build_graph(program, precision=precision).graph
    assert len({node.name for node in graph.node}) == len(graph.node)
    for name, operators in V2_NODES.items():
        if precision == "bf16":  # HardSwish in two nodes, since TensorRT has none in bf16
            operators = ["HardSigmoid" if operator == "HardSwish" else operator for operator in operators]
        assert [node.op_type for node in graph.node if node.name.rpartition(".")[0] == name] == operators, name
    products = sum(node.op_type == "Mul" and node.name.endswith(".hardswish.mul") for node in graph.node)
    assert products == sum(node.op_type == "HardSigmoid" for node in graph.node) and (products > 0) is (precision == "bf16")
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert shapes["features.denseblock_3.denselayer_1.sfr.weight"] == [40, 16, 1, 1]
    assert shapes["features.se_last.squeeze.weight"] == [4, 72] and shapes["fc.weight"] == [20, 72]


def test_condensenet_v2_in_fp16() -> None:
    model = build_random(TINY_V2)
    expected = logits(model, noise(model))
    assert 0 < np.abs(run(build_graph(lower(model), precision="fp16"), noise(model)) - expected).max() <= 5e-3 * np.abs(expected).max()


def test_condensenet_v2_in_bf16() -> None:
    """No runtime for CPUs has its convolutions, but the definition of ONNX has."""
    model = build_random(TINY_V2)
    expected = logits(model, noise(model))
    (found,) = onnx.reference.ReferenceEvaluator(build_graph(lower(model), precision="bf16")).run(None, {"input": noise(model)})
    assert np.abs(found - expected).max() <= 3e-2 * np.abs(expected).max()


GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.mark.parametrize("form", few(["dense", "gather", "absorbed"]))
def test_golden_outputs_of_condensenet_v2(form: str) -> None:
    """What its authors' code computes."""
    model = cd.convert(cd.load(GOLDEN / "condensenet-v2-small_training.pth.tar"))
    graph = build_graph(rewrite(lower(model), form))
    with np.load(GOLDEN / "condensenet-v2-small.npz") as values:
        expected, found = values["logits_ema"], run(graph, values["x"])
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_metadata_round_trip(converted: DenselyConnected) -> None:
    found = read_metadata({entry.key: entry.value for entry in build_graph(lower(converted)).metadata_props})
    assert (found.architecture, found.preprocessing) == (converted.architecture, converted.preprocessing)
    assert found.other["source_sha256"] == (converted.source and converted.source.digest)
    assert found.other["tool"] == f"cnet-deploy {cd.__version__}"


EMIT = """
import hashlib, sys, cnet_deploy as cd
from cnet_deploy.exporters.onnx.graph import build_graph
model = build_graph(cd.lower(cd.convert(cd.load(sys.argv[1]))))
print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())
"""


@long
def test_the_same_bytes_in_another_process(checkpoint_path: Path) -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", EMIT, str(checkpoint_path)], check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(("options", "message"), [({"opset": 16}, "17 to 22"), ({"opset": 23}, "17 to 22"), ({"batch": 0}, "at least 1")])
def test_impossible_wishes(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputRefused, match=message):
        build_graph(lower(build_random(TINY)), **options)  # type: ignore[arg-type]
