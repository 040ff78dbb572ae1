"""Weights and tables in the order in which the kernels read them.

Nothing here depends on the instruction set: every kernel can take the tiles of constants.py, whole or in parts. In bf16 a 32-bit word
holds the values of two channels, the even one in its lower half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.exporters.native.constants import LINE
from cnet_deploy.program.program import Pointwise

Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]

# A shift larger than this many gains: its quotient would overflow, and in fp32 the input would vanish beside it anyway.
MAX_RATIO = 1e30


@dataclass
class Data:
    """All words of a library, each table on a cache line of its own."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, values: npt.NDArray[Any]) -> int:
        """Append float32, int32 or uint32 values. Returns the number of the word that they begin at."""
        assert values.dtype in (np.float32, np.int32, np.uint32)
        raw = np.ascontiguousarray(values).tobytes()
        raw += bytes(-len(raw) % (4 * LINE))
        begin, self.size = self.size, self.size + len(raw) // 4
        self.parts.append(raw)
        return begin

    def tobytes(self) -> bytes:
        return b"".join(self.parts)


def to_bf16(values: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """The upper halves of float32 words, rounded to nearest even (IEEE 754), in the same shape. NaN stays NaN."""
    words = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (words.astype(np.uint64) + 0x7FFF + (words >> 16 & 1)) >> 16
    return np.where(np.isnan(values), words >> 16 | 0x40, rounded).astype(np.uint32)


def to_words(values: Doubles, *, paired: bool, axis: int = 1) -> npt.NDArray[Any]:
    """float32 as it is; or neighbours along ``axis`` as bf16 in one word, which halves that axis."""
    if not paired:
        return values.astype(np.float32)
    even, odd = (to_bf16(np.take(values, range(start, values.shape[axis], 2), axis).astype(np.float32)) for start in (0, 1))
    return np.asarray(even | odd << 16)


def tiles(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(begin, size) of the tiles that cover ``count`` outputs, the largest first.

    >>> list(tiles(11, (8, 4, 2, 1)))
    [(0, 8), (8, 2), (10, 1)]
    """
    begin = 0
    for size in sizes:
        while count - begin >= size:
            yield begin, size
            begin += size
    assert begin == count


def tiled(matrix: npt.NDArray[Any], sizes: Sequence[int]) -> npt.NDArray[Any]:
    """[outputs, ...] -> tile after tile, each [..., tile], in one row."""
    return np.concatenate([np.moveaxis(matrix[begin : begin + size], 0, -1).reshape(-1) for begin, size in tiles(len(matrix), sizes)])


def padded(count: int, to: int) -> int:
    """``count`` rounded up to a multiple."""
    return -(-count // to) * to


@dataclass(frozen=True)
class Inputs:
    """What a group of a 1x1 reads: positions among its gathered channels (-1: padding), how many of them take a maximum, and the scales,
    shifts and weights [rows, positions] that go with them."""

    positions: list[int]
    maxima: int
    scale: Doubles
    shift: Doubles
    weight: Doubles
    bias: Doubles


def fold_first_norm(layer: Pointwise, group: int, *, paired: bool) -> Inputs:
    """Batch norm and ReLU before a 1x1 as an addition and a maximum or minimum, the gain in the weights.

    relu(s x + b) is s max(x + b/s, 0) for s > 0 and s min(x + b/s, 0) for s < 0. For s = 0 it is relu(b), which goes into the bias;
    the input keeps a weight of 0, so that a NaN in it still reaches the outputs.
    """
    width, rows = layer.index.size // layer.groups, len(layer.weight) // layer.groups
    part = slice(group * width, (group + 1) * width)
    scale, shift = layer.scale[part].astype(np.float64), layer.shift[part].astype(np.float64)
    weight = layer.weight[group * rows : (group + 1) * rows].astype(np.float64)
    constant = np.abs(scale) * MAX_RATIO <= np.abs(shift)
    bias = layer.bias[group * rows : (group + 1) * rows] + weight[:, constant] @ np.maximum(shift[constant], 0)
    scale, shift = np.where(constant, 0, scale), np.divide(shift, scale, out=np.zeros(width), where=~constant)
    maxima, minima = [int(i) for i in np.flatnonzero(~(scale < 0))], [int(i) for i in np.flatnonzero(scale < 0)]
    if paired:
        maxima, minima = maxima + [-1] * (len(maxima) % 2), minima + [-1] * (len(minima) % 2)
    positions = maxima + minima
    weight = weight * scale
    return Inputs(positions, len(maxima), np.ones(len(positions)), _pick(shift, positions), _pick(weight, positions), bias)


def keep_first_norm(layer: Pointwise, group: int, *, paired: bool) -> Inputs:
    """The same where the activation is none that a gain can be taken out of: hard swish."""
    width, rows = layer.index.size // layer.groups, len(layer.weight) // layer.groups
    part, lines = slice(group * width, (group + 1) * width), slice(group * rows, (group + 1) * rows)
    positions = list(range(width)) + [-1] * (width % 2 if paired else 0)
    scale, shift, weight, bias = (
        values.astype(np.float64) for values in (layer.scale[part], layer.shift[part], layer.weight[lines], layer.bias[lines])
    )
    return Inputs(positions, 0, _pick(scale, positions), _pick(shift, positions), _pick(weight, positions), bias)


def _pick(values: Doubles, positions: list[int]) -> Doubles:
    """Columns by position; zeros for -1."""
    return np.where(np.array(positions) < 0, 0.0, values[..., positions])


@dataclass(frozen=True)
class Route:
    """How the rows of a 1x1 come to be the inputs of a 3x3.

    ``rows[g]`` are the rows that group g of the 1x1 stores, counted within the group (-1: padding). ``slots[g]`` gives for each row, or
    pair of rows, its place among the inputs of the 3x3, group after group (-1: read by nobody). ``sources[h]`` are the channels of
    group h of the 3x3 in the order of its places: one a place, or two.
    """

    rows: list[list[int]]
    slots: list[list[int]]
    sources: list[list[tuple[int, ...]]]


def route(layer: Pointwise, groups: int, *, paired: bool, align: int = 1) -> Route:
    """Where each row goes. The two rows of a pair must go to one group of the 3x3: rows are sorted by it, and padded where needed.

    ``align`` pads the rows that a group stores to a multiple.
    """
    count, total = len(layer.weight) // layer.groups, len(layer.weight)
    channel_of = np.argsort(layer.order)  # row -> channel of the result
    size = total // groups
    if not paired:
        stored = padded(count, align)
        rows = [list(range(count)) + [-1] * (stored - count) for _ in range(layer.groups)]
        slots = [[int(channel_of[g * count + r]) if r >= 0 else -1 for r in rows[g]] for g in range(layer.groups)]
        return Route(rows, slots, [[(h * size + i,) for i in range(size)] for h in range(groups)])
    rows, words = [], []  # words: (1x1 group, place in its list, 3x3 group, channels)
    for g in range(layer.groups):
        mine: list[int] = []
        for h in range(groups):
            here = [r for r in range(count) if channel_of[g * count + r] // size == h]
            here += [-1] * (len(here) % 2)
            for a, b in zip(here[::2], here[1::2], strict=True):
                channels = tuple(int(channel_of[g * count + r]) if r >= 0 else -1 for r in (a, b))
                words.append((g, len(mine) // 2, h, channels))
                mine += [a, b]
        rows.append(mine)
    # All groups of the 3x3 have the same number of places. Padding fills those left over, so that they hold zeros and not old data.
    held = [sum(word[2] == h for word in words) for h in range(groups)]
    missing = [h for h in range(groups) for _ in range(max(held) - held[h])]
    for h in missing:
        g = min(range(layer.groups), key=lambda g: len(rows[g]))
        words.append((g, len(rows[g]) // 2, h, (-1, -1)))
        rows[g] += [-1, -1]
    stored = padded(max(map(len, rows)), max(align, 2))
    rows = [mine + [-1] * (stored - len(mine)) for mine in rows]
    sources: list[list[tuple[int, ...]]] = [[] for _ in range(groups)]
    slots = [[-1] * (stored // 2) for _ in range(layer.groups)]
    for g, place, h, channels in words:
        slots[g][place] = h * max(held) + len(sources[h])
        sources[h].append(channels)
    return Route(rows, slots, sources)


def conv_weights(weight: npt.NDArray[np.float32], sources: list[tuple[int, ...]], first: int, *, paired: bool) -> npt.NDArray[Any]:
    """A group's 3x3 weights in the order of its places: [outputs, inputs, 3, 3] -> [outputs, places, 3, 3].

    ``first`` is the group's first input channel.
    """
    flat = [channel - first if channel >= 0 else -1 for channels in sources for channel in channels]
    picked = np.where((np.array(flat) < 0)[:, None, None], 0.0, weight[:, flat].astype(np.float64))
    return to_words(picked, paired=paired)
