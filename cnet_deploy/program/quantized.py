"""The QuantizedProgram: a network in integers, from the bytes of the image to the sums of the classifier.

``run`` computes it slowly in numpy. Integers are exact, so what computes this form elsewhere can be compared with it bit for bit. Values
are rounded in five places, all defined here: ``QuantizedStem.to_pixels``, ``Requantization.of``, ``halved``, ``QuantizedPool.of`` and
``QuantizedHead.of``.

A dense block's map is written once and read by all later layers, each with a batch norm and ReLU of its own before its 1x1. Here a map has
a byte for each pixel, and each of its planes a step and a zero point. Batch norm and ReLU of a gathered plane are one saturating
subtraction: relu(gain * (byte - zero) + shift) is |gain| * max(byte - threshold, 0), or |gain| * max(threshold - byte, 0) where the gain
is negative. The factor |gain| is in the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.program.program import Array, Floats, Indices

Integers = npt.NDArray[np.integer[Any]]
Doubles = npt.NDArray[np.float64]

FRACTION = 15  # bits of a multiplier's fraction
EXTRA = 4  # bits that a layer in int16 adds to what it reads and to what lies between its convolutions
POOL_BITS = 7  # of the fraction of a threshold before the last pooling
BYTE, WIDE = 255, (256 << EXTRA) - 1  # the largest value of a byte, and between the convolutions of a layer in int16


@dataclass(frozen=True, eq=False)
class Requantization:
    """Sums of products -> 0 to ``most``: clip(((clip16(sum >> shift) * multiplier + 2^14) >> 15) + zero, 0, most).

    ``shift`` [rows] is 0 to 31, ``multiplier`` [rows] 1 to 32767, ``zero`` [rows] the zero point of the result. A shift to the right
    rounds down. The product and its rounding are those of the instructions `pmulhrsw` (x86) and `sqrdmulh` (ARM).
    """

    shift: Integers
    multiplier: Integers
    zero: Integers
    most: int = BYTE

    def of(self, sums: Doubles) -> Doubles:
        """[N, rows, H, W] -> the same shape; whole numbers, as all values here."""
        short = np.clip(sums.astype(np.int64) >> _planes(self.shift), -(1 << 15), (1 << 15) - 1)
        scaled = (short * _planes(self.multiplier) + (1 << FRACTION - 1)) >> FRACTION
        return _whole(np.clip(scaled + _planes(self.zero), 0, self.most))


@dataclass(frozen=True, eq=False)
class QuantizedStem:
    """The image's bytes, and the 3x3 convolution of them, padding 1.

    ``scale`` and ``offset`` [channels] turn a pixel as the network reads it into a byte: of an image that was prepared as the model says,
    the byte that it was made of. ``pad`` [channels] is the byte beside the image. ``weight`` int16 [out, channels, 3, 3], ``bias`` int32
    [out].
    """

    name: str
    scale: Floats
    offset: Floats
    pad: Integers
    weight: Integers
    bias: Integers
    requantization: Requantization
    stride: int

    def to_pixels(self, batch: Array) -> Doubles:
        """float32 [N, channels, H, W] -> bytes: x * scale + offset in double precision, to the nearest integer, halves to the even one.

        The product of two float32 is exact in double precision, so a fused multiply-add gives the same. NaN becomes 0: see ``run``.
        """
        values = batch.astype(np.float64) * _planes(self.scale.astype(np.float64)) + _planes(self.offset.astype(np.float64))
        return _whole(np.clip(np.rint(np.nan_to_num(values, nan=0.0)), 0, BYTE))

    def of(self, pixels: Doubles) -> Doubles:
        """[N, channels, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]."""
        n, c, h, w = pixels.shape
        padded = np.empty((n, c, h + 2, w + 2))
        padded[...] = _planes(self.pad)
        padded[:, :, 1:-1, 1:-1] = pixels
        return self.requantization.of(_convolve(padded, self.weight, 1, self.stride) + _planes(self.bias))


@dataclass(frozen=True, eq=False)
class QuantizedPointwise:
    """Gather, threshold, grouped 1x1 convolution, requantization, reorder.

    ``index`` [width] is as in ``program.Pointwise``. ``threshold`` [width] is subtracted from the plane, or the plane from it where
    ``negative`` [width]; what is below 0 becomes 0. ``weight`` [out, width / groups], ``bias`` int32 [out]. Channel j of the result is row
    ``order[j]``. ``extra`` bits of a fraction are added to the planes and thresholds: 0 with weights in int8, EXTRA with int16.
    """

    name: str
    in_channels: int
    index: Indices
    threshold: Integers
    negative: npt.NDArray[np.bool_]
    weight: Integers
    bias: Integers
    requantization: Requantization
    groups: int
    order: Indices
    extra: int = 0

    def active(self, x: Doubles) -> Doubles:
        """What the convolution reads: [N, in_channels, H, W] -> [N, width, H, W]."""
        picked, threshold = x[:, self.index] * (1 << self.extra), _planes(self.threshold)
        return _whole(np.maximum(np.where(_planes(self.negative), threshold - picked, picked - threshold), 0))

    def of(self, x: Doubles) -> Doubles:
        """[N, in_channels, H, W] -> [N, out, H, W]."""
        n, _, h, w = x.shape
        parts = self.active(x).reshape(n, self.groups, -1, h * w)
        rows = self.weight.astype(np.float64).reshape(self.groups, -1, parts.shape[2]) @ parts
        return self.requantization.of(rows.reshape(n, -1, h, w) + _planes(self.bias))[:, self.order]


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A QuantizedPointwise, whose requantization is the ReLU after it, and a grouped 3x3 convolution, padding 1, whose planes are appended.

    ``weight`` [growth, middle / groups, 3, 3] is int8, or int16 where the pointwise's is.
    """

    name: str
    pointwise: QuantizedPointwise
    weight: Integers
    requantization: Requantization
    groups: int

    @property
    def precision(self) -> str:
        """``int8``, or ``int16``."""
        return "int16" if self.pointwise.extra else "int8"

    def of(self, x: Doubles) -> Doubles:
        """[N, C, H, W] -> the layer's own planes [N, growth, H, W]."""
        middle = np.pad(self.pointwise.of(x), ((0, 0), (0, 0), (1, 1), (1, 1)))
        return self.requantization.of(_convolve(middle, self.weight, self.groups))


@dataclass(frozen=True, eq=False)
class QuantizedTransition:
    """An optional QuantizedPointwise, then 2x2 average pooling with stride 2 that drops an odd last row or column."""

    name: str
    pointwise: QuantizedPointwise | None

    def of(self, x: Doubles) -> Doubles:
        """[N, C, H, W] -> [N, out, H // 2, W // 2]: the sum of four bytes, plus 2, shifted by 2."""
        x = x if self.pointwise is None else self.pointwise.of(x)
        n, c, h, w = x.shape
        four = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).sum((3, 5))
        return _whole((four.astype(np.int64) + 2) >> 2)


@dataclass(frozen=True, eq=False)
class QuantizedPool:
    """The last batch norm and ReLU as thresholds, and the average over the map, or over a ``window`` at its top left.

    ``threshold`` [kept] has POOL_BITS bits of a fraction, ``negative`` [kept] as in QuantizedPointwise, ``index`` [kept] the planes that
    the classifier reads. Features have ``bits`` bits of a fraction.
    """

    name: str
    index: Indices
    threshold: Integers
    negative: npt.NDArray[np.bool_]
    bits: int
    window: tuple[int, int] | None = None

    def of(self, x: Doubles) -> Doubles:
        """[N, features, H, W] -> [N, kept]: averages, to the nearest integer, halves up."""
        height, width = self.window or x.shape[2:]
        picked, threshold = x[:, self.index, :height, :width] * (1 << POOL_BITS), _planes(self.threshold)
        sums = np.maximum(np.where(_planes(self.negative), threshold - picked, picked - threshold), 0).sum((2, 3)).astype(np.int64)
        divisor = height * width << POOL_BITS - self.bits
        return _whole((2 * sums + divisor) // (2 * divisor))


@dataclass(frozen=True, eq=False)
class QuantizedHead:
    """The classifier: ``weight`` int8 [classes, kept]; ``scale`` and ``bias`` float32 [classes] make logits of its sums."""

    name: str
    weight: Integers
    scale: Floats
    bias: Floats

    def of(self, features: Doubles) -> Floats:
        """[N, kept] -> float32 logits [N, classes]: sum * scale + bias in double precision, rounded once."""
        sums = features @ self.weight.astype(np.float64).T
        logits: Floats = (sums * self.scale.astype(np.float64) + self.bias.astype(np.float64)).astype(np.float32)
        return logits


@dataclass(frozen=True, eq=False)
class QuantizedProgram:
    """A network in integers and the metadata for its artifacts. Made by ``quantize``; arrays must not be changed."""

    architecture: Architecture
    stem: QuantizedStem
    body: tuple[QuantizedLayer | QuantizedTransition, ...]
    pool: QuantizedPool
    head: QuantizedHead
    preprocessing: Preprocessing
    source_digest: str
    class_names: tuple[str, ...] = ()

    def run(self, batch: Array) -> Floats:
        """float32 [N, channels, H, W] -> float32 logits [N, classes]; NaN for an image with a value that is not finite.

        Slow: the yardstick of what computes the same, not a backend.
        """
        x = self.stem.of(self.stem.to_pixels(batch))
        for layer in self.body:
            x = np.concatenate([x, layer.of(x)], axis=1) if isinstance(layer, QuantizedLayer) else layer.of(x)
        logits = self.head.of(self.pool.of(x))
        logits[~np.isfinite(batch).all((1, 2, 3))] = np.nan
        return logits


def _whole(values: npt.NDArray[Any]) -> Doubles:
    """Whole numbers in double precision, where products are fast and exact."""
    return values.astype(np.float64)


def _planes(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A value for each channel, beside [N, channels, H, W]."""
    return (values.astype(np.int64) if values.dtype.kind in "iu" else values)[:, None, None]


def _convolve(padded: Doubles, weight: Integers, groups: int, stride: int = 1) -> Doubles:
    """3x3 convolution of [N, in, H + 2, W + 2] by [out, in / groups, 3, 3]: whole numbers, exact in double precision."""
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, groups, 1), np.split(weight.astype(np.float64), groups, 0), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", part, kernel, optimize=True) for part, kernel in parts], axis=1)
