"""Types of the command line's parameters, and shell completion for them. Each error says what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

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
    """Words separated by commas, without duplicates."""

    name = "words"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in value.split(",")]
        if not all(words):
            self.fail(f"{value!r} has an empty part; expected words separated by commas", param, ctx)
        return tuple(dict.fromkeys(words))


class Choices(Words):
    """Some of the known words, separated by commas, in lower case. ``metavar`` shows them in the help."""

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)
        self.metavar = f"[{'|'.join(choices)}],..."

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """Completion of a word, also after a comma."""
        done, comma, begun = incomplete.rpartition(",")
        return [CompletionItem(f"{done}{comma}{choice}") for choice in self.choices if choice.startswith(begun)]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        words = super().convert(value.lower() if isinstance(value, str) else value, param, ctx)
        if unknown := [word for word in words if word not in self.choices]:
            self.fail(f"{unknown[0]!r} is not one of {', '.join(map(repr, self.choices))}", param, ctx)
        return words


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


class Points(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Points of an accuracy in percent, always with the sign: ``0.5%``. Without it 0.5 might be a half of all."""

    name = "points"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            number = float(value[:-1]) if value.endswith("%") else math.nan
        except ValueError:
            number = math.nan
        if not 0 <= number < 100:
            expected = "points of top-1 accuracy from 0 to less than 100, with a percent sign, as 0.5%"
            self.fail(f"{value!r} is no accuracy budget; expected {expected}", param, ctx)
        return number


class Channels(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Numbers from 0 to 1 for red, green and blue: ``0.485,0.456,0.406``; or one for grey images, or four with alpha."""

    name = "channels"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(map(float, value.split(",")))
        except ValueError:
            numbers = ()
        if len(numbers) not in (1, 3, 4) or not all(0 <= number <= 1 for number in numbers):
            expected = "red, green and blue from 0 to 1, as 0.485,0.456,0.406; or 1 number for grey images, or 4 with alpha"
            self.fail(f"{value!r} is no colour; expected {expected}", param, ctx)
        return numbers


class Finite(click.FloatRange):
    """A FloatRange that refuses NaN and infinity too."""

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


class Digest(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A SHA-256: 64 hexadecimal digits."""

    name = "digest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch("[0-9a-fA-F]{64}", value):
            self.fail(f"{value!r} is no SHA-256; expected 64 hexadecimal digits, as `sha256sum FILE` and `inspect` print", param, ctx)
        return str(value).lower()


def complete_backends(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion of backends, also after a comma."""
    from cnet_deploy.sessions import names

    done, comma, begun = incomplete.rpartition(",")
    return [CompletionItem(f"{done}{comma}{name}") for name in names() if name.startswith(begun)]


def complete_models(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Shell completion of files and the names of networks."""
    from cnet_deploy.models.architecture import NAMED, OTHERS

    return [CompletionItem(incomplete, type="file"), *(CompletionItem(name) for name in (*NAMED, *OTHERS) if name.startswith(incomplete))]


class FilePath(click.Path):
    """A path. Empty text, as an unset variable of a shell leaves it, is none, and must not become the current folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the name is empty; expected a file's, or leave the option out", param, ctx)
        return super().convert(value, param, ctx)


class OutputPath(FilePath):
    """A path that the command writes: another than any that it reads."""


class ModelOrName(FilePath):
    """A file, or the name of a network."""

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete_models(ctx, param, incomplete)
