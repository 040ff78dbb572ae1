"""engine_precision.py: what the inspector tells, in the words of several versions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cnet_deploy.errors import CheckFailed
from cnet_deploy.hardware.engine_layers import of_engine


def layer(kind: str, types: tuple[str, ...], tactic: str = "", key: str = "Format/Datatype") -> dict[str, Any]:
    *inputs, output = types
    return {
        "Name": "n", "LayerType": kind, "TacticName": tactic,
        "Inputs": [{"Name": "i", "Dimensions": [1], key: text} for text in inputs], "Outputs": [{"Name": "o", key: output}],
    }  # fmt: skip


def told(*layers: Any) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["input", "logits"]})


HALF = layer("CaskConvolution", ("Channel major FP16 format where channel % 8 == 0",) * 2, "sm80_xmma_fprop_f16f16_f16f16")
FLOAT = layer("CaskConvolution", ("Row major linear FP32", "Row major linear FP32"), "sm80_xmma_fprop_f32f32_f32_f32")
MYELIN = layer("gemm", ("Half", "Half"), "sm80_xmma_gemm_f16f16_f16f32_f32_tn")
BRAIN = layer("conv", ("BFloat16", "BFloat16"))
NEWEST = layer("CaskConvolution", ("Half", "Half"), key="DataType")
BYTES = layer("CaskConvolution", ("Int8", "Float"), key="DataType")
CAST = layer("kgen", ("Float", "Half"))
REFORMAT = layer("Reformat", ("Row major linear FP32", "Row major linear FP32"))
TF32 = layer("CaskConvolution", ("Row major linear FP32", "Row major linear FP32"), "sm80_xmma_fprop_tf32f32_tf32f32_f32")
SHAPE = layer("ShapeHostToDevice", ("Int64", "Int64"))


def test_an_int8_engine_of_which_a_budget_kept_all_layers() -> None:
    with pytest.raises(CheckFailed, match="all layers that could were kept in fp32; allow a larger accuracy budget"):
        of_engine(told(FLOAT, FLOAT)).check("int8", floats=2)
    with pytest.raises(CheckFailed, match="the engine is not int8: .*, 2 in fp32"):
        of_engine(told(FLOAT, FLOAT)).check("int8", floats=1)
    of_engine(told(FLOAT, FLOAT, BYTES)).check("int8", floats=2)


def test_layers_are_counted() -> None:
    found = of_engine(told(HALF, MYELIN, NEWEST, CAST, REFORMAT, SHAPE, "a name alone"))
    assert found.to_dict() == {"precision_source": "engine", "layers": {"fp16": 4}, "multiplying_layers": {"fp16": 3}}
    found.check("fp16")
    of_engine(told(BRAIN, CAST)).check("bf16")
    of_engine(told(FLOAT, REFORMAT)).check("fp32")
    of_engine(told(FLOAT, TF32)).check("tf32")
    of_engine(told(BYTES, BYTES, FLOAT)).check("int8", floats=1)
    with pytest.raises(CheckFailed, match="the engine is not int8: of its layers that multiply, 1 are in int8, 2 in fp32"):
        of_engine(told(BYTES, FLOAT, FLOAT)).check("int8", floats=1)


@pytest.mark.parametrize(
    ("layers", "precision", "words"),
    [
        ((FLOAT, FLOAT), "fp16", "the engine is not fp16: of its layers that multiply, 0 are in fp16, 2 in fp32"),
        ((HALF, FLOAT), "fp16", "1 are in fp16, 1 in fp32"),
        ((HALF,), "bf16", "the engine is not bf16"),
        ((HALF,), "fp32", "the engine is not fp32"),
        ((FLOAT, TF32), "fp32", "1 layers multiply in TF32"),
        (("names", "alone"), "fp16", "0 are in fp16, and it lists no others"),
        ((), "fp32", "and it lists no others"),
    ],
)
def test_an_engine_of_another_precision_fails(layers: tuple[Any, ...], precision: str, words: str) -> None:
    with pytest.raises(CheckFailed, match=words):
        of_engine(told(*layers)).check(precision)


def of_8_6(kind: str, tactic: str | None, weights: str | None) -> dict[str, Any]:
    """A layer of an engine with a free batch, as TensorRT 8.6.0 tells it on an H100."""
    tensor = {"Location": "Device", "Dimensions": [-1, 16, 32, 32], "Format/Datatype": "N/A due to dynamic shapes"}
    made: dict[str, Any] = {"Name": "n", "LayerType": kind, "Inputs": [{"Name": "i", **tensor}], "Outputs": [{"Name": "o", **tensor}]}
    if weights is not None:
        made["Weights"] = {"Type": weights, "Count": 432}
    return made if tactic is None else {**made, "TacticName": tactic}


def test_with_a_free_batch_8_6_tells_the_weights_types_alone() -> None:
    def conv(weights: str | None, operands: str) -> dict[str, Any]:
        return of_8_6("CaskConvolution", f"sm80_xmma_fprop_implicit_gemm_{operands}_{operands}_f32_nhwckrsc_nhwc_tilesize32x32x8", weights)

    fused, pooling = of_8_6("Myelin", None, None), of_8_6("CaskPooling", "sm50_xmma_pooling_nd_NCDHW_kAVERAGE_kFLOAT_0", None)
    found = of_engine(told(conv("Float", "f32f32"), fused, pooling, of_8_6("Reformat", None, None)))
    assert found.to_dict() == {"precision_source": "engine", "layers": {"fp32": 1}, "multiplying_layers": {"fp32": 1}}
    found.check("fp32")
    of_engine(told(conv("Half", "f16f16"), fused)).check("fp16")
    of_engine(told(conv("Float", "tf32f32"))).check("tf32")
    for layers, precision in (((conv("Half", "f16f16"), conv("Float", "f32f32")), "fp16"), ((conv("Float", "tf32f32"),), "fp32")):
        with pytest.raises(CheckFailed, match="the engine is not"):
            of_engine(told(*layers)).check(precision)


@pytest.mark.parametrize(
    ("operands", "precision"), [("f32f32", "fp32"), ("tf32f32", "fp32"), ("f16f16", "fp16"), ("bf16bf16", "bf16"), ("f16f32", "fp16")]
)
def test_without_weights_the_tactic_s_name_counts(operands: str, precision: str) -> None:
    found = of_engine(told(of_8_6("MatrixMultiply", f"sm80_xmma_gemm_{operands}_{operands}_f32_tn_n_tilesize64x64", None)))
    assert found.multiplying == {precision: 1} and found.tf32 == operands.startswith("tf32")


def test_a_pooling_does_not_multiply() -> None:
    """Its kernel is of the same family as those that do, and may stay fp32 in an fp16 engine."""
    pooling = layer("CaskPooling", ("Row major linear FP32", "Row major linear FP32"), "sm50_xmma_pooling_nd_NCDHW_kAVERAGE_kFLOAT_0")
    found = of_engine(told(HALF, pooling))
    assert found.to_dict()["multiplying_layers"] == {"fp16": 1}
    found.check("fp16")
