"""The QuantizedProgram: near to the Program it is made of, and rounded where its file says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.calibration import calibrate
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import DenseLayer, Program
from cnet_deploy.program.quantize import _rows, quantize, quantized
from cnet_deploy.program.quantized import EXTRA, QuantizedLayer, Requantization
from tests.builders import TINY, VARIETIES, tiny
from tests.cases import examples, few
from tests.exporters.native.helpers import network


def bytes_for(program: Program, count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (count, *program.architecture.image_shape), np.uint8)


def prepared(program: Program, count: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return program.preprocessing.apply(bytes_for(program, count, seed))


def test_the_image_s_bytes_are_found_again(trained: DenselyConnected, converted: DenselyConnected) -> None:
    program = lower(converted)
    pixels = bytes_for(program, 3)
    stem = quantize(program, program.preprocessing.apply(pixels)).stem
    assert np.array_equal(stem.to_pixels(program.preprocessing.apply(pixels)), pixels)
    assert np.array_equal(stem.to_pixels(np.full((1, 3, 2, 2), np.nan, np.float32)), np.zeros((1, 3, 2, 2)))
    assert stem.to_pixels(np.full((1, 3, 2, 2), 1e30, np.float32)).min() == 255


@pytest.mark.parametrize("kept", few(["int8", "int16"], 2))
@pytest.mark.parametrize("arch", [TINY, *VARIETIES], ids=str)
def test_near_to_the_program(arch: Any, kept: str) -> None:
    """The largest error on the images that it was calibrated on, of random networks with batch norms as they are trained."""
    program = lower(build_random(arch))
    images = prepared(program, 16)
    names = [layer.name for layer in program.body if isinstance(layer, DenseLayer)]
    done = quantize(program, images, int16=names if kept == "int16" else ())
    expected, error = program.run(images), np.abs(done.run(images) - program.run(images)).max()
    assert error <= 0.05 * np.abs(expected).max()
    assert {layer.precision for layer in done.body if isinstance(layer, QuantizedLayer)} == {kept}


@pytest.mark.parametrize("least", [16000, 16100, 16120, 16200, 16383, 16384])
def test_no_weight_is_clipped_where_the_zero_point_is_far_away(least: int) -> None:
    """Whatever the unit is, a row's weights are no farther from what they were than half a unit."""
    step = np.geomspace(0.1, 2000, 40) / 127
    weight = np.repeat([[1.0, -0.37, 0.5]], len(step), 0)
    rows = _rows(weight, -least * step, (255 - least) * step, bits=8, largest=255)
    assert (np.abs(rows.weight * rows.unit[:, None] - weight) <= rows.unit[:, None] * 0.5001).all()
    assert np.abs(rows.requantization.zero).max() < 1 << 14


@pytest.mark.parametrize("kept", few(["int8", "int16"], 2))
def test_rows_without_weights_keep_their_bias(kept: str) -> None:
    """As the batch norm after a 1x1 leaves them where its gain is 0: their planes are constant."""
    program = lower(build_random(TINY))

    def without(layer: DenseLayer) -> DenseLayer:
        conv = layer.pointwise
        weight, bias = conv.weight.copy(), conv.bias.copy()
        weight[::4], bias[::4] = 0, 3
        weight[1::4], bias[1::4] = weight[1::4] * np.float32(1e-10), 2
        return replace(layer, pointwise=replace(conv, weight=weight, bias=bias))

    program = replace(program, body=tuple(without(layer) if isinstance(layer, DenseLayer) else layer for layer in program.body))
    images = prepared(program, 8)
    names = [layer.name for layer in program.body if isinstance(layer, DenseLayer)]
    done = quantize(program, images, int16=names if kept == "int16" else ())
    expected = program.run(images)
    assert np.abs(done.run(images) - expected).max() <= 0.05 * np.abs(expected).max()
    for layer in done.body:
        if isinstance(layer, QuantizedLayer):
            conv = layer.pointwise
            assert conv.requantization.shift.max() <= 31 and np.abs(conv.bias.astype(int)).max() < 1 << 30
            middle = conv.of(done.stem.of(done.stem.to_pixels(images)).repeat(8, 1)[:, : conv.in_channels])
            assert (
                np.ptp(middle[:, np.flatnonzero(conv.order % 4 == 0)]) <= 1 and middle[:, np.flatnonzero(conv.order % 4 == 0)].min() > 200
            )


def test_int16_is_nearer(converted: DenselyConnected, few_images: Any) -> None:
    program = lower(converted)
    raw = np.frombuffer(few_images.read_bytes(), np.uint8).reshape(-1, 3073)
    images = program.preprocessing.apply(raw[:8, 1:].reshape(-1, 3, 32, 32))
    expected = program.run(images)
    names = [layer.name for layer in program.body if isinstance(layer, DenseLayer)]
    ranges = calibrate(program, images)
    kept = ((), names[: len(names) // 2], names)
    errors = [np.abs(quantized(program, ranges, int16=some).run(images) - expected).mean() for some in kept]
    assert errors[0] > errors[1] > errors[2]


def test_what_is_not_finite_gives_nan() -> None:
    program = lower(build_random(TINY))
    images = prepared(program, 4)
    done = quantize(program, images)
    for image, value in zip(images, (np.nan, np.inf, -np.inf), strict=False):
        image[1, 2, 3] = value
    logits = done.run(images)
    assert np.isnan(logits[:3]).all() and np.isfinite(logits[3]).all()


def test_an_unknown_layer_is_refused() -> None:
    program = lower(build_random(TINY))
    with pytest.raises(InputRefused, match="no layer is called other; expected some of features"):
        quantize(program, prepared(program, 2), int16=["other"])


@hypothesis.settings(examples(50))
@hypothesis.given(st.integers(-(1 << 31), (1 << 31) - 1), st.integers(0, 20), st.integers(1, 32767), st.integers(-300, 300))
def test_requantization_is_what_its_docstring_says(total: int, shift: int, multiplier: int, zero: int) -> None:
    steps = Requantization(*(np.array([value], np.int32) for value in (shift, multiplier, zero)))
    short = max(-32768, min(32767, total >> shift))
    expected = max(0, min(255, ((short * multiplier + (1 << 14)) >> 15) + zero))
    assert steps.of(np.full((1, 1, 1, 1), float(total))).item() == expected


@pytest.mark.parametrize("seed", few(range(5), 2))
def test_thresholds_reach_beyond_the_bytes(seed: int) -> None:
    """Gains of either sign and of zero, ReLUs that always or never cut: none of them leaves the range of its type."""
    program = lower(network(tiny(2, 4), seed))
    program = replace(program, body=tuple(_shifted(layer, seed) for layer in program.body))
    images = prepared(program, 4)
    done = quantize(program, images)
    for layer in done.body:
        if isinstance(layer, QuantizedLayer):
            conv = layer.pointwise
            assert conv.threshold.min() >= 0 and conv.threshold.max() <= 255 << conv.extra and conv.extra in (0, EXTRA)
            assert np.abs(conv.weight.astype(int)).max() <= 127 and conv.requantization.multiplier.min() >= 1
    assert np.isfinite(done.run(images)).all()


def _shifted(layer: Any, seed: int) -> Any:
    """Some shifts so large that the ReLU never cuts, some so small that nothing passes."""
    if not isinstance(layer, DenseLayer):
        return layer
    random = np.random.default_rng(seed)
    shift = layer.pointwise.shift + random.choice([-50, 0, 0, 50], layer.pointwise.shift.size).astype(np.float32)
    return replace(layer, pointwise=replace(layer.pointwise, shift=shift))
