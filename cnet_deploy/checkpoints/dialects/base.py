"""The declaration of a dialect."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Data:
    """What a network was trained on: the name of the usual mean and standard deviation, the input size in pixels, the classes."""

    statistics: str
    input_size: tuple[int, int]
    classes: int


@dataclass(frozen=True)
class Dialect:
    """The names that one implementation gives to a network's tensors; each module of this package declares one.

    ``anchor`` is a name that every one of its files has and that no other dialect uses. ``needs`` is the end of a name that must be there
    too, if the anchor alone does not tell it from another dialect. ``table`` has pairs of a pattern for a whole name and its replacement
    in the original's names; a name that no pattern matches stays as it is. ``origin`` is the repository. ``data`` is the only one that
    its code trains on, if that is so. ``preferred`` is the key of the set of weights to take where a file has several.
    ``transposed`` is a pattern for the whole names, in the original's words, of matrices that are [inputs, outputs] there.
    """

    name: str
    origin: str
    anchor: str
    needs: str = ""
    table: tuple[tuple[str, str], ...] = ()
    data: Data | None = None
    preferred: str = "state_dict"
    transposed: str = ""

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether these are its names, without the prefix before the anchor."""
        names = set(names)
        return self.anchor in names and any(name.endswith(self.needs) for name in names)

    def transposes(self, name: str) -> bool:
        """Whether the matrix with this name, in the original's words, is the other way round."""
        return bool(self.transposed and re.fullmatch(self.transposed, name))

    def renamed(self, name: str) -> str:
        """The original's name for one of its own."""
        for pattern, replacement in _compiled(self.table):
            if match := pattern.fullmatch(name):
                return match.expand(replacement)
        return name


@functools.cache
def _compiled(table: tuple[tuple[str, str], ...]) -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in table)
