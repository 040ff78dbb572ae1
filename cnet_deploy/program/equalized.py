"""A Program that computes the same, with the planes that its convolutions read brought to one range.

A format with one scale for a whole tensor gives few steps to the planes that are small. But a ReLU lets positive factors pass, so each
plane can have a factor of its own: before a 1x1 it goes into scale and shift, between the convolutions into the rows of the 1x1, and its
inverse into the weights of what reads the plane (Nagel et al., "Data-free quantization through weight equalization and bias correction",
2019, which chooses factors from weights; here they are the measured ranges). Then weights also have the size of what they contribute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cnet_deploy.program.program import Array, DenseLayer, Floats, Head, Pointwise, Pool, Program, Transition

Doubles = npt.NDArray[np.float64]
_LEAST = 2.0**-10  # of the largest range in its layer: what a plane counts for that was always 0


def equalized(program: Program, ranges: Mapping[str, Floats], top: float, *, kept: Collection[str] = ()) -> Program:
    """``program`` with all that its 1x1, 3x3 and classifier read within 0 and ``top``, but for the dense layers ``kept``.

    ``ranges`` [2, C] are those of a Calibration of this Program. What is beyond them on other images is beyond ``top``, too.
    """
    planes = np.asarray(ranges[program.stem.name], np.float64)
    body: list[DenseLayer | Transition] = []
    for layer in program.body:
        if isinstance(layer, DenseLayer):
            if layer.name not in kept:
                pointwise, factors = _with_rows_to(top, _reading_to(top, layer.pointwise, planes), ranges[layer.pointwise.name][1])
                columns = np.repeat(factors.reshape(layer.groups, -1), len(layer.weight) // layer.groups, 0)
                layer = replace(layer, pointwise=pointwise, weight=_rounded(layer.weight * columns[:, :, None, None]))
            planes = np.concatenate([planes, ranges[layer.name]], 1)
            body.append(layer)
        elif layer.pointwise is None:
            body.append(layer)
        else:
            body.append(replace(layer, pointwise=_reading_to(top, layer.pointwise, planes)))
            planes = np.asarray(ranges[layer.pointwise.name], np.float64)
    pool, head = _end_to(top, program.pool, program.head, planes)
    return replace(program, body=tuple(body), pool=pool, head=head)


def _factors(top: float, scale: Floats, shift: Floats, planes: Doubles) -> Doubles:
    """What divides relu(scale * planes + shift), [C], so that it ends at ``top``."""
    ends = planes * scale.astype(np.float64) + shift.astype(np.float64)
    return _positive(ends.max(0)) / top


def _positive(ends: Array) -> Doubles:
    largest = float(ends.max(initial=0)) or 1.0
    return np.maximum(ends.astype(np.float64), largest * _LEAST)


def _reading_to(top: float, layer: Pointwise, planes: Doubles) -> Pointwise:
    factors = _factors(top, layer.scale, layer.shift, planes[:, layer.index])
    columns = np.repeat(factors.reshape(layer.groups, -1), len(layer.weight) // layer.groups, 0)
    return replace(
        layer, scale=_rounded(layer.scale / factors), shift=_rounded(layer.shift / factors), weight=_rounded(layer.weight * columns)
    )


def _with_rows_to(top: float, layer: Pointwise, most: Floats) -> tuple[Pointwise, Doubles]:
    """The layer with its channels, whose largest value after a ReLU is ``most`` [C], ending at ``top``; and what divided them."""
    factors = _positive(most) / top
    rows = np.ones(len(layer.weight))
    rows[layer.order] = factors
    return replace(layer, weight=_rounded(layer.weight / rows[:, None]), bias=_rounded(layer.bias / rows)), factors


def _end_to(top: float, pool: Pool, head: Head, planes: Doubles) -> tuple[Pool, Head]:
    factors = _factors(top, pool.scale, pool.shift, planes)
    return (
        replace(pool, scale=_rounded(pool.scale / factors), shift=_rounded(pool.shift / factors)),
        replace(head, weight=_rounded(head.weight * factors[head.index])),
    )


def _rounded(values: Array) -> Floats:
    rounded = np.ascontiguousarray(values, np.float32)
    rounded.flags.writeable = False
    return rounded
