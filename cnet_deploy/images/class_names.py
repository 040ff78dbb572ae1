"""Names of classes: from a model's metadata or from a file of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnet_deploy.errors import InputRefused
from cnet_deploy.files import read_bytes
from cnet_deploy.files.strict_json import parse_json

MAX_BYTES = 8 << 20
MAX_LENGTH = 200
_EXPECTED = "expected a text with one name a line, or JSON: a list of names, or names by number"


def read_labels(path: Path | str, classes: int) -> tuple[str, ...]:
    """The names of ``classes`` classes, in order: one a line, a JSON list, or a JSON object of names (or of lists that end in one, as
    ImageNet's index has them) by number. Raises InputRefused for another number of them and for what is none of these."""
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        found: Any = parse_json(text) if text.lstrip()[:1] in ("[", "{") else [line.strip() for line in text.strip().splitlines()]
        if isinstance(found, dict):
            found = [found[str(number)] for number in range(len(found))]
            found = [entry[-1] if isinstance(entry, list) and entry else entry for entry in found]
        return checked_labels(found, classes)
    except InputRefused as error:
        raise InputRefused(f"{path}: {str(error).removeprefix(f'{path}: ')}; {_EXPECTED}") from None
    except (ValueError, KeyError, RecursionError) as error:
        raise InputRefused(f"{path}: holds no labels ({type(error).__name__}: {error}); {_EXPECTED}") from None


def checked_labels(names: object, classes: int) -> tuple[str, ...]:
    """The names, if they are one for each class. Raises InputRefused where they are not."""
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputRefused("the class names are no list of words")
    if len(names) != classes:
        raise InputRefused(f"{len(names)} class names; expected {classes}, as many as the network has classes")
    for number, name in enumerate(names):
        if not 0 < len(name) <= MAX_LENGTH:
            raise InputRefused(f"the name of class {number} has {len(name)} characters; expected 1 to {MAX_LENGTH}")
    return tuple(names)
