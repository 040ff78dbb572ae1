"""ONNX files: written from the Program for the family, and with ``torch.onnx.export`` for the paper's other networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cnet_deploy.errors import deferred_interrupts
from cnet_deploy.exporters.base import Inside, Option, Serving, Target, Written, require_quantization

if TYPE_CHECKING:
    from torch import nn

    from cnet_deploy.program.program import Program
    from cnet_deploy.program.quantize import Quantization

TARGET = Target(
    suffix=".onnx",
    kind="onnx",
    title="ONNX",
    help="Write an ONNX file.",
    container="onnx",
    options=(
        Option(
            "precision",
            "choice",
            "fp32, fp16, bf16 or int8 for weights and layers (images and logits stay float32)",
            choices=("fp32", "fp16", "bf16", "int8"),
            several=True,
        ),
        Option("batch", "batch", "N fixes the batch size, else it is free"),
        Option("opset", "number", "its opset [default: 17, or 22 for bf16]", bounds=(17, 22)),
    ),
    serving=(
        Serving("onnxruntime_onnx", "onnxruntime", "model.onnx", threads="intra_op_thread_count"),
        Serving("", "openvino", "model.onnx", runs_on="cpu"),
    ),
)
_NO_BF16 = "onnxruntime has no bf16 convolution for CPUs"


def write(
    network: Program | nn.Module,
    path: Path,
    *,
    opset: int | None = None,
    batch: int | None = None,
    precision: str = "fp32",
    quantization: Quantization | None = None,
) -> Written:
    """Write one ONNX file, weights included. ``batch`` None leaves the batch dynamic. The same network gives the same bytes.

    ``precision`` is that of weights and layers; images and logits are always float32. ``quantization`` is what int8 needs, of this network;
    see exporters/onnx/quantized.py. Raises InputRefused for an impossible opset, batch or precision, and for int8 without a quantization.
    """
    with deferred_interrupts():
        import onnx

        from cnet_deploy.exporters.onnx.graph import build_graph
    from cnet_deploy.program.program import Program

    libraries = {"onnx": onnx.__version__}
    if precision == "int8":
        from cnet_deploy.exporters.onnx.quantized import build_quantized

        model = build_quantized(*require_quantization(network, quantization), opset=opset, batch=batch)
    elif isinstance(network, Program):
        model = build_graph(network, opset=opset, batch=batch, precision=precision)
    else:
        import torch

        from cnet_deploy.exporters.onnx.trace import trace

        model = trace(network, opset=opset, batch=batch, precision=precision)
        libraries["torch"] = torch.__version__
    path.write_bytes(model.SerializeToString(deterministic=True))
    details = {"opset": model.opset_import[0].version, "ir_version": model.ir_version, "batch": batch or "dynamic"}
    return Written(precision, details, libraries, _NO_BF16 if precision == "bf16" else None)


def inspect(data: bytes) -> Inside:
    """Describe a file. Raises InputRefused for bytes that are no ONNX model, or a model that keeps weights in other files."""
    from cnet_deploy.exporters.onnx.count import count

    return count(data)
