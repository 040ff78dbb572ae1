"""Preprocessing: the reference's statistics, by the formula."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.preprocessing import Overrides, Preprocessing
from tests.builders import TINY


def test_whose_statistics() -> None:
    assert Preprocessing.of(TINY.input_size, TINY.classes).statistics == "cifar10"
    assert Preprocessing.of((32, 32), 100).statistics == "cifar100"
    imagenet = Preprocessing.of((224, 224), 1000)
    assert (imagenet.statistics, imagenet.resize, imagenet.crop) == ("imagenet", 256, (224, 224))


def test_formula() -> None:
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint8).reshape(2, 3, 4, 4)
    found = Preprocessing.of(TINY.input_size, TINY.classes).apply(pixels)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert found[1, 2, 3, 1] == pytest.approx((pixels[1, 2, 3, 1] / 255 - 0.4467) / 0.2616, abs=1e-6)


def test_dict_round_trip() -> None:
    for steps in (Preprocessing.of(TINY.input_size, TINY.classes), Preprocessing.of((224, 224), 1000)):
        assert Preprocessing.from_dict(steps.to_dict()) == steps


_NUMBERS = st.lists(st.floats() | st.integers(), min_size=2, max_size=4)
_SIDES = st.none() | st.integers(-1, 5000) | st.floats()


@given(_NUMBERS, _NUMBERS, _SIDES, st.lists(_SIDES, min_size=1, max_size=3), st.text())
def test_any_dictionary_comes_back_or_is_refused(mean: Any, std: Any, resize: Any, crop: Any, statistics: str) -> None:
    try:
        steps = Preprocessing.from_dict({"mean": mean, "std": std, "resize": resize, "crop": crop, "statistics": statistics})
    except InputRefused:
        return
    assert Preprocessing.from_dict(json.loads(json.dumps(steps.to_dict()))) == steps


def test_what_is_guessed_and_what_is_stated() -> None:
    small, large = Preprocessing.of((32, 32), 10), Preprocessing.of((224, 224), 1000)
    assert (small.guessed, large.guessed) == (("statistics",), ("statistics", "resize"))
    assert Preprocessing.of((224, 224), 1000, "imagenet").guessed == ("resize",)
    assert large.doubts() == "mean, std and resize guessed from the input size and number of classes: give --statistics and --resize"
    for stated, left in (
        (Overrides("imagenet"), ("resize",)),
        (Overrides(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)), ("resize",)),
        (Overrides(mean=(0.5, 0.5, 0.5)), ("statistics", "resize")),  # the standard deviation is still a guess
        (Overrides(resize=256), ("statistics",)),
        (Overrides("imagenet", resize=232, interpolation="bicubic"), ()),
        (Overrides(interpolation="bicubic"), ("statistics", "resize")),
    ):
        result = stated.apply_to(large, (224, 224))
        assert result.guessed == left and (result.doubts() == "") == (left == ())
        assert result.interpolation == (stated.interpolation or "bilinear") and result.resize == (stated.resize or 256)
        assert Preprocessing.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_another_size_keeps_the_statistics_and_guesses_the_resizing_anew() -> None:
    stated = Overrides(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), resize=232, interpolation="bicubic").apply_to(None, (224, 224))
    assert stated.guessed == () and stated.of_size((224, 224)) is stated
    larger = stated.of_size((448, 384))
    assert (larger.resize, larger.crop, larger.guessed) == (round(384 * 256 / 224), (448, 384), ("resize",))
    assert (larger.mean, larger.interpolation) == (stated.mean, "bicubic")
    assert Preprocessing.of((32, 32), 10).of_size((48, 48)) == Preprocessing.of((48, 48), 10)
    for side in (3500, 3600, 4096):  # what is guessed can be written and read
        assert Preprocessing.from_dict(stated.of_size((side, side)).to_dict()).resize == min(4096, round(side * 256 / 224))


def test_files_of_old_versions_read_and_write_the_same() -> None:
    old = {"statistics": "cifar10", "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "resize": None, "crop": [32, 32]}
    assert Preprocessing.from_dict(old).to_dict() == old


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interpolation": "lanczos"}, 'preprocessing.interpolation is "lanczos"; expected one of bilinear, bicubic'),
        ({"guessed": ["crop"]}, r"preprocessing.guessed\[0\] is \"crop\"; expected one of statistics, resize"),
        ({"guessed": ["resize"] * 3}, "preprocessing.guessed is a list of 3"),
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, "2 numbers in mean and 2 in std; expected 1, 3 or 4"),
        ({"mean": [0.5]}, "1 numbers in mean and 3 in std"),
        ({"mean": [0.5] * 5}, "preprocessing.mean is a list of 5; expected a list of 1, 3 or 4 numbers"),
    ],
)
def test_damaged_values(values: dict[str, Any], message: str) -> None:
    whole = Preprocessing.of((32, 32), 10).to_dict()
    with pytest.raises(InputRefused, match=message):
        Preprocessing.from_dict(whole | values)
