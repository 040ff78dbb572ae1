"""Training of learned group convolutions: the group lasso, and dropping the weakest inputs of each group (paper, section 3.1).

Row r of a 1x1's weight [out, in] belongs to group r mod G, so the groups are the middle axis of ``weight.view(out / G, G, in)``. An update
of CondenseNet V2 is the same transposed: column k belongs to group k mod T, and a group loses outputs (their paper, section 3.2; their
repository: utils/layers.py, SFR).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.layers import LearnedGroupConv, LearnedUpdate

_FLOOR = 1e-6  # of a squared norm: the root has no gradient at 0 (reference: layers.py, lasso_loss)


@dataclass(frozen=True)
class Condensed:
    """The progress of condensation: ``live`` of ``total`` connections of the learned group convolutions are left."""

    stage: int
    stages: int
    live: int
    total: int

    def summary(self) -> str:
        """One line of text."""
        share = self.live / self.total if self.total else 1.0
        return f"condensation stage {self.stage} of {self.stages}: {self.live:,} of {self.total:,} connections live ({share:.1%})"


class Condensation:
    """The learned group convolutions of a model in training, its updates among them, and the operations on all of them.

    Raises InputRefused for a CondenseNet V2 whose updates have another factor than its 1x1 convolutions: all have the same stages here.
    """

    def __init__(self, model: DenselyConnected) -> None:
        self.architecture: Architecture = model.architecture
        updated = self.architecture.update_groups
        if updated not in (None, self.architecture.condense_factor):
            raise InputRefused(
                f"update_groups is {updated} and the condense factor {self.architecture.condense_factor}; training expects them to be "
                "equal, as in every published CondenseNet V2"
            )
        self.layers = [module for module in model.modules() if isinstance(module, LearnedGroupConv)]
        self.stage = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the layers' counters again after a state dict was loaded. They are cached because reading them from a GPU takes time."""
        last = self.architecture.condense_factor - 1
        self.stage = min((int(layer._stage) for layer in self.layers), default=last)

    @property
    def progress(self) -> Condensed:
        """The stage that every layer has reached, and the connections left."""
        live = sum(int(layer._mask.sum()) for layer in self.layers)
        return Condensed(self.stage, self.architecture.condense_factor - 1, live, sum(layer._mask.numel() for layer in self.layers))

    @torch.no_grad()
    def reach(self, stage: int) -> bool:
        """Drop inputs (of updates: outputs) until each group has lost stage / C of them, those with the least summed magnitude first
        (paper, equation 1).

        What is dropped stays dropped. Returns whether anything was dropped.
        """
        if stage <= self.stage:
            return False
        for layer in self.layers:
            channels = layer.conv.out_channels if isinstance(layer, LearnedUpdate) else layer.conv.in_channels
            drop(layer, self._groups(layer), stage * channels // self.architecture.condense_factor)
            layer._stage.fill_(stage)
        self.stage = stage
        return True

    @property
    def finished(self) -> bool:
        """Whether the last stage is reached: the groups are final, and the lasso is no longer needed."""
        return self.stage >= self.architecture.condense_factor - 1

    @torch.no_grad()
    def add_lasso_gradient(self, weight: float) -> Tensor | None:
        """Add ``weight`` times the group lasso's gradient to the weights' gradients. Returns the unweighted lasso; None without layers.

        The lasso is the sum, over groups and what they can lose, of the norm of the weights between them (paper, equation 2). Its gradient
        is w / norm, which is cheaper to add here than by automatic differentiation. The authors of CondenseNet V2 define it for updates too
        (utils/layers.py, SFR.lasso_loss), but train without.
        """
        total: Tensor | None = None
        for layer in self.layers:
            own = layer.conv.weight
            live = by_group(layer, own * layer._mask, self._groups(layer))
            squares = live.square().sum(0)
            norms = squares.clamp(min=_FLOOR).sqrt()
            total = norms.sum() if total is None else total + norms.sum()
            scaled = live * torch.where(squares > _FLOOR, weight / norms, 0.0)
            assert own.grad is not None
            by_group(layer, own.grad, self._groups(layer)).add_(scaled)
        return total

    def buffers(self) -> Sequence[Tensor]:
        """All masks and counters."""
        return [buffer for layer in self.layers for buffer in (layer._mask, layer._stage, layer._count)]

    def _groups(self, layer: LearnedGroupConv) -> int:
        updated = self.architecture.update_groups if isinstance(layer, LearnedUpdate) else None
        return updated or self.architecture.group_1x1


def by_group(layer: LearnedGroupConv, values: Tensor, groups: int) -> Tensor:
    """A layer's weight, mask or gradient [out, in, 1, 1], seen as [channels of a group, groups, channels that a group can lose]."""
    matrix = values[:, :, 0, 0]
    matrix = matrix.T if isinstance(layer, LearnedUpdate) else matrix
    return matrix.view(-1, groups, matrix.shape[1])


@torch.no_grad()
def drop(layer: LearnedGroupConv, groups: int, dropped: int) -> None:
    """Drop the ``dropped`` weakest inputs of each group of a layer, in an update its weakest outputs (reference: layers.py, _dropping).

    They are ordered by the summed magnitude of the weights between them and the group; those dropped before come first.
    """
    mask = by_group(layer, layer._mask, groups)
    strength = (by_group(layer, layer.conv.weight, groups).abs() * mask).sum(0)
    strength[mask[0] == 0] = -1
    gone = strength.argsort(dim=1, stable=True)[:, :dropped]
    mask[:] = mask[0].scatter(1, gone, 0)
    layer._count.fill_(dropped)


def initialise(model: DenselyConnected) -> None:
    """The reference's initial weights, from torch's generator: normal with variance 2 / (kernel area * outputs), batch norms of gain 1 and
    shift 0, classifier biases of 0 (reference: models/condensenet.py).

    CondenseNet V2 is the same, but its linear layers are left as torch makes them. Its updates start with gain 1 too: their code sets 0
    (utils/layers.py, SFR._init_weight) and then 1 (model/condensenetv2.py, _initialize).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, 0, (2 / (kernel * module.out_channels)) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear) and not model.architecture.updates:
            nn.init.zeros_(module.bias)
