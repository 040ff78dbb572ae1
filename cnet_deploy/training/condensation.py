"""What training adds to a learned group convolution: the group lasso, and dropping the weakest inputs of each group (paper, section 3.1).

Row r of a 1x1's weight [out, in] belongs to group r mod G, so that ``weight.view(out / G, G, in)`` has the groups in its middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.layers import LearnedGroupConv

_FLOOR = 1e-6  # of a squared norm: the root has no slope at 0 (reference: layers.py, lasso_loss)


@dataclass(frozen=True)
class Progress:
    """How far condensation came: connections of the learned group convolutions that live, of all."""

    stage: int
    stages: int
    live: int
    total: int

    def summary(self) -> str:
        """One line for people."""
        share = self.live / self.total if self.total else 1.0
        return f"condensation stage {self.stage} of {self.stages}: {self.live:,} of {self.total:,} connections live ({share:.1%})"


class Condensation:
    """The learned group convolutions of a model in training, and what is done to all of them together."""

    def __init__(self, model: DenselyConnected) -> None:
        self.architecture: Architecture = model.architecture
        self.layers = [module for module in model.modules() if isinstance(module, LearnedGroupConv)]
        self.stage = 0
        self.refresh()

    def refresh(self) -> None:
        """Look at the layers' counters again, after others were loaded: to ask a GPU for them at every step would take its time."""
        last = self.architecture.condense_factor - 1
        self.stage = min((int(layer._stage) for layer in self.layers), default=last)

    @property
    def progress(self) -> Progress:
        """The stage that every layer reached, and the connections that live."""
        live = sum(int(layer._mask.sum()) for layer in self.layers)
        return Progress(self.stage, self.architecture.condense_factor - 1, live, sum(layer._mask.numel() for layer in self.layers))

    @torch.no_grad()
    def reach(self, stage: int) -> bool:
        """Drop inputs until each group has lost stage / C of them, those with the least summed magnitude first (paper, equation 1).

        What was dropped stays so. Returns whether anything was dropped.
        """
        if stage <= self.stage:
            return False
        arch = self.architecture
        for layer in self.layers:
            drop(layer, arch.group_1x1, stage * layer.conv.in_channels // arch.condense_factor)
            layer._stage.fill_(stage)
        self.stage = stage
        return True

    @property
    def finished(self) -> bool:
        """Whether the last stage is reached: nothing is left to be learned about the groups, and the lasso has done its work."""
        return self.stage >= self.architecture.condense_factor - 1

    @torch.no_grad()
    def add_lasso_gradient(self, weight: float) -> Tensor | None:
        """Add ``weight`` times the group lasso's gradient to the weights' own; the lasso's value, unweighted, before the step.

        The lasso is the sum, over groups and inputs, of the norm of the weights that join them (paper, equation 2). Its gradient is
        w / norm, which is cheaper to add than to have automatic differentiation find. None without layers.
        """
        total: Tensor | None = None
        for layer in self.layers:
            own, mask = layer.conv.weight, layer._mask
            live = (own * mask).view(-1, self.architecture.group_1x1, own.shape[1])
            squares = live.square().sum(0)
            norms = squares.clamp(min=_FLOOR).sqrt()
            total = norms.sum() if total is None else total + norms.sum()
            scaled = live * torch.where(squares > _FLOOR, weight / norms, 0.0)
            assert own.grad is not None
            own.grad.add_(scaled.view_as(own))
        return total

    def buffers(self) -> Sequence[Tensor]:
        """All masks and counters."""
        return [buffer for layer in self.layers for buffer in (layer._mask, layer._stage, layer._count)]


@torch.no_grad()
def drop(layer: LearnedGroupConv, groups: int, dropped: int) -> None:
    """Let each group of a layer read ``dropped`` of its inputs less than all (reference: layers.py, _dropping).

    Inputs are ordered by the summed magnitude of the weights that join them to the group; those that were dropped before come first.
    """
    weight = layer.conv.weight
    mask = layer._mask.view(-1, groups, weight.shape[1])
    strength = (weight.view_as(mask).abs() * mask).sum(0)
    strength[mask[0] == 0] = -1
    gone = strength.argsort(dim=1, stable=True)[:, :dropped]
    mask[:] = mask[0].scatter(1, gone, 0)
    layer._count.fill_(dropped)


def initialise(model: nn.Module) -> None:
    """The reference's initial weights, from torch's own generator: normal with variance 2 / (kernel area * outputs), norms that do
    nothing, a classifier without bias (reference: models/condensenet.py)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, 0, (2 / (kernel * module.out_channels)) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
