"""QuantizedProgram -> plan: where every map lies, and all weights and tables in the order in which cpp/int8 reads them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.native.constants import LINE
from cnet_deploy.exporters.native.packing import Data, padded, tiles
from cnet_deploy.exporters.native.planning import Plan, as_text, preparation, source, struct, weights_name
from cnet_deploy.program.quantized import (
    BYTE,
    EXTRA,
    POOL_BITS,
    Integers,
    QuantizedHead,
    QuantizedLayer,
    QuantizedPointwise,
    QuantizedPool,
    QuantizedProgram,
    QuantizedStem,
    QuantizedTransition,
    Requantization,
)

ROW_TILE, RUN_MOST, CLASSES_AT_ONCE, MOST_SHARES = 4, 64, 16, 32
CONV_TILES = (4, 2, 1)
MAX_PLACE = (1 << 31) - 1  # bytes from the first plane of a map to its last: tables hold 32-bit places
WHOLE_PIXELS = 1100  # of the largest map on which several threads finish a 1x1 before they begin the 3x3


@dataclass
class Block:
    """A dense block and the transition after it; sizes in pixels and bytes. ``map`` and ``middle`` are places among the activations."""

    layers: list[QuantizedLayer]
    transition: QuantizedTransition | None
    size: tuple[int, int]
    channels: int
    map: int = 0
    middle: int = 0

    @property
    def pixels(self) -> int:
        return self.size[0] * (self.size[1] + 1)

    @property
    def plane(self) -> int:
        """Bytes of a plane: whole runs, as an odd number of cache lines, so that planes do not compete for places in the caches."""
        return _odd_lines(padded(self.pixels, RUN_MOST))

    @property
    def whole(self) -> bool:
        """Whether threads share the groups of a layer, since strips of the map would be too short."""
        return self.pixels <= WHOLE_PIXELS

    def shared(self, layer: QuantizedLayer) -> int:
        """Bytes of a layer's rows between its convolutions, with a row of zeros, where all threads share them."""
        conv = layer.pointwise
        rows = conv.groups * padded(len(conv.weight) // conv.groups, ROW_TILE) + 1
        return padded(self.pixels, RUN_MOST) * rows * (2 if conv.extra else 1) if self.whole else 0

    @property
    def middle_channels(self) -> int:
        return 0 if self.transition is None or self.transition.pointwise is None else self.transition.pointwise.order.size

    @property
    def middle_planes(self) -> int:
        """Those of the transition's 1x1, and one for the rows that fill up its tiles."""
        return self.middle_channels + 1 if self.middle_channels else 0


def _odd_lines(count: int) -> int:
    return padded(count, 64) | 64


def make_plan(program: QuantizedProgram, *, description: str, isas: Sequence[str]) -> Plan:
    """Plan a QuantizedProgram. Raises InputRefused for images so large that a map outgrows the tables."""
    data = Data()
    blocks = _blocks(program)
    activations = _place(blocks)
    stem = _stem(program.stem, data)
    lines: list[str] = []
    layers: list[str] = []
    shared = 0
    for block in blocks:
        first = len(layers)
        for layer in block.layers:
            layers.append(_layer(layer, block, data))
            shared = max(shared, block.shared(layer))
        conv = block.transition.pointwise if block.transition else None
        height, width = block.size
        lines.append(
            struct(
                height=height, width=width, channels=block.channels, plane=block.plane, map=block.map, whole=int(block.whole),
                first_layer=first, last_layer=len(layers), middle_channels=block.middle_channels, middle=block.middle,
                transition="{}" if conv is None else _pointwise(conv, block, data, to_map=True),
            )
        )  # fmt: skip
    head = _head(program.head, program.pool, blocks[-1], data)
    height, width = program.architecture.input_size
    weights = data.tobytes()
    channels = program.stem.weight.shape[1]
    window = 0 if program.pool.window is None else program.pool.window[0]
    defines = ("-DCNET_INT8=1", *([f"-DCNET_CHANNELS={channels}"] if channels != 3 else []))
    top = struct(
        height=height, width=width, stem=stem, head=head, blocks=len(blocks), block="blocks", layer="layers",
        activations=-(-activations // 4), between=-(-shared // 4), data="cnet_data", description="description",
        preparation=preparation(program.preprocessing), class_name="class_names" if program.class_names else "nullptr", window=window,
    )  # fmt: skip
    texts = as_text("description[]", [description])
    if program.class_names:
        texts += "\n\n" + as_text("*const class_names[]", program.class_names)
    return Plan(_source(lines, layers, top, texts, isas, weights, channels), weights, ("int8",) * len(blocks), defines)


def _blocks(program: QuantizedProgram) -> list[Block]:
    height, width = ((side - 1) // program.stem.stride + 1 for side in program.architecture.input_size)
    channels = len(program.stem.weight)
    blocks: list[Block] = []
    layers: list[QuantizedLayer] = []
    for layer in (*program.body, None):
        if isinstance(layer, QuantizedLayer):
            layers.append(layer)
            channels += len(layer.weight)
            continue
        blocks.append(Block(layers, layer, (height, width), channels))
        layers, height, width = [], height // 2, width // 2
        if layer is not None and layer.pointwise is not None:
            channels = layer.pointwise.order.size
    return blocks


def _place(blocks: list[Block]) -> int:
    """Give every map its place: neighbours at opposite ends, since only they are in use at the same time. Returns the bytes of all."""
    if (largest := max(block.plane * max(block.channels, block.middle_planes) for block in blocks)) > MAX_PLACE:
        raise InputRefused(
            f"a map of images of this size is {largest / MAX_PLACE:.1f} times too large for the tables; expected images of fewer pixels"
        )
    sizes = [block.plane * block.channels for block in blocks]
    total = padded(max([a + b for a, b in itertools.pairwise(sizes)] + sizes), 64)
    for number, (block, size) in enumerate(zip(blocks, sizes, strict=True)):
        block.map = 0 if number % 2 == 0 else total - size
        block.middle = total
    return total + max(block.plane * block.middle_planes for block in blocks)


def _values(layer: QuantizedPointwise) -> int:
    """Values in a word: four bytes, or two of 16 bits."""
    return 2 if layer.extra else 4


def _in_words(weights: Integers) -> npt.NDArray[np.int32]:
    """int8 [..., n * 4] or int16 [..., n * 2] -> int32 [..., n]."""
    words: npt.NDArray[np.int32] = np.ascontiguousarray(weights).view(np.int32)
    return words


def _requantization(steps: Requantization, rows: Sequence[int], data: Data) -> str:
    """The rows by number, -1 for one that is not used."""
    picked = np.array(rows)
    table = np.zeros((len(picked), 3), np.int32)
    for place, values in enumerate((steps.shift, steps.multiplier, steps.zero)):
        table[:, place] = np.where(picked < 0, 0, values[picked])
    table[:, 1:] = _twice(table[:, 1:])
    return struct(rows=data.add(table), shifts=int(steps.shift.any()))


def _twice(values: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """16-bit values in both halves of a word."""
    halves = values.astype(np.int64) & 0xFFFF
    return (halves | halves << 16).astype(np.uint32).view(np.int32)


def _thresholds(threshold: Integers, negative: npt.NDArray[np.bool_], bits: int) -> npt.NDArray[np.int32]:
    """[..., 2]: what inverts the input, and what is subtracted then, each filling its word."""
    values = np.where(negative, (BYTE << bits) - threshold, threshold).astype(np.int64)
    filled = _twice(values) if bits else (values * 0x01010101).astype(np.uint32).view(np.int32)
    return np.stack([np.where(negative, -1, 0).astype(np.int32), filled], -1)


def _offset(weights: Integers) -> npt.NDArray[np.int32]:
    """128 times the sum of each row's weights."""
    sums: npt.NDArray[np.int32] = (weights.reshape(len(weights), -1).astype(np.int64).sum(1) * 128).astype(np.int32)
    return sums


def _pointwise(conv: QuantizedPointwise, block: Block, data: Data, *, to_map: bool = False) -> str:
    groups, values = conv.groups, _values(conv)
    width, rows = conv.index.size // groups, len(conv.weight) // groups
    words, outputs = -(-width // values), padded(rows, ROW_TILE)
    inputs = words * values
    index, threshold = np.zeros((groups, inputs), np.int64), np.zeros((groups, inputs, 2), np.int32)
    # A padded input reads the plane before it, with a weight of 0.
    index[:, :width], index[:, width:] = conv.index.reshape(groups, width), conv.index.reshape(groups, width)[:, -1:]
    threshold[:, :width] = _thresholds(conv.threshold, conv.negative, conv.extra).reshape(groups, width, 2)
    weight = np.zeros((groups, outputs, inputs), conv.weight.dtype)
    weight[:, :rows, :width] = conv.weight.reshape(groups, rows, width)
    tiled = _in_words(weight).reshape(groups, -1, ROW_TILE, words).swapaxes(2, 3)
    bias = np.zeros((groups, outputs), np.int32)
    bias[:, :rows] = conv.bias.reshape(groups, rows)
    numbers = np.full((groups, outputs), -1)
    numbers[:, :rows] = np.arange(len(conv.weight)).reshape(groups, rows)
    target = 0
    if to_map:
        channel_of = np.argsort(conv.order)
        spare = block.middle_channels  # where rows go that there are not
        places = np.where(numbers < 0, spare, channel_of[numbers]) * block.plane
        target = data.add(places.astype(np.int32))
    return struct(
        groups=groups, words=words, outputs=outputs, flips=int(conv.negative.any()),
        planes=data.add((index * block.plane).astype(np.int32)), thresholds=data.add(threshold), weight=data.add(tiled),
        bias=data.add(bias), offset=data.add(_offset(weight.reshape(groups * outputs, -1))), target=target,
        requantization=_requantization(conv.requantization, [int(n) for n in numbers.reshape(-1)], data),
    )  # fmt: skip


def _layer(layer: QuantizedLayer, block: Block, data: Data) -> str:
    conv, values = layer.pointwise, _values(layer.pointwise)
    rows = len(conv.weight) // conv.groups
    stored = padded(rows, ROW_TILE)
    row_of = conv.order // rows * stored + conv.order % rows  # where the 1x1 stores a channel
    groups, size, outputs = layer.groups, layer.weight.shape[1], len(layer.weight) // layer.groups
    words = -(-size // values)
    sources = np.full((groups, words * values), conv.groups * stored)  # the row of zeros
    sources[:, :size] = row_of.reshape(groups, size)
    weight = np.zeros((len(layer.weight), words * values, 3, 3), layer.weight.dtype)
    weight[:, :size] = layer.weight
    as_words = _in_words(weight.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)  # [outputs, words, 3, 3]
    tiled = [
        as_words[h * outputs + begin : h * outputs + begin + count].transpose(1, 2, 3, 0).reshape(-1)
        for h in range(groups)
        for begin, count in tiles(outputs, CONV_TILES)
    ]
    second = struct(
        groups=groups, words=words, outputs=outputs, sources=data.add(sources.astype(np.int32)), weight=data.add(np.concatenate(tiled)),
        offset=data.add(_offset(layer.weight)),
        requantization=_requantization(layer.requantization, range(len(layer.weight)), data),
    )  # fmt: skip
    return struct(first=_pointwise(conv, block, data), second=second, channels=conv.in_channels, wide=int(conv.extra > 0))


def _stem(stem: QuantizedStem, data: Data) -> str:
    out, channels = stem.weight.shape[:2]
    outputs = padded(out, ROW_TILE)
    pairs = 3 * channels
    # Pairs of the left and the middle tap of each row; then the right taps, two rows in a pair.
    taps = np.zeros((outputs, pairs + (pairs + 1) // 2, 2), np.int16)
    rows = stem.weight.reshape(out, pairs, 3)
    taps[:out, :pairs] = rows[:, :, :2]
    right = np.zeros((out, padded(pairs, 2)), np.int16)
    right[:, :pairs] = rows[:, :, 2]
    taps[:out, pairs:] = right.reshape(out, -1, 2)
    weight = _in_words(taps)[:, :, 0].reshape(-1, ROW_TILE, taps.shape[1]).swapaxes(1, 2)
    bias = np.zeros(outputs, np.int32)
    bias[:out] = stem.bias
    numbers = [number if number < out else -1 for number in range(outputs)]
    return struct(
        channels=out, stride=stem.stride, scale=_floats(stem.scale), offset=_floats(stem.offset), pad=_listed(stem.pad),
        weight=data.add(weight), bias=data.add(bias), requantization=_requantization(stem.requantization, numbers, data),
    )  # fmt: skip


def _head(head: QuantizedHead, pool: QuantizedPool, block: Block, data: Data) -> str:
    kept, classes = pool.index.size, len(head.bias)
    most = padded(classes, CLASSES_AT_ONCE)
    weight = np.zeros((most, padded(kept, 4)), np.int8)
    weight[:classes, :kept] = head.weight
    tiled = _in_words(weight).reshape(-1, CLASSES_AT_ONCE, weight.shape[1] // 4).swapaxes(1, 2)
    return struct(
        features=padded(kept, 4) // 2 + MOST_SHARES, classes=classes, kept=kept, bits=pool.bits,
        planes=data.add((pool.index * block.plane).astype(np.int32)),
        thresholds=data.add(_thresholds(pool.threshold, pool.negative, POOL_BITS)), weight=data.add(tiled), scale=data.add(head.scale),
        bias=data.add(head.bias),
    )  # fmt: skip


def _floats(values: npt.NDArray[Any]) -> str:
    return "{" + ", ".join(f"{float(value).hex()}f" for value in values) + "}"


def _listed(values: npt.NDArray[Any]) -> str:
    return "{" + ", ".join(str(int(value)) for value in values) + "}"


def assertions() -> str:
    """C++ that fails to compile, with a sentence, where int8/constants.h has another value."""
    shared = {
        "row_tile": ROW_TILE, "run_most": RUN_MOST, "classes_at_once": CLASSES_AT_ONCE, "most_shares": MOST_SHARES, "extra_bits": EXTRA,
        "pool_bits": POOL_BITS, "cache_line": 4 * LINE, "conv_tiles": f"Tiles<{', '.join(map(str, CONV_TILES))}>{{}}",
    }  # fmt: skip
    return "\n".join(
        f'static_assert({name} == {value}, "{name} in cpp/int8/constants.h differs from what int8.py has; give both one value");'
        for name, value in shared.items()
    )


def _source(blocks: list[str], layers: list[str], top: str, texts: str, isas: Sequence[str], weights: bytes, channels: int) -> str:
    title = "Generated by `cnet-deploy export --native --precision int8`: the plan that int8/plan.h describes."
    includes = ("kernels.h", "int8/constants.h", "int8/plan_check.h")
    words = len(weights) // 4
    before = f"""{assertions()}
static_assert(CNET_CHANNELS == {channels}, "the plan and the kernels are for images of different channels; build both for one");"""
    after = f"""static_assert(laid_out(plan), "int8.py lays maps out as the kernels do not expect them; see laid_out in int8/plan_check.h");
static_assert(connected(plan), "a layer or block does not follow the one before it; see connected in int8/plan_check.h");
static_assert(pooled_within(plan), "the last pooling reads beyond its memory; see pooled_within in int8/plan_check.h");
static_assert(between_of(plan) == plan.between,
              "int8.py and the kernels differ on the buffer between two convolutions; see between_of in int8/plan_check.h");
static_assert(tables_end(plan) == {words}, "a table is not where the kernels look for it; see tables_end in int8/plan_check.h");"""
    return source(title, includes, before, texts, layers, blocks, top, after, isas=isas, weights=weights_name(weights))
