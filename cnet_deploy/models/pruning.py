"""The state of pruning in a training checkpoint: the inputs that each learned group convolution still reads, and whether it is finished.

Checkpoints of the reference don't record G, C and the progress of training; they are inferred from masks and counters (reference:
layers.py, LearnedGroupConv). Rows of a mask are outputs: row r belongs to group r mod G.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused, PruningUnfinished

MAX_OUTPUTS = 1 << 16  # the paper's networks have up to 512
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class LayerPruning:
    """One learned group convolution: its mask [out, in], and the reference's counters (None if the file lacks them).

    ``stage`` is the condensation stage that training reached, ``count`` the number of inputs that each group has lost.

    The 1x1 that updates channels in CondenseNet V2 is the same transposed: its mask here is [in, out], and what is called inputs everywhere
    are the outputs, which is what its groups lose (``lost``).
    """

    name: str
    mask: Mask
    stage: int | None
    count: int | None
    lost: Literal["input", "output"] = "input"

    @property
    def in_channels(self) -> int:
        """The channels that a group can lose: inputs, or in an update outputs."""
        return int(self.mask.shape[1])

    @property
    def uncounted(self) -> bool:
        """Whether the counters are missing, or are 0 although channels were dropped."""
        return self.stage is None or self.count is None or (not self.stage and not bool(self.mask.all()))

    @property
    def survivors(self) -> tuple[int, int]:
        """The fewest and the most input channels that an output still reads."""
        kept = self.mask.sum(1)
        return int(kept.min()), int(kept.max())

    @property
    def condense_factor(self) -> int | None:
        """C = stage * in_channels / count; None at stage 0 and without counters.

        Raises InputRefused if that is not a whole number.
        """
        if not self.stage or self.count is None:
            return None
        dropped = self.stage * self.in_channels
        factor = round(dropped / self.count) if self.count > 0 else 0
        # Counters saved in bf16 are rounded to 8 bits; the mask decides in the end.
        if not factor or abs(dropped / factor - self.count) > self.count / 256:
            raise InputRefused(
                f"{self.name}: its counters have stage {self.stage} with {self.count} of {self.in_channels} channels dropped; "
                "expected stage * channels / dropped to be a whole number (the condense factor)"
            )
        return factor

    def groups_agree(self, groups: int) -> bool:
        """Whether all rows of each of ``groups`` groups have the same mask."""
        rows = self.mask.shape[0]
        return rows % groups == 0 and bool((self.mask.reshape(rows // groups, groups, -1) == self.mask[:groups]).all())

    @cached_property
    def period(self) -> int:
        """The smallest number of rows after which the mask repeats."""
        period = rest = int(self.mask.shape[0])
        factor = 2
        # If two numbers of rows are periods, so is their greatest common divisor, so trying prime factors is enough.
        while rest > 1:
            factor = factor if factor * factor <= rest else rest
            if rest % factor:
                factor += 1
                continue
            rest //= factor
            if self.groups_agree(period // factor):
                period //= factor
        return period

    def describe(self, condense_factor: int | None) -> str:
        """A clause for messages: how many channels survive, and the stage that training reached."""
        low, high = self.survivors
        kept = f"{low}" if low == high else f"{low} to {high}"
        text = f"{kept} of {self.in_channels} {self.lost} channels survive per group"
        if condense_factor:
            text += f" where {'C' if self.lost == 'input' else 'T'}={condense_factor} keeps {self.in_channels / condense_factor:g}"
        if self.stage is None:
            return text + "; the stage of training is not recorded"
        return text + f"; training reached stage {self.stage}" + (f" of {condense_factor - 1}" if condense_factor else "")


def read_layer(name: str, tensors: Mapping[str, Any]) -> LayerPruning:
    """The state of the layer ``name`` (its ``_mask``, ``_stage``, ``_count`` in ``tensors``).

    Raises InputRefused for a mask that is not 0/1 or differs within a kernel, and for counters that are not whole numbers.
    """
    raw = np.asarray(tensors[f"{name}._mask"])
    if raw.ndim != 4 or 0 in raw.shape or raw.shape[0] > MAX_OUTPUTS:
        raise InputRefused(f"{name}._mask has shape {raw.shape}; expected [out, in, 1, 1] of at most {MAX_OUTPUTS} outputs")
    if not ((raw == 0) | (raw == 1)).all() or not (raw == raw[:, :, :1, :1]).all():
        raise InputRefused(f"{name}._mask holds values other than 0 and 1; expected a mask of kept connections")
    counters = []
    for counter in ("_stage", "_count"):
        value = tensors.get(f"{name}.{counter}")
        number = None if value is None else np.asarray(value, dtype=np.float64).reshape(-1)
        if number is not None and (number.size != 1 or not 0 <= number[0] < 1 << 31 or number[0] != int(number[0])):
            raise InputRefused(f"{name}.{counter} is {number.tolist()[:4]}; expected one whole number")
        counters.append(None if number is None else int(number[0]))
    return LayerPruning(name, raw[:, :, 0, 0] == 1, counters[0], counters[1])


def read_update(name: str, tensors: Mapping[str, Any]) -> LayerPruning:
    """The state of the update ``name`` of CondenseNet V2, transposed. Raises InputRefused as ``read_layer`` does."""
    layer = read_layer(name, tensors)
    return replace(layer, mask=layer.mask.T, lost="output")


def infer_groups(layers: Sequence[LayerPruning]) -> int | None:
    """G: the smallest number of rows after which every mask repeats; None if they don't (pruning has not begun, or damage)."""
    own = [layer.period for layer in layers]
    common = math.lcm(*own)
    if any(layer.mask.shape[0] % common for layer in layers):
        return None
    # Before pruning all rows are equal, so a period of 1 means nothing; nor does a period that no layer repeats.
    untouched = common == 1 and any(layer.mask.all() for layer in layers)
    unrepeated = all(layer.mask.shape[0] == common for layer in layers)
    # A layer may have a shorter period by chance; if most have one, the other layers are damaged.
    damaged = sum(period < common and not layer.mask.all() for period, layer in zip(own, layers, strict=True)) > own.count(common)
    return None if untouched or unrepeated or damaged else common


def infer_condense_factor(layers: Sequence[LayerPruning]) -> int | None:
    """C from the counters of all layers at stage 1 or later; None without such layers. Raises InputRefused if they disagree."""
    factors: dict[int, str] = {}
    for layer in layers:
        if factor := layer.condense_factor:
            factors.setdefault(factor, layer.name)
    if len(factors) > 1:
        listed = ", ".join(f"C={factor} in {name}" for factor, name in sorted(factors.items()))
        raise InputRefused(f"the layers' counters disagree on the condense factor: {listed}; pruning is unfinished or the file is damaged")
    return next(iter(factors), None)


def require_finished(layers: Sequence[LayerPruning], groups: int, condense_factor: int) -> None:
    """Check that every layer is pruned to the end: its counters at stage C-1, and exactly in/C channels kept by each group.

    If counters are missing or at stage 0, the mask alone decides. Raises PruningUnfinished with the layer, the number of channels that
    survive and the stage that training reached; InputRefused for a mask that differs within a group.
    """
    mixed = {
        "input": "outputs of one group read different inputs; expected one mask per group with G",
        "output": "inputs of one group write different outputs; expected one mask per group with T",
    }
    for layer in layers:
        if not layer.groups_agree(groups):
            raise InputRefused(f"{layer.name}: {mixed[layer.lost]}={groups}")
        unfinished = bool(layer.stage) and layer.stage != condense_factor - 1
        kept = layer.mask.sum(1) * condense_factor
        if unfinished or not (kept == layer.in_channels).all():
            raise PruningUnfinished(
                f"{layer.name}: pruning is unfinished: {layer.describe(condense_factor)}; "
                "train on until the last condensation stage (half of all epochs), then convert"
            )
