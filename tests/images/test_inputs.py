"""What a caller gives as an image: paths, images of Pillow and arrays; and what each mistake is answered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.images.decode import read_image

STEPS = cd.Preprocessing.of((24, 32), 1000)
GREY = cd.Preprocessing.of((24, 32), 1000, channels=1)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (9, 13, 3), np.uint8))
    small.resize((61, 47), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_path_an_image_and_an_array_are_the_same(photo: Path) -> None:
    by_path = STEPS.read(photo)
    assert (by_path.dtype, by_path.shape, by_path.flags.c_contiguous) == (np.float32, (3, 24, 32), True)
    assert np.array_equal(by_path, STEPS.apply(read_image(photo, STEPS)[None])[0])
    with Image.open(photo) as image:
        pixels = np.asarray(image)
        assert np.array_equal(STEPS.read(image), by_path)
    assert np.array_equal(STEPS.read(str(photo)), by_path)
    assert np.array_equal(STEPS.read(pixels), by_path)
    assert np.array_equal(STEPS.read(np.asfortranarray(pixels)), by_path)
    assert np.array_equal(GREY.read(pixels), GREY.read(photo))
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(GREY.read(grey), GREY.read(grey[:, :, None]))
    assert np.array_equal(STEPS.read(np.dstack([pixels, pixels[:, :, :1]])), by_path)  # alpha is left out


def test_an_image_is_turned_as_it_is_tagged_and_stays_the_callers(photo: Path, tmp_path: Path) -> None:
    with Image.open(photo) as image:
        image.load()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    with Image.open(tmp_path / "turned.jpg") as tagged:
        by_image, size = STEPS.read(tagged), tagged.size
        as_stored = STEPS.read(tagged, upright=False)
        assert np.array_equal(STEPS.read(np.asarray(tagged)), as_stored)  # not closed
    assert size == (61, 47) and np.array_equal(by_image, STEPS.read(tmp_path / "turned.jpg"))
    assert not np.array_equal(by_image, as_stored)
    assert np.array_equal(as_stored, STEPS.read(tmp_path / "turned.jpg", upright=False))


def test_sixteen_bits_of_an_image_are_those_of_its_file(tmp_path: Path) -> None:
    Image.fromarray((np.arange(40 * 30, dtype=np.uint16) * 50).reshape(30, 40)).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        assert np.array_equal(STEPS.read(image), STEPS.read(tmp_path / "deep.png"))


PIXELS = np.full((40, 50, 3), 200, np.uint8)
PLANES = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (PLANES, r"uint8 3x40x50, channels first; expected channels last: give image\.transpose\(1, 2, 0\)"),
        (PIXELS / np.float32(255), r"float32, 40x50x3: pixels from 0 to 1; expected uint8.* give \(255 \* image\)\.round\(\)"),
        (PLANES / 255, r"float64, 3x40x50: .*\(255 \* image\)\.round\(\)\.astype\('uint8'\)\.transpose\(1, 2, 0\)"),
        (PIXELS.astype(np.float32), r"pixels from 0 to 255; expected uint8: give image\.round\(\)\.astype\('uint8'\)$"),
        (PIXELS.astype(np.float32) - 190, r"pixels from 0 to 255; expected uint8: give"),
        (PIXELS.astype(np.int64), r"int64.*give image\.astype\('uint8'\)$"),
        (STEPS.apply(PLANES[None]), r"float32, 1x3x40x50: values from .* prepared already.* goes to session\.run"),
        (PIXELS.astype(np.int32) - 300, r"pixels from -100 to -100; expected uint8, 0 to 255$"),
        (PIXELS[:, :, :2], r"uint8 40x50x2; expected \[height, width\] or"),
        (PIXELS[None], r"uint8 1x40x50x3; expected .*; give one image after the other"),
        (PIXELS[:0], r"has no pixels"),
        (np.array(3, np.uint8), r"uint8 no dimensions; expected"),
        (PIXELS > 3, r"the array is bool, 40x50x3: expected uint8 pixels, 0 to 255"),
        (np.full((4, 4, 3), np.nan), r"values from nan to nan"),
        ([[1, 2]], r"the image is a list; expected a path, an image of Pillow, or a numpy array"),
        (None, r"the image is nothing; expected"),
        (Image.new("F", (30, 30)), r"can't be prepared: its pixels are floating-point numbers"),
        (Image.new("RGB", (0, 30)), r"can't be prepared: it is 0x30 pixels: it has none"),
        ("https://example.org/cat.jpg", r"is a URL"),
        ("", r"the path is empty; expected a path"),
        (b"\x89PNG", r"the image is a bytes; of an encoded image give PIL\.Image\.open\(io\.BytesIO"),
        (np.broadcast_to(np.uint8(3), (100_000, 100_000, 3)), r"expected at most 268,435,456 bytes"),
        (np.ma.masked_equal(PIXELS, 200), r"the array is masked"),
        (np.zeros((1, 1 << 16), np.uint8), r"can't be prepared: 65536x1 pixels would become"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_mistake_is_answered_with_what_is_right(image: Any, words: str) -> None:
    with pytest.raises(cd.InputRefused, match=words):
        STEPS.read(image)


def test_the_advice_is_right() -> None:
    expected = STEPS.read(PIXELS)
    for image in (PIXELS / np.float32(255), PIXELS.astype(np.float32) / 255):
        assert np.array_equal(STEPS.read((255 * image).round().astype("uint8")), expected)
    assert np.array_equal(STEPS.read(PLANES.transpose(1, 2, 0)), expected)
