"""Program and calibration images -> QuantizedProgram: steps, zero points, thresholds, and weights in integers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from cnet_deploy.errors import InputRefused
from cnet_deploy.program.calibration import Calibration, Method, Progress, calibrate, require_integers
from cnet_deploy.program.program import Array, DenseLayer, Floats, Indices, Pointwise, Program
from cnet_deploy.program.quantized import (
    BYTE,
    EXTRA,
    FRACTION,
    POOL_BITS,
    WIDE,
    Doubles,
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


@dataclass(frozen=True, eq=False)
class Quantization:
    """How a Program becomes integers: the ranges of what it computes, and the dense layers ``kept`` in higher precision than int8."""

    calibration: Calibration
    kept: frozenset[str] = frozenset()


_SUM = (1 << 31) - 1  # the largest sum
_CLIPPED = (1 << 15) - 1  # the largest sum that is multiplied
_FARTHEST = (1 << 14) - 1 - 256  # zero points are no farther from 0: a multiplier that reaches both ends still fits
_LEAST_STEP = 1e-12


def quantize(
    program: Program,
    images: Floats,
    *,
    method: Method = "minmax",
    int16: Collection[str] = (),
    progress: Progress = lambda *_: None,
) -> QuantizedProgram:
    """A Program in integers, with ranges from calibration ``images``: float32 [N, channels, H, W], prepared as the model says.

    ``method`` is "minmax", "percentile" or "entropy" (see ``calibrate``, which also says what is raised). The layers named in ``int16``
    have 16-bit weights and 12-bit values between their convolutions.
    """
    return quantized(program, calibrate(program, images, method, progress=progress), int16=int16)


def quantized(program: Program, calibration: Calibration, *, int16: Collection[str] = ()) -> QuantizedProgram:
    """``quantize`` from ranges that are known.

    Raises InputRefused for a CondenseNet V2, for a layer that there is not, and for a calibration of another Program.
    """
    require_integers(program)
    calibration.require_of(program)
    names = [layer.name for layer in program.body if isinstance(layer, DenseLayer)]
    if unknown := sorted(set(int16) - set(names)):
        raise InputRefused(f"no layer is called {', '.join(unknown)}; expected some of {', '.join(names)}")
    ranges = calibration.ranges
    stem, planes = _stem(program, ranges)
    body: list[QuantizedLayer | QuantizedTransition] = []
    for layer in program.body:
        if isinstance(layer, DenseLayer):
            done, new = _layer(layer, planes, ranges, EXTRA if layer.name in int16 else 0)
            body.append(done)
            planes = Planes(*(np.concatenate(pair) for pair in zip((planes.step, planes.zero), (new.step, new.zero), strict=True)))
        elif layer.pointwise is None:
            body.append(QuantizedTransition(layer.name, None))
        else:
            pointwise, planes = _pointwise(layer.pointwise, planes, ranges, 0, relu=False)
            body.append(QuantizedTransition(layer.name, pointwise))
    pool, head = _end(program, planes)
    return QuantizedProgram(
        program.architecture, stem, tuple(body), pool, head, program.preprocessing, program.source_digest, program.class_names
    )


@dataclass(frozen=True, eq=False)
class Planes:
    """What bytes mean: (byte - ``zero``) * ``step``, each [C]; zero points are whole numbers, and may lie outside 0 to 255."""

    step: Doubles
    zero: Doubles


@dataclass(frozen=True, eq=False)
class _Rows:
    """Weights in integers, [rows, …]; ``unit`` [rows] is the value of a sum of 1."""

    weight: Integers
    unit: Doubles
    requantization: Requantization
    planes: Planes


def _rows(weight: Doubles, least: Array, most: Array, *, bits: int, largest: int, bias: Doubles | float = 0.0, levels: int = BYTE,
          relu: bool = False) -> _Rows:  # fmt: skip
    """Weights [rows, …], of inputs that are integers up to ``largest``, as integers of ``bits`` bits, and how their sums are requantised.

    ``least`` and ``most`` [rows] are the range of the sums' values, ``bias`` [rows] what is added to them: in units it must fit into a sum
    too. The unit of a row's sums is such that its multiplier is a whole number, so that only weights are rounded. The smallest shift is
    taken that loses nothing of the range: most rows have none.
    """
    flat = np.abs(weight.reshape(len(weight), -1))
    unit = np.maximum(flat.max(1, initial=0) / ((1 << bits - 1) - 1), flat.sum(1) * largest / (_SUM // 4))
    unit = np.maximum(np.maximum(unit, np.abs(bias) / (_SUM // 4)), _LEAST_STEP)
    least, most = (np.zeros(len(weight)) if relu else least.astype(np.float64)), most.astype(np.float64)
    step = (most - least) / levels
    step = np.maximum(step, np.maximum(np.abs(least), np.abs(most)) / _FARTHEST)
    # A sum of 1 is at most a step. A plane that is always 0 gets this least step too: a larger one would make its weights in what reads it
    # the largest of their rows, and leave few bits to the others.
    step = np.maximum(step, unit * (1 << FRACTION) / _CLIPPED)
    zero = np.zeros(len(weight)) if relu else np.rint(-least / step)
    needed = np.maximum(np.maximum(np.abs(levels - zero), np.abs(zero)), levels) + 1  # a multiplier that reaches both ends
    exact = unit / step * (1 << FRACTION)
    shift = np.maximum(np.ceil(np.log2(needed / exact)), 0)
    shift = np.where((shift > 0) & (exact * 2.0 ** (shift - 1) >= needed), shift - 1, shift)
    multiplier = np.minimum(np.ceil(exact * 2.0**shift - 1e-9), _CLIPPED)
    unit = step * multiplier / 2.0 ** (FRACTION + shift)
    limit = (1 << bits - 1) - 1
    whole = np.clip(np.rint(weight / unit.reshape(-1, *[1] * (weight.ndim - 1))), -limit, limit)
    requantization = Requantization(_integers(shift), _integers(multiplier), _integers(zero), levels)
    return _Rows(whole.astype(np.int8 if bits == 8 else np.int16), unit, requantization, Planes(step, zero))


def _stem(program: Program, ranges: Mapping[str, Floats]) -> tuple[QuantizedStem, Planes]:
    stem, steps = program.stem, program.preprocessing
    scale, offset = (np.asarray(values, np.float32) * np.float32(BYTE) for values in (steps.std, steps.mean))
    weight = stem.weight / scale.astype(np.float64)[:, None, None]
    bias = -(weight * offset.astype(np.float64)[:, None, None]).sum((1, 2, 3))
    rows = _rows(weight, *ranges[stem.name], bits=16, largest=BYTE, bias=bias)
    return QuantizedStem(
        stem.name, _frozen(scale), _frozen(offset), _integers(np.clip(np.rint(offset), 0, BYTE)), _frozen(rows.weight),
        _integers(np.rint(bias / rows.unit)), rows.requantization, stem.stride,
    ), rows.planes  # fmt: skip


def _thresholds(scale: Doubles, shift: Doubles, planes: Planes, extra: int) -> tuple[Doubles, Doubles, Doubles]:
    """relu(scale * x + shift) of bytes as ``factor`` * max(byte - threshold, 0) + ``constant`` (the operands swapped for a negative scale).

    Returns factor, threshold and constant, each [C]; bytes and thresholds have ``extra`` bits more. A threshold outside the bytes' range
    is brought to its end: below it the ReLU never cuts, and the difference is the constant; above it nothing passes.
    """
    factor = np.abs(scale) * planes.step
    fixed = factor <= np.abs(shift) * 1e-30  # the input has no part in it
    place = np.divide(shift, np.where(scale < 0, -factor, factor), out=np.zeros(len(scale)), where=~fixed)
    exact = (planes.zero - place) * (1 << extra)
    largest = BYTE << extra
    beyond = np.where(scale < 0, np.maximum(exact - largest, 0), np.maximum(-exact, 0))  # how far the ReLU is from cutting
    factor = np.where(fixed, 0.0, factor / (1 << extra))
    constant = np.where(fixed, np.maximum(shift, 0), factor * beyond)
    return factor, np.where(fixed, 0, np.clip(np.rint(exact), 0, largest)), constant


def _pointwise(
    layer: Pointwise, planes: Planes, ranges: Mapping[str, Floats], extra: int, *, relu: bool
) -> tuple[QuantizedPointwise, Planes]:
    """A 1x1 on ``planes``, and what its channels mean, in the order of the result."""
    picked = Planes(planes.step[layer.index], planes.zero[layer.index])
    scale = layer.scale.astype(np.float64)
    factor, threshold, constant = _thresholds(scale, layer.shift.astype(np.float64), picked, extra)
    groups, width = layer.groups, layer.index.size // layer.groups
    grouped = layer.weight.astype(np.float64).reshape(groups, -1, width)
    bias = layer.bias + (grouped * constant.reshape(groups, 1, width)).sum(2).reshape(-1)
    weight = (grouped * factor.reshape(groups, 1, width)).reshape(-1, width)
    rows_of = np.argsort(layer.order)  # the channel of a row
    least, most = ranges[layer.name][:, rows_of]
    bits, levels = (16, WIDE) if extra else (8, BYTE)
    rows = _rows(weight, least, most, bits=bits, largest=BYTE << extra, bias=bias, levels=levels, relu=relu)
    done = QuantizedPointwise(
        layer.name, layer.in_channels, layer.index, _integers(threshold), _frozen(scale < 0), _frozen(rows.weight),
        _integers(np.clip(np.rint(bias / rows.unit), -_SUM // 2, _SUM // 2)), rows.requantization, groups, layer.order, extra,
    )  # fmt: skip
    return done, Planes(rows.planes.step[layer.order], rows.planes.zero[layer.order])


def _layer(layer: DenseLayer, planes: Planes, ranges: Mapping[str, Floats], extra: int) -> tuple[QuantizedLayer, Planes]:
    pointwise, middle = _pointwise(layer.pointwise, planes, ranges, extra, relu=True)
    size = layer.weight.shape[1]
    step = np.repeat(middle.step.reshape(layer.groups, size), len(layer.weight) // layer.groups, 0)
    rows = _rows(layer.weight * step[:, :, None, None], *ranges[layer.name], bits=16 if extra else 8, largest=WIDE if extra else BYTE)
    return QuantizedLayer(layer.name, pointwise, _frozen(rows.weight), rows.requantization, layer.groups), rows.planes


def _end(program: Program, planes: Planes) -> tuple[QuantizedPool, QuantizedHead]:
    pool, head = program.pool, program.head
    index: Indices = head.index
    scale = pool.scale[index].astype(np.float64)
    picked = Planes(planes.step[index], planes.zero[index])
    factor, threshold, constant = _thresholds(scale, pool.shift[index].astype(np.float64), picked, POOL_BITS)
    # Sums of the classifier fit into 31 bits.
    bits = next(bits for bits in range(EXTRA, -1, -1) if index.size * (BYTE << bits) * 127 <= _SUM or not bits)
    weight = head.weight.astype(np.float64)
    bias = head.bias + weight @ constant
    weight = weight * factor * float(1 << POOL_BITS - bits)
    unit = np.maximum(np.abs(weight).max(1, initial=0) / 127, _LEAST_STEP).astype(np.float32)
    whole = np.rint(weight / unit.astype(np.float64)[:, None]).clip(-127, 127).astype(np.int8)
    return (
        QuantizedPool(pool.name, index, _integers(threshold), _frozen(scale < 0), bits, pool.window),
        QuantizedHead(head.name, _frozen(whole), _frozen(unit), _frozen(bias.astype(np.float32))),
    )


def _integers(values: Array) -> Integers:
    return _frozen(values.astype(np.int32))


def _frozen(values: Array) -> Array:
    values = np.ascontiguousarray(values)
    values.flags.writeable = False
    return values
