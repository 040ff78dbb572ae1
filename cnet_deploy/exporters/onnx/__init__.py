"""ONNX files: emitted from the Program for the family, through ``torch.onnx.export`` for the paper's other networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from cnet_deploy.exporters.base import Written
from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.program.program import Program

if TYPE_CHECKING:
    from torch import nn

SUFFIX = ".onnx"
HELP = "Write an ONNX file."
PLACE = 1


def write(
    network: Program | nn.Module, path: Path, *, opset: int | None = None, batch: int | None = None, precision: str = "fp32"
) -> Written:
    """Write one ONNX file, weights included. ``batch`` None leaves the batch dynamic. The same network gives the same bytes.

    ``precision`` is that of weights and layers; the image and the logits are float32 in any. Raises InputRefused for an opset, batch or
    precision that can't be.
    """
    libraries = {"onnx": onnx.__version__}
    if isinstance(network, Program):
        model = build_graph(network, opset=opset, batch=batch, precision=precision)
    else:
        import torch

        from cnet_deploy.exporters.onnx.trace import trace

        model = trace(network, opset=opset, batch=batch, precision=precision)
        libraries["torch"] = torch.__version__
    path.write_bytes(model.SerializeToString(deterministic=True))
    details = {"opset": model.opset_import[0].version, "ir_version": model.ir_version, "batch": batch or "dynamic"}
    return Written(precision, details, libraries, _NO_BF16 if precision == "bf16" else None)


_NO_BF16 = "onnxruntime has no bf16 convolution for processors"
