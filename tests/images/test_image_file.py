"""Image files of every depth, kind and tag: their pixels, or a sentence that says what is wrong."""

from __future__ import annotations

import io
import itertools
import logging
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.decode import read_image, walk_images
from cnet_deploy.images.image_file import IMAGE_SUFFIXES, opened_image, orientation
from cnet_deploy.images.preprocessing import Preprocessing

CIFAR = Preprocessing.of((32, 32), 10)
ORIENTATION = 0x0112
RAMP = np.array([[0, 128, 129, 257], [4095, 32768, 65406, 65535]], np.uint16)
RAMP8 = np.array([[0, 0, 1, 1], [16, 128, 254, 255]], np.uint8)  # divided by 257 and rounded


def grey(path: Path, upright: bool = False) -> np.ndarray[Any, Any]:
    with opened_image(path, upright=upright) as image:
        assert image.mode == "L"
        return np.asarray(image)


def tiff(path: Path, values: np.ndarray[Any, Any], bits: int = 16, kind: int = 1, order: str = "<") -> Path:
    """A grey TIFF file without compression. ``kind``: 1 unsigned, 2 signed, 3 floats."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    entries = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(data)),
        (339, kind),
    ]
    body = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    path.write_bytes(head + data + struct.pack(f"{order}H", len(entries)) + body + bytes(4))
    return path


# ---- 16 bits -----------------------------------------------------------------------------------------------------------------------


def test_16_bits_become_8(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    (tmp_path / "a.pgm").write_bytes(b"P5\n4 2\n65535\n" + RAMP.astype(">u2").tobytes())
    for path in (tmp_path / "a.png", tmp_path / "a.pgm", tiff(tmp_path / "a.tif", RAMP), tiff(tmp_path / "b.tif", RAMP, order=">")):
        assert grey(path).tolist() == RAMP8.tolist(), path.name
    Image.fromarray(RAMP).save(tmp_path / "packed.tiff", compression="tiff_lzw")
    assert grey(tmp_path / "packed.tiff").tolist() == RAMP8.tolist()
    assert grey(tiff(tmp_path / "wide.tif", RAMP.astype(np.uint32), 32)).tolist() == RAMP8.tolist()


def test_8_bits_that_are_stored_in_16_are_no_black_image(tmp_path: Path) -> None:
    small = np.array([[0, 7, 200, 255]], np.uint16)
    Image.fromarray(small).save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", tiff(tmp_path / "a.tif", small), tiff(tmp_path / "b.tif", small.astype(np.int32), 32, 2)):
        assert grey(path).tolist() == small.tolist(), path.name


def test_12_bits_end_at_4095(tmp_path: Path) -> None:
    assert grey(tiff(tmp_path / "a.tif", np.frombuffer(b"\xff\xf8\x00\x00", np.uint8).reshape(1, 4), 12))[0, :2].tolist() == [255, 128]


def test_16_bits_in_colour_are_their_upper_8(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n1 1\n65535\n" + np.array([1000, 40000, 65535], ">u2").tobytes())
    with opened_image(tmp_path / "a.ppm") as image:
        assert image.mode == "RGB" and np.abs(np.array(image.getpixel((0, 0))) - [4, 156, 255]).max() <= 1


@pytest.mark.parametrize(
    ("values", "bits", "kind", "says"),
    [
        (np.array([[0.5, 1.0]], np.float32), 32, 3, "its pixels are floating-point numbers; store them as 8 or 16 bits"),
        (np.array([[-5, 300]], np.int16), 16, 2, "its pixels are numbers from -5 to 300; store them as 8 or 16 bits, 0 to 65,535"),
        (np.array([[0, 70_000]], np.uint32), 32, 1, "its pixels are numbers from 0 to 70,000"),
    ],
)
def test_pixels_that_are_no_grey_values(tmp_path: Path, values: np.ndarray[Any, Any], bits: int, kind: int, says: str) -> None:
    with pytest.raises(InputRefused) as caught:
        read_image(tiff(tmp_path / "a.tif", values, bits, kind), CIFAR)
    assert says in str(caught.value)


# ---- orientation -------------------------------------------------------------------------------------------------------------------


def tagged(path: Path, value: int, **options: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010E], exif[ORIENTATION] = "a description", value
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("value", range(1, 9))
def test_images_are_turned_as_they_are_tagged(tmp_path: Path, suffix: str, value: int) -> None:
    """As Pillow's own function turns them; a TIFF file is turned in any case, by Pillow, as torchvision has it."""
    path = tagged(tmp_path / f"a{suffix}", value)
    with Image.open(path) as image:
        expected, stored = np.asarray(ImageOps.exif_transpose(image).convert("RGB")), np.asarray(image.convert("RGB"))
    with opened_image(path, upright=True) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), expected)
        assert orientation(image) == (1 if suffix == ".tif" else value)
    with opened_image(path) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), stored)
    assert expected.shape == ((7, 5, 3) if value > 4 else (5, 7, 3))


def test_orientation_in_xmp_and_as_imagemagick_writes_it(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.new("RGB", (4, 2)).save(tmp_path / "a.webp", xmp=xmp)
    from PIL.PngImagePlugin import PngInfo

    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data, info = exif.tobytes(), PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    Image.new("RGB", (4, 2)).save(tmp_path / "a.png", pnginfo=info)
    for name in ("a.webp", "a.png"):
        with opened_image(tmp_path / name, upright=True) as image:
            assert image.size == (2, 4), name


def exif_bytes(*entries: tuple[int, int, int, int], start: int = 8) -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", start, len(entries)) + body + bytes(4)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0XX*\0\x08\0\0\0\1\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        exif_bytes((ORIENTATION, 3, 1, 9)), exif_bytes((ORIENTATION, 3, 1, 0)), exif_bytes((ORIENTATION, 4, 1, 6)),
        exif_bytes((ORIENTATION, 3, 3_000_000_000, 6)), exif_bytes((ORIENTATION, 7, 2, 6)),
        exif_bytes(*[(40_000 + n, 7, 60_000, 8) for n in range(4_000)]), exif_bytes((ORIENTATION, 3, 1, 6))[:20],
    ],
    ids=range(12),
)  # fmt: skip
def test_damaged_exif_data_leave_an_image_as_it_is(tmp_path: Path, exif: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    with opened_image(tmp_path / "a.jpg", upright=True) as image:
        assert image.size == (4, 2)
    assert capfd.readouterr() == ("", "")


def test_a_deep_image_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    Image.fromarray(RAMP).save(tmp_path / "a.png", exif=exif)
    assert grey(tmp_path / "a.png", upright=True).tolist() == RAMP8[::-1, ::-1].tolist()


# ---- formats -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_all_that_torchvision_lists_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    Image.new("L" if suffix == ".pgm" else "RGB", (40, 36), 100).save(path)
    assert read_image(path, CIFAR).shape == (3, 32, 32)


def test_of_several_pages_the_first(tmp_path: Path) -> None:
    pages = [Image.new("L", (32, 32), shade) for shade in (10, 200)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert (grey(tmp_path / "a.tif") == 10).all()


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *itertools.product(("RGB", "L", "RGBA", "CMYK", "P", "1"), ("tiff_lzw", "tiff_adobe_deflate", "packbits", "raw")),
        *itertools.product(("RGB", "L", "CMYK"), ("jpeg",)),
        ("1", "group4"),
    ],
)
def test_tiff_files_of_many_kinds(tmp_path: Path, mode: str, compression: str) -> None:
    picture = Image.new("RGB", (40, 36), (255, 255, 255) if mode == "1" else (200, 100, 50)).convert(mode)
    picture.save(tmp_path / "a.tif", compression=compression)
    expected = np.asarray(picture.convert("RGB"))[0, 0].astype(int)
    assert np.abs(read_image(tmp_path / "a.tif", CIFAR)[:, 5, 5] - expected).max() <= 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html>\n<html><body>404", "it is a web page (HTML): such a page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "it is a Git LFS pointer: fetch the content"),
        (b"GIF89a" + bytes(20), "it is a GIF file"), (b"%PDF-1.7\n", "it is a PDF"), (b"%!PS-Adobe-3.0\n", "it is PostScript"),
        (b"\0\0\0\x18ftypheic" + bytes(20), "it is a HEIC file: store it as JPEG"), (b"PK\3\4" + bytes(30), "it is a zip archive"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "it is an SVG drawing"), (b'<?xml version="1.0"?><Error>', "it is an XML file"),
        (bytes(2000), "it has zeros alone"), (b"no image at all\n", "it is a text file"), (b'{"error": 404}', "it is a JSON file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "the file is damaged"), (b"\x1f\x8b\x08" + bytes(20), "it is a gzip file"),
        (b"\x01\x02\x03\x04", "unknown format"),
    ],
)  # fmt: skip
def test_what_a_file_is_that_is_no_image(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputRefused) as caught:
        read_image(tmp_path / "a.jpg", CIFAR)
    assert f"a.jpg: is no readable image ({says}" in str(caught.value) and "0x" not in str(caught.value)


def test_messages_are_not_python_s(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "TIFF", compression="tiff_adobe_deflate")
    for place, data in enumerate((buffer.getvalue()[:2000], buffer.getvalue().replace(b"x\x9c", b"\xff\xff"))):
        (tmp_path / f"{place}.tif").write_bytes(data)
        with pytest.raises(InputRefused) as caught:
            read_image(tmp_path / f"{place}.tif", CIFAR)
        reason = str(caught.value).removeprefix(str(tmp_path))
        assert not any(word in reason for word in ("<", "0x", "'", "Error", "-2"))
    assert capfd.readouterr() == ("", "")  # libtiff prints nothing of its own


@pytest.mark.parametrize(("side", "pixels"), [(9_000, "9000x9000 pixels would take 405,000,000"), (40_000, "its 1,600,000,000 pixels")])
def test_too_many_pixels(tmp_path: Path, side: int, pixels: str) -> None:
    chunk = struct.pack(">IIBBBBB", side, side, 8, 3, 0, 0, 0)
    made = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + made(b"IHDR", chunk) + made(b"PLTE", bytes(3)) + made(b"IDAT", b"x") + made(b"IEND", b"")
    )
    with pytest.raises(InputRefused) as caught:
        read_image(tmp_path / "a.png", CIFAR)
    assert pixels in str(caught.value) and "expected at most" in str(caught.value) and "DOS" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "how"),
    [
        ("https://example.org/a/cat.jpg", "curl -O https://example.org/a/cat.jpg"), ("http://x.org/a.png", "curl -O http://x.org/a.png"),
        ("s3://bucket/cat.jpg", "with the tool of its service"), ("HTTPS://x.org/a.png", "curl -O HTTPS://x.org/a.png"),
    ],
)  # fmt: skip
def test_a_url_is_no_path(url: str, how: str) -> None:
    for given in (url, Path(url)):
        with pytest.raises(InputRefused) as caught:
            walk_images(given, CIFAR, 10)
        assert str(caught.value) == f"{url}: is a URL; download it first: {how}"


def test_filters_of_warnings_are_restored_after_threads(tmp_path: Path) -> None:
    tagged(tmp_path / "a.jpg", 6)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        assert len({image.tobytes() for image in pool.map(lambda _: read_image(tmp_path / "a.jpg", CIFAR), range(60))}) == 1
    assert warnings.filters == before
    assert logging.getLogger("PIL").level == logging.NOTSET
