"""What is done to an image before the network sees it: part of a model's metadata, and of every artifact's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import Finite, InvalidValue, Positive, convert

if TYPE_CHECKING:
    from cnet_deploy.images.inputs import Given

MAX_SIDE = 4096
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE, description=f"pixels, 1 to {MAX_SIDE}")]
Size = Annotated[tuple[Side, Side], Meta(description=f"height and width, each 1 to {MAX_SIDE} pixels")]
MAX_SMALL = 64  # pixels of a side: images up to there are not resized
Floats = npt.NDArray[np.float32]
CHANNELS: Mapping[int, str] = {1: "grey", 3: "RGB", 4: "RGBA"}  # how many channels an image may have, and what they are
_EACH = Meta(min_length=1, max_length=4, description="a list of 1, 3 or 4 numbers, one for each channel")
Means = Annotated[tuple[Finite, ...], _EACH]
Deviations = Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=4, description="a list of 1, 3 or 4 numbers over 0")]
Interpolation = Literal["bilinear", "bicubic"]
Guess = Literal["statistics", "resize"]
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
    """Pixels 0..255 become (pixel / 255 - mean) / std, planes in the order red, green, blue; or one grey plane, or a fourth of alpha.

    ``resize`` is the length in pixels of the shorter side before the centre crop of ``crop`` (height, width), and ``interpolation`` how it
    is resized; None: no resizing. ``statistics`` names whose mean and standard deviation they are. ``guessed`` names the values that no
    file and nobody stated, but that were chosen by the network's shape: "statistics" (mean and standard deviation) and "resize".

    Raises InvalidValue where mean and standard deviation have other than 1, 3 or 4 numbers, or not as many of each.
    """

    statistics: str
    mean: Means
    std: Deviations
    resize: Side | None
    crop: Size
    interpolation: Interpolation = "bilinear"
    guessed: Annotated[tuple[Guess, ...], Meta(max_length=2)] = ()

    def __post_init__(self) -> None:
        if len(self.mean) not in CHANNELS or len(self.std) != len(self.mean):
            raise InvalidValue(
                f"preprocessing: {len(self.mean)} numbers in mean and {len(self.std)} in std; expected 1, 3 or 4, and as many in both"
            )

    @classmethod
    def of(cls, input_size: tuple[int, int], classes: int, statistics: str | None = None, channels: int = 3) -> Preprocessing:
        """What the reference does for images of ``input_size`` (height, width): CIFAR's statistics for CIFAR's sizes, else ImageNet's.

        ``statistics`` is the name of others, one of ``STATISTICS``. Without it they are guessed, and so is the resizing of images over
        ``MAX_SMALL`` pixels; ``replace(…, guessed=())`` where both are known. For one channel the mean of the three is taken, and alpha is
        left as it is: guesses too, as these statistics are of colour images.
        """
        small = max(input_size) <= MAX_SMALL
        name = statistics or (_BY_CLASSES.get(classes, "imagenet") if small else "imagenet")
        resize, guessed = _resize_for(input_size)
        if statistics is None or not _is_of(name, channels):
            guessed = ("statistics", *guessed)
        return cls(name, *_statistics(name, channels), resize, input_size, guessed=guessed)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_dict``. Raises InputRefused for what is missing or of another type."""
        return convert(values, cls, "preprocessing")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, without those that are as in most files: bilinear, nothing guessed."""
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}
        return {key: v for key, v in values.items() if (key, v) not in (("interpolation", "bilinear"), ("guessed", []))}

    @property
    def channels(self) -> int:
        """Of an image: 1 (grey), 3 (RGB) or 4 (RGBA)."""
        return len(self.mean)

    def require_channels(self, channels: int) -> None:
        """Raise InvalidValue where this is not for images of so many channels."""
        if self.channels != channels:
            raise InvalidValue(
                f"preprocessing is for {CHANNELS[self.channels]} images; expected {CHANNELS[channels]} images, which the network reads"
            )

    def of_size(self, input_size: tuple[int, int]) -> Preprocessing:
        """The same for images of another size (height, width). How they are resized depends on it, and is guessed anew."""
        if input_size == self.crop:
            return self
        resize, guessed = _resize_for(input_size)
        if "statistics" in self.guessed:
            guessed = ("statistics", *guessed)
        return replace(self, resize=resize, crop=input_size, guessed=guessed)

    def read(self, image: Given, *, upright: bool = True) -> Floats:
        """One image as the network reads it: float32 [channels, H, W]; ``session.run(preprocessing.read(image)[None])`` runs it.

        ``image`` is a path, an image of Pillow, or a numpy array of uint8 [height, width] or [height, width, channels], with channels in
        the order red, green, blue (alpha). It is turned as its EXIF data say (``upright``), its shorter side is resized to ``resize``, the
        centre of ``crop`` is cropped, and the pixels are normalised: docs/preprocessing.md has it to the pixel. Raises InputRefused for a
        file that is no image, and for an array of another type or layout; the message says how to change it.
        """
        from cnet_deploy.images.inputs import pixels_of

        (prepared,) = self.apply(pixels_of(image, self, upright=upright)[None])
        return np.asarray(prepared)

    def apply(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """uint8 [N, channels, H, W] -> float32 of the same shape, ready for the network."""
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        return np.ascontiguousarray((pixels.astype(np.float32) / np.float32(255) - mean) / std)

    def summary(self) -> str:
        """One line for people."""
        mean, std = (", ".join(f"{number:g}" for number in numbers) for numbers in (self.mean, self.std))
        resized = "not resized" if self.resize is None else f"resized to {self.resize} ({self.interpolation})"
        text = f"{self.statistics}: mean {mean}, std {std}, {resized}, cropped to {self.crop[0]}x{self.crop[1]}"
        if not self.guessed:
            return text
        return f"{text} ({self.doubts()} to convert or export)"

    def doubts(self, stated: Overrides | None = None) -> str:
        """What was guessed, and the options that state it; "" where nothing was. What ``stated`` states is left out."""
        left = [name for name in self.guessed if stated is None or not stated.states(name)]
        if not left:
            return ""
        values, options = list[str](), list[str]()
        if "statistics" in left:
            values += ["mean", "std"]
            options += ["--statistics"] if self.channels == 3 else ["--mean", "--std"]
        if "resize" in left:
            values, options = [*values, "resize"], [*options, "--resize"]
        return f"{_listed(values)} guessed from the input size and number of classes: give {_listed(options)}"


@dataclass(frozen=True)
class Overrides:
    """What to do to images instead of what their model's file states, or what was guessed where it states nothing.

    ``statistics`` by name, or ``mean`` and ``std`` of pixels from 0 to 1, a number for each channel (grey; red, green, blue; or these and
    alpha); ``resize`` in pixels of the shorter side; ``interpolation`` "bilinear" or "bicubic".
    """

    statistics: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    interpolation: Interpolation | None = None

    def states(self, guess: Guess) -> bool:
        """Whether it has the values that ``guess`` stands for."""
        if guess == "resize":
            return self.resize is not None
        return self.statistics is not None or (self.mean is not None and self.std is not None)

    def apply_to(self, stated: Preprocessing | None, crop: tuple[int, int], channels: int = 3) -> Preprocessing:
        """The preprocessing of a network that reads ``channels`` of ``crop`` (height, width) pixels, where its file states ``stated``, or
        nothing.

        Raises InputRefused where neither the file nor this states what to do, and for numbers out of their bounds or not one a channel.
        """
        if self.statistics is not None and self.statistics not in STATISTICS:
            raise InputRefused(f"no statistics are called {self.statistics!r}; expected one of {', '.join(STATISTICS)}")
        if self.interpolation not in (None, "bilinear", "bicubic"):
            raise InputRefused(f"interpolation {self.interpolation!r}; expected bilinear or bicubic")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and len(numbers) != channels:
                raise InputRefused(
                    f"{name} has {_count(len(numbers))}; expected {channels}, as the network reads {CHANNELS[channels]} images"
                )
        if stated is None:
            if not self.states("statistics"):
                raise InputRefused(f"says nothing of preprocessing; give --statistics ({', '.join(STATISTICS)}), or --mean and --std")
            resize, guessed = _resize_for(crop)
            stated = Preprocessing("custom", (0.0,) * channels, (1.0,) * channels, resize, crop, guessed=guessed)
        known = {name for name in stated.guessed if self.states(name)}
        if self.statistics is not None:
            mean, std = _statistics(self.statistics, channels)
            stated = replace(stated, statistics=self.statistics, mean=mean, std=std)
            if not _is_of(self.statistics, channels):
                stated = replace(stated, guessed=("statistics", *(name for name in stated.guessed if name != "statistics")))
                known.discard("statistics")
        if self.mean is not None or self.std is not None:
            stated = replace(stated, statistics="custom", mean=self.mean or stated.mean, std=self.std or stated.std)
            known |= {"statistics"} if self.mean is not None and self.std is not None else set()
        if self.resize is not None:
            stated = replace(stated, resize=self.resize)
        if self.interpolation is not None:
            stated = replace(stated, interpolation=self.interpolation)
        if stated.resize is not None and not max(1, min(crop)) <= stated.resize <= MAX_SIDE:
            raise InputRefused(f"resize is {stated.resize}; expected {min(crop)}, the network's input, to {MAX_SIDE} pixels")
        guessed = tuple(name for name in stated.guessed if name not in known)
        return Preprocessing.from_dict(replace(stated, guessed=guessed).to_dict())


NO_OVERRIDES = Overrides()


def _resize_for(input_size: tuple[int, int]) -> tuple[int | None, tuple[Guess, ...]]:
    """Side of the shorter side before the centre is cropped (reference: main.py, 256 for 224; CIFAR's images are not resized), and whether
    that was a guess."""
    if max(input_size) <= MAX_SMALL:
        return None, ()
    return min(MAX_SIDE, round(min(input_size) * 256 / 224)), ("resize",)


def _statistics(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for so many channels: of grey images the means of the three; alpha is left from 0 to 1."""
    mean, std = STATISTICS[name]
    if channels == 1:
        return (round(sum(mean) / 3, 4),), (round(sum(std) / 3, 4),)
    return (mean, std) if channels == 3 else ((*mean, 0.0), (*std, 1.0))


def _is_of(name: str, channels: int) -> bool:
    """Whether these are the statistics of images with so many channels."""
    return channels == 3 or (channels == 1 and len({*STATISTICS[name][0]}) == 1)


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _count(numbers: int) -> str:
    return "1 number" if numbers == 1 else f"{numbers} numbers"
