"""Program and Quantization -> ONNX ModelProto in int8: QuantizeLinear and DequantizeLinear around what its convolutions read.

One graph for all runtimes:

- The planes that a convolution reads are brought to one range first (program/equalized.py), so one scale for all of them loses nothing, and
  that scale is 1: values are the integers.
- They are int8 with zero point 0, the only one that TensorRT takes. After a ReLU they are 0 to 127, a bit less than uint8 has. Pairs of
  products then fit into 16 bits (2 * 127 * 127), where uint8 overflows on x86 processors without VNNI and gives wrong results there.
- Weights are int8 with a scale for each row. Biases stay float32: TensorRT reads no others.
- A DequantizeLinear stands directly before each convolution, and a QuantizeLinear directly after the ReLU between the two of a layer. Where
  channels are reordered between them, values are quantised on both sides; the second time changes nothing.
- The stem, a layer's map and the last pooling stay float32; the classifier has int8 weights alone, and multiplies in float32.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx

from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.onnx.graph import Graph, model_of, second
from cnet_deploy.program.calibration import require_integers
from cnet_deploy.program.equalized import equalized
from cnet_deploy.program.program import DenseLayer, Program
from cnet_deploy.program.quantize import Quantization

LEVELS = 127


def build_quantized(program: Program, quantization: Quantization, *, opset: int | None = None, batch: int | None = None) -> onnx.ModelProto:
    """``build_graph`` in int8. The calibration is one of this Program, with its blocks in this form.

    Layers that ``quantization`` keeps are as in fp32. The same Program and Quantization give the same bytes. Raises InputRefused as
    ``build_graph`` does, for a CondenseNet V2, for a layer that there is not, and for a calibration of another Program.
    """
    require_integers(program)
    quantization.calibration.require_of(program)
    layers = {layer.name: layer for layer in program.body if isinstance(layer, DenseLayer)}
    if unknown := sorted(quantization.kept - layers.keys()):
        raise InputRefused(f"no layer is called {', '.join(unknown)}; expected some of {', '.join(layers)}")
    kept = {name for key in quantization.kept for name in (layers[key].pointwise.name, second(layers[key]))}
    program = equalized(program, quantization.calibration.ranges, LEVELS, kept=quantization.kept)
    return model_of(program, _QuantizedGraph(kept), opset=opset, batch=batch)


class _QuantizedGraph(Graph):
    """A Graph in int8, but for the convolutions ``kept``. Values that are quantised have the scale 1 and the zero point 0."""

    def __init__(self, kept: Collection[str]) -> None:
        super().__init__("fp32")
        self._kept = kept

    def reads(self, name: str, x: str, place: str) -> str:
        if name in self._kept:
            return x
        steps = [self.shared("int8_scale", np.ones((), np.float32)), self.shared("int8_zero", np.zeros((), np.int8))]
        whole = self.node("QuantizeLinear", f"{name}.{place}", [x, *steps])
        return self.node("DequantizeLinear", f"{name}.{place}", [whole, *steps])

    def weight(self, name: str, values: npt.NDArray[np.float32]) -> str:
        if name in self._kept:
            return super().weight(name, values)
        largest = np.abs(values).reshape(len(values), -1).max(1, initial=0)
        scale = (np.where(largest > 0, largest, 1) / np.float32(LEVELS)).astype(np.float32)
        scale = np.maximum(scale, np.finfo(np.float32).tiny)
        exact = values.astype(np.float64) / scale.reshape(-1, *[1] * (values.ndim - 1))
        whole = np.clip(np.rint(exact), -LEVELS, LEVELS).astype(np.int8)
        inputs = [
            self.constant(f"{name}.weight", whole),
            self.constant(f"{name}.weight.scale", scale),
            self.shared(f"int8_zeros_{len(scale)}", np.zeros(len(scale), np.int8)),
        ]
        return self.node("DequantizeLinear", f"{name}.weight", inputs, axis=0)
