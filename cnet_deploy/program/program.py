"""The Program: a lowered network in numpy. Second batch norms are folded; shuffles and gathers are index tables.

Every exporter reads a Program. ``run`` computes it slowly in numpy, as the reference for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Stem:
    """3x3 convolution of the image, padding 1. ``weight`` [channels, channels of the image, 3, 3]."""

    name: str
    weight: Floats
    stride: int


@dataclass(frozen=True, eq=False)
class Pointwise:
    """Gather, scale and shift, ReLU, grouped 1x1 convolution, reorder.

    ``index`` [width] has the input channel (of ``in_channels``) of each gathered channel, group after group. ``scale`` and ``shift``
    [width] are the first batch norm; because of the ReLU it can't be folded into the convolution. ``weight`` [out, width / groups] and
    ``bias`` [out] include the batch norm that follows, if any. Channel j of the result is row ``order[j]`` of the convolution.
    """

    name: str
    in_channels: int
    index: Indices
    scale: Floats
    shift: Floats
    weight: Floats
    bias: Floats
    groups: int
    order: Indices


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A Pointwise that includes the second batch norm, ReLU, and a grouped 3x3 convolution whose output is appended to the block's map.

    ``weight`` [growth, pointwise out / groups, 3, 3].
    """

    name: str
    pointwise: Pointwise
    weight: Floats
    groups: int


@dataclass(frozen=True, eq=False)
class Transition:
    """An optional Pointwise, then 2x2 average pooling with stride 2 that drops an odd last row or column."""

    name: str
    pointwise: Pointwise | None


@dataclass(frozen=True, eq=False)
class Pool:
    """Scale and shift [features], ReLU, average over the whole map, or over a ``window`` (height, width) at its top left."""

    name: str
    scale: Floats
    shift: Floats
    window: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Head:
    """The classifier: ``weight`` [classes, kept] on the ``index`` [kept] of all ``features``, plus ``bias`` [classes]."""

    name: str
    features: int
    index: Indices
    weight: Floats
    bias: Floats


@dataclass(frozen=True, eq=False)
class Program:
    """A lowered network and the metadata for its artifacts. Arrays are float32 or int64 and must not be changed."""

    architecture: Architecture
    stem: Stem
    body: tuple[DenseLayer | Transition, ...]
    pool: Pool
    head: Head
    preprocessing: Preprocessing
    source_digest: str
    class_names: tuple[str, ...] = ()

    def run(self, batch: Array, observe: Callable[[str, Array], None] = lambda *_: None) -> Array:
        """[N, channels, H, W] -> logits [N, classes], in the precision of ``batch``. Slow: a reference for tests, not a backend.

        ``observe`` is given what convolutions write, [N, C, H, W], by a name: the stem's, a layer's, and that of its or a transition's 1x1
        (of a layer's, after the ReLU).
        """
        x = convolve(batch, self.stem.weight, self.stem.stride)
        observe(self.stem.name, x)
        for layer in self.body:
            if isinstance(layer, DenseLayer):
                middle = np.maximum(_pointwise(x, layer.pointwise), 0)
                observe(layer.pointwise.name, middle)
                new = convolve(middle, layer.weight, groups=layer.groups)
                observe(layer.name, new)
                x = np.concatenate([x, new], axis=1)
            else:
                if layer.pointwise is not None:
                    x = _pointwise(x, layer.pointwise)
                    observe(layer.pointwise.name, x)
                n, c, h, w = x.shape
                x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
        height, width = self.pool.window or x.shape[2:]
        features = np.maximum(_affine(x[:, :, :height, :width], self.pool.scale, self.pool.shift), 0).mean((2, 3))
        logits: Array = features[:, self.head.index] @ self.head.weight.T.astype(x.dtype) + self.head.bias.astype(x.dtype)
        return logits


def convolve(x: Array, weight: Array, stride: int = 1, groups: int = 1) -> Array:
    """Grouped 3x3 convolution with padding 1 of [N, in, H, W] by [out, in / groups, 3, 3]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, groups, 1), np.split(weight.astype(x.dtype), groups, 0), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", part, kernel, optimize=True) for part, kernel in parts], axis=1)


def _pointwise(x: Array, layer: Pointwise) -> Array:
    active = np.maximum(_affine(x[:, layer.index], layer.scale, layer.shift), 0)
    parts = zip(np.split(active, layer.groups, 1), np.split(layer.weight.astype(x.dtype), layer.groups, 0), strict=True)
    rows = np.concatenate([np.einsum("nchw,oc->nohw", part, kernel, optimize=True) for part, kernel in parts], axis=1)
    result: Array = (rows + layer.bias.astype(x.dtype)[:, None, None])[:, layer.order]
    return result


def _affine(x: Array, scale: Array, shift: Array) -> Array:
    result: Array = x * scale.astype(x.dtype)[:, None, None] + shift.astype(x.dtype)[:, None, None]
    return result
