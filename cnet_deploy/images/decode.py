"""Decode images to arrays: CIFAR's official binary files, image files and folders of them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused, in_words
from cnet_deploy.files import read_bytes
from cnet_deploy.images.preprocessing import Floats, Preprocessing

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]
MAX_IMAGES = 10_000
MAX_PIXELS = 1 << 25  # of an image after resizing
MAX_DECODED = 1 << 28  # bytes of a decoded image plus its RGB copy: some 67 megapixels, or 33 with transparency
_PLANES = 3 * 32 * 32
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")  # only these: some of Pillow's other decoders start programs
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 [N, 3, H, W], RGB, at the network's input size; ``labels`` [N], or None if the source has none."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, preprocessing: Preprocessing, size: int = 50) -> Iterator[tuple[Floats, npt.NDArray[np.int64] | None]]:
        """Preprocessed batches of at most ``size`` images, with their labels."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield preprocessing.apply(self.pixels[part]), None if self.labels is None else self.labels[part]


@dataclass(frozen=True)
class Source:
    """An image that is not read yet: its name, a function that reads it as RGB [3, H, W], and its label if the file has one."""

    name: str
    read: Callable[[], Pixels]
    label: int | None = None


def walk_images(path: Path | str, preprocessing: Preprocessing, classes: int, most: int | None = None) -> list[Source]:
    """The images of a path: those of a CIFAR binary file (``.bin``; named FILE#0, FILE#1 …), a single image file, or all image files in a
    folder and its subfolders, sorted by name.

    Their ``read`` returns pixels at the network's input size, and raises InputRefused for an image that can't be read. Raises InputRefused
    for a folder without images, a binary file of another image size, labels beyond ``classes``, and more than ``most`` images.
    """
    path = Path(path)
    if path.suffix == ".bin":
        if preprocessing.crop != (32, 32):
            raise InputRefused(
                f"{path}: CIFAR's images are 32x32, but the network reads {'x'.join(map(str, preprocessing.crop))}; give image files"
            )
        pixels, labels = cifar_records(path, classes)
        sources = [Source(f"{path}#{n}", partial(pixels.__getitem__, n), int(label)) for n, label in enumerate(labels)]
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise InputRefused(
                f"{path}: holds no images; expected {', '.join(IMAGE_SUFFIXES)} (for a CIFAR .bin file give the file itself)"
            )
        sources = [Source(str(file), partial(read_image, file, preprocessing)) for file in files]
    else:
        sources = [Source(str(path), partial(read_image, path, preprocessing))]
    if most is not None and len(sources) > most:
        raise InputRefused(f"{path}: holds {len(sources)} images; expected at most {most}")
    return sources


def read_images(path: Path | str, preprocessing: Preprocessing, classes: int) -> Images:
    """All images of a path (see ``walk_images``), with their labels if the file has them.

    Raises InputRefused for images that can't be read, for more than 10,000 images, and for labels beyond ``classes``.
    """
    sources = walk_images(path, preprocessing, classes, MAX_IMAGES)
    labels = [source.label for source in sources if source.label is not None]
    return Images(np.stack([source.read() for source in sources]), np.array(labels, np.int64) if labels else None)


def cifar_records(path: Path, classes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels [N, 3, 32, 32] and labels [N] of a binary file: records of label bytes (CIFAR-10: one; CIFAR-100: coarse, fine) and 3,072
    pixel bytes (red, green, blue plane). Raises InputRefused for an incomplete record, and for a label out of range."""
    data = read_bytes(path)
    header = 2 if classes == 100 else 1
    if len(data) % (header + _PLANES):
        raise InputRefused(
            f"{path}: {len(data)} bytes; expected records of {header + _PLANES} bytes ({header} of labels, {_PLANES} of pixels)"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, header + _PLANES)
    labels = records[:, header - 1].astype(np.int64)
    if labels.max() >= classes:
        raise InputRefused(f"{path}: has label {labels.max()}; expected 0 to {classes - 1}, the classes of the network")
    return records[:, header:].reshape(-1, 3, 32, 32), labels


def read_image(path: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """An image file as RGB [3, H, W] at the network's input size: the shorter side is resized, then the centre is cropped.

    Raises InputRefused for a file that is no image, and for an image too large to be decoded safely.
    """
    with opened_image(path) as image:
        return resized(image, preprocessing)


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """An open image file. Exceptions of its decoder become InputRefused."""
    from PIL import Image, UnidentifiedImageError

    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image)
                yield image
    except Exception as error:  # decoders can raise anything on damaged images
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else in_words(error)
        raise InputRefused(f"{path}: is no readable image ({reason}); expected a complete {', '.join(_FORMATS)} file") from None


def _check_size(image: Image.Image) -> None:
    stored = 1 if image.mode in ("1", "L", "P") else 4
    size = image.width * image.height * (stored + (0 if image.mode == "RGB" else 4))
    if size > MAX_DECODED:
        raise ValueError(f"{image.width}x{image.height} pixels would take {size:,} bytes; expected at most {MAX_DECODED:,}")


def resized(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """An image as RGB [3, H, W] at the network's input size: the shorter side is resized, then the centre is cropped (reference: main.py).

    Raises ValueError if the resized image would be too large.
    """
    from PIL import Image

    height, width = preprocessing.crop
    short, wanted = min(image.size), preprocessing.resize or min(height, width)
    scale = max(height / image.height, width / image.width)
    # As torchvision does it (the longer side rounded down, the crop's offset to even), unless that is too small for the crop.
    if scale * short <= wanted:
        size = (max(width, wanted * image.width // short), max(height, wanted * image.height // short))
    else:
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels would become {size[0]}x{size[1]} when resized, which is too large")
    whole = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    left, top = round((whole.width - width) / 2), round((whole.height - height) / 2)
    return np.asarray(whole.crop((left, top, left + width, top + height))).transpose(2, 0, 1)
