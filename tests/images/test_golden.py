"""Preparing gives the recorded pixels, whatever the version of Pillow; and docs/preprocessing.md says how, as a program too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnet_deploy.images.inputs import pixels_of
from cnet_deploy.images.preprocessing import Preprocessing
from tests.images.golden import Case, cases, record, recorded

PAGE = (Path(__file__).parents[2] / "docs" / "preprocessing.md").read_text(encoding="utf-8")
CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden_pixels(case: Case, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(case.png())
    expected, steps = recorded()[case.name], case.preprocessing
    assert record(pixels_of(tmp_path / "image.png", steps), steps.read(tmp_path / "image.png")) == expected
    if case.orientation == 1:
        assert record(pixels_of(case.pixels(), steps), steps.read(case.pixels())) == expected


def test_every_recorded_case_is_tested() -> None:
    assert [case.name for case in CASES] == list(recorded())
    assert len({entry["pixels"] for entry in recorded().values()}) > len(CASES) - 3


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the program on the page defines."""
    defined: dict[str, Any] = {}
    (program,) = re.findall(r"## As a program\n\n```python\n(.*?)```", PAGE, re.DOTALL)
    exec(program, defined)
    return defined


OF_COLOURS = [case for case in CASES if case.orientation == 1 and case.channels == 3 and len(case.steps["mean"]) == 3]


@pytest.mark.parametrize("case", OF_COLOURS, ids=lambda case: case.name)
def test_the_program_on_the_page_makes_the_golden_pixels(case: Case, page: dict[str, Any]) -> None:
    assert np.array_equal(page["prepare"](case.pixels(), case.steps), case.preprocessing.read(case.pixels()))


def test_the_program_on_the_page_agrees_on_random_sizes(page: dict[str, Any]) -> None:
    random = np.random.default_rng(3)
    for _ in range(15):
        height, width, crop_height, crop_width = (int(n) for n in random.integers(1, 70, 4))
        steps = {
            "statistics": "custom", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "crop": [crop_height, crop_width],
            "resize": int(random.integers(min(crop_height, crop_width), 90)), "interpolation": str(random.choice(["bilinear", "bicubic"])),
        }  # fmt: skip
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        assert np.array_equal(page["prepare"](pixels, steps), Preprocessing.from_dict(steps).read(pixels)), (pixels.shape, steps)


def test_the_page_names_the_fields_of_the_manifest() -> None:
    (shown,) = re.findall(r'```json\n"preprocessing": (.*?)\n```', PAGE)
    assert Preprocessing.from_dict(json.loads(shown)).to_dict() == json.loads(shown)
    table = PAGE.partition("| field | meaning |")[2].partition("## The steps")[0]
    named = {name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == set(Preprocessing.__dataclass_fields__)
