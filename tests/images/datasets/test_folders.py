"""A folder of images for each class, and paths where no dataset is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnet_deploy.images.datasets import ArrayDataset, FolderDataset, open_dataset

from .helpers import (
    CIFAR,
    image,
    refuses,
)


def test_class_folders(tmp_path: Path) -> None:
    """Classes in the order of their names, images of nested folders too, suffixes in either case; what is no image is passed over."""
    for number, name in enumerate(("cat/1.JPEG", "cat/deep/er/2.png", "Zebra/1.bmp", "ant/x.jpg", "ant/y.webp")):
        image(tmp_path / "val" / name, number * 40)
    image(tmp_path / "train" / "ant" / "only.png")
    (tmp_path / "val" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "val" / "notes.txt").write_text("no class")
    found = open_dataset(tmp_path, "val")
    assert isinstance(found, FolderDataset)
    assert found.class_names == ("Zebra", "ant", "cat") and found.classes == 3
    assert found.labels.tolist() == [0, 1, 1, 2, 2] and found.labels.dtype == np.int64
    assert [file.name for file in found.files] == ["1.bmp", "x.jpg", "y.webp", "1.JPEG", "2.png"]
    assert found.image(4, CIFAR)[:, 0, 0].tolist() == [40, 0, 0] and found.image(0, CIFAR).shape == (3, 32, 32)
    assert (found.statistics, found.name) == ("imagenet", str(tmp_path / "val"))
    assert open_dataset(tmp_path, "train").class_names == ("ant",)


def test_class_folders_without_train_and_val_are_a_test_part(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png")
    image(tmp_path / "b" / "1.png")
    assert open_dataset(tmp_path).labels.tolist() == [0, 1]
    refuses(tmp_path, "has no folder train; expected cifar-10-batches-bin", split="train")


def test_an_image_in_memory_is_resized_only_for_another_size() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    dataset = ArrayDataset("some", pixels, np.zeros(2, np.int64), ("a",), "cifar10")
    assert np.array_equal(dataset.image(1, CIFAR), pixels[1])
    cropped = replace(CIFAR, resize=32, crop=(24, 24))
    assert not dataset.fits(cropped) and np.array_equal(dataset.image(1, cropped), pixels[1, :, 4:28, 4:28])
    assert dataset.image(1, replace(CIFAR, resize=256, crop=(224, 224))).shape == (3, 224, 224)


def test_what_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "a\0b", tmp_path / "loop", "\udcff" * 3):
        if path == tmp_path / "loop":
            path.symlink_to(path)
        refuses(Path(path), "no such folder; expected one with cifar-10-batches-bin")
    refuses(tmp_path / ("a" * 5000), "can't be read: File name too long")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_of_no_images(tmp_path: Path, split: str) -> None:
    (tmp_path / split).mkdir()
    refuses(tmp_path, f"{tmp_path / split}: holds no images; expected cifar-10", split=split)
    image(tmp_path / split / "loose.png")  # of no class
    refuses(tmp_path, "holds no images; expected cifar-10", split=split)


def test_an_empty_class(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png")
    (tmp_path / "b" / "deeper").mkdir(parents=True)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    refuses(tmp_path, f"{tmp_path / 'b'}: holds no images; expected .png, .jpg, .jpeg", "in every class's folder")
