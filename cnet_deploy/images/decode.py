"""Images as arrays: CIFAR's official binary files, image files and folders of them."""

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

from cnet_deploy.errors import InputRefused
from cnet_deploy.files import read_bytes
from cnet_deploy.images.preprocessing import Floats, Preprocessing

if TYPE_CHECKING:
    from PIL import Image

Pixels = npt.NDArray[np.uint8]
MAX_IMAGES = 10_000
MAX_PIXELS = 1 << 25  # of an image after resizing
MAX_DECODED = 1 << 28  # bytes of an image as it is decoded and as RGB: some 67 megapixels, 33 where it has transparency
_PLANES = 3 * 32 * 32
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")  # of these alone: some of the decoder's others start programs
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 [N, 3, H, W] at the network's input size, RGB; ``labels`` [N] where the source has them."""

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
    """An image that is not read yet: its name, what reads it as RGB [3, H, W], and its label where the file has one."""

    name: str
    read: Callable[[], Pixels]
    label: int | None = None


def walk_images(path: Path | str, preprocessing: Preprocessing, classes: int, most: int | None = None) -> list[Source]:
    """What a path stands for: the images of a CIFAR binary file (``.bin``, named FILE#0, FILE#1 …), an image file, or all image files in a
    folder and the folders in it, by their names.

    ``read`` gives pixels at the network's input size, and raises InputRefused for an image that can't be read. Raises InputRefused for a
    folder without images, a binary file that the network can't read, labels that it does not have, and more than ``most`` images.
    """
    path = Path(path)
    if path.suffix == ".bin":
        if preprocessing.crop != (32, 32):
            raise InputRefused(f"{path}: CIFAR's images are 32x32, but the network reads {preprocessing.crop}; give images of its kind")
        pixels, labels = cifar_records(path, classes)
        sources = [Source(f"{path}#{n}", partial(pixels.__getitem__, n), int(label)) for n, label in enumerate(labels)]
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise InputRefused(
                f"{path}: holds no images; expected {', '.join(IMAGE_SUFFIXES)} (a CIFAR .bin file is given by its own name)"
            )
        sources = [Source(str(file), partial(read_image, file, preprocessing)) for file in files]
    else:
        sources = [Source(str(path), partial(read_image, path, preprocessing))]
    if most is not None and len(sources) > most:
        raise InputRefused(f"{path}: holds {len(sources)} images; expected at most {most}")
    return sources


def read_images(path: Path | str, preprocessing: Preprocessing, classes: int) -> Images:
    """All images that a path stands for (see ``walk_images``), with their labels where it has them.

    Raises InputRefused for what can't be read, for more than 10,000 images, and for labels the network does not have.
    """
    sources = walk_images(path, preprocessing, classes, MAX_IMAGES)
    labels = [source.label for source in sources if source.label is not None]
    return Images(np.stack([source.read() for source in sources]), np.array(labels, np.int64) if labels else None)


def cifar_records(path: Path, classes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels [N, 3, 32, 32] and labels [N] of a binary file: records of label bytes (CIFAR-10: one; CIFAR-100: coarse, fine) and 3,072
    pixel bytes (red, green, blue plane). Raises InputRefused for what is no whole number of records, and for a label out of range."""
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
    """The middle of an image file, RGB [3, H, W] at the network's input size: its shorter side resized, then cropped.

    Raises InputRefused for what is no image, and for one too large to be decoded safely.
    """
    with opened_image(path) as image:
        return resized(image, preprocessing)


@contextlib.contextmanager
def opened_image(path: Path) -> Iterator[Image.Image]:
    """An image file, open to be decoded; whatever its decoder raises becomes InputRefused."""
    from PIL import Image

    data = read_bytes(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                _check_size(image)
                yield image
    except Exception as error:  # what decoders raise on damaged images has no common base
        raise InputRefused(f"{path}: is no image that can be read ({error}); expected a whole {', '.join(_FORMATS)} file") from None


def _check_size(image: Image.Image) -> None:
    stored = 1 if image.mode in ("1", "L", "P") else 4
    size = image.width * image.height * (stored + (0 if image.mode == "RGB" else 4))
    if size > MAX_DECODED:
        raise ValueError(f"{image.width}x{image.height} pixels would take {size:,} bytes; expected at most {MAX_DECODED:,}")


def resized(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """An image as RGB [3, H, W] at the network's input size: its shorter side resized, the middle cropped (reference: main.py).

    Raises ValueError where resizing would make it enormous.
    """
    from PIL import Image

    height, width = preprocessing.crop
    short, wanted = min(image.size), preprocessing.resize or min(height, width)
    scale = max(height / image.height, width / image.width)
    # As torchvision does it (the longer side rounded down, the crop's place to the even pixel), unless that is too small for the crop.
    if scale * short <= wanted:
        size = (max(width, wanted * image.width // short), max(height, wanted * image.height // short))
    else:
        size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels would be {size[0]}x{size[1]} when resized")
    whole = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    left, top = round((whole.width - width) / 2), round((whole.height - height) / 2)
    return np.asarray(whole.crop((left, top, left + width, top + height))).transpose(2, 0, 1)
