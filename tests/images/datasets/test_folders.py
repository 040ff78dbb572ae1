"""A folder of images for each class, and paths where no dataset is."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.datasets import ArrayDataset, FolderDataset, open_dataset
from cnet_deploy.images.decode import images_in

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
    refuses(tmp_path, "holds images (1, the first is loose.png) but no folders of classes", f"such as {split}/cat/loose.png", split=split)


def test_an_empty_class(tmp_path: Path) -> None:
    image(tmp_path / "a" / "1.png")
    (tmp_path / "b" / "deeper").mkdir(parents=True)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    refuses(
        tmp_path,
        f"{tmp_path / 'b'}: holds no images (1 file was not taken for images: notes.txt); expected .jpg, .jpeg, .png",
        "in every class's folder",
    )


def test_what_is_not_taken_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/1.png", "a/2.tif", "b/1.PGM", "loose.png"):
        image(tmp_path / name)
    for name in ("a/x.gif", "b/notes.txt", "a/._1.png", "b/Thumbs.db", "README.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = open_dataset(tmp_path)
    assert len(found) == 3 and found.not_taken == ("loose.png", "a/x.gif", "b/notes.txt")
    assert caplog.messages == [f"{tmp_path}: 3 files were not taken for images: loose.png, a/x.gif, b/notes.txt"]


def test_hidden_folders_are_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a/1.png", "b/1.png", ".ipynb_checkpoints/1.png", "__MACOSX/a/1.png", "a/.ipynb_checkpoints/1.png", ".git/x.png"):
        image(tmp_path / name)
    found = open_dataset(tmp_path)
    assert found.class_names == ("a", "b") and len(found) == 2 and not found.not_taken and not caplog.messages


def test_images_that_lie_elsewhere(tmp_path: Path) -> None:
    image(tmp_path / "data" / "cats" / "1.png")
    image(tmp_path / "data" / "dogs" / "1.png")
    refuses(tmp_path, f"has one folder, data, which holds folders and no images; give {tmp_path / 'data'} itself")
    assert open_dataset(tmp_path / "data").class_names == ("cats", "dogs")
    (tmp_path / "data").rename(tmp_path / "valid")
    (tmp_path / "train").mkdir()
    refuses(tmp_path, f"has no folder val but valid: rename that, or for `evaluate` give {tmp_path / 'valid'}")
    refuses(tmp_path / "valid" / "cats" / "1.png", "is a single image, which has no label")
    refuses(tmp_path / "valid" / "cats", "holds images (1, the first is 1.png) but no folders of classes", "such as cats/cat/1.png")
    (tmp_path / "data.zip").write_bytes(b"PK")
    refuses(tmp_path / "data.zip", "is an archive; unpack it and give the folder")
    refuses(Path("https://example.org/data"), "https://example.org/data: is a URL; download it first")


@pytest.mark.parametrize("upright", [False, True])
def test_images_tagged_to_be_turned_are_counted(tmp_path: Path, upright: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, more in (("a/1.jpg", {"exif": exif}), ("a/2.jpg", {}), ("b/1.jpg", {"exif": exif})):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture = Image.new("RGB", (32, 32))
        picture.paste((255, 255, 255), (0, 0, 32, 16))  # above: after a turn to the right it is on the right
        picture.save(tmp_path / name, **more)
    found = open_dataset(tmp_path, upright=upright)
    pixels = [found.image(index, CIFAR) for index in range(3)]
    assert sorted(found.tagged) == [0, 2]
    assert [bool(image[0, 4, 24] > 200 and image[0, 28, 24] > 200) for image in pixels] == [upright, False, upright]


# ---- what can't be read, or leads nowhere ------------------------------------------------------------------------------------------


def test_a_folder_that_can_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any depth. Its images would be missing, and where it is a class all further classes would have other numbers."""
    for name in ("val/a/1.png", "val/a/deep/er/2.png", "val/b/1.png"):
        image(tmp_path / name)
    scan = os.scandir
    for closed in ("val", "val/a", "val/a/deep", "val/a/deep/er", "val/b"):

        def refusing(path: Any, closed: Path = tmp_path / closed) -> Any:
            if Path(path) == closed:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", refusing)
        refuses(tmp_path, f"{tmp_path / closed}: can't be read: Permission denied")
        with pytest.raises(InputRefused, match="can't be read: Permission denied; make it readable, or move it away"):
            images_in(tmp_path)


def test_a_class_that_is_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    """It is missing, and all further classes would have other numbers."""
    image(tmp_path / "a" / "1.png")
    for target in ("nowhere", "b", "a/1.png/x"):
        (tmp_path / "b").symlink_to(target)
        refuses(tmp_path, f"{tmp_path / 'b'}: is a link that leads nowhere; expected the folder of a class: mend the link, or remove it")
        (tmp_path / "b").unlink()


def test_links_are_followed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As torchvision does it, but rings end, and so do links that lead to the same folder by 2^40 ways."""
    image(tmp_path / "elsewhere" / "x" / "1.png")
    image(tmp_path / "data" / "a" / "2.png")
    image(tmp_path / "data" / "b" / "real" / "3.png")
    (tmp_path / "data" / "a" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "b" / "again").symlink_to("real")
    (tmp_path / "data" / "b" / "ring").symlink_to("..")
    (tmp_path / "data" / "b" / "nothing").symlink_to("nowhere")
    found = open_dataset(tmp_path / "data")
    assert isinstance(found, FolderDataset)
    assert [file.relative_to(tmp_path / "data").as_posix() for file in found.files[:2]] == ["a/2.png", "a/link/x/1.png"]
    assert "b/real/3.png" in {file.relative_to(tmp_path / "data").as_posix() for file in found.files}
    assert {"b/again", "b/nothing", "b/ring/b"} <= set(found.not_taken) and "b/again" in caplog.text
    for level in range(40):
        (tmp_path / "bomb" / str(level)).mkdir(parents=True)
        for name in "lr":
            (tmp_path / "bomb" / str(level) / name).symlink_to(f"../{level + 1}")
    image(tmp_path / "bomb" / "40" / "1.png")
    assert len(images_in(tmp_path / "bomb" / "0")[0]) == 1
