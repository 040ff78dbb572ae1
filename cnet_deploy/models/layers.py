"""Layers of the family, with the parameter names of the reference (layers.py), so that its state dicts can be loaded directly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, dropout

Activation = Callable[[], nn.Module]


class NormActConv(nn.Sequential):
    """Batch norm, ReLU or another activation, convolution without bias (the reference's ``Conv``)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, groups: int, padding: int = 0, activation: Activation = nn.ReLU
    ) -> None:
        super().__init__()
        self.add_module("norm", nn.BatchNorm2d(in_channels))
        self.add_module("activation", activation())
        self.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, groups=groups, bias=False))


class LearnedGroupConv(nn.Module):
    """Training form of the 1x1: a dense convolution with a mask (paper, section 3.1).

    Row r of the weight belongs to group r mod G. ``_count``, ``_stage`` and ``_mask`` are the reference's buffers. ``dropout`` is the
    share of the convolution's inputs that training sets to zero.
    """

    _count: Tensor
    _stage: Tensor
    _mask: Tensor

    def __init__(self, in_channels: int, out_channels: int, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.activation = activation()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.dropout = 0.0
        self.register_buffer("_count", torch.zeros(1))
        self.register_buffer("_stage", torch.zeros(1))
        self.register_buffer("_mask", torch.ones_like(self.conv.weight, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H, W]."""
        x = self.activation(self.norm(x))
        if self.dropout and self.training:
            x = dropout(x, self.dropout)
        return conv2d(x, self.conv.weight * self._mask)


class IndexedGroupConv(nn.Module):
    """Group-conv form of the 1x1: gather, batch norm, activation, grouped convolution, shuffle (the reference's ``CondenseConv``).

    ``index`` [width] names the input channel of each gathered channel, group after group; width = in_channels * G / C.
    """

    index: Tensor

    def __init__(self, width: int, out_channels: int, groups: int, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.groups = groups
        self.norm = nn.BatchNorm2d(width)
        self.activation = activation()
        self.conv = nn.Conv2d(width, out_channels, 1, groups=groups, bias=False)
        self.register_buffer("index", torch.zeros(width, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H, W]."""
        x = torch.index_select(x, 1, self.index)
        return shuffle(self.conv(self.activation(self.norm(x))), self.groups)


class LearnedUpdate(LearnedGroupConv):
    """Training form of the 1x1 that updates earlier channels in CondenseNet V2: a LearnedGroupConv transposed (their repository:
    utils/layers.py, SFR). Column k of the weight belongs to group k mod T, and a group loses outputs, not inputs."""


class IndexedUpdate(nn.Module):
    """Group-conv form of the 1x1 that updates earlier channels: batch norm, activation, grouped convolution, and a table of the channels
    that its rows are added to.

    Group j reads channels j, j + T, j + 2 T …; ``index`` [outputs] names the channel that each row of the convolution is added to, group
    after group. (Their repository: model/converted_condensenetv2.py, CondenseSFR, where the index is a matrix of ones and zeros.)
    """

    index: Tensor

    def __init__(self, in_channels: int, out_channels: int, groups: int, activation: Activation = nn.ReLU) -> None:
        super().__init__()
        self.groups = groups
        self.norm = nn.BatchNorm2d(in_channels)
        self.activation = activation()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False)
        self.register_buffer("index", torch.zeros(out_channels, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H, W]; channels that no row is added to are 0."""
        x = self.activation(self.norm(x))
        rows = self.conv(shuffle(x, x.shape[1] // self.groups))  # brings the channels of a group together
        return torch.zeros_like(rows).index_add(1, self.index, rows)


class SqueezeExcite(nn.Module):
    """Channels times factors from 0 to 1, which two matrices without biases make of their means (utils/layers.py there, SELayer)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        first, second = nn.Linear(channels, hidden, bias=False), nn.Linear(hidden, channels, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(first, nn.ReLU(inplace=False), second, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> the same shape."""
        factors: Tensor = self.fc(self.pool(x).flatten(1))
        return x * factors[:, :, None, None]


class IndexedLinear(nn.Module):
    """A classifier that reads only the features in ``index`` (the reference's ``CondenseLinear``)."""

    index: Tensor

    def __init__(self, kept: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(kept, classes)
        self.register_buffer("index", torch.zeros(kept, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """[N, features] -> [N, classes]."""
        logits: Tensor = self.linear(torch.index_select(x, 1, self.index))
        return logits


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the groups' channels: channel k of group i goes to k * groups + i.

    >>> shuffle(torch.arange(6).view(1, 6, 1, 1), 2).flatten().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    n, channels, height, width = x.shape
    return x.view(n, groups, channels // groups, height, width).transpose(1, 2).reshape(n, channels, height, width)
