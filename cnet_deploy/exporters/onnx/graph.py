"""Program -> ONNX ModelProto. Every node and weight is named after its layer.

Channel counts are static and only the batch may be dynamic. There is no Reshape, since a dynamic Reshape makes TensorRT lose the channel
count: gathers and shuffles are both Gather with a constant table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from cnet_deploy.artifacts.onnx_metadata import INPUT, OUTPUT, OnnxMetadata, entries_of
from cnet_deploy.errors import InputRefused
from cnet_deploy.program.program import Activation, DenseLayer, Excite, Head, Hidden, Pointwise, Pool, Program, Transition, Update
from cnet_deploy.version import __version__

OPSETS = range(17, 23)
BF16_OPSET = 22  # the first whose convolutions and poolings take bf16
PRECISIONS = ("fp32", "fp16", "bf16")
_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def default_opset(precision: str) -> int:
    """The lowest opset for a network of this precision, which most runtimes read."""
    return BF16_OPSET if precision == "bf16" else OPSETS.start


def build_graph(program: Program, *, opset: int | None = None, batch: int | None = None, precision: str = "fp32") -> onnx.ModelProto:
    """The ONNX model of a Program: float32 ``input`` [batch, channels, H, W] -> float32 ``logits`` [batch, classes].

    ``batch`` None leaves it dynamic; ``opset`` None takes the lowest. Layers and weights are in ``precision``. The same Program gives the
    same bytes. Raises InputRefused for an opset outside 17 to 22 (22 for bf16), a batch below 1, an unknown precision, and for weights that
    fp16 can't hold.
    """
    if precision not in PRECISIONS:
        raise InputRefused(f"precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    return model_of(program, Graph(precision), opset=opset, batch=batch)


def model_of(program: Program, graph: Graph, *, opset: int | None, batch: int | None) -> onnx.ModelProto:
    """The model of a Program whose nodes an empty ``graph`` makes; the rest as in ``build_graph``."""
    precision = graph.precision
    opset = default_opset(precision) if opset is None else opset
    if type(opset) is not int or opset not in OPSETS:
        raise InputRefused(f"opset {opset!r}; expected {OPSETS.start} to {OPSETS.stop - 1}")
    if opset < default_opset(precision):
        raise InputRefused(f"opset {opset} has no convolution in {precision}; expected {default_opset(precision)}")
    if batch is not None and (type(batch) is not int or batch < 1):
        raise InputRefused(f"batch {batch!r}; expected at least 1, or leave it out for a dynamic batch")
    arch = program.architecture
    x = graph.cast(INPUT, "input", precision)
    x = graph.node(
        "Conv", program.stem.name, [x, graph.constant(f"{program.stem.name}.weight", program.stem.weight)],
        kernel_shape=[3, 3], pads=[1] * 4, strides=[program.stem.stride] * 2,
    )  # fmt: skip
    for layer in program.body:
        x = _dense_layer(graph, x, layer) if isinstance(layer, DenseLayer) else _transition(graph, x, layer)
    x = _pool(graph, x, program.pool)
    if program.hidden is not None:
        x = _hidden(graph, x, program.hidden)
    _head(graph, x, program.head)
    size: Any = "batch" if batch is None else batch
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            arch.kind,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [size, *arch.image_shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [size, arch.classes])],
            graph.constants,
        ),
        producer_name="cnet-deploy",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", opset)],
    )
    model.ir_version = helper.find_min_ir_version_for(model.opset_import)  # the lowest, for older runtimes
    stated = OnnxMetadata(arch, program.preprocessing, program.class_names)
    for key, value in entries_of(stated, program.source_digest).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    return model


class Graph:
    """Collects nodes and constants. A node and its output are named after the layer.

    ``reads`` and ``weight`` are given what the body's convolutions and the classifier work on; a graph in integers adds nodes there.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._shared: set[str] = set()

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        if values.dtype == np.float32 and self.precision != "fp32":
            if self.precision == "fp16" and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
                raise InputRefused(f"{name} holds {np.abs(values).max():.3g}, which is beyond fp16; expected bf16 or fp32 for this network")
            values = values.astype(helper.tensor_dtype_to_np_dtype(_TYPES[self.precision]))
        self.constants.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def cast(self, x: str, name: str, precision: str, output: str | None = None) -> str:
        """``x`` in another precision; no node in an fp32 network."""
        return x if self.precision == "fp32" else self.node("Cast", name, [x], output, to=_TYPES[precision])

    def filled(self, value: float, size: int) -> str:
        """A constant vector of one value, shared by all nodes."""
        return self.shared(f"{'ones' if value else 'zeros'}_{size}", np.full(size, value, np.float32))

    def shared(self, name: str, values: npt.NDArray[Any]) -> str:
        """A constant that several nodes read."""
        if name not in self._shared:
            self._shared.add(name)
            self.constant(name, values)
        return name

    def reads(self, name: str, x: str, place: str) -> str:  # noqa: ARG002 - what a graph in integers names nodes by
        """What the convolution ``name`` reads instead of ``x``; ``place`` tells apart what is on the way to it."""
        return x

    def weight(self, name: str, values: npt.NDArray[np.float32]) -> str:
        """The weights [rows, …] of the convolution or classifier ``name``."""
        return self.constant(f"{name}.weight", values)

    def gemm(
        self, name: str, x: str, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32] | None = None, output: str | None = None
    ) -> str:  # fmt: skip
        """``x`` [N, inputs] times ``weight`` [outputs, inputs], plus ``bias`` [outputs]."""
        inputs = [x, self.weight(name, weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias))
        return self.node("Gemm", name, inputs, output, transB=1)

    def node(self, operator: str, name: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"{name}.{operator.lower()}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{name}.{operator.lower()}", **attributes))
        return output


def second(layer: DenseLayer) -> str:
    """The name of a layer's 3x3."""
    return f"{layer.name}.conv_2"


def _dense_layer(graph: Graph, x: str, layer: DenseLayer) -> str:
    rows = _rows(graph, x, layer.pointwise)
    rows = _activated(graph, second(layer), rows, layer.activation)  # before the reorder, so that runtimes fuse it into the 1x1
    name = second(layer)
    rows = graph.reads(name, rows, "input")
    middle = _reorder(graph, rows, layer.pointwise)
    if middle != rows:
        middle = graph.reads(name, middle, "ordered")
    new = graph.node("Conv", name, [middle, graph.weight(name, layer.weight)], group=layer.groups, kernel_shape=[3, 3], pads=[1] * 4)
    if layer.excite is not None:
        new = _excited(graph, new, layer.excite)
    if layer.update is not None:
        x = _updated(graph, x, new, layer.update)
    return graph.node("Concat", layer.name, [x, new], axis=1)


def _excited(graph: Graph, x: str, excite: Excite) -> str:
    """Squeeze and excitation. Matrices are 1x1 convolutions of the means, which need no shapes but those of channels."""
    name = excite.name
    mean = graph.node("GlobalAveragePool", name, [x])
    squeezed = _matrix(graph, f"{name}.squeeze", mean, excite.squeeze)
    expanded = _matrix(graph, f"{name}.expand", graph.node("Relu", name, [squeezed]), excite.expand)
    return graph.node("Mul", name, [x, graph.node("Sigmoid", name, [expanded])])


def _matrix(graph: Graph, name: str, x: str, weight: npt.NDArray[np.float32]) -> str:
    """``weight`` [outputs, inputs] times a map of one pixel."""
    return graph.node("Conv", name, [x, graph.weight(name, weight[:, :, None, None])], kernel_shape=[1, 1])


def _updated(graph: Graph, x: str, new: str, update: Update) -> str:
    """What a layer adds to the map before it: one dense 1x1, since several of its groups may write one channel."""
    scale, shift = np.empty_like(update.scale), np.empty_like(update.shift)
    scale[update.index], shift[update.index] = update.scale, update.shift
    active = _activated(graph, update.name, _affine(graph, new, f"{update.name}.norm", scale, shift), update.activation)
    weight = graph.weight(update.name, update.dense()[:, :, None, None])
    return graph.node("Add", update.name, [x, graph.node("Conv", update.name, [active, weight], kernel_shape=[1, 1])])


def _activated(graph: Graph, name: str, x: str, activation: Activation) -> str:
    if activation == "relu":
        return graph.node("Relu", name, [x])
    if graph.precision != "bf16":
        return graph.node("HardSwish", name, [x])
    gate = graph.node("HardSigmoid", name, [x], alpha=1 / 6, beta=0.5)  # tensorrt-rtx 1.7 has no HardSwish in bf16
    return graph.node("Mul", f"{name}.hardswish", [x, gate])


def _transition(graph: Graph, x: str, layer: Transition) -> str:
    if layer.pointwise is not None:
        x = _reorder(graph, _rows(graph, x, layer.pointwise), layer.pointwise)
    return graph.node("AveragePool", layer.name, [x], kernel_shape=[2, 2], strides=[2, 2])


def _rows(graph: Graph, x: str, layer: Pointwise) -> str:
    """Gather, batch norm, activation, 1x1: the convolution's rows, not yet reordered."""
    x = _gather(graph, x, f"{layer.name}.index", layer.index, layer.in_channels)
    x = _activated(graph, layer.name, _affine(graph, x, f"{layer.name}.norm", layer.scale, layer.shift), layer.activation)
    inputs = [graph.reads(layer.name, x, "input"), graph.weight(layer.name, layer.weight[:, :, None, None])]
    if layer.bias.any():
        inputs.append(graph.constant(f"{layer.name}.bias", layer.bias))
    return graph.node("Conv", layer.name, inputs, group=layer.groups, kernel_shape=[1, 1])


def _reorder(graph: Graph, rows: str, layer: Pointwise) -> str:
    return _gather(graph, rows, f"{layer.name}.order", layer.order, layer.order.size)


def _gather(graph: Graph, x: str, name: str, index: npt.NDArray[np.int64], channels: int) -> str:
    """Pick channels of ``x``, which has ``channels``; no node if the index keeps all in order."""
    if np.array_equal(index, np.arange(channels)):
        return x
    return graph.node("Gather", name, [x, graph.constant(name, index)], axis=1)


def _affine(graph: Graph, x: str, name: str, scale: npt.NDArray[np.float32], shift: npt.NDArray[np.float32]) -> str:
    """Scale and shift as a batch norm with mean 0 and variance 1: a single node that every runtime supports, exact with epsilon 0."""
    size = scale.size
    parts = [
        graph.constant(f"{name}.scale", scale),
        graph.constant(f"{name}.shift", shift),
        graph.filled(0, size),
        graph.filled(1, size),
    ]
    return graph.node("BatchNormalization", name, [x, *parts], epsilon=0.0)


def _pool(graph: Graph, x: str, pool: Pool) -> str:
    x = graph.node("Relu", pool.name, [_affine(graph, x, pool.name, pool.scale, pool.shift)])
    if pool.window is None:
        x = graph.node("GlobalAveragePool", pool.name, [x])
    else:  # the window fits just once, so with its own size as the stride the result has one pixel
        x = graph.node("AveragePool", pool.name, [x], kernel_shape=list(pool.window), strides=list(pool.window))
    return graph.node("Flatten", pool.name, [x])


def _hidden(graph: Graph, features: str, hidden: Hidden) -> str:
    """The layer before the classifier, on pooled features [N, features]."""
    excite = hidden.excite
    squeezed = graph.node("Relu", excite.name, [graph.gemm(f"{excite.name}.squeeze", features, excite.squeeze)])
    factors = graph.node("Sigmoid", excite.name, [graph.gemm(f"{excite.name}.expand", squeezed, excite.expand)])
    excited = graph.node("Mul", excite.name, [features, factors])
    return _activated(graph, hidden.name, graph.gemm(hidden.name, excited, hidden.weight, hidden.bias), "hard_swish")


def _head(graph: Graph, features: str, head: Head) -> str:
    kept = _gather(graph, features, f"{head.name}.index", head.index, head.features)
    if graph.precision == "fp32":
        return graph.gemm(head.name, kept, head.weight, head.bias, OUTPUT)
    return graph.cast(graph.gemm(head.name, kept, head.weight, head.bias), "logits", "fp32", OUTPUT)
