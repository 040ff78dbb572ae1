"""Equivalent forms of a Program. Which one is fastest depends on the runtime.

Three forms, chosen for each dense block:

- ``gather``: as lowered: a gather, a grouped 1x1, a reorder.
- ``dense``: a dense 1x1 with zeros instead; no gather and no reorder, but G times the multiply-adds at C = G.
- ``absorbed``: the 1x1 stays grouped, and its reorder is merged into the adjacent layers if that is exact and costs no multiply-adds. If
  the 3x3 is grouped, the gather before the 1x1 grows, at most by a factor of the 3x3's groups.

A transition has the form of the block before it, and the classifier that of the last block. In ``dense`` and ``absorbed`` form the
classifier reads all features, with zero weights for those that the gather left out; nothing else in ``absorbed`` adds multiply-adds. An
absorbed reorder of a transition permutes the channels of its output, so the tables of the next block change, in any form. CondenseNet V2
has no convolutions in its transitions, so nothing there moves: excitation, updates and the hidden layer are the same in every form, and so
is the classifier, which reads all that the hidden layer makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused
from cnet_deploy.program.program import DenseLayer, Head, Indices, Pointwise, Pool, Program, Transition

FORMS = ("gather", "dense", "absorbed")


def blocks(program: Program) -> tuple[str, ...]:
    """The names of the dense blocks in the order in which they run: ``denseblock_1`` etc."""
    return tuple(dict.fromkeys(_block(layer) for layer in program.body if isinstance(layer, DenseLayer)))


def rewrite(program: Program, forms: str | Mapping[str, str]) -> Program:
    """The Program with its blocks in ``forms``: one form for all blocks, or a mapping from block to form (others stay ``gather``).

    Raises InputRefused for an unknown form or block.
    """
    wanted = _wanted(blocks(program), forms)
    body: list[DenseLayer | Transition] = []
    form, moved = "gather", np.arange(0)  # channel c of the map is now at moved[c]; channels beyond its end did not move
    for number, layer in enumerate(program.body):
        if isinstance(layer, DenseLayer):
            form = wanted[_block(layer)]
            layer = replace(layer, pointwise=_located(layer.pointwise, moved))
            if form == "dense":
                layer = replace(layer, pointwise=_dense(layer.pointwise))
            body.append(_absorbed(layer) if form == "absorbed" else layer)
        elif layer.pointwise is None:
            body.append(layer)
        else:
            conv = _located(layer.pointwise, moved)
            moved = np.arange(0)
            if form == "dense":
                conv = _dense(conv)
            elif form == "absorbed":
                conv = _rows_in_order(_without_gather(conv))
                # Updates and a hidden layer name channels too, and no network has them behind a transition that convolves.
                if program.hidden is None and _may_move(conv.order, program.body[number + 1 :]):
                    moved, conv = conv.order, replace(conv, order=np.arange(conv.order.size))
            body.append(replace(layer, pointwise=conv))
    if all(chosen == "gather" for chosen in wanted.values()):
        return program
    place, head = _places(moved, program.pool.scale.size), program.head
    if program.hidden is None:  # else nothing moved, and the classifier does not read the pooled features
        head = replace(head, index=place[head.index])
    if form != "gather" or _is_all(program.head.index, head.features):  # a classifier that reads all features gathers none
        head = _dense_head(head)
    return replace(program, body=tuple(body), pool=_relabelled(program.pool, place), head=head)


def dense_pointwise(program: Program) -> Program:
    """Write every grouped 1x1 as a dense one with zeros: no gather before it, no shuffle after it, G times its multiply-adds at C = G.

    A gather stays if groups apply different norms to one channel (no converted network does). The classifier's gather stays too.
    """
    return replace(program, body=rewrite(program, "dense").body)


def _block(layer: DenseLayer) -> str:
    return layer.name.split(".")[1]


def _wanted(names: tuple[str, ...], forms: str | Mapping[str, str]) -> dict[str, str]:
    given = dict.fromkeys(names, forms) if isinstance(forms, str) else forms
    if unknown := [form for form in given.values() if form not in FORMS]:
        raise InputRefused(f"unknown form {unknown[0]!r} of a block; expected one of {', '.join(FORMS)}")
    if foreign := [name for name in given if name not in names]:
        raise InputRefused(f"no dense block is called {foreign[0]!r}; expected some of {', '.join(names)}")
    return {name: given.get(name, "gather") for name in names}


# ---- dense -------------------------------------------------------------------------------------------------------------


def _dense(layer: Pointwise) -> Pointwise:
    rows, width = len(layer.weight), layer.index.size
    inputs, outputs = width // layer.groups, rows // layer.groups
    wide = np.zeros((rows, width), np.float32)
    for g in range(layer.groups):
        wide[g * outputs : (g + 1) * outputs, g * inputs : (g + 1) * inputs] = layer.weight[g * outputs : (g + 1) * outputs]
    wide, bias, order = wide[layer.order], layer.bias[layer.order], np.arange(rows)
    scale, shift = np.zeros(layer.in_channels, np.float32), np.zeros(layer.in_channels, np.float32)
    scale[layer.index], shift[layer.index] = layer.scale, layer.shift
    if not (np.array_equal(scale[layer.index], layer.scale) and np.array_equal(shift[layer.index], layer.shift)):
        return replace(layer, weight=wide, bias=bias, groups=1, order=order)
    weight = np.zeros((rows, layer.in_channels), np.float32)
    for position, channel in enumerate(layer.index):
        weight[:, channel] += wide[:, position]
    index = np.arange(layer.in_channels)
    return replace(layer, index=index, scale=scale, shift=shift, weight=weight, bias=bias, groups=1, order=order)


def _dense_head(head: Head) -> Head:
    weight = np.zeros((len(head.weight), head.features), np.float32)
    np.add.at(weight.T, head.index, head.weight.T)
    return replace(head, index=np.arange(head.features), weight=weight)


# ---- absorbed ----------------------------------------------------------------------------------------------------------


def _absorbed(layer: DenseLayer) -> DenseLayer:
    """The layer without a reorder, unless its gather would grow by more than a factor of the 3x3's groups.

    Each group of the 1x1 is split into one group, over the same inputs, for each group of the 3x3 that reads it. These are put in the
    3x3's order. The rest of the reorder is within a group of the 3x3 and permutes its columns.
    """
    conv = _rows_in_order(_without_gather(layer.pointwise))
    rows, parts = conv.order.size, layer.groups
    if _is_all(conv.order, rows):
        return replace(layer, pointwise=conv)
    group, part = conv.order // (rows // conv.groups), np.arange(rows) // (rows // parts)  # of each channel: the 1x1's and the 3x3's group
    counts = np.zeros((parts, conv.groups), np.int64)
    np.add.at(counts, (part, group), 1)
    size = int(np.gcd.reduce(counts, axis=None))
    if rows // size > conv.groups * parts:
        return replace(layer, pointwise=conv)
    channels = np.lexsort((group, part))
    inputs = conv.index.size // conv.groups
    gathered = (group[channels[::size], None] * inputs + np.arange(inputs)).reshape(-1)
    picked = conv.order[channels]
    pointwise = replace(
        conv, index=conv.index[gathered], scale=conv.scale[gathered], shift=conv.shift[gathered], weight=conv.weight[picked],
        bias=conv.bias[picked], groups=rows // size, order=np.arange(rows),
    )  # fmt: skip
    columns = channels.reshape(parts, -1) % (rows // parts)
    kernels = zip(np.split(layer.weight, parts), columns, strict=True)
    return replace(layer, pointwise=pointwise, weight=np.concatenate([kernel[:, column] for kernel, column in kernels]))


def _rows_in_order(layer: Pointwise) -> Pointwise:
    """The layer without its reorder, if that keeps every row in its group."""
    outputs = layer.order.size // layer.groups
    if not np.array_equal(layer.order // outputs, np.arange(layer.order.size) // outputs):
        return layer
    return replace(layer, weight=layer.weight[layer.order], bias=layer.bias[layer.order], order=np.arange(layer.order.size))


def _without_gather(layer: Pointwise) -> Pointwise:
    """The layer without its gather, if it has one group that reads every channel once, in any order."""
    if layer.groups != 1 or not _is_all(np.sort(layer.index), layer.in_channels):
        return layer
    back = np.argsort(layer.index)
    return replace(layer, index=layer.index[back], scale=layer.scale[back], shift=layer.shift[back], weight=layer.weight[:, back])


def _may_move(order: Indices, behind: tuple[DenseLayer | Transition, ...]) -> bool:
    """Whether the channels of a map may be permuted without forcing any layer that reads it to gather."""
    if not _is_all(np.sort(order), order.size):
        return False
    for layer in behind:
        conv = layer.pointwise
        if conv is not None and conv.groups > 1 and _is_all(conv.index, conv.in_channels):
            return False
        if isinstance(layer, Transition) and conv is not None:
            break
    return True


def _located(layer: Pointwise, moved: Indices) -> Pointwise:
    """The layer with its index adapted to a map whose channels have moved."""
    if not moved.size:
        return layer
    gathers = not _is_all(layer.index, layer.in_channels)
    layer = replace(layer, index=_places(moved, layer.in_channels)[layer.index])
    return layer if gathers else _without_gather(layer)


def _relabelled(pool: Pool, place: Indices) -> Pool:
    scale, shift = np.empty_like(pool.scale), np.empty_like(pool.shift)
    scale[place], shift[place] = pool.scale, pool.shift
    return replace(pool, scale=scale, shift=shift)


def _places(moved: Indices, channels: int) -> Indices:
    """The position of each of a map's channels."""
    return np.concatenate([moved, np.arange(moved.size, channels)])


def _is_all(index: npt.NDArray[np.int64], channels: int) -> bool:
    return np.array_equal(index, np.arange(channels))
