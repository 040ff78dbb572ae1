"""Preprocessing: the reference's statistics, by the formula."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.preprocessing import Preprocessing
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
