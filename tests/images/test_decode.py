"""CIFAR's records and image files as arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.decode import read_image, read_images, walk_images
from cnet_deploy.images.preprocessing import Preprocessing
from tests.builders import TINY

CIFAR = Preprocessing.of(TINY.input_size, TINY.classes)


def test_the_real_images(images_path: Path) -> None:
    images = read_images(images_path, CIFAR, 10)
    assert len(images) == 500 and images.pixels.shape == (500, 3, 32, 32)
    assert images.labels is not None
    assert images.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]  # the first of the official test set
    assert [len(batch) for batch, _ in images.batches(CIFAR, 200)] == [200, 200, 100]


def test_cifar_100_has_two_label_bytes(tmp_path: Path) -> None:
    (tmp_path / "test.bin").write_bytes((bytes([7, 93]) + bytes(3072)) * 2)
    images = read_images(tmp_path / "test.bin", Preprocessing.of((32, 32), 100), 100)
    assert images.labels is not None and images.labels.tolist() == [93, 93]


def test_bad_records(tmp_path: Path, images_path: Path) -> None:
    path = tmp_path / "test.bin"
    for content, message in (
        (bytes(3072), "records of 3073 bytes"),
        (bytes([10]) + bytes(3072), "label 10; expected 0 to 9"),
        (b"", "is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputRefused, match=message):
            read_images(path, CIFAR, 10)
    with pytest.raises(InputRefused, match="images are 32x32"):
        read_images(images_path, replace(CIFAR, crop=(48, 48)), 10)


def test_image_files_are_resized_and_cropped_in_the_middle(tmp_path: Path) -> None:
    # Left half red, right half blue, 80 wide and 40 high: the middle 20x20 of the 40x20 that remains has both.
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 2] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    steps = replace(CIFAR, resize=20, crop=(20, 20))
    found = read_images(tmp_path / "a.png", steps, 10)
    assert found.pixels.shape == (1, 3, 20, 20) and found.labels is None
    assert found.pixels[0, :, 10, 0].tolist() == [200, 0, 0] and found.pixels[0, :, 10, 19].tolist() == [0, 0, 200]


@pytest.mark.parametrize(
    ("size", "middle"), [((640, 427), (383, 256, 80, 16)), ((375, 500), (256, 341, 16, 58)), ((256, 343), (256, 343, 16, 60))]
)
def test_sizes_and_places_are_torchvision_s(tmp_path: Path, size: tuple[int, int], middle: tuple[int, int, int, int]) -> None:
    """Resize(256): the longer side is int(256 * longer / shorter); CenterCrop(224): at int(round((side - 224) / 2))."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    width, height, left, top = middle
    expected = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    found = read_image(tmp_path / "a.png", replace(CIFAR, resize=256, crop=(224, 224)))
    assert (found == np.asarray(expected).transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("mode", "size"), [("L", (50, 40)), ("RGBA", (20, 90)), ("P", (32, 32)), ("RGB", (7, 5))])
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    Image.new(mode, size).save(tmp_path / "a.png")
    assert read_images(tmp_path / "a.png", CIFAR, 10).pixels.shape == (1, 3, 32, 32)


def test_folders_are_read_in_order_and_deep(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(("b.png", "a.png", "sub/c.PNG")):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert read_images(tmp_path, CIFAR, 10).pixels[:, 0, 0, 0].tolist() == [1, 0, 2]


def test_files_that_are_not_taken_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.TIF"):
        Image.new("L", (32, 32)).save(tmp_path / name)
    for name in ("c.gif", "sub/d.heic", ".DS_Store", "._a.png", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"x")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
        Image.new("L", (32, 32)).save(tmp_path / name / "a.png")
    assert len(read_images(tmp_path, CIFAR, 10)) == 2
    assert caplog.messages == [f"{tmp_path}: 2 files were not taken for images: c.gif, sub/d.heic"]
    for number in range(12):
        (tmp_path / f"e{number:02}.txt").touch()
    caplog.clear()
    walk_images(tmp_path, CIFAR, 10)
    assert "14 files were not taken" in caplog.text and "e08.txt and 4 more" in caplog.text and "e09" not in caplog.text
    for name in ("a.png", "sub/b.TIF"):
        (tmp_path / name).unlink()
    with pytest.raises(InputRefused, match=r"holds no images \(14 files were not taken for images: c.gif, e00.txt"):
        walk_images(tmp_path, CIFAR, 10)


def test_images_to_compare_networks_on_are_not_turned(tmp_path: Path) -> None:
    """`run` turns them; with --images both networks see the same pixels, which are those of earlier versions."""
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = Image.new("RGB", (32, 32))
    picture.paste((255, 255, 255), (0, 0, 32, 16))
    picture.save(tmp_path / "a.png", exif=exif)
    (turned,) = walk_images(tmp_path, CIFAR, 10, upright=True)
    assert read_images(tmp_path, CIFAR, 10).pixels[0, 0, ::31, 0].tolist() == [255, 0] and turned.read()[0, ::31, 0].tolist() == [0, 255]


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="holds no images"):
        read_images(tmp_path, CIFAR, 10)
    (tmp_path / "a.png").write_text("text")
    for path in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(InputRefused, match="no readable image"):
            read_images(path, CIFAR, 10)
    with pytest.raises(InputRefused, match="no such file"):
        read_images(tmp_path / "none.png", CIFAR, 10)
