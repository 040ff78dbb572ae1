"""ONNX files: emitted from the Program for the family, through ``torch.onnx.export`` for the paper's other networks."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters import Written
from cnet_deploy.onnx_graph import INPUT, OPSETS, OUTPUT, build_graph
from cnet_deploy.program import Program

if TYPE_CHECKING:
    from torch import nn

BASELINE_OPSET = 18  # the lowest that torch's exporter writes by itself


def write(network: Program | nn.Module, path: Path, *, opset: int | None = None, batch: int | None = None) -> Written:
    """Write one ONNX file, weights included. ``batch`` None leaves the batch dynamic. The same network gives the same bytes.

    Raises InputRefused for an opset or batch that can't be.
    """
    if isinstance(network, Program):
        opset = OPSETS.start if opset is None else opset
        model = build_graph(network, opset=opset, batch=batch)
        libraries = {"onnx": onnx.__version__}
    else:
        import torch

        opset = BASELINE_OPSET if opset is None else opset
        model = _trace(network, opset, batch)
        libraries = {"onnx": onnx.__version__, "torch": torch.__version__}
    path.write_bytes(model.SerializeToString(deterministic=True))
    return Written("fp32", {"opset": opset, "ir_version": model.ir_version, "batch": batch or "dynamic"}, libraries)


def _trace(network: nn.Module, opset: int, batch: int | None) -> onnx.ModelProto:
    """``torch.onnx.export`` of a baseline, without the stack traces and local paths that it leaves in the file."""
    import torch

    from cnet_deploy.models.baselines import INPUT_SIZE

    if not BASELINE_OPSET <= opset < OPSETS.stop:
        raise InputRefused(f"opset {opset}; expected {BASELINE_OPSET} to {OPSETS.stop - 1} for a network that is exported through torch")
    # A dynamic dimension is traced from an example of at least two: torch takes 0 and 1 for constants.
    example = torch.zeros(batch or 2, 3, *INPUT_SIZE)
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                network.eval(), (example,), input_names=[INPUT], output_names=[OUTPUT], opset_version=opset, dynamo=True, verbose=False,
                dynamic_shapes=dynamic, external_data=False,
            )  # fmt: skip
    finally:
        logger.setLevel(level)
    assert exported is not None
    model = exported.model_proto
    del model.metadata_props[:]
    model.doc_string = ""
    for part in (
        model.graph,
        *model.graph.node,
        *model.graph.initializer,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
    ):
        part.doc_string = ""
        del part.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model
