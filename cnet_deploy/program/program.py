"""The Program: a lowered network in numpy. Second batch norms are folded; shuffles and gathers are index tables.

Every exporter reads a Program. ``run`` computes it slowly in numpy, as the reference for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Activation = Literal["relu", "hard_swish"]


@dataclass(frozen=True, eq=False)
class Stem:
    """3x3 convolution of the image, padding 1. ``weight`` [channels, channels of the image, 3, 3]."""

    name: str
    weight: Floats
    stride: int


@dataclass(frozen=True, eq=False)
class Pointwise:
    """Gather, scale and shift, activation, grouped 1x1 convolution, reorder.

    ``index`` [width] has the input channel (of ``in_channels``) of each gathered channel, group after group. ``scale`` and ``shift``
    [width] are the first batch norm; because of the activation it can't be folded into the convolution. ``weight``
    [out, width / groups] and ``bias`` [out] include the batch norm that follows, if any. Channel j of the result is row ``order[j]`` of the
    convolution. ``activation`` is the one before the convolution.
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
    activation: Activation = "relu"


@dataclass(frozen=True, eq=False)
class Excite:
    """Squeeze and excitation (Hu et al., CVPR 2018) without biases: channels times sigmoid(expand relu(squeeze mean)).

    ``mean`` is over each channel's pixels; ``squeeze`` [hidden, channels], ``expand`` [channels, hidden].
    """

    name: str
    squeeze: Floats
    expand: Floats


@dataclass(frozen=True, eq=False)
class Update:
    """What a layer adds to the channels before its own (CondenseNet V2, section 3.2: sparse feature reactivation).

    Of the layer's new channels: gather, scale and shift, activation, grouped 1x1 convolution without a bias. ``index``, ``scale`` and
    ``shift`` [growth] are as in a Pointwise, group after group. Row r of ``weight`` [rows, growth / groups] is added to channel
    ``target[r]`` of the map; the targets of a group ascend, and several groups may write one channel.
    """

    name: str
    channels: int
    index: Indices
    scale: Floats
    shift: Floats
    weight: Floats
    groups: int
    target: Indices
    activation: Activation = "relu"

    def dense(self) -> Floats:
        """The same as one dense 1x1: [channels, growth], for the new channels in their order. Each weight is as it was, bit for bit."""
        weight = np.zeros((self.channels, self.index.size), np.float32)
        rows, width = len(self.weight) // self.groups, self.weight.shape[1]
        for row, target in enumerate(self.target):
            weight[target, self.index[row // rows * width : (row // rows + 1) * width]] = self.weight[row]
        return weight


@dataclass(frozen=True, eq=False)
class DenseLayer:
    """A Pointwise that includes the second batch norm, its activation once more, and a grouped 3x3 convolution.

    ``weight`` [growth, pointwise out / groups, 3, 3]. What it makes is multiplied by ``excite`` and appended to the block's map, to whose
    channels before it ``update`` is added; CondenseNet V2 alone has these two.
    """

    name: str
    pointwise: Pointwise
    weight: Floats
    groups: int
    excite: Excite | None = None
    update: Update | None = None

    @property
    def activation(self) -> Activation:
        """What stands before either convolution."""
        return self.pointwise.activation


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
class Hidden:
    """The layer before the classifier in CondenseNet V2: the pooled features, excited, times ``weight`` [outputs, features], plus
    ``bias`` [outputs], hard swish."""

    name: str
    excite: Excite
    weight: Floats
    bias: Floats


@dataclass(frozen=True, eq=False)
class Head:
    """The classifier: ``weight`` [classes, kept] on the ``index`` [kept] of all ``features``, plus ``bias`` [classes].

    ``features`` are the pooled channels, or what the hidden layer makes of them.
    """

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
    hidden: Hidden | None = None

    def run(self, batch: Array, observe: Callable[[str, Array], None] = lambda *_: None) -> Array:
        """[N, channels, H, W] -> logits [N, classes], in the precision of ``batch``. Slow: a reference for tests, not a backend.

        ``observe`` is given what convolutions write, [N, C, H, W], by a name: the stem's, a layer's, and that of its or a transition's 1x1
        (of a layer's, after the activation). A layer's is what it appends, excited; the map that it updated has its update's name.
        """
        x = convolve(batch, self.stem.weight, self.stem.stride)
        observe(self.stem.name, x)
        for layer in self.body:
            if isinstance(layer, DenseLayer):
                middle = activated(_pointwise(x, layer.pointwise), layer.activation)
                observe(layer.pointwise.name, middle)
                new = convolve(middle, layer.weight, groups=layer.groups)
                if layer.excite is not None:
                    new = new * excitation(new.mean((2, 3)), layer.excite)[:, :, None, None]
                observe(layer.name, new)
                if layer.update is not None:
                    x = _updated(x, new, layer.update)
                    observe(layer.update.name, x)
                x = np.concatenate([x, new], axis=1)
            else:
                if layer.pointwise is not None:
                    x = _pointwise(x, layer.pointwise)
                    observe(layer.pointwise.name, x)
                n, c, h, w = x.shape
                x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
        height, width = self.pool.window or x.shape[2:]
        features = np.maximum(_affine(x[:, :, :height, :width], self.pool.scale, self.pool.shift), 0).mean((2, 3))
        if self.hidden is not None:
            features = features * excitation(features, self.hidden.excite)
            features = features @ self.hidden.weight.T.astype(x.dtype) + self.hidden.bias.astype(x.dtype)
            features = activated(features, "hard_swish")
        logits: Array = features[:, self.head.index] @ self.head.weight.T.astype(x.dtype) + self.head.bias.astype(x.dtype)
        return logits


def convolve(x: Array, weight: Array, stride: int = 1, groups: int = 1) -> Array:
    """Grouped 3x3 convolution with padding 1 of [N, in, H, W] by [out, in / groups, 3, 3]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, groups, 1), np.split(weight.astype(x.dtype), groups, 0), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", part, kernel, optimize=True) for part, kernel in parts], axis=1)


def activated(x: Array, activation: Activation) -> Array:
    """ReLU, or hard swish: t * min(max(t + 3, 0), 6) / 6 (Howard et al., ICCV 2019; ONNX: HardSwish)."""
    result: Array = np.maximum(x, 0) if activation == "relu" else x * np.clip(x + 3, 0, 6) / 6
    return result


def excitation(mean: Array, excite: Excite) -> Array:
    """The factors [N, channels] for the means [N, channels] of channels."""
    hidden = np.maximum(mean @ excite.squeeze.T.astype(mean.dtype), 0)
    with np.errstate(over="ignore"):  # of exp: the factor is 0 then
        factors: Array = 1 / (1 + np.exp(-(hidden @ excite.expand.T.astype(mean.dtype))))
    return factors


def _updated(x: Array, new: Array, update: Update) -> Array:
    """The map before a layer with what the layer adds to it."""
    active = activated(_affine(new[:, update.index], update.scale, update.shift), update.activation)
    x = x.copy()
    kernels = np.split(update.weight.astype(x.dtype), update.groups)
    for part, kernel, target in zip(np.split(active, update.groups, 1), kernels, np.split(update.target, update.groups), strict=True):
        x[:, target] += np.einsum("nchw,oc->nohw", part, kernel, optimize=True)
    return x


def _pointwise(x: Array, layer: Pointwise) -> Array:
    active = activated(_affine(x[:, layer.index], layer.scale, layer.shift), layer.activation)
    parts = zip(np.split(active, layer.groups, 1), np.split(layer.weight.astype(x.dtype), layer.groups, 0), strict=True)
    rows = np.concatenate([np.einsum("nchw,oc->nohw", part, kernel, optimize=True) for part, kernel in parts], axis=1)
    result: Array = (rows + layer.bias.astype(x.dtype)[:, None, None])[:, layer.order]
    return result


def _affine(x: Array, scale: Array, shift: Array) -> Array:
    result: Array = x * scale.astype(x.dtype)[:, None, None] + shift.astype(x.dtype)[:, None, None]
    return result
