"""Ranges of what a Program computes, from images: what its quantised forms take their steps from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.program.program import Array, Floats, Program

Progress = Callable[[str, float], None]


class ImageRows(Protocol):
    """Images [N, channels, H, W] of which parts are read, as of an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N, channels, H, W."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Any: ...


Run = Callable[[Array, Callable[[str, Array], None]], object]
Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
PERCENTILE = 99.99  # of a plane's values that lie within its range, half of the others on each side
BINS = 1024  # of a plane's histogram
_CUTS = np.linspace(0.5, 1.0, 51)  # parts of the whole range that `entropy` tries
_LEVELS = 256  # of a byte
_TOGETHER = 8  # images at a time
_RUNNING = 0.5  # of the work of `entropy`; the rest chooses the ranges


@dataclass(frozen=True, eq=False)
class Calibration:
    """``ranges`` [2, C] has the least and the largest value of each plane, by the names that ``Program.run`` gives to its observer.

    ``images`` is their number, ``digest`` the SHA-256 of the images as the network reads them, ``network`` that of the Program's arrays
    (see ``digest_of``), ``constant`` whether all images are equal.
    """

    method: Method
    ranges: Mapping[str, Floats]
    images: int
    digest: str
    network: str
    constant: bool = False

    def require_of(self, program: Program) -> None:
        """Raise InputRefused for a Program that this is not a calibration of: another network, or the same in another form."""
        if self.network != digest_of(program):
            raise InputRefused("the calibration is of another network, or of this one in another form; calibrate this one: give images")


class _OfTheFamily(Protocol):
    """A Program, or the model that it is lowered from."""

    @property
    def architecture(self) -> Architecture: ...


def require_integers(network: _OfTheFamily) -> None:
    """Raise InputRefused for a network that has no form in integers: a CondenseNet V2."""
    if network.architecture.updates:
        raise InputRefused("a CondenseNet V2 has no form in integers yet, so no precision int8; expected fp32 or bf16 (ONNX: fp16 too)")


def digest_of(program: Program) -> str:
    """The SHA-256 of a Program's arrays, which differ between its forms too."""
    hashed = hashlib.sha256()

    def add(part: object) -> None:
        if isinstance(part, np.ndarray):
            hashed.update(repr((part.dtype.str, part.shape)).encode() + np.ascontiguousarray(part).tobytes())
        elif isinstance(part, tuple):
            for value in part:
                add(value)
        elif part is not None and is_dataclass(part):
            for field in fields(part):
                add(getattr(part, field.name))

    add((program.stem, program.body, program.pool, program.hidden, program.head))
    return hashed.hexdigest()


def calibrate(
    program: Program, images: ImageRows, method: Method = "minmax", *, progress: Progress = lambda *_: None, run: Run | None = None
) -> Calibration:
    """The ranges of everything that a Program's convolutions write on ``images`` (float32 [N, channels, H, W]).

    ``minmax`` takes them whole. ``percentile`` leaves out the 0.01 % of each plane's values that lie farthest outside. ``entropy`` cuts
    each plane's range to the part of which a byte loses least: where the divergence of Kullback and Leibler between its histogram and
    that of the bytes is smallest (Migacz, "8-bit inference with TensorRT", 2017). The last two look at the images twice. ``progress`` is
    given a line of text and the share that is done. ``run`` computes the Program as its own ``run`` does, only sooner. Raises InputRefused
    for a CondenseNet V2, for another method, for images of another shape, for none, and where the network computes values that are not
    finite.
    """
    require_integers(program)
    if method not in METHODS:
        raise InputRefused(f"calibration {method!r}; expected one of {', '.join(METHODS)}")
    shape = program.architecture.image_shape
    if images.shape[1:] != tuple(shape) or not len(images):
        raise InputRefused(f"calibration images of shape {list(images.shape)}; expected [N, {', '.join(map(str, shape))}], at least one")
    total = len(images) * (1 if method == "minmax" else 2)
    share = _RUNNING if method == "entropy" else 1.0  # of the work, that runs images
    done = 0

    def passing(observe: Callable[[str, Array], None]) -> Iterator[Array]:
        nonlocal done
        for first in range(0, len(images), _TOGETHER):
            part = images[first : first + _TOGETHER]
            (run or program.run)(part, observe)
            done += len(part)
            progress(f"calibration, {done} of {total} images", share * done / total)
            yield part

    whole: dict[str, Array] = {}

    def widen(name: str, planes: Array) -> None:
        if not np.isfinite(planes).all():
            raise InputRefused(f"{name} computes values that are not finite on the calibration images; they or the weights are damaged")
        found = np.stack([planes.min((0, 2, 3)), planes.max((0, 2, 3))])
        if name in whole:
            found = np.stack([np.minimum(whole[name][0], found[0]), np.maximum(whole[name][1], found[1])])
        whole[name] = found

    hashed, constant, one = hashlib.sha256(), True, images[:1]
    for part in passing(widen):
        hashed.update(np.ascontiguousarray(part, np.float32).data)
        constant = constant and bool((part == one).all())
    ranges = whole
    if method != "minmax":
        counts = {name: np.zeros((found.shape[1], BINS)) for name, found in whole.items()}

        def count(name: str, planes: Array) -> None:
            least, most = whole[name]
            width = (most - least).astype(np.float64)
            per_width = np.divide(BINS, width, out=np.zeros(len(width)), where=width > 0)  # constant planes are in the first bin
            bins = ((planes - least[:, None, None]) * per_width[:, None, None]).astype(np.int64).clip(0, BINS - 1)
            bins += np.arange(len(least))[:, None, None] * BINS
            counts[name] += np.bincount(bins.reshape(-1), minlength=len(least) * BINS).reshape(-1, BINS)

        for _ in passing(count):
            pass
        ranges = {}
        for number, name in enumerate(whole, 1):
            ranges[name] = _cut(whole[name], (_within if method == "percentile" else _least_divergent)(counts[name]))
            if method == "entropy":
                progress(f"calibration, range {number} of {len(whole)}", share + (1 - share) * number / len(whole))
    return Calibration(
        method, {name: found.astype(np.float32) for name, found in ranges.items()}, len(images), hashed.hexdigest(), digest_of(program),
        constant and len(images) > 1,
    )  # fmt: skip


def _cut(whole: Array, bins: Array) -> Array:
    """Ranges from bins: [2, C] of the whole and [2, C] edges of bins -> [2, C]."""
    least, most = whole
    edges: Array = least + (most - least) * (bins / BINS)
    return edges


def _within(counts: Array) -> Array:
    """The edges of the bins [2, C] between which PERCENTILE % of the values lie."""
    outside = counts.sum(1, keepdims=True) * (100 - PERCENTILE) / 200
    below, above = np.cumsum(counts, 1), np.cumsum(counts[:, ::-1], 1)[:, ::-1]
    return np.stack([(below <= outside).sum(1), (above > outside).sum(1)])


def _least_divergent(counts: Array) -> Array:
    """The edges of the bins [2, C] of the part of the range that loses least when it is written in a byte.

    Parts end where the values do that are nearest to 0 by count: each cut takes as large a share from both ends.
    """
    edges = np.zeros((len(_CUTS), 2, len(counts)))
    losses = np.zeros((len(_CUTS), len(counts)))
    centres = np.arange(BINS) + 0.5
    mean = (counts * centres).sum(1) / np.maximum(counts.sum(1), 1)
    for number, part in enumerate(_CUTS):
        low, high = np.floor(mean * (1 - part)), np.ceil(mean + (BINS - mean) * part)
        inside = (centres >= low[:, None]) & (centres < high[:, None])
        held = np.where(inside, counts, 0)
        held[np.arange(len(counts)), low.astype(np.int64)] += np.where(centres < low[:, None], counts, 0).sum(1)
        held[np.arange(len(counts)), high.astype(np.int64) - 1] += np.where(centres >= high[:, None], counts, 0).sum(1)
        level = np.clip((centres - low[:, None]) * (_LEVELS / np.maximum(high - low, 1)[:, None]), 0, _LEVELS - 1).astype(np.int64)
        edges[number] = low, high
        losses[number] = [_divergence(h, c * i, k) for h, c, i, k in zip(held, counts, inside, level, strict=True)]
    best = losses.argmin(0)
    return edges[best, :, np.arange(len(counts))].T


def _divergence(held: Array, inside: Array, level: Array) -> float:
    """Kullback and Leibler's, of a histogram with its ends gathered from the same in levels, spread over the bins that are not empty."""
    filled = inside > 0
    total, width = np.bincount(level, inside, _LEVELS), np.bincount(level, filled, _LEVELS)
    spread = np.where(filled, total[level] / np.maximum(width[level], 1), 0)
    p, q = held / max(held.sum(), 1), spread / max(spread.sum(), 1e-30)
    taken = p > 0
    return float((p[taken] * np.log(p[taken] / np.maximum(q[taken], 1e-12))).sum())
