"""Image files that would cost a decoder seconds for each megabyte are refused; those that cameras and programs write are read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.errors import InputRefused
from cnet_deploy.images import bounds
from cnet_deploy.images.decode import cifar_records
from cnet_deploy.images.image_file import opened_image

MEGABYTE = 1 << 20


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scans(more: int, side: int = 64) -> bytes:
    """A progressive JPEG file whose last scan stands there so many times more."""
    data = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), len(data) - 2
    return data[:end] + data[last:end] * more + data[end:]


def jpeg(before: bytes) -> bytes:
    """A JPEG file with something before its first segment."""
    return b"\xff\xd8" + before + scans(0)[2:]


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG file of 8x8 pixels with chunks before and after its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(bytes(25 * 8))) + after + chunk(b"IEND")


def tiff(strips: int, big: bool = False) -> bytes:
    """A TIFF file (``big``: BigTIFF) that lists so many strips."""
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, strips, 300), (279, 4, strips, 300)]
    if big:
        packed = struct.pack("<Q", len(entries)) + b"".join(struct.pack("<HHQQ", *entry) for entry in entries) + bytes(8)
        return struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + packed + bytes(8 * strips)
    packed = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + packed + bytes(8 * strips)


def bmp_rle(rows: int) -> bytes:
    """A BMP file of 1,000 run-length encoded pixels a row, each a run of its own."""
    runs = (b"\x01\x05" * 1000 + b"\0\0") * rows
    head = struct.pack("<IiiHHIIiiII", 40, 1000, rows, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs


def jpeg_in_tiff(more: int) -> bytes:
    """A TIFF file whose strip is a JPEG stream of many scans."""
    stream = scans(more)
    entries = [(256, 64), (257, 64), (258, 8), (259, 7), (262, 1), (273, 118), (277, 1), (278, 64), (279, len(stream))]
    packed = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + packed.ljust(110, b"\0") + stream


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "scans": (lambda: scans(9000), "its pixels come in 101 scans or more"),
    "scans behind what looks like the end": (
        lambda: scans(0)[:-2] + b"\xff\xfe\x00\x06\xff\xd9\xff\xd9" + scans(200)[2:], "its pixels come in 101 scans or more"),
    "scans in a strip": (lambda: jpeg_in_tiff(200), "its pixels come in 101 scans or more"),
    "comments of JPEG": (lambda: jpeg(b"\xff\xfe\0\x02" * 20_000), "more than 10,000 segments"),
    "profiles of JPEG": (lambda: jpeg((b"\xff\xe1\xff\xff" + bytes(65533)) * 300), "more than 16,777,216 bytes before its pixels"),
    "padding of JPEG": (lambda: jpeg(b"\xff" * 300_000), "far more parts"),
    "escapes of JPEG": (lambda: jpeg(b"\xff\0" * 150_000), "far more parts"),
    "padding of JPEG that ends in nothing": (lambda: b"\xff\xd8" + b"\xff" * 300_000 + b"\0", "no readable image"),
    "chunks": (lambda: png(chunk(b"abCd") * 50_000), "chunks"),
    "chunks behind the pixels": (lambda: png(after=chunk(b"IDAT") * 50_000), "chunks"),
    "frames": (lambda: png(after=chunk(b"fdAT", b"\0\0\0\1") * 50_000), "chunks"),
    "colour profiles": (lambda: png(chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(1000))) * 9), "more than 8 colour profiles"),
    "a comment of PPM": (lambda: b"P6\n#" + b"x" * 300_000 + b"\n1 1\n255\n123", "far longer comments"),
    "comments of PPM": (lambda: b"P6\n" + b"#\n" * 150_000 + b"1 1\n255\n123", "far longer comments"),
    "blanks of PPM": (lambda: b"P6" + b" " * 300_000 + b"1 1\n255\n123", "far more parts"),
    "strips": (lambda: tiff(70_000), "it has 70,000 strips, and at most 65,536 are read"),
    "strips of BigTIFF": (lambda: tiff(70_000, big=True), "it has 70,000 strips, and at most 65,536 are read"),
    "runs": (lambda: bmp_rle(2200), "it is run-length encoded and has 4,405,478 bytes, and at most 4,194,304 are read: store it as PNG"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_costs_far_more_than_its_size_is_refused(tmp_path: Path, name: str) -> None:
    make, words = HOSTILE[name]
    (tmp_path / "x.png").write_bytes(make())
    with pytest.raises(InputRefused) as caught, opened_image(tmp_path / "x.png"):
        pass
    assert words in str(caught.value) and "expected" in str(caught.value)


def test_scans_are_counted_by_the_pixels_of_each() -> None:
    """A hundred of a small image take no time; of 67 megapixels they would take 20 s."""
    bounds.check_structure(scans(80))
    large = scans(30).replace(struct.pack(">BHH", 8, 64, 64), struct.pack(">BHH", 8, 8000, 8000), 1)
    with pytest.raises(bounds.Unfit, match="its pixels come in 17 scans or more"):
        bounds.check_structure(large)


def noise(side: int = 64, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((side, side), 80).convert(mode)


HONEST: dict[str, Callable[[], bytes]] = {
    "progressive": lambda: saved(noise(), "JPEG", progressive=True),
    "progressive CMYK": lambda: saved(noise(mode="CMYK"), "JPEG", progressive=True),
    "a large colour profile and EXIF": lambda: saved(noise(), "JPEG", icc_profile=bytes(2 * MEGABYTE), exif=b"Exif\0\0" + bytes(60_000)),
    "two images in one": lambda: saved(noise(), "MPO", save_all=True, append_images=[noise()]),
    "PNG with text": lambda: png(chunk(b"tEXt", b"k\0" + b"x" * 10_000) * 50),
    "PNG in small chunks": lambda: png(after=chunk(b"IDAT", bytes(256)) * 3000),
    "animation": lambda: saved(noise(), "PNG", save_all=True, append_images=[noise()] * 20),
    "moving WebP": lambda: saved(noise(), "WEBP", save_all=True, append_images=[noise()] * 20),
    "TIFF with JPEG": lambda: saved(noise(256), "TIFF", compression="jpeg"),
    "TIFF with a progressive JPEG": lambda: jpeg_in_tiff(0),
    "TIFF in strips": lambda: saved(noise(256), "TIFF", compression="tiff_deflate", strip_size=256),
    "runs": lambda: bmp_rle(20),
    "PPM with comments": lambda: b"P6\n" + b"# a line of a comment\n" * 100 + b"1 1\n255\n123",
}


@pytest.mark.parametrize("name", HONEST)
def test_what_programs_write_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.png").write_bytes(HONEST[name]())
    with opened_image(tmp_path / "x.png") as image:
        assert np.asarray(image.convert("RGB")).size


def test_images_have_a_far_lower_limit_than_models(tmp_path: Path) -> None:
    """A gigabyte that takes no place on the disk would take 4 GB of memory in `evaluate -j 4`."""
    for name, size in (("x.png", 1 << 30), ("test_batch.bin", 3073 << 20)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    with pytest.raises(InputRefused, match="has 1073741824 bytes; expected at most 134217728"), opened_image(tmp_path / "x.png"):
        pass
    with pytest.raises(InputRefused, match="has 3222274048 bytes; expected at most 268435456"):
        cifar_records(tmp_path / "test_batch.bin", 10)
