"""Names of classes: from a model's metadata or from a file of labels, and how those of a dataset correspond to a model's."""

from __future__ import annotations

import ast
import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from cnet_deploy.errors import InputRefused
from cnet_deploy.files import read_bytes
from cnet_deploy.files.strict_json import InvalidValue, convert, parse_json, shown

MAX_BYTES = 8 << 20
MAX_PYTHON = 1 << 20  # characters of a Python text; ImageNet's 1,000 classes have 30,000
MAX_LENGTH = 200
NAMED = 5  # names that a message lists
ClassName = Annotated[str, Meta(min_length=1, max_length=MAX_LENGTH, description=f"a name of 1 to {MAX_LENGTH} characters")]
ClassNames = Annotated[tuple[ClassName, ...], Meta(min_length=1, description="a list of names, at least one")]
# By number, as ImageNet's index has them: "0": ["n01440764", "tench"].
_Numbered = dict[str, ClassName | Annotated[list[ClassName], Meta(min_length=1, description="a list that ends in one")]]
_FORMS = (
    "labels are a text with one name a line, or JSON (or a Python dictionary's text): a list of names, names by number, or numbers by name"
)
_KEYS = ("id2label", "label2id", "class_to_idx", "classes", "class_names", "names", "labels")  # of objects that have more than names
# A Python list or dictionary of texts and numbers: nothing that its parser could take long for, or nest deeply.
_PYTHON = re.compile(r"""(?:\s|[{}\[\](),:]|\d{1,9}(?!\w)|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")*""")


def read_labels(path: Path | str, classes: int) -> tuple[str, ...]:
    """The names of ``classes`` classes, in order: one a line, or in JSON or a Python dictionary's text any form that ``names_of`` knows,
    by itself or in an object such as a config.json (``id2label``). Raises InputRefused for another number of names, for numbers that are
    missing or stand twice, and for a file of another form.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip()[:1] in ("[", "{"):
            return checked_labels(_in_order(_named(_parsed(text))), classes, "names")
        return checked_labels([line.strip() for line in text.strip().splitlines()], classes, "names")
    except UnicodeDecodeError:
        raise InputRefused(f"{path}: it is no text in UTF-8; {_FORMS}") from None
    except InvalidValue as error:
        raise InputRefused(f"{path}: {error}; {_FORMS}") from None


def names_of(value: object, classes: int) -> tuple[str, ...] | None:
    """The names of ``classes`` classes, in order, from a list of names, a mapping from names to numbers (``class_to_idx``), or a mapping
    from numbers to names (or to lists that end in one, as ImageNet's index has them). None where the value does not name these classes.
    """
    with contextlib.suppress(InvalidValue):
        if isinstance(value, (list, tuple, Mapping)):
            return checked_labels(_in_order(value), classes)
    return None


def checked_labels(names: object, classes: int, place: str = "class_names") -> tuple[str, ...]:
    """The names, if they are one for each class; ``place`` is their place in the file. Raises InvalidValue where they are not."""
    checked: tuple[str, ...] = convert(names, ClassNames, place)
    if len(checked) != classes:
        raise InvalidValue(f"it has {len(checked)} class names; expected {classes}, as many as the network has classes")
    return checked


def _parsed(text: str) -> Any:
    """The value of JSON; or of a Python text of literals, which is parsed and not executed."""
    try:
        return parse_json(text)
    except InvalidValue as error:
        if len(text) > MAX_PYTHON or not str(error).startswith("it is no JSON") or not _PYTHON.fullmatch(text) or _depth(text) > 3:
            raise
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of backslashes in names
                parsed = ast.parse(text.strip(), mode="eval").body
            value = ast.literal_eval(parsed)
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            raise error from None
    if isinstance(parsed, ast.Dict) and len(value) < len(parsed.keys):
        raise InvalidValue("it has a dictionary with two entries of one key")
    return value


def _depth(text: str) -> int:
    """The deepest nesting of brackets. Those within texts count too, which few names have."""
    deepest = depth = 0
    for bracket in re.findall(r"[{}\[\]()]", re.sub(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""", "", text)):
        depth += 1 if bracket in "{[(" else -1
        deepest = max(deepest, depth)
    return deepest


def _named(value: Any) -> Any:
    """The names in an object that has more than names, such as a config.json; else the value itself."""
    if isinstance(value, dict):
        return next((value[key] for key in _KEYS if isinstance(value.get(key), (dict, list)) and value[key]), value)
    return value


def _in_order(value: Any) -> list[str] | tuple[str, ...]:
    if not isinstance(value, Mapping):
        names: tuple[str, ...] = convert(list(value) if isinstance(value, tuple) else value, ClassNames, "names")
        return names
    if value and all(type(number) is int for number in value.values()):
        return _by_number(value)
    keyed = {str(key) if type(key) is int else key: entry for key, entry in value.items()}
    by_number: dict[str, str | list[str]] = convert(keyed, _Numbered, "names")
    if missing := [number for number in range(len(by_number)) if str(number) not in by_number]:
        raise InvalidValue(f"names has no entry {missing[0]}; expected the numbers 0 to {len(by_number) - 1}")
    numbered = [by_number[str(number)] for number in range(len(by_number))]
    return [entry if isinstance(entry, str) else entry[-1] for entry in numbered]


def _by_number(numbers: Mapping[Any, int]) -> list[str]:
    """The names of a mapping from names to numbers, in the order of the numbers."""
    names: dict[int, str] = {}
    for name, number in numbers.items():
        if number in names:
            raise InvalidValue(f"{shown(names[number])} and {shown(name)} both have the number {number}; expected one name for each")
        if not 0 <= number < len(numbers):
            raise InvalidValue(f"{shown(name)} has the number {shown(number)}; expected the numbers 0 to {len(numbers) - 1}")
        names[number] = name
    return [names[number] for number in range(len(names))]


# ---- a dataset's classes and a model's ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    """How a dataset's classes correspond to a model's: ``order[i]`` is the model's class for the dataset's class i; None: the same number.

    ``how`` says by what they were matched, ``problem`` why it was not by name where both have names.
    """

    how: str
    order: tuple[int, ...] | None = None
    problem: str | None = None


def match_classes(model: Sequence[str], dataset: Sequence[str], otherwise: str) -> Matching:
    """Match the names of a dataset's classes with those of a model, ignoring case, spaces, ``_`` and ``-``.

    Without names, or where they are not the same set, class i is class i, and ``otherwise`` says what that means.

    >>> match_classes(("airplane", "sea lion"), ("Sea_Lion", "airplane"), "by number").order
    (1, 0)
    """
    if not model or not dataset:
        return Matching(otherwise)
    if set(model) == set(dataset) and len(set(model)) == len(model):
        place = {name: number for number, name in enumerate(model)}
        return _ordered(tuple(place[name] for name in dataset))
    ours, theirs = ([_normal(name) for name in names] for names in (model, dataset))
    for whose, names, normal in (("model", model, ours), ("dataset", dataset, theirs)):
        if double := next((name for name, count in Counter(normal).items() if count > 1), None):
            first, second, *_ = (name for name, other in zip(names, normal, strict=True) if other == double)
            return Matching(otherwise, problem=f"two classes of the {whose} can't be told apart by name: {first} and {second}")
    if set(ours) != set(theirs):
        here = [name for name, normal in zip(model, ours, strict=True) if normal not in set(theirs)]
        there = [name for name, normal in zip(dataset, theirs, strict=True) if normal not in set(ours)]
        parts = [f"only the {whose} has {_listed(names)}" for whose, names in (("model", here), ("dataset", there)) if names]
        return Matching(otherwise, problem="; ".join(parts))
    place = {name: number for number, name in enumerate(ours)}
    return _ordered(tuple(place[name] for name in theirs))


def _ordered(order: tuple[int, ...]) -> Matching:
    return Matching("by name", None if order == tuple(range(len(order))) else order)


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
