"""What is done to an image before the network sees it: part of a model's metadata, and of every artifact's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import Finite, Positive, convert

MAX_SIDE = 4096
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE, description=f"pixels, 1 to {MAX_SIDE}")]
Size = Annotated[tuple[Side, Side], Meta(description=f"height and width, each 1 to {MAX_SIDE} pixels")]
MAX_SMALL = 64  # pixels of a side: images up to there are not resized
Floats = npt.NDArray[np.float32]
Triple = tuple[float, float, float]
# Mean and standard deviation of each channel (reference: main.py, transforms.Normalize; Fashion-MNIST: of its 60,000 training images).
STATISTICS: Mapping[str, tuple[Triple, Triple]] = {
    "cifar10": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "fashion-mnist": ((0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530)),
}
_BY_CLASSES = {10: "cifar10", 100: "cifar100"}


@dataclass(frozen=True)
class Preprocessing:
    """RGB pixels 0..255 become (pixel / 255 - mean) / std, planes in the order red, green, blue.

    ``resize`` is the length in pixels of the shorter side before the centre crop of ``crop`` (height, width); None: no resizing.
    ``statistics`` names whose mean and standard deviation they are.
    """

    statistics: str
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    resize: Side | None
    crop: Size

    @classmethod
    def of(cls, input_size: tuple[int, int], classes: int, statistics: str | None = None) -> Preprocessing:
        """What the reference does for images of ``input_size`` (height, width): CIFAR's statistics for CIFAR's sizes, else ImageNet's.

        ``statistics`` is the name of others, one of ``STATISTICS``.
        """
        small = max(input_size) <= MAX_SMALL
        name = statistics or (_BY_CLASSES.get(classes, "imagenet") if small else "imagenet")
        return cls(name, *STATISTICS[name], None if small else _resize_for(input_size), input_size)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``. Raises InputRefused for what is missing or of another type."""
        return convert(values, cls, "preprocessing")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    def apply(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """uint8 [N, 3, H, W] -> float32 [N, 3, H, W], ready for the network."""
        mean = np.asarray(self.mean, np.float32).reshape(1, 3, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, 3, 1, 1)
        return np.ascontiguousarray((pixels.astype(np.float32) / np.float32(255) - mean) / std)


@dataclass(frozen=True)
class Overrides:
    """What to do to images instead of what their model's file states.

    ``statistics`` by name, or ``mean`` and ``std`` of [0, 1] red, green, blue; ``resize`` in pixels of the shorter side.
    """

    statistics: str | None = None
    mean: Triple | None = None
    std: Triple | None = None
    resize: int | None = None

    def apply_to(self, stated: Preprocessing | None, crop: tuple[int, int]) -> Preprocessing:
        """The preprocessing of a network that reads ``crop`` (height, width) pixels, where its file states ``stated``, or nothing.

        Raises InputRefused where neither the file nor this states what to do, and for numbers out of their bounds.
        """
        if self.statistics is not None and self.statistics not in STATISTICS:
            raise InputRefused(f"no statistics are called {self.statistics!r}; expected one of {', '.join(STATISTICS)}")
        if stated is None:
            if self.statistics is None and (self.mean is None or self.std is None):
                raise InputRefused(f"says nothing of preprocessing; give --statistics ({', '.join(STATISTICS)}), or --mean and --std")
            resize = None if max(crop) <= MAX_SMALL else _resize_for(crop)
            stated = Preprocessing("custom", (0, 0, 0), (1, 1, 1), resize, crop)
        if self.statistics is not None:
            mean, std = STATISTICS[self.statistics]
            stated = replace(stated, statistics=self.statistics, mean=mean, std=std)
        if self.mean is not None or self.std is not None:
            stated = replace(stated, statistics="custom", mean=self.mean or stated.mean, std=self.std or stated.std)
        if self.resize is not None:
            stated = replace(stated, resize=self.resize)
        if stated.resize is not None and not max(1, min(crop)) <= stated.resize <= MAX_SIDE:
            raise InputRefused(f"resize is {stated.resize}; expected {min(crop)}, the network's input, to {MAX_SIDE} pixels")
        return Preprocessing.from_dict(stated.to_dict())


NO_OVERRIDES = Overrides()


def _resize_for(input_size: tuple[int, int]) -> int:
    """Side of the shorter side before the centre is cropped (reference: main.py, 256 for 224)."""
    return round(min(input_size) * 256 / 224)
