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


class Depths(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Whole numbers from 1 joined by hyphens, one for each dense block: ``14-14-14``."""

    name = "depths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = value.split("-")
        if not all(part.isascii() and part.isdigit() and 0 < int(part) < 1 << 16 for part in parts):
            self.fail(f"{value!r} is no list of numbers; expected one for each dense block, as 14-14-14", param, ctx)
        return tuple(map(int, parts))


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


class Channels(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Three numbers from 0 to 1, of red, green and blue: ``0.485,0.456,0.406``."""

    name = "channels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(map(float, value.split(",")))
        except ValueError:
            numbers = ()
        if len(numbers) != 3 or not all(0 <= number <= 1 for number in numbers):
            self.fail(f"{value!r} is no colour; expected red, green and blue from 0 to 1, as 0.485,0.456,0.406", param, ctx)
        return numbers


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


def training_options(command: F) -> F:
    """The reference's options (main.py), by its names and with its defaults, and those that it has not."""
    number, least = click.IntRange, Finite(0)
    for option in reversed((
        click.option("--model", type=click.Choice(["condensenet", "densenet", "densenet_LGC"], case_sensitive=False), default="condensenet",
                     show_default=True, help="densenet_LGC: DenseNet with learned group convolutions."),
        click.option("--stages", type=Depths(), required=True, help="Layers of each dense block, as 14-14-14."),
        click.option("--growth", type=Depths(), required=True, help="Channels that each of a block's layers adds, as 8-16-32."),
        click.option("--bottleneck", type=number(1), default=4, show_default=True, help="Outputs of the 1x1 for each channel of growth."),
        click.option("--group-1x1", type=number(1), default=4, show_default=True, help="Groups of the 1x1 convolutions (G)."),
        click.option("--group-3x3", type=number(1), default=4, show_default=True, help="Groups of the 3x3 convolutions."),
        click.option("--condense-factor", type=number(1), default=4, show_default=True, help="1/C of the inputs is kept (C)."),
        click.option("--reduction", type=Finite(0, 1, min_open=True), default=0.5, show_default=True, help="DenseNets: of transitions."),
        click.option("--input-size", type=Size(), help="Of the network, in pixels. [default: 32 for small images, else 224]"),
        click.option("--stem-stride", type=number(1, 16), help="Of the first convolution. [default: 1 for small images, else 2]"),
        click.option("--epochs", type=number(1), default=120, show_default=True, help="Epochs of the whole run."),
        click.option("-b", "--batch-size", type=number(1), default=256, show_default=True, help="Images of a step, all devices together."),
        click.option("--lr", "--learning-rate", "lr", type=least, default=0.1, show_default=True, help="Learning rate at the start."),
        click.option("--lr-type", type=click.Choice(["cosine", "multistep"]), default="cosine", show_default=True, help="How it falls."),
        click.option("--momentum", type=least, default=0.9, show_default=True, help="Nesterov's."),
        click.option("--weight-decay", "--wd", type=least, default=1e-4, show_default=True, help="Of all weights."),
        click.option("--group-lasso-lambda", "--group-lasso", type=least, default=0.0, show_default=True, help="Paper, ImageNet: 1e-5."),
        click.option("--dropout-rate", type=least, default=0.0, show_default=True, help="Before the 1x1 convolutions."),
        click.option("--manual-seed", "seed", type=number(0), default=0, show_default=True, help="Of weights, order and augmentation."),
        click.option("-j", "--workers", type=number(1), help="Threads that read images. [default: one a core, at most 8]"),
        click.option("-p", "--print-freq", type=number(1), default=10, show_default=True, help="Steps between two looks at the bar."),
        click.option("--savedir", type=click.Path(path_type=Path), default=Path("results/savedir"), show_default=True, help="For output."),
        click.option("--resume", is_flag=True, help="Go on from the last whole checkpoint in --savedir, if there is one."),
        click.option("--no-save-model", is_flag=True, help="Keep the best checkpoint and the last two only."),
        click.option("--device", type=click.Choice(["cpu", "cuda"]), help="What trains. [default: cuda if it is there]"),
        click.option("--gpu", help="Which GPUs may be seen, as CUDA_VISIBLE_DEVICES has them."),
        click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="bf16: autocast."),
        click.option("--channels-last/--no-channels-last", default=True, show_default=True, help="Memory format; twice as fast on a CPU."),
        click.option("--compile", is_flag=True, help="Compile the model (torch.compile)."),
    )):  # fmt: skip
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
