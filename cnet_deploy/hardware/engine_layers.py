"""The actual precision of an engine's layers, read from the built engine, or from the network if no device can open it.

An engine that was requested in fp16 but built in fp32 gives correct outputs at half the speed. Only this check notices.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from cnet_deploy.errors import CheckFailed

# Words of TensorRT's inspector (all versions, lower case) -> our names; the first word that occurs in a text decides.
_WORDS = (
    ("bfloat16", "bf16"), ("bf16", "bf16"), ("fp16", "fp16"), ("half", "fp16"), ("fp32", "fp32"), ("float", "fp32"), ("int8", "int8"),
)  # fmt: skip
_MULTIPLY = ("conv", "gemm", "matrix", "matmul", "fprop", "xmma", "fully")
_MOVE = ("reformat", "noop", "constant", "shape", "signal", "wait")
_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8}
EXPECTED = {"fp32": "fp32", "tf32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8"}


class Layers:
    """Layers counted by precision: ``all`` that compute, and those ``multiplying`` matrices (convolutions and the classifier)."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.all: Counter[str] = Counter()
        self.multiplying: Counter[str] = Counter()
        self.tf32 = 0

    def add(self, precision: str, *, multiplies: bool) -> None:
        self.all[precision] += 1
        if multiplies:
            self.multiplying[precision] += 1

    def to_dict(self) -> dict[str, Any]:
        """For the manifest: ``precision_source`` ("engine" or "network") and both histograms."""
        counts = {"layers": dict(sorted(self.all.items())), "multiplying_layers": dict(sorted(self.multiplying.items()))}
        return {"precision_source": self.source, **counts}

    def check(self, precision: str, *, floats: int = 0) -> None:
        """Raise CheckFailed unless all multiplying layers are in ``precision`` ("fp32", "tf32", "fp16", "bf16" or "int8").

        As many as ``floats`` may be in fp32 instead: those that the graph does not quantise.
        """
        wanted = EXPECTED[precision]
        other = {name: count for name, count in sorted(self.multiplying.items()) if name != wanted}
        if 0 < other.get("fp32", 0) <= floats:
            del other["fp32"]
            if not other and not self.multiplying[wanted]:
                raise CheckFailed(
                    f"nothing in the engine multiplies in {precision}: all layers that could were kept in fp32; allow a larger accuracy "
                    "budget, calibrate on images as the network is used with, or build it in another precision"
                )
        if other or not self.multiplying[wanted]:
            rest = ", ".join(f"{count} in {name}" for name, count in other.items()) or "and it lists no others"
            raise CheckFailed(
                f"the engine is not {precision}: of its layers that multiply, {self.multiplying[wanted]} are in {wanted}, {rest}; "
                "build it with a newer TensorRT, or in another precision"
            )
        if precision == "fp32" and self.tf32:
            raise CheckFailed(
                f"the engine is not fp32: {self.tf32} layers multiply in TF32; give --precision tf32 if that is precise enough"
            )


def of_engine(text: str) -> Layers:
    """Count layers in the inspector's JSON of an engine that was built with detailed verbosity (``get_engine_information``).

    A layer has the narrowest type among its inputs and outputs, since a layer that casts computes in the narrow type.
    """
    counted = Layers("engine")
    layers = json.loads(text).get("Layers", [])
    for layer in layers:
        if not isinstance(layer, dict):  # only a name: built without details
            continue
        kind, tactic = str(layer.get("LayerType", "")).lower(), str(layer.get("TacticName", "")).lower()
        multiplies = "pool" not in kind and any(word in part for part in (kind, tactic) for word in _MULTIPLY)
        types = [known for words in _types(layer) if (known := _precision(words))]
        if not types and multiplies:  # "N/A due to dynamic shapes", in 8.6
            types = [known for words in _types_of_weights(layer, tactic) if (known := _precision(words))]
        if not types or any(word in kind for word in _MOVE):
            continue
        counted.add(min(types, key=_BITS.__getitem__), multiplies=multiplies)
        counted.tf32 += multiplies and "tf32" in tactic
    return counted


def of_network(network: Any, module: Any) -> Layers:
    """Count layers in a parsed TensorRT network. A strongly typed engine keeps its types.

    A layer is in int8 if all that it multiplies was dequantised just before: then the builder lets it multiply the integers.
    """
    counted = Layers("network")
    names = {module.DataType.FLOAT: "fp32", module.DataType.HALF: "fp16"}
    if hasattr(module.DataType, "BF16"):
        names[module.DataType.BF16] = "bf16"
    kinds = module.LayerType
    dequantized = set()
    for number in range(network.num_layers):
        layer = network.get_layer(number)
        known = names.get(layer.get_output(0).dtype) if layer.num_outputs else None
        if layer.type == kinds.DEQUANTIZE:
            dequantized.add(layer.get_output(0).name)
        elif known is not None and layer.type not in (kinds.CONSTANT, kinds.CAST, kinds.SHUFFLE):
            read = [layer.get_input(place) for place in range(min(layer.num_inputs, 2))]
            multiplies = layer.type in (kinds.CONVOLUTION, kinds.MATRIX_MULTIPLY)
            if multiplies and len(read) == 2 and all(tensor is not None and tensor.name in dequantized for tensor in read):
                known = "int8"
            counted.add(known, multiplies=multiplies)
    return counted


def _types(layer: dict[str, Any]) -> Iterator[str]:
    for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ())):
        if isinstance(tensor, dict):
            yield " ".join(str(tensor[key]) for key in ("DataType", "Datatype", "Format/Datatype", "Format") if key in tensor)


def _types_of_weights(layer: dict[str, Any], tactic: str) -> Iterator[str]:
    """The type of a layer's weights, or of the operands in its tactic's name: sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_…"""
    weights = layer.get("Weights")
    if isinstance(weights, dict) and "Type" in weights:
        yield str(weights["Type"])
    elif named := re.search(r"_(bf16|t?f32|f16)(?:bf16|f32|f16)_", tactic):
        yield {"bf16": "bf16", "f16": "fp16"}.get(named[1], "fp32")


def _precision(words: str) -> str | None:
    words = words.lower()
    return next((ours for theirs, ours in _WORDS if theirs in words), None)
