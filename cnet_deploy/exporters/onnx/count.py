"""Count an ONNX file's operators, multiply-adds and parameters in its graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx

from cnet_deploy.artifacts.onnx_metadata import read_metadata
from cnet_deploy.exporters.base import Inside
from cnet_deploy.files.onnx_file import parse_onnx
from cnet_deploy.files.onnx_outline import NotPlain, outline

_TYPES = onnx.TensorProto
_PRECISIONS = {
    _TYPES.FLOAT: "fp32", _TYPES.FLOAT16: "fp16", _TYPES.BFLOAT16: "bf16", _TYPES.DOUBLE: "fp64", _TYPES.INT8: "int8", _TYPES.UINT8: "int8",
}  # fmt: skip
_FLOATS = (_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.BFLOAT16)
_STEPS = ("QuantizeLinear", "DequantizeLinear")


def count(data: bytes) -> Inside:
    """The contents of an ONNX file. Raises InputRefused as ``parse_onnx`` and ``read_metadata`` do."""
    model = parse_onnx(data)
    stated = read_metadata({entry.key: entry.value for entry in model.metadata_props})
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    steps = {name for node in model.graph.node if node.op_type in _STEPS for name in node.input[1:]}  # scales and zero points
    restored = {  # one initializer may be read by several
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == _STEPS[1] and node.input and node.output and node.input[0] in weights
    }
    quantized = set(restored.values())
    weights.update({given: weights[name] for given, name in restored.items()})
    params = (
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.name in quantized or (tensor.data_type in _FLOATS and tensor.name not in steps)
    )
    try:
        remarks = outline(data).remarks()
    except NotPlain as reason:
        remarks = [str(reason)]
    try:  # functions of functions would be expanded for hours
        macs = None if remarks else _multiply_adds(model, weights)
    except (onnx.shape_inference.InferenceError, KeyError, IndexError, ValueError):
        macs = None
    details = {
        **stated.other,
        **({"runs": ", ".join(remarks)} if remarks else {}),
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
    }
    return Inside(
        dict(Counter(node.op_type for node in model.graph.node).most_common()), macs,
        sum(params),
        stated.architecture, stated.preprocessing, stated.class_names, _precision(model), details,
    )  # fmt: skip


def _precision(model: onnx.ModelProto) -> str | None:
    """The precision of most weights."""
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        if (name := _PRECISIONS.get(tensor.data_type)) is not None:
            sizes[name] += math.prod(tensor.dims)
    return sizes.most_common(1)[0][0] if sizes else None


def _multiply_adds(model: onnx.ModelProto, weights: Mapping[str, tuple[int, ...]]) -> int:
    """The multiply-adds for one image of all convolutions and matrix products with weights: outputs times the weights that each reads."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {
        value.name: [_size(dim) for dim in value.type.tensor_type.shape.dim]
        for value in (*inferred.graph.value_info, *inferred.graph.output)
    }
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weight = weights[node.input[1]]
            transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
            each = math.prod(weight[1:]) if node.op_type == "Conv" or transposed else weight[0]
            outputs = math.prod(shapes[node.output[0]][1:])
            if not outputs:
                raise ValueError("a size is not known")
            total += outputs * each
    return total


def _size(dim: Any) -> int:
    """The size of a dimension; 0 if it is dynamic."""
    return int(dim.dim_value)
