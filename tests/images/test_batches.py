"""Batches of images, prepared by threads: the order, what is left out, and that nothing is prepared for nobody."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.batches import batches, default_workers, in_order
from cnet_deploy.images.datasets import ArrayDataset, Dataset, FolderDataset
from cnet_deploy.images.preprocessing import Preprocessing
from tests.builders import TINY

CIFAR = Preprocessing.of(TINY.input_size, TINY.classes)
SMALL = replace(CIFAR, resize=20, crop=(16, 20))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of five images, each of one red: 0 to 4 and 100 to 104."""
    for first, name in ((0, "a"), (100, "b")):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (40, 36), (first + number, 0, 0)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def in_memory(count: int = 7, side: int = 32) -> ArrayDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), np.uint8)
    return ArrayDataset("some", pixels, np.arange(count) % 3, ("a", "b", "c"), "cifar10")


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_the_order_is_kept_whatever_the_threads(folder: Path, workers: int, size: int) -> None:
    dataset = FolderDataset(folder)
    indices = [9, 0, 5, 4, 4, 1, 8]
    found = list(batches(dataset, [CIFAR], indices, size, workers))
    reds = [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    assert [int(image[0, 0, 0]) for batch in found for image in batch.pixels[0]] == [reds[index] for index in indices]
    assert [label for batch in found for label in batch.labels.tolist()] == [1, 0, 1, 0, 0, 0, 1]
    assert [len(batch.labels) for batch in found] == [len(indices[start : start + size]) for start in range(0, len(indices), size)]
    assert not any(batch.refused for batch in found)


def test_the_first_made_is_not_the_first_given() -> None:
    """The first item waits for the second to be made."""
    second = threading.Event()

    def make(item: int) -> int:
        if item == 0:
            assert second.wait(10)
        else:
            second.set()
        return item * 10

    assert list(in_order(make, [0, 1], workers=2, ahead=1)) == [0, 10]


def test_several_kinds_of_preprocessing_at_once(folder: Path) -> None:
    dataset = FolderDataset(folder)
    (batch,) = batches(dataset, [CIFAR, SMALL], [1, 6], 8)
    assert [pixels.shape for pixels in batch.pixels] == [(2, 3, 32, 32), (2, 3, 16, 20)]
    for pixels, kind in zip(batch.pixels, (CIFAR, SMALL), strict=True):
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, [dataset.image(1, kind), dataset.image(6, kind)])


def test_images_in_memory_are_taken_as_they_are() -> None:
    dataset = in_memory()
    found = list(batches(dataset, [CIFAR, CIFAR], [6, 0, 3], 2))
    assert [len(batch.pixels) for batch in found] == [2, 2]
    for n in range(2):
        assert np.array_equal(np.concatenate([batch.pixels[n] for batch in found]), dataset.pixels[[6, 0, 3]])
    assert np.concatenate([batch.labels for batch in found]).tolist() == [0, 0, 0]


def test_images_in_memory_are_resized_for_another_network() -> None:
    dataset = in_memory()
    assert dataset.fits(CIFAR) and not dataset.fits(SMALL)
    (batch,) = batches(dataset, [CIFAR, SMALL], [2, 1], 8, 2)
    assert np.array_equal(batch.pixels[0], dataset.pixels[[2, 1]])
    assert batch.pixels[1].shape == (2, 3, 16, 20) and batch.labels.tolist() == [2, 1]
    assert np.array_equal(batch.pixels[1][0], dataset.image(2, SMALL))


def test_corrupt_images_are_named_and_left_out(folder: Path) -> None:
    whole = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b" / "0.png").write_text("no image")
    found = list(batches(FolderDataset(folder), [CIFAR, SMALL], range(10), 4, 2))
    assert [batch.labels.tolist() for batch in found] == [[0, 0, 0], [0, 1, 1], [1, 1]]
    assert [[int(image[0, 0, 0]) for image in batch.pixels[0]] for batch in found] == [[0, 2, 3], [4, 101, 102], [103, 104]]
    assert [[len(pixels) for pixels in batch.pixels] for batch in found] == [[3, 3], [3, 3], [2, 2]]
    assert [len(batch.refused) for batch in found] == [1, 1, 0]
    assert f"{folder / 'a' / '1.png'}: is no readable image" in found[0].refused[0]
    assert f"{folder / 'b' / '0.png'}: is no readable image" in found[1].refused[0]


def test_a_batch_of_corrupt_images_alone(folder: Path) -> None:
    for number in range(2):
        (folder / "a" / f"{number}.png").write_text("no image")
    first, second = batches(FolderDataset(folder), [CIFAR, SMALL], range(4), 2)
    assert [pixels.shape for pixels in first.pixels] == [(0, 3, 32, 32), (0, 3, 16, 20)]
    assert first.labels.shape == (0,) and len(first.refused) == 2
    assert second.labels.tolist() == [0, 0] and second.refused == ()


def test_an_image_that_went_away(folder: Path) -> None:
    dataset = FolderDataset(folder)
    (folder / "a" / "0.png").unlink()
    (batch,) = batches(dataset, [CIFAR], [0, 1], 2)
    (refused,) = batch.refused
    assert batch.labels.tolist() == [0] and refused.startswith(f"{folder / 'a' / '0.png'}: no such file")


def test_another_failure_is_no_corrupt_image() -> None:
    """What is no refusal is a bug, and must not pass for an image that can't be read."""

    class Broken(Dataset):
        name, labels, classes = "broken", np.zeros(2, np.int64), 1

        def image(self, index: int, preprocessing: Preprocessing) -> np.ndarray:
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        list(batches(Broken(), [CIFAR], [0, 1], 1))


def test_no_images_no_batches(folder: Path) -> None:
    assert list(batches(FolderDataset(folder), [CIFAR], [], 4)) == []
    assert list(batches(in_memory(), [CIFAR], [], 4)) == []


def test_what_is_raised_is_raised_in_its_turn() -> None:
    """After what came before it, and though what comes after it is made already."""

    def make(item: int) -> int:
        if item == 2:
            raise InputRefused("the third")
        return item

    made = in_order(make, range(6), workers=3, ahead=4)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(InputRefused, match="the third"):
        next(made)
    with pytest.raises(StopIteration):
        next(made)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_no_more_is_made_than_was_allowed(ahead: int) -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item

    results = in_order(make, range(1000), workers=2, ahead=ahead)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    results.close()  # type: ignore[attr-defined]
    assert set(made) >= {0, 1, 2} and max(made) <= 2 + ahead


def test_stopping_early_cancels_what_waits() -> None:
    """One thread is held by the second item: of those behind it none is begun."""
    made: list[int] = []
    begun, release = threading.Event(), threading.Event()

    def make(item: int) -> int:
        made.append(item)
        if item == 1:
            begun.set()
            assert release.wait(10)
        return item

    results = in_order(make, range(100), workers=1, ahead=20)
    assert next(results) == 0
    assert begun.wait(10)
    threads = threading.active_count()
    threading.Timer(0.3, release.set).start()  # close() waits for the item in hand
    results.close()  # type: ignore[attr-defined]
    assert made == [0, 1]
    assert threading.active_count() <= threads


def test_batches_can_be_left_early(folder: Path) -> None:
    before = threading.active_count()
    found = batches(FolderDataset(folder), [CIFAR], range(10), 1, 4)
    assert next(found).labels.tolist() == [0]
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (3, 3), (8, 8), (64, 8)])
def test_as_many_threads_as_cores_at_most_eight(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    assert default_workers() == workers
