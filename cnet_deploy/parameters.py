"""Parameters of the command line: types that say what they expected, and options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
if TYPE_CHECKING:
    _SizeType = click.ParamType[tuple[int, int]]
else:
    _SizeType = click.ParamType  # generic only in newer releases of click


class Size(_SizeType):
    """``224`` or ``HEIGHTxWIDTH``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        sides = value.lower().split("x")
        if len(sides) not in (1, 2) or not all(side.isascii() and side.isdigit() and 0 < int(side) < 1 << 16 for side in sides):
            self.fail(f"{value!r} is no size; expected pixels as 224 or HEIGHTxWIDTH as 224x192", param, ctx)
        return int(sides[0]), int(sides[-1])


class Words(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Words separated by commas, each once."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(words):
            self.fail(f"{value!r} has an empty part; expected words separated by commas", param, ctx)
        return tuple(dict.fromkeys(words))


class Numbers(Words):
    """Whole numbers from 1, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        words = [str(word) for word in super().convert(value, param, ctx)]
        if not all(word.isascii() and word.isdigit() and 0 < int(word) < 1 << 16 for word in words):
            self.fail(f"{value!r} is no list of numbers; expected one as 2, or several as 1,2", param, ctx)
        return tuple(int(word) for word in words)


class Share(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``5%`` or ``0.05``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            number = math.nan
        if not 0 < number < 1:
            self.fail(f"{value!r} is no share; expected a percentage as 5%, or a number between 0 and 1 as 0.05", param, ctx)
        return number


class Finite(click.FloatRange):
    """A FloatRange without NaN and infinity, which no bound keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not finite; expected a number", param, ctx)
        return number


class Batches(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``8``, or ``LEAST:BEST:MOST`` as 1:8:32."""

    name = "batch"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.split(":")
        if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() and 0 < int(part) < 1 << 16 for part in parts):
            self.fail(f"{value!r} is no batch; expected images as 8, or least:best:most as 1:8:32", param, ctx)
        numbers = tuple(map(int, parts))
        return numbers[0] if len(numbers) == 1 else numbers


class Bytes(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """``512M`` or ``2G``, in powers of 1024."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        units = {"K": 10, "M": 20, "G": 30}
        digits, unit = value.upper().removesuffix("B").removesuffix("I"), 0
        if digits[-1:] in units:
            digits, unit = digits[:-1], units[digits[-1]]
        if not (digits.isascii() and digits.isdigit() and 0 < int(digits) << unit < 1 << 50):
            self.fail(f"{value!r} is no size; expected bytes as 512M or 2G", param, ctx)
        return int(digits) << unit


def model_options(command: F) -> F:
    """What a checkpoint can't tell of itself."""
    for option in (
        click.option(
            "--stem-stride",
            type=click.IntRange(1, 16),
            help="Stride of the first convolution; wins over what is inferred.",
        ),
        click.option("--input-size", type=Size(), help="Input in pixels, as 224 or HEIGHTxWIDTH; wins over what is inferred."),
        click.option("--condense-factor", type=click.IntRange(1), help="C, where the checkpoint's counters don't tell it."),
        click.option("--groups", type=click.IntRange(1), help="G of the 1x1 convolutions, where the masks don't tell it."),
    ):
        command = option(command)
    return command


def lowering_options(command: F) -> F:
    """How `export` writes the network for GPUs, and how TensorRT builds it."""
    for option in (
        click.option(
            "--lowering",
            type=click.Choice(["gather", "dense", "absorbed", "auto"]),
            help="ONNX, TensorRT: how 1x1 convolutions are written; auto measures what is quickest for each block. [default: gather]",
        ),
        click.option(
            "--timing-cache", type=click.Path(path_type=Path), help="TensorRT: a file that keeps what was timed, for the next build."
        ),
        click.option("--workspace", type=Bytes(), help="TensorRT: most device memory that a layer may take for itself, as 512M or 2G."),
        click.option(
            "--tensorrt-flavour",
            "flavour",
            type=click.Choice(["tensorrt", "tensorrt-rtx"]),
            help="TensorRT: which one builds. [default: the one that can]",
        ),
    ):
        command = option(command)
    return command


images_option = click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Real images to check on: a CIFAR binary file, an image, or a folder of images.",
)
tolerance_option = click.option(
    "--tolerance",
    type=Finite(0),
    help="Largest error allowed, relative to the largest logit. [default: 1e-4]",
)
keep_option = click.option(
    "--classifier-keep",
    type=Finite(0, 1, min_open=True),
    help="Share of the classifier's inputs to keep. [default: 0.5, as the reference]",
)
