"""Decode images to arrays: CIFAR's official binary files, image files and folders of them."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused
from cnet_deploy.files import exists, read_bytes
from cnet_deploy.images.bounds import Unfit
from cnet_deploy.images.image_file import IMAGE_SUFFIXES, opened_image
from cnet_deploy.images.preprocessing import Floats, Preprocessing

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]
MAX_IMAGES = 10_000
MAX_PIXELS = 1 << 25  # of an image after resizing
NAMED = 10  # files that a message names
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by the network's channels
_PLANES = 3 * 32 * 32
_MAX_CIFAR = 1 << 28  # bytes of a binary file; those of all 60,000 images are 184 million
_HIDDEN = ("__macosx", "thumbs.db", "desktop.ini")  # what systems leave in folders; names that begin with a dot are hidden too


@dataclass(frozen=True)
class Images:
    """``pixels`` uint8 [N, channels, H, W] at the network's input size; ``labels`` [N], or None if the source has none."""

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
    """An image that is not read yet: its name, a function that reads it as [channels, H, W], and its label if the file has one."""

    name: str
    read: Callable[[], Pixels]
    label: int | None = None


def walk_images(
    path: Path | str, preprocessing: Preprocessing, classes: int, most: int | None = None, *, upright: bool = False
) -> list[Source]:
    """The images of a path: those of a CIFAR binary file (``.bin``; named FILE#0, FILE#1 …), a single image file, or all image files in a
    folder and its subfolders, sorted by name. Other files in a folder are named in a warning.

    Their ``read`` returns pixels at the network's input size (``upright``: of the image turned as it is tagged), and raises InputRefused
    for an image that can't be read. Raises InputRefused for a folder without images, a binary file of another image size, labels beyond
    ``classes``, and more than ``most`` images.
    """
    refuse_url(path)
    path = Path(path)
    if path.suffix == ".bin":
        if preprocessing.crop != (32, 32):
            raise InputRefused(
                f"{path}: CIFAR's images are 32x32, but the network reads {'x'.join(map(str, preprocessing.crop))}; give image files"
            )
        pixels, labels = cifar_records(path, classes)
        sources = [
            Source(f"{path}#{n}", partial(with_channels, pixels[n], preprocessing.channels), int(label)) for n, label in enumerate(labels)
        ]
    elif path.is_dir():
        files, others = images_in(path)
        if not files:
            also = f" ({not_taken(others)})" if others else ""
            raise InputRefused(
                f"{path}: holds no images{also}; expected {', '.join(IMAGE_SUFFIXES)} (for a CIFAR .bin file give the file itself)"
            )
        if others:
            log.warning("%s: %s", path, not_taken(others))
        sources = [Source(str(file), partial(read_image, file, preprocessing, upright=upright)) for file in files]
    else:
        sources = [Source(str(path), partial(read_image, path, preprocessing, upright=upright))]
    if most is not None and len(sources) > most:
        raise InputRefused(f"{path}: holds {len(sources)} images; expected at most {most}")
    return sources


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's: .DS_Store, ._x.jpg, .ipynb_checkpoints, __MACOSX, Thumbs.db …"""
    return name.startswith(".") or name.lower() in _HIDDEN


def images_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The image files in a folder and its subfolders, sorted, and the names (from the folder on) of the other files. What is ``hidden`` is
    in neither. Images are known by their suffixes, and links to folders are followed, as in torchvision's ImageFolder; but each folder is
    read once, and further links to it are among the others, as are links to nothing. Raises InputRefused for folders that can't be read."""
    files, others = [], []
    waiting, links = [folder], list[Path]()
    seen = set[tuple[int, int]]()
    try:
        while waiting or links:
            # Links come after all folders, so that an image has the name without links where there is one.
            where = waiting.pop() if waiting else links.pop()
            status = where.stat()
            if (status.st_dev, status.st_ino) in seen:
                others.append(where.relative_to(folder).as_posix())
                continue
            seen.add((status.st_dev, status.st_ino))
            inner = list[Path]()
            for path, mode in entries_of(where):
                if stat.S_ISDIR(mode):
                    (links if path.is_symlink() else inner).append(path)
                elif stat.S_ISREG(mode) and path.suffix.lower() in IMAGE_SUFFIXES:
                    files.append(path)
                else:
                    others.append(path.relative_to(folder).as_posix())
            waiting += inner
            links.sort(reverse=True)
    except OSError as error:
        raise InputRefused(f"{error.filename or folder}: can't be read: {error.strerror}; make it readable, or move it away") from None
    return sorted(files), sorted(others)


def entries_of(folder: Path) -> list[tuple[Path, int]]:
    """What is in a folder and not ``hidden``, in the order of the names: its path, and the mode of what it is or links to (0: a link to
    nothing, or to itself). Raises OSError for what can't be read."""
    with os.scandir(folder) as scan:
        paths = sorted(folder / entry.name for entry in scan if not hidden(entry.name))
    return [(path, _mode(path)) for path in paths]


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            return 0
        raise


def not_taken(names: Sequence[str]) -> str:
    """A sentence about files that are no images: how many, and the first of them by name."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    counted = "1 file was" if len(names) == 1 else f"{len(names):,} files were"
    return f"{counted} not taken for images: {', '.join(names[:NAMED])}{more}"


def refuse_url(path: Path | str) -> None:
    """Raise InputRefused for a URL, also one that became a path (which has one slash less)."""
    match = re.match(r"([a-z][a-z0-9+]+):/+(?=.)", str(path), re.IGNORECASE)
    if match and not exists(path):
        url = f"{match[1]}://{str(path)[match.end() :]}"
        how = f"curl -O {url}" if match[1].lower() in ("http", "https", "ftp") else "with the tool of its service"
        raise InputRefused(f"{url}: is a URL; download it first: {how}")


def read_images(path: Path | str, preprocessing: Preprocessing, classes: int) -> Images:
    """All images of a path (see ``walk_images``), with their labels if the file has them.

    Raises InputRefused for images that can't be read, for more than 10,000 images, and for labels beyond ``classes``.
    """
    sources = walk_images(path, preprocessing, classes, MAX_IMAGES)
    labels = [source.label for source in sources if source.label is not None]
    return Images(np.stack([source.read() for source in sources]), np.array(labels, np.int64) if labels else None)


def cifar_records(path: Path, classes: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels [N, 3, 32, 32] and labels [N] of a binary file: records of label bytes (CIFAR-10: one; CIFAR-100: coarse, fine) and 3,072
    pixel bytes (red, green, blue plane). Raises InputRefused for an incomplete record, for a label out of range, and for a network with
    another number of ``classes``."""
    if classes not in (10, 100):
        raise InputRefused(f"{path}: a CIFAR binary file has 10 or 100 classes, but the network has {classes:,}; give image files")
    data = read_bytes(path, _MAX_CIFAR)
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


def read_image(path: Path, preprocessing: Preprocessing, *, upright: bool = False) -> npt.NDArray[np.uint8]:
    """An image file as [channels, H, W] at the network's input size: the shorter side is resized, then the centre is cropped.

    ``upright``: turned first, as it is tagged. Raises InputRefused for a file that is no image, and for an image too large to be decoded
    safely.
    """
    with opened_image(path, upright=upright) as image:
        return resized(image, preprocessing)


def resized(image: Image.Image, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """An image as [channels, H, W] at the network's input size: the shorter side is resized, then the centre is cropped.

    As the reference does it (main.py). Its channels are the network's: grey, RGB or RGBA. Raises ValueError (``Unfit``) if the resized
    image would be too large.
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
        raise Unfit(f"{image.width}x{image.height} pixels would become {size[0]}x{size[1]} when resized, which is too large")
    how = Image.Resampling.BICUBIC if preprocessing.interpolation == "bicubic" else Image.Resampling.BILINEAR
    whole = _resampled(image.convert(_MODES[preprocessing.channels]), size, how)
    left, top = round((whole.width - width) / 2), round((whole.height - height) / 2)
    return _planes(whole.crop((left, top, left + width, top + height)))


def _resampled(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    """``image.resize(size, how)`` in two passes, rows first, as Pillow did it until version 12. Version 13 takes columns first where the
    height shrinks more than the width, which rounds differently: answers must not depend on Pillow's version."""
    if image.size == size:
        return image
    mode = image.mode
    if mode == "RGBA":  # colours are weighed by their alpha, once for both passes
        image = image.convert("RGBa")
    return image.resize((size[0], image.height), how).resize(size, how).convert(mode)


def with_channels(pixels: Pixels, channels: int) -> Pixels:
    """RGB pixels [3, H, W] as so many channels: grey as Pillow computes it, or with an alpha that is opaque."""
    from PIL import Image

    if channels == 3:
        return pixels
    return _planes(Image.fromarray(pixels.transpose(1, 2, 0)).convert(_MODES[channels]))


def _planes(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
