"""Names of classes: from a model's metadata or from a file of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta

from cnet_deploy.errors import InputRefused
from cnet_deploy.files import read_bytes
from cnet_deploy.files.strict_json import InvalidValue, convert, parse_json

MAX_BYTES = 8 << 20
MAX_LENGTH = 200
ClassName = Annotated[str, Meta(min_length=1, max_length=MAX_LENGTH, description=f"a name of 1 to {MAX_LENGTH} characters")]
ClassNames = Annotated[tuple[ClassName, ...], Meta(min_length=1, description="a list of names, at least one")]
# By number, as ImageNet's index has them: "0": ["n01440764", "tench"].
_Numbered = dict[str, ClassName | Annotated[list[ClassName], Meta(min_length=1, description="a list that ends in one")]]
_FORMS = "labels are a text with one name a line, or JSON: a list of names, or names by number"


def read_labels(path: Path | str, classes: int) -> tuple[str, ...]:
    """The names of ``classes`` classes, in order: one a line, a JSON list, or a JSON object of names (or of lists that end in one, as
    ImageNet's index has them) by number. Raises InputRefused for another number of names, and for a file of another form.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):
            return checked_labels(_in_order(convert(parse_json(text), ClassNames | _Numbered, "names")), classes, "names")
        return checked_labels([line.strip() for line in text.strip().splitlines()], classes, "names")
    except UnicodeDecodeError:
        raise InputRefused(f"{path}: it is no text in UTF-8; {_FORMS}") from None
    except InvalidValue as error:
        raise InputRefused(f"{path}: {error}; {_FORMS}") from None


def checked_labels(names: object, classes: int, place: str = "class_names") -> tuple[str, ...]:
    """The names, if they are one for each class; ``place`` is their place in the file. Raises InvalidValue where they are not."""
    checked: tuple[str, ...] = convert(names, ClassNames, place)
    if len(checked) != classes:
        raise InvalidValue(f"it has {len(checked)} class names; expected {classes}, as many as the network has classes")
    return checked


def _in_order(names: tuple[str, ...] | dict[str, str | list[str]]) -> list[str]:
    if not isinstance(names, dict):
        return list(names)
    if missing := [number for number in range(len(names)) if str(number) not in names]:
        raise InvalidValue(f"names has no entry {missing[0]}; expected the numbers 0 to {len(names) - 1}")
    numbered = [names[str(number)] for number in range(len(names))]
    return [entry if isinstance(entry, str) else entry[-1] for entry in numbered]
