"""The paper's other networks -> ONNX ModelProto, through ``torch.onnx.export``."""

from __future__ import annotations

import copy
import logging
import warnings

import onnx
import torch
from torch import Tensor, nn

from cnet_deploy.artifacts.onnx_metadata import INPUT, OUTPUT
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.onnx.graph import OPSETS
from cnet_deploy.models.architecture import INPUT_SIZE

OPSET = 18  # the lowest that torch's exporter writes by itself
_DTYPES = {"fp16": torch.float16}


class _Inside(nn.Module):
    """A network in another precision with float32 input and output."""

    def __init__(self, network: nn.Module, precision: str) -> None:
        super().__init__()
        self.dtype = _DTYPES[precision]
        self.network = copy.deepcopy(network).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.to(self.dtype)).float()
        return logits


def trace(network: nn.Module, *, opset: int | None = None, batch: int | None = None, precision: str = "fp32") -> onnx.ModelProto:
    """The ONNX model of a network: float32 ``input`` [batch, 3, 224, 224] -> float32 ``logits`` [batch, 1000], in ``precision`` between.

    Stack traces and local paths, which torch writes into the file, are removed. Raises InputRefused for an opset outside 18 to 22, and for
    a precision other than fp32 and fp16.
    """
    if precision != "fp32" and precision not in _DTYPES:  # torch 2.13 mixes bf16 with float32 weights when it folds a norm
        raise InputRefused(f"precision {precision!r}; expected fp32 or fp16 for a network that is exported through torch")
    opset = OPSET if opset is None else opset
    if not OPSET <= opset < OPSETS.stop:
        raise InputRefused(f"opset {opset}; expected {OPSET} to {OPSETS.stop - 1} for a network that is exported through torch")
    network = network.eval() if precision == "fp32" else _Inside(network, precision).eval()
    # For a dynamic batch the example has two images: torch treats sizes 0 and 1 as constants.
    example = torch.zeros(batch or 2, 3, *INPUT_SIZE)
    dynamic = None if batch else ({0: torch.export.Dim("batch")},)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                network, (example,), input_names=[INPUT], output_names=[OUTPUT], opset_version=opset, dynamo=True, verbose=False,
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
