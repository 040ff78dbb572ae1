"""Which images int8 is calibrated on, and the ranges that torch computes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.decode import cifar_records
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.build import build_random
from cnet_deploy.program.calibration import calibrate
from cnet_deploy.program.lower import lower
from cnet_deploy.workflows.calibration import calibrated, calibration_images, evenly, labelled_images
from tests.builders import TINY, TINY_DENSENET, TINY_V2, VARIETIES
from tests.cases import examples, few

STEPS = Preprocessing.of((32, 32), 10)
TEN = tuple(f"class {number}" for number in range(10))


@hypothesis.settings(examples(100))
@hypothesis.given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 70))
def test_as_many_of_each_class_as_there_are(labels: list[int], count: int) -> None:
    own = np.array(labels)
    chosen = evenly(own, count)
    assert len(chosen) == min(count, len(own)) and (np.diff(chosen) > 0).all()
    taken = {label: int((own[chosen] == label).sum()) for label in set(labels)}
    for label, number in taken.items():
        assert chosen[own[chosen] == label].tolist() == np.flatnonzero(own == label)[:number].tolist()
        if number < (own == label).sum():  # more are there: no other class has two more
            assert max(taken.values()) <= number + 1


def test_more_classes_than_images() -> None:
    assert evenly(np.arange(1000), 4).tolist() == [0, 250, 500, 750]


def test_the_first_images_of_each_class(images_path: Path) -> None:
    pixels, labels = cifar_records(images_path, 10)
    chosen = calibration_images(images_path, STEPS, 10)
    assert chosen.images[:2].dtype == np.float32 and chosen.images.shape == (256, 3, 32, 32) and chosen.labels is not None
    assert set(np.bincount(chosen.labels)) == {25, 26}
    indices = evenly(labels, 256)
    assert np.array_equal(chosen.images[:], STEPS.apply(pixels[indices])) and np.array_equal(chosen.labels, labels[indices])
    assert chosen.notes == (f"calibrating on 256 images of 10 classes of {images_path}",)
    assert len(calibration_images(images_path, STEPS, 10, 1000).images) == 500


def test_a_dataset_s_training_part(small_dataset: Path) -> None:
    lines: list[tuple[str, float]] = []
    chosen = labelled_images(small_dataset, STEPS, 10, 1000, progress=lambda text, share: lines.append((text, share)))
    assert len(chosen) == 96 and chosen.labels is not None
    assert lines[-1] == ("read 96 of 96 images", 1.0) and len(lines) == 96


def class_folders(folder: Path, names: Sequence[str], each: int = 3) -> Path:
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(random.integers(0, 256, (40, 36, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("part", ["train", "val", ""])
def test_folders_of_classes_are_matched_by_name(part: str, tmp_path: Path) -> None:
    class_folders(tmp_path / part, TEN)
    names = tuple(reversed(TEN))
    chosen = labelled_images(tmp_path, STEPS, 10, 20, class_names=names)
    assert chosen.labels is not None and chosen.labels.tolist() == [9 - number // 2 for number in range(20)]
    assert labelled_images(tmp_path, STEPS, 10, 20).labels.tolist() == [number // 2 for number in range(20)]  # type: ignore[union-attr]


@pytest.mark.parametrize(("folders", "names", "doubts"), [
    ([str(number) for number in range(12)], (), "the folders are numbers, which sort as 0, 1, 10, 11"),
    (TEN, ("another", *TEN[1:]), "not by name: only the model has another; only the dataset has class 0"),
])  # fmt: skip
def test_labels_that_may_be_wrong(
    folders: Sequence[str], names: Sequence[str], doubts: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class_folders(tmp_path, folders, each=4)
    assert doubts in labelled_images(tmp_path, STEPS, len(folders), 40, class_names=names).doubts
    calibration_images(tmp_path, STEPS, len(folders), 40, class_names=names)
    assert doubts in caplog.text


def test_images_that_are_not_calibrated_on_come_first(images_path: Path) -> None:
    own = labelled_images(images_path, STEPS, 10, 256).pixels
    others = labelled_images(images_path, STEPS, 10, 244, after=256).pixels
    assert not {image.tobytes() for image in own} & {image.tobytes() for image in others} and len(others) == 244
    every = labelled_images(images_path, STEPS, 10, 1000, after=256)
    assert np.array_equal(every.pixels, cifar_records(images_path, 10)[0])
    some = {image.tobytes() for image in labelled_images(images_path, STEPS, 10, 300, after=256).pixels}
    assert {image.tobytes() for image in others} < some and len(some & {image.tobytes() for image in own}) == 56


def test_images_without_classes_are_evenly_spread(tmp_path: Path) -> None:
    class_folders(tmp_path, ["a", "b"], each=4)
    chosen = calibration_images(tmp_path, STEPS, 10, 4)
    assert chosen.labels is None and len(chosen.images) == 4
    files = [tmp_path / folder / f"{number}.png" for folder in "ab" for number in (0, 2)]
    assert np.array_equal(chosen.images[:], np.stack([STEPS.read(file) for file in files]))
    assert len(calibration_images(files[0], STEPS, 10).images) == 1


def test_an_array_is_taken_whole() -> None:
    images = np.zeros((300, 3, 32, 32), np.float32)
    images[1] = 1
    assert np.array_equal(calibration_images(images, STEPS, 10).images[:], images)


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros((2, 3, 32, 31), np.float32), r"float32 \[2, 3, 32, 31\]; expected float32 \[N, 3, 32, 32\]"),
    (np.zeros((2, 1, 32, 32), np.float32), r"expected float32 \[N, 3, 32, 32\]"),
    (np.zeros((3, 32, 32), np.float32), r"float32 \[3, 32, 32\]"),
    (np.zeros((0, 3, 32, 32), np.float32), "at least one"),
    (np.zeros((2, 3, 32, 32)), "float64"),
    (np.zeros((2, 3, 32, 32), np.uint8), "uint8"),
    (np.full((1, 3, 32, 32), None), "object"),
    (np.full((2, 3, 32, 32), 200, np.float32), "values from 200 to 200 in plane 0, .* with values from -1.99 to 2.06"),
    ("", "are an empty path; expected a path"),
    (["a.png"], "are a list; expected a path, or a numpy array"),
    (None, "are nothing; expected a path"),
    (np.full((2, 3, 32, 32), 2.2, np.float32), "values from 2.2 to 2.2 in plane 0, .* to 2.06"),
    (np.full((2, 3, 32, 32), -2.1, np.float32), "values from -2.1 to -2.1 in plane 0, .* from -1.99"),
    (np.full((2, 3, 32, 32), np.nan, np.float32), "not finite"),
    (np.full((2, 3, 32, 32), -np.inf, np.float32), "not finite"),
])  # fmt: skip
def test_arrays_that_are_no_images(array: Any, message: str) -> None:
    with pytest.raises(InputRefused, match=message):
        calibration_images(array, STEPS, 10)


def test_warnings(images_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def warned(data: Any, count: int = 256) -> list[str]:
        caplog.clear()
        calibration_images(data, STEPS, 10, count, class_names=TEN)
        return [record.getMessage() for record in caplog.records]

    assert warned(images_path) == []
    assert warned(images_path, 31) == ["only 31 images to calibrate on; ranges of so few fit no others: give at least 128"]
    (one,) = warned(np.zeros((1, 3, 32, 32), np.float32))
    assert one.startswith("only 1 image to calibrate on")
    assert warned(np.ones((40, 3, 32, 32), np.float32)) == []
    calibrated(lower(build_random(TINY)), np.ones((40, 3, 32, 32), np.float32))
    assert caplog.records[0].getMessage().startswith("all 40 calibration images are equal")
    records = np.frombuffer(images_path.read_bytes(), np.uint8).reshape(-1, 3073)
    (tmp_path / "some.bin").write_bytes(records[records[:, 0] < 3].tobytes())
    (missing,) = warned(tmp_path / "some.bin")
    assert "of 3 of 10 classes, none of class 3, class 4, class 5, class 6, class 7 and 2 more; give a dataset" in missing


def test_data_that_do_not_fit(images_path: Path, small_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="has images of 32x32 pixels, but the network reads 64x64"):
        calibration_images(images_path, replace(STEPS, crop=(64, 64)), 10)
    with pytest.raises(InputRefused, match="the dataset has 10 classes, but the network has 12"):
        calibration_images(small_dataset, STEPS, 12)
    with pytest.raises(InputRefused, match="has 10 or 100 classes, but the network has 12"):
        calibration_images(images_path, STEPS, 12)
    class_folders(tmp_path / "train", ["a", "b"])
    with pytest.raises(InputRefused, match="the dataset has 2 classes, but the network has 10"):
        calibration_images(tmp_path, STEPS, 10)


def test_grey_networks_take_grey_images(images_path: Path) -> None:
    grey = Preprocessing.of((32, 32), 10, channels=1)
    assert calibration_images(images_path, grey, 10, 40).images.shape == (40, 1, 32, 32)


@pytest.mark.parametrize("arch", few([TINY_DENSENET, *VARIETIES]), ids=str)
def test_torch_computes_what_the_program_does(arch: Any) -> None:
    program = lower(build_random(arch))
    images = np.random.default_rng(0).standard_normal((9, *arch.image_shape), np.float32)
    own, expected = calibrated(program, images), calibrate(program, images)
    assert (own.digest, own.images, own.constant) == (expected.digest, 9, False) and set(own.ranges) == set(expected.ranges)
    for name, ranges in expected.ranges.items():
        np.testing.assert_allclose(own.ranges[name], ranges, rtol=1e-4, atol=1e-5 * np.abs(ranges).max())


def test_condensenet_v2_has_no_ranges() -> None:
    with pytest.raises(InputRefused, match="a CondenseNet V2 has no form in integers yet"):
        calibrated(lower(build_random(TINY_V2)), np.zeros((2, *TINY_V2.image_shape), np.float32))
