"""Ranges of what a network computes, from images."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build_random
from cnet_deploy.program import calibration
from cnet_deploy.program.calibration import BINS, METHODS, _least_divergent, _within, calibrate
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import Program
from tests.builders import TINY
from tests.cases import long


@pytest.fixture(scope="module")
def program() -> Program:
    return lower(build_random(TINY))


def images_for(program: Program, count: int = 12) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((count, *program.architecture.image_shape), np.float32)


def test_minmax_is_what_the_network_computes(program: Program) -> None:
    images, seen = images_for(program), {}

    def observe(name: str, planes: np.ndarray[Any, Any]) -> None:
        seen[name] = np.stack([planes.min((0, 2, 3)), planes.max((0, 2, 3))])

    program.run(images, observe)
    found = calibrate(program, images)
    assert set(found.ranges) == set(seen) and found.images == 12 and not found.constant
    for name, ranges in found.ranges.items():
        np.testing.assert_allclose(ranges, seen[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS[1:])
def test_others_lie_within(program: Program, method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "PERCENTILE", 99)  # of so few images, 99.99 leaves nothing out
    images = images_for(program)
    whole, cut = calibrate(program, images), calibrate(program, images, method)
    narrower = 0
    for name, (least, most) in whole.ranges.items():
        slack = (most - least) * 1e-5
        assert (cut.ranges[name][0] >= least - slack).all() and (cut.ranges[name][1] <= most + slack).all()
        assert (cut.ranges[name][1] >= cut.ranges[name][0]).all()
        narrower += int((cut.ranges[name][1] - cut.ranges[name][0] < (most - least) * 0.99).sum())
    assert narrower and cut.digest == whole.digest


def test_what_lies_far_outside_is_left_out() -> None:
    """A histogram of two heaps: nearly all values, and a few far from them."""
    counts = np.zeros((3, BINS))
    counts[:, 100:200] = 10_000
    counts[0, -1] = counts[1, 0] = 3
    low, high = _within(counts)
    assert low.tolist() == [100, 100, 100] and high.tolist() == [200, 200, 200]
    low, high = _least_divergent(counts)
    assert (low <= 100).all() and (high >= 200).all()


@long
def test_progress_reaches_the_end(program: Program) -> None:
    for method in METHODS:
        shares: list[float] = []
        calibrate(program, images_for(program), method, progress=lambda _, share, shares=shares: shares.append(share))
        assert shares == sorted(shares) and shares[-1] == 1


@long
def test_progress_ends_when_entropy_has_chosen(program: Program) -> None:
    lines: list[tuple[str, float]] = []
    found = calibrate(program, images_for(program), "entropy", progress=lambda *line: lines.append(line))
    assert sum("range" in text for text, _ in lines) == len(found.ranges)
    assert all(share < 1 for text, share in lines if "images" in text)


def test_images_are_read_in_parts_and_their_digest_is_of_all(program: Program) -> None:
    images = images_for(program, 20)

    class Parts:
        shape = images.shape

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, part: slice, /) -> Any:
            assert part.stop - (part.start or 0) <= 8
            return images[part]

    digest = hashlib.sha256(images.tobytes()).hexdigest()
    assert calibrate(program, Parts()).digest == calibrate(program, images).digest == digest


def test_equal_images_are_told(program: Program) -> None:
    images = images_for(program)
    assert calibrate(program, np.repeat(images[:1], 3, 0)).constant and not calibrate(program, images[:1]).constant


@pytest.mark.parametrize(
    ("images", "method", "message"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), "minmax", "calibration images of shape"),
        (np.zeros((0, 3, 32, 32), np.float32), "minmax", "at least one"),
        (np.zeros((2, 3, 32, 32), np.float32), "mean", "expected one of minmax, percentile, entropy"),
        (np.full((2, 3, 32, 32), np.nan, np.float32), "minmax", "not finite on the calibration images"),
    ],
    ids=["size", "none", "method", "NaN"],
)
def test_what_is_refused(program: Program, images: Any, method: Any, message: str) -> None:
    with pytest.raises(InputRefused, match=message):
        calibrate(program, images, method)
