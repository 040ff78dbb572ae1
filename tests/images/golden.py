"""Golden pixels: images by a formula, how they are prepared, and what came of it, recorded in golden.json.

The recorded bytes are those of Pillow 12.3, which resizes rows first in one call, as all versions before it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from cnet_deploy.images.preprocessing import Preprocessing

RECORDED = Path(__file__).with_name("golden.json")


class Case(NamedTuple):
    """An image of ``size`` (height, width) and ``channels``, what is done to it, and its EXIF ``orientation``."""

    name: str
    size: tuple[int, int]
    steps: dict[str, Any]
    channels: int = 3
    orientation: int = 1

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_dict(self.steps)

    def pixels(self) -> npt.NDArray[np.uint8]:
        """uint8 [height, width, channels]: waves and a hard edge, so that filters over- and undershoot."""
        y, x, c = np.meshgrid(*(np.arange(n) for n in (*self.size, self.channels)), indexing="ij")
        waves = (x * x + 3 * y * (c + 1) + x * y * (2 * c + 1) // 7) % 256
        return np.where((x + y) % 61 < 20, 255 * ((x // 3 + y // 5 + c) % 2), waves).astype(np.uint8)

    def image(self) -> Image.Image:
        pixels = self.pixels()
        return Image.fromarray(pixels[:, :, 0] if self.channels == 1 else pixels)

    def png(self) -> bytes:
        """The file, tagged to be turned."""
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = self.orientation
        self.image().save(file, "PNG", exif=exif)
        return file.getvalue()


def _steps(crop: tuple[int, int], resize: int | None, interpolation: str = "bilinear", channels: int = 3) -> dict[str, Any]:
    mean, std = (0.485, 0.456, 0.406, 0.0), (0.229, 0.224, 0.225, 1.0)
    return {
        "statistics": "imagenet", "mean": list(mean[:channels]), "std": list(std[:channels]), "resize": resize, "crop": list(crop),
        "interpolation": interpolation,
    }  # fmt: skip


def cases() -> Iterator[Case]:
    """Every way in which a size, a side or an offset is rounded, of images larger and smaller than the crop."""
    imagenet, cifar = _steps((224, 224), 256), _steps((32, 32), None)
    yield Case("ImageNet's, landscape", (297, 428), imagenet)
    yield Case("ImageNet's, portrait", (400, 300), imagenet)
    yield Case("a tall one that Pillow 13 resizes columns first", (420, 100), _steps((64, 64), 72))
    yield Case("ImageNet's, smaller than the crop", (100, 140), imagenet)
    yield Case("ImageNet's, bicubic", (333, 251), _steps((224, 224), 232, "bicubic"))
    yield Case("CIFAR's size, not resized", (32, 32), cifar)
    yield Case("to CIFAR's size, odd and wide", (45, 87), cifar)
    yield Case("to CIFAR's size, bicubic and tall", (119, 40), _steps((32, 32), 40, "bicubic"))
    yield Case("one pixel", (1, 1), cifar)
    yield Case("a column", (64, 1), _steps((32, 32), None, "bicubic"))
    yield Case("a crop that is no square", (90, 61), _steps((48, 30), 40))
    yield Case("the crop's longer side decides", (50, 300), _steps((60, 20), 30))
    yield Case("offsets that end in a half", (37, 50), _steps((32, 33), 37))
    yield Case("one side is not resized", (32, 77), _steps((32, 32), 32))
    yield Case("grey for a network of colours", (70, 53), cifar, channels=1)
    yield Case("colours for a network of grey", (70, 53), _steps((32, 32), None, channels=1))
    yield Case("alpha for a network of colours", (70, 53), cifar, channels=4)
    yield Case("alpha for a network of alpha", (70, 53), _steps((32, 32), 36, "bicubic", channels=4), channels=4)
    yield Case("alpha, not resized", (32, 40), _steps((32, 32), 32, channels=4), channels=4)
    yield Case("colours for a network of alpha", (53, 70), _steps((32, 32), 36, channels=4))
    for orientation in range(2, 9):
        yield Case(f"EXIF {orientation}", (40, 71), cifar, orientation=orientation)


def record(pixels: npt.NDArray[np.uint8], prepared: npt.NDArray[np.float32]) -> dict[str, Any]:
    """What is kept of bytes [channels, H, W] and floats: digests, and the first plane's corners and middle to look at."""
    _, height, width = pixels.shape
    places = ((0, 0), (0, -1), (height // 2, width // 2), (-1, 0), (-1, -1))
    return {
        "shape": list(pixels.shape),
        "pixels": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "floats": hashlib.sha256(prepared.astype("<f4").tobytes()).hexdigest(),
        "first": [int(pixels[0][place]) for place in places],
        "last": [float(prepared[-1][place]) for place in places],
    }


def recorded() -> dict[str, Any]:
    values: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return values
