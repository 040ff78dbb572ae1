"""Program -> plan: where every map lies, which kernels run each block, and all weights packed. Nothing is decided later.

``Plan.source`` is the C++ that fills the structures of ``cpp/plan.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.exporters.native import constants
from cnet_deploy.exporters.native.constants import (
    CHUNK,
    CHUNK_SLACK,
    CLASSES_TOGETHER,
    LINE,
    LINEAR_TILES,
    NARROW_TILES,
    ROW_TILES,
    WIDE_TILES,
    WIDE_TILES_PAIRED,
)
from cnet_deploy.exporters.native.geometry import Block, blocks_of, place
from cnet_deploy.exporters.native.packing import Data, conv_weights, fold_first_norm, keep_first_norm, padded, route, tiled, to_words
from cnet_deploy.files import digest
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.program.program import DenseLayer, Excite, Floats, Head, Hidden, Pointwise, Pool, Program, Stem, Update

GROUPED = 4  # inputs of a group of an update from which it is computed by groups, not plane by plane


@dataclass(frozen=True)
class Plan:
    """``source`` is plan.cpp, ``weights`` the words that it points into, ``layouts`` "wide" or "narrow" for each block.

    ``defines`` are macros that all sources must be compiled with; none for most networks (see cpp/plan.h).
    """

    source: str
    weights: bytes
    layouts: tuple[str, ...]
    defines: tuple[str, ...] = ()


def make_plan(program: Program, *, precision: str, description: str, isas: Sequence[str], layouts: Sequence[str] | None = None) -> Plan:
    """Plan a Program for ``precision`` "fp32" or "bf16". ``layouts`` overrides the choice for each block, for measurements.

    Raises InputRefused for images so large that a map outgrows the tables.
    """
    paired, data = precision == "bf16", Data()
    blocks = blocks_of(program, layouts)
    activations = place(blocks)
    stem = _stem(program.stem, data)
    lines: list[str] = []
    layers: list[str] = []
    between = 0
    for block in blocks:
        first = len(layers)
        for layer in block.layers:
            pack = _wide_layer if block.layout == "wide" else _narrow_layer
            text, floats = pack(layer, block, data, paired)
            layers.append(text)
            between = max(between, floats)
        conv = block.transition.pointwise if block.transition else None
        height, width = block.size
        lines.append(
            struct(
                height=height, width=width, pitch=block.pitch, channels=block.channels, plane=block.plane, map=block.map,
                layout=f"Layout::{block.layout}", whole=block.whole, first_layer=first, last_layer=len(layers),
                middle_channels=block.middle_channels, middle=block.middle,
                transition="{}" if conv is None else _transition(conv, block, data, paired),
            )
        )  # fmt: skip
    head = _head(program.head, program.pool, blocks[-1], data, program.hidden)
    hidden = None if program.hidden is None else _hidden(program.hidden, data)
    height, width = program.architecture.input_size
    weights = data.tobytes()
    channels, window = program.stem.weight.shape[1], _window(program.pool)
    defines = [f"-DCNET_CHANNELS={channels}"] * (channels != 3) + ["-DCNET_WINDOWED=1"] * (window != 0)
    defines += ["-DCNET_V2=1"] * (hidden is not None)
    top = struct(
        height=height, width=width, stem=stem, head=head, blocks=len(blocks), block="blocks", layer="layers", activations=activations,
        between=between, data="cnet_data", description="description", preparation=preparation(program.preprocessing),
        class_name="class_names" if program.class_names else "nullptr",
        **({"window": window} if window else {}),
        **({"hidden": hidden, "fresh": blocks[0].middle} if hidden is not None else {}),
    )  # fmt: skip
    texts = as_text("description[]", [description])
    if program.class_names:
        texts += "\n\n" + as_text("*const class_names[]", program.class_names)
    source = _source(lines, layers, top, texts, isas, weights_name(weights), paired, channels, window != 0, hidden is not None)
    return Plan(source, weights, tuple(block.layout for block in blocks), tuple(defines))


# ---- structures --------------------------------------------------------------------------------------------------------------------


def _stem(stem: Stem, data: Data) -> str:
    channels = len(stem.weight)
    return struct(channels=channels, stride=stem.stride, weight=data.add(tiled(stem.weight.reshape(channels, -1), WIDE_TILES)))


def _wide_layer(layer: DenseLayer, block: Block, data: Data, paired: bool) -> tuple[str, int]:
    """A Layer of plan.h, and the floats of the buffer between its convolutions."""
    conv, path = layer.pointwise, route(layer.pointwise, layer.groups, paired=paired)
    first = _wide_pointwise(conv, block, data, paired, path.rows, path.slots, WIDE_TILES_PAIRED if paired else WIDE_TILES)
    size, outputs = layer.weight.shape[1], len(layer.weight) // layer.groups
    weights = [
        tiled(conv_weights(layer.weight[h * outputs : (h + 1) * outputs], path.sources[h], h * size, paired=paired), WIDE_TILES)
        for h in range(layer.groups)
    ]
    second = struct(
        groups=layer.groups, inputs=len(path.sources[0]), outputs=outputs, stored=outputs, sources=0,
        weight=data.add(np.concatenate(weights)),
    )  # fmt: skip
    text = struct(first=first, second=second, channels=conv.in_channels, **_updates(layer, block, data))
    return text, (layer.groups * len(path.sources[0]) + 1) * block.whole


def _transition(conv: Pointwise, block: Block, data: Data, paired: bool) -> str:
    path = route(conv, 1, paired=False)
    return _wide_pointwise(conv, block, data, paired, path.rows, path.slots, WIDE_TILES)


def _wide_pointwise(conv: Pointwise, block: Block, data: Data, paired: bool, rows: list[list[int]], slots: list[list[int]],
                    sizes: Sequence[int]) -> str:  # fmt: skip
    groups, stored = conv.groups, len(rows[0])
    swish = conv.activation == "hard_swish"
    parts = [(keep_first_norm if swish else fold_first_norm)(conv, g, paired=paired) for g in range(groups)]
    inputs = max(len(part.positions) for part in parts)
    width = conv.index.size // groups
    counts, planes = np.zeros((groups, 2), np.int32), np.zeros((groups, inputs), np.int32)
    shift, bias = np.zeros((groups, inputs), np.float32), np.zeros((groups, stored), np.float32)
    scale = np.zeros((groups, inputs), np.float32)
    weights: list[npt.NDArray[Any]] = []
    for g, part in enumerate(parts):
        used = len(part.positions)
        counts[g] = part.maxima, used
        # A padded input reads the plane before it, with a weight of 0.
        index = [conv.index[g * width + (p if p >= 0 else part.positions[i - 1])] for i, p in enumerate(part.positions)]
        planes[g, :used] = np.array(index) * block.plane
        shift[g, :used] = part.shift
        scale[g, :used] = part.scale
        matrix = np.zeros((stored, inputs))
        matrix[:, :used] = _rows(part.weight, rows[g])
        bias[g] = _rows(part.bias, rows[g])
        weights.append(tiled(to_words(matrix, paired=paired), sizes))
    # Rows that no 3x3 reads go to an extra plane after the last.
    target = np.array(slots, np.int32)
    target[target < 0] = target.max() + 1
    return struct(
        groups=groups, inputs=inputs, outputs=stored, counts=0 if swish else data.add(counts), planes=data.add(planes),
        scale=data.add(scale) if swish else 0, shift=data.add(shift), weight=data.add(np.concatenate(weights)), bias=data.add(bias),
        target=data.add(target), **_swish(conv, block),
    )  # fmt: skip


def _narrow_layer(layer: DenseLayer, block: Block, data: Data, paired: bool) -> tuple[str, int]:
    """A Layer of plan.h, and the words of the buffer between its convolutions."""
    conv = layer.pointwise
    path = route(conv, layer.groups, paired=paired, align=CHUNK)
    groups, width, per_word = conv.groups, conv.index.size // conv.groups, 2 if paired else 1
    inputs, stored = padded(width, per_word), len(path.rows[0])
    planes, scale, shift = (np.zeros((groups, inputs), kind) for kind in (np.int32, np.float32, np.float32))
    index = conv.index.reshape(groups, width)
    planes[:, :width], planes[:, width:] = index * block.plane, index[:, -1:] * block.plane
    scale[:, :width], shift[:, :width] = conv.scale.reshape(groups, width), conv.shift.reshape(groups, width)
    rows_of = len(conv.weight) // groups
    bias, weights = np.zeros((groups, stored), np.float32), []
    for g in range(groups):
        part = slice(g * rows_of, (g + 1) * rows_of)
        matrix = np.zeros((stored, inputs))
        matrix[:, :width] = _rows(conv.weight[part].astype(np.float64), path.rows[g])
        bias[g] = _rows(conv.bias[part].astype(np.float64), path.rows[g])
        weights.append(tiled(to_words(matrix, paired=paired), NARROW_TILES))
    first = struct(
        groups=groups, inputs=inputs, outputs=stored, counts=0, planes=data.add(planes), scale=data.add(scale), shift=data.add(shift),
        weight=data.add(np.concatenate(weights)), bias=data.add(bias), target=0, **_swish(conv, block),
    )  # fmt: skip
    second, floats = _narrow_conv(layer, block, data, paired, path.slots, path.sources, stored)
    return struct(first=first, second=second, channels=conv.in_channels, **_updates(layer, block, data)), floats


def _narrow_conv(layer: DenseLayer, block: Block, data: Data, paired: bool, slots: list[list[int]],
                 channels: list[list[tuple[int, ...]]], stored: int) -> tuple[str, int]:  # fmt: skip
    per_word = 2 if paired else 1
    area = block.size[0] * block.size[1]
    chunk = (area + CHUNK_SLACK) * CHUNK // per_word
    places, size, outputs = len(channels[0]), layer.weight.shape[1], len(layer.weight) // layer.groups
    sources = np.zeros(layer.groups * places, np.int32)
    for g, listed in enumerate(slots):
        for word, slot in enumerate(listed):
            row = g * stored + word * per_word
            if slot >= 0:
                sources[slot] = row // CHUNK * chunk + row % CHUNK // per_word
    rows = padded(outputs, ROW_TILES[-1])
    weights = []
    for h in range(layer.groups):
        words = conv_weights(layer.weight[h * outputs : (h + 1) * outputs], channels[h], h * size, paired=paired)
        whole = np.zeros((rows, *words.shape[1:]), words.dtype)
        whole[:outputs] = words
        weights.append(tiled(whole.transpose(0, 2, 1, 3), ROW_TILES))
    text = struct(
        groups=layer.groups, inputs=places, outputs=outputs, stored=rows, sources=data.add(sources),
        weight=data.add(np.concatenate(weights)),
    )  # fmt: skip
    return text, len(slots) * stored // CHUNK * chunk


def _swish(conv: Pointwise, block: Block) -> dict[str, object]:
    """What a Pointwise of plan.h has in CondenseNet V2."""
    return {"swish": int(conv.activation == "hard_swish")} if block.updates else {}


def _updates(layer: DenseLayer, block: Block, data: Data) -> dict[str, object]:
    """What a Layer of plan.h has in CondenseNet V2."""
    if layer.update is None:
        return {}
    excite = struct(channels=0, hidden=0, squeeze=0, expand=0) if layer.excite is None else _excite(layer.excite, data)
    return {"excite": excite, "update": _update(layer.update, block, data)}


def _excite(excite: Excite, data: Data) -> str:
    hidden, channels = excite.squeeze.shape
    return struct(channels=channels, hidden=hidden, squeeze=_linear(excite.squeeze, data), expand=_linear(excite.expand, data))


def _update(update: Update, block: Block, data: Data) -> str:
    """An Update of plan.h: group by group, or the terms of each channel that some group writes, in the order of the groups."""
    growth, rows, width = update.index.size, len(update.weight) // update.groups, update.weight.shape[1]
    assert np.array_equal(np.sort(update.index), np.arange(growth)), "an update reads each new channel once"
    none = np.zeros(0, np.int32)
    if width >= GROUPED:
        groups, target, first, source = update.groups, update.target, none, none
        ahead = [0] * WIDE_TILES[0]  # a tile reads where the one after it begins
        weight = np.concatenate([tiled(part, WIDE_TILES) for part in np.split(update.weight, groups)])
    else:
        groups, ahead = 0, []
        order = np.argsort(update.target, kind="stable")
        target, begin = np.unique(update.target[order], return_index=True)
        source = order[:, None] // rows * width + np.arange(width)
        first, weight = np.append(begin * width, source.size), update.weight[order]
    return struct(
        inputs=growth, groups=groups, targets=len(target), swish=int(update.activation == "hard_swish"),
        channel=data.add(update.index.astype(np.int32)), scale=data.add(update.scale), shift=data.add(update.shift),
        target=data.add(np.append(target * block.plane, ahead).astype(np.int32)), first=data.add(first.astype(np.int32)),
        source=data.add(source.astype(np.int32)), weight=data.add(weight),
    )  # fmt: skip


def _linear(weight: Floats, data: Data) -> int:
    """A matrix [outputs, inputs] in linear_tiles."""
    outputs = padded(len(weight), LINEAR_TILES[-1])
    return data.add(tiled(np.pad(weight, ((0, outputs - len(weight)), (0, 0))), LINEAR_TILES))


def _hidden(hidden: Hidden, data: Data) -> str:
    excited, features = hidden.excite.squeeze.shape
    outputs = len(hidden.weight)
    return struct(
        features=features, excited=excited, outputs=outputs, squeeze=_linear(hidden.excite.squeeze, data),
        expand=_linear(hidden.excite.expand, data), weight=_linear(hidden.weight, data),
        bias=data.add(np.pad(hidden.bias, (0, -outputs % LINEAR_TILES[-1]))),
    )  # fmt: skip


def _head(head: Head, pool: Pool, block: Block, data: Data, hidden: Hidden | None) -> str:
    """A Head of plan.h. Behind a hidden layer ``head.index`` is of its outputs, and all planes are pooled."""
    kept, classes = head.index.size, len(head.bias)
    pooled = head.index if hidden is None else np.arange(len(pool.scale))
    assert hidden is None or np.array_equal(head.index, np.arange(len(hidden.weight))), "the classifier reads the hidden layer as it is"
    groups = -(-classes // CLASSES_TOGETHER)
    weight, bias = np.zeros((groups * CLASSES_TOGETHER, kept), np.float32), np.zeros(groups * CLASSES_TOGETHER, np.float32)
    weight[:classes], bias[:classes] = head.weight, head.bias
    return struct(
        features=kept, classes=classes, planes=data.add((pooled * block.plane).astype(np.int32)),
        scale=data.add(pool.scale[pooled]), shift=data.add(pool.shift[pooled]),
        weight=data.add(tiled(weight, (CLASSES_TOGETHER,))), bias=data.add(bias),
    )  # fmt: skip


def _window(pool: Pool) -> int:
    """Rows and columns of the window that is averaged at the end; 0: the whole map."""
    if pool.window is None:
        return 0
    height, width = pool.window
    assert height == width, "the original's windows are square"
    return height


def preparation(steps: Preprocessing) -> str:
    """A Preparation of plan.h: the numbers in float32, as ``Preprocessing.apply`` takes them."""
    mean, deviation = ("{" + ", ".join(f"{float(np.float32(v)).hex()}f" for v in values) + "}" for values in (steps.mean, steps.std))
    return struct(
        shorter_side=steps.resize or min(steps.crop), bicubic=int(steps.interpolation == "bicubic"), mean=mean, deviation=deviation
    )  # fmt: skip


def _rows(values: npt.NDArray[np.float64], rows: list[int]) -> npt.NDArray[np.float64]:
    """Rows by number; zeros for -1."""
    picked = values[rows]
    picked[np.array(rows) < 0] = 0
    return picked


# ---- C++ ---------------------------------------------------------------------------------------------------------------------------


def struct(**fields: object) -> str:
    """A structure of plan.h, field by field in its order: the compiler refuses a name that is unknown, missing or out of order."""
    return "{" + ", ".join(f".{name} = {value}" for name, value in fields.items()) + "}"


def weights_name(weights: bytes) -> str:
    """The file that plan.cpp takes the weights from. Compilers that cache results look at plan.cpp alone: it must differ if weights do."""
    return f"weights-{digest(weights)}.bin"


def as_text(declared: str, texts: Sequence[str]) -> str:
    """The declaration of constant text in C++, or of a list of texts."""
    literals = []
    for text in texts:
        letters = [f"\\{byte:03o}" if byte in b'"\\?' or not 32 <= byte < 127 else chr(byte) for byte in text.encode()]
        literals.append("\n    ".join('"' + "".join(letters[i : i + 100]) + '"' for i in range(0, max(1, len(letters)), 100)))
    listed = ",\n    ".join(literals)
    return f"static const char {declared} =\n    {f'{{{listed}}}' if declared.startswith('*') else listed};"


def _source(blocks: list[str], layers: list[str], top: str, texts: str, isas: Sequence[str], weights: str, paired: bool,
            channels: int, windowed: bool, updates: bool) -> str:  # fmt: skip
    before = f"""{constants.assertions()}
static_assert(CNET_BF16 == {int(paired)}, "the plan and the kernels are for different precisions; build both for one");
static_assert(CNET_CHANNELS == {channels}, "the plan and the kernels are for images of different channels; build both for one");
static_assert(CNET_WINDOWED == {int(windowed)}, "the plan has a window and the kernels read none, or the other way; build both for one");
static_assert(CNET_V2 == {int(updates)}, "the plan and the kernels are for different families of networks; build both for one");"""
    after = """static_assert(laid_out(plan), "geometry.py lays a map out as the kernels don't expect it; see laid_out in plan_check.h");
static_assert(pooled_within(plan), "the last pooling reads beyond the map; see pooled_within in plan_check.h");
static_assert(between_of(plan, CNET_BF16 ? 2 : 1) == plan.between,
              "planning.py and the kernels differ on the buffer between two convolutions; see between_of in plan_check.h");"""
    if updates:
        after += """
static_assert(updates(plan), "planning.py describes no layers that update the planes before them; see updates in plan_check.h");"""
    title = "Generated by `cnet-deploy export --native`: the plan that plan.h describes."
    includes = ("constants.h", "kernels.h", "plan.h", "plan_check.h")
    return source(title, includes, before, texts, layers, blocks, top, after, isas=isas, weights=weights)


def source(
    title: str, includes: Sequence[str], before: str, texts: str, layers: Sequence[str], blocks: Sequence[str], plan: str, after: str, *,
    isas: Sequence[str], weights: str,
) -> str:  # fmt: skip
    """plan.cpp; ``before`` and ``after`` the plan stands what the compiler checks.

    The assembler includes the file ``weights`` beside it; the compiler does not see them.
    """
    declared = "\n".join(f'namespace {isa} {{ extern __attribute__((visibility("hidden"))) const Kernels kernels; }}' for isa in isas)
    included = "\n".join(f'#include "{name}"' for name in includes)
    return f"""// {title}
{included}

__asm__(
    ".section .rodata\\n"
    ".balign {4 * LINE}\\n"
    ".globl cnet_data\\n"
    ".hidden cnet_data\\n"
    "cnet_data:\\n"
    ".incbin \\"{weights}\\"\\n"
    ".balign {4 * LINE}\\n"
    ".text\\n");
extern "C" __attribute__((visibility("hidden"))) const float cnet_data[];

namespace cnet {{

{before}

{texts}

static constexpr Layer layers[] = {{
    {("," + chr(10) + "    ").join(layers)},
}};

static constexpr Block blocks[] = {{
    {("," + chr(10) + "    ").join(blocks)},
}};

constexpr Plan plan = {plan};

{after}

{declared}
extern __attribute__((visibility("hidden"))) const Kernels *const carried[];
extern __attribute__((visibility("hidden"))) const int carried_count;
const Kernels *const carried[] = {{{", ".join(f"&{isa}::kernels" for isa in isas)}}};
const int carried_count = {len(isas)};

}}  // namespace cnet
"""
