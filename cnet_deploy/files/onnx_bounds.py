"""Refuse ONNX files of a few bytes that make a runtime fill gigabytes: tensors whose size is a number in the file.

Sizes that a graph computes from its images can't be known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.files.onnx_file import parse_onnx

MOST_ELEMENTS = 1 << 28  # of a tensor: 1 GiB in float32
_SHAPES = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1, "Resize": 3, "Upsample": 1}  # the input that states the sizes
_RANDOM = ("RandomNormal", "RandomUniform")  # an attribute states them
_MAKERS = (*_SHAPES, *_RANDOM, "Range", "Pad")


def require_bounded(data: bytes) -> None:
    """Raise InputRefused for a file with a node that makes a tensor of more than ``MOST_ELEMENTS``, as its constants say."""
    if not any(name.encode() in data for name in _MAKERS):  # no need to parse it
        return
    model = parse_onnx(data)
    constants: dict[str, list[float]] = {}
    for graph in _graphs(model):
        constants.update((tensor.name, _values(tensor)) for tensor in getattr(graph, "initializer", ()))
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                constants[node.output[0]] = _stated(node)
    for graph in _graphs(model):
        for node in graph.node:
            if (size := _size(node, constants)) > MOST_ELEMENTS:
                raise InputRefused(
                    f"has a node {printable(node.op_type, 60)} that makes a tensor of {size:,} numbers, and at most {MOST_ELEMENTS:,} are "
                    "made; expected an image classifier: export the model again"
                )


def _size(node: Any, constants: dict[str, list[float]]) -> int:
    """The number of elements that a node's constants ask for; 0 where they don't say."""
    inputs: list[list[float]] = [constants.get(name, []) for name in node.input]
    sizes: Sequence[float] = ()
    if node.op_type in _RANDOM:
        sizes = next((attribute.ints for attribute in node.attribute if attribute.name == "shape"), ())
    elif node.op_type == "Range" and len(inputs) == 3 and all(inputs):
        (start, *_), (stop, *_), (step, *_) = inputs
        return 0 if not step or not math.isfinite((stop - start) / step) else int((stop - start) / step)
    elif node.op_type == "Pad":
        sizes = (*(inputs[1] if len(inputs) > 1 else ()), *(n for a in node.attribute if a.name == "pads" for n in a.ints))
        return int(max(sizes, default=0))
    elif (place := _SHAPES.get(node.op_type)) is not None and len(inputs) > place:
        sizes = inputs[place]
    return math.prod(int(max(size, 1)) for size in sizes if math.isfinite(size)) if sizes else 0


def _stated(node: Any) -> list[float]:
    """The values of a node Constant, of any of the kinds that the format has for them."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return _values(attribute.t)
        if attribute.name in ("value_int", "value_float"):
            return [attribute.i if attribute.name == "value_int" else attribute.f]
        if attribute.name in ("value_ints", "value_floats"):
            return list(attribute.ints or attribute.floats)
    return []


def _values(tensor: Any) -> list[float]:
    """The numbers of a small tensor; nothing of a large or damaged one."""
    from onnx import numpy_helper

    if math.prod(tensor.dims) > 64:
        return []
    try:
        return [float(value) for value in numpy_helper.to_array(tensor).reshape(-1).tolist()]
    except Exception:  # a damaged tensor can raise anything; the runtime refuses it
        return []


def _graphs(message: Any) -> Iterator[Any]:
    """Whatever has nodes: the graph, graphs inside of it, and functions."""
    names = {field.name for field in message.DESCRIPTOR.fields}
    if "node" in names and "op_type" not in names:
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None and field.name not in ("initializer", "sparse_initializer", "t", "tensors"):
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _graphs(part)
