"""JSON files: strict reading into typed values, and writing.

Nothing in a file is taken on trust: neither its depth, nor the size of a number, nor the type of an entry. The types are dataclasses and
TypedDicts; their fields may carry bounds, such as those below. What does not fit is described by its place, by what was found there and by
what was expected: ``rows[3].cells[0].cell.threads is "two"; expected a whole number from 1``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

import msgspec
from msgspec import Meta

from cnet_deploy.errors import MAX_LENGTH, InputRefused, printable
from cnet_deploy.text import whole_text

MAX_DEPTH = 32
_HALVES = re.compile("\\\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # of surrogate pairs, or whole ones as escapes
MAX_SECONDS = 1_000_000
_MOST = 1 << 62
_LARGEST = sys.float_info.max
T = TypeVar("T")

Whole = Annotated[int, Meta(ge=0, lt=_MOST, description="a whole number from 0")]
Count = Annotated[int, Meta(ge=1, lt=_MOST, description="a whole number from 1")]
Amount = Annotated[float, Meta(ge=0, lt=_MOST, description="a number from 0")]
Finite = Annotated[float, Meta(ge=-_LARGEST, le=_LARGEST, description="a finite number")]
Few = Annotated[int, Meta(ge=1, lt=1 << 16, description="a whole number from 1 to 65535")]
Positive = Annotated[float, Meta(gt=0, le=_LARGEST, description="a number over 0")]
Percent = Annotated[float, Meta(ge=0, le=100, description="a number from 0 to 100")]
Seconds = Annotated[float, Meta(ge=1e-9, lt=MAX_SECONDS, description=f"seconds, from a nanosecond to {MAX_SECONDS}")]
Samples = Annotated[list[Seconds], Meta(min_length=1, description="a list of seconds, at least one")]


class InvalidValue(InputRefused):
    """A value that is not what its format asks for. The message begins with the value's place."""


class OtherFormat(InputRefused):
    """A file of another kind or version. The message is a predicate."""


# ---- reading -----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(name: object, remedy: str = "") -> Iterator[None]:
    """Make whole sentences of what the block refuses: ``NAME is damaged: PLACE is …; expected …; REMEDY``."""
    then = f"; {remedy}" if remedy else ""
    try:
        yield
    except InvalidValue as error:
        raise InputRefused(f"{name} is damaged: {error}{then}") from None
    except OtherFormat as error:
        raise InputRefused(f"{name} {error}{then}") from None


def parse_json(data: str | bytes, place: str = "") -> Any:
    """The value of a JSON text, in UTF-8 where it is bytes. ``place`` is where the text stands, for the message.

    Halves of surrogate pairs become what ``text.whole_text`` makes of them, so that what is written again is the same.

    >>> parse_json('{"a": [1, 2]}')
    {'a': [1, 2]}

    Raises InvalidValue for what is no JSON, for names that stand twice in an object, for NaN and infinities, and for a depth of more than
    ``MAX_DEPTH`` lists and objects.
    """
    it = place or "it"
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_doubles)
    except UnicodeDecodeError:
        raise InvalidValue(f"{it} is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidValue(f"{it} is no JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise InvalidValue(f"{it} nests more than {MAX_DEPTH} lists and objects") from None
    except ValueError:  # Python reads 4300 digits at most, since the time that takes grows with their square
        raise InvalidValue(f"{it} has a number of too many digits") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        if not all(math.isfinite(entry) for entry in level if isinstance(entry, float)):
            raise InvalidValue(f"{it} has a number that is too large")
        level = [
            inner
            for entry in level
            if isinstance(entry, (dict, list))
            for inner in (entry.values() if isinstance(entry, dict) else entry)
        ]  # fmt: skip
        if not level:
            return whole_text(value) if _HALVES.search(text) else value
    raise InvalidValue(f"{it} nests more than {MAX_DEPTH} lists and objects")


def of_version(values: object, key: str, version: int) -> dict[str, Any]:
    """The entries of a parsed object, without the entry ``key`` that states its format's version.

    Raises OtherFormat where that entry is missing or states another version.
    """
    if not isinstance(values, Mapping) or key not in values:
        raise OtherFormat(f"is of another kind: it has no {key}; expected {key} {version}")
    stated = values[key]
    if type(stated) is not int or stated != version:
        raise OtherFormat(f"is of another version: {key} is {shown(stated)}; expected {version}")
    return {name: value for name, value in values.items() if name != key}


@overload
def convert(value: Any, kind: type[T], place: str = "") -> T: ...
@overload
def convert(value: Any, kind: Any, place: str = "") -> Any: ...
def convert(value: Any, kind: Any, place: str = "") -> Any:
    """A parsed value as ``kind``: a dataclass, a TypedDict, or an annotation. ``place`` is where the value stands, for the message.

    Lists become tuples and whole numbers become floats where ``kind`` asks for that; nothing else is changed. Entries that a dataclass does
    not know are left out, or refused where it is ``closed``; a TypedDict is always closed. Raises InvalidValue for what does not fit.
    """
    try:
        made = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidValue(_fault(str(error), value, kind, place)) from None
    except UnicodeEncodeError:  # half of a surrogate pair, in the name of an entry
        raise InvalidValue(f"{place or 'it'} has a name that is no Unicode") from None
    _refuse_unknown(made, value, place)
    return made


def closed(kind: type[T]) -> type[T]:
    """Make ``convert`` refuse entries that a dataclass does not know."""
    _CLOSED.add(kind)
    return kind


def coerce_fields(made: Any, place: str = "") -> None:
    """Convert the fields of a dataclass to their declared types, as if they had been read. Raises InvalidValue.

    For ``__post_init__`` of a frozen dataclass that Python code makes too.
    """
    for name, kind in _hints(made.__class__).items():
        object.__setattr__(made, name, convert(getattr(made, name), kind, _entry(place, name)))


def check_printable(value: Any, place: str) -> None:
    """Refuse a value with text in it that is too long for a line or that steers a terminal. Raises InvalidValue."""
    if isinstance(value, str):
        if printable(value) != value:
            raise InvalidValue(f"{place} is {shown(value)}; expected printable text of at most {MAX_LENGTH} characters")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_printable(key, f"a name in {place}")
            check_printable(inner, _entry(place, key))
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            check_printable(inner, f"{place}[{number}]")


def one_of(names: Iterable[str]) -> Meta:
    """The bound of a text that is one of ``names``: ``Annotated[str, one_of(DEVICES)]``."""
    names = list(names)
    return Meta(pattern=rf"\A(?:{'|'.join(map(re.escape, names))})\Z", description=f"one of {', '.join(names)}")


def shown(value: Any) -> str:
    """A value in a few words, for a message: as the file has it where it is short."""
    if isinstance(value, Mapping):
        return "an object" if value else "an empty object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, int) and abs(value) >= _MOST:
        return f"a number of {value.bit_length()} bits"
    try:
        return printable(json.dumps(value, ensure_ascii=False), 60)
    except (TypeError, ValueError):
        return "something that JSON does not have"


def to_json(value: Any, *, indent: int | None = None, sort_keys: bool = False, compact: bool = False) -> str:
    """The text of a value that ``parse_json`` reads back, and stricter readers too: see ``text.whole_text``. ``compact``: without spaces,
    and in UTF-8."""
    separators = (",", ":") if compact else None
    text = json.dumps(value, sort_keys=sort_keys, allow_nan=False, separators=separators, ensure_ascii=False)
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        value = whole_text(value)
        text = json.dumps(value, sort_keys=sort_keys, allow_nan=False, separators=separators, ensure_ascii=False)
    if not compact and not text.isascii():
        text = json.dumps(value, sort_keys=sort_keys, allow_nan=False)
    return msgspec.json.format(text, indent=indent) if indent is not None else text  # json's own takes ten times as long


# ---- what is wrong, and where ------------------------------------------------------------------------------------------------------

_CLOSED: set[type] = set()
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", NoneType: "null", list: "a list"}
_STEP = r"\.(\w+)|\[(\d+|\.\.\.)\]"
_MISSING = r"Object missing required field `(\w+)`"


def _refuse_constant(constant: str) -> Any:
    raise InvalidValue(f"it has {constant}, which is no number of JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    pairs = [(whole_text(name), value) for name, value in pairs]
    made = dict(pairs)
    if len(made) < len(pairs):
        name, _ = (Counter(name for name, _ in pairs) - Counter(made.keys())).popitem()
        raise InvalidValue(f"it has an object with two entries {shown(name)}")
    return made


def _refuse_unknown(made: Any, value: Any, place: str) -> None:
    """Compare a value with what was made of it: what is left out was unknown."""
    if made is value:
        return
    if isinstance(value, Mapping) and (isinstance(made, dict) or dataclasses.is_dataclass(made)):
        known = made if isinstance(made, dict) else {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        for key, inner in value.items():
            if key in known:
                _refuse_unknown(known[key], inner, _entry(place, key))
            elif isinstance(made, dict) or type(made) in _CLOSED:
                raise InvalidValue(f"{place or 'it'} has an unknown entry {shown(key)}; expected {', '.join(known)}")
    elif isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, dict)):
        for number, (part, inner) in enumerate(zip(made, value, strict=True)):
            _refuse_unknown(part, inner, f"{place}[{number}]")


def _fault(reason: str, value: Any, kind: Any, place: str) -> str:
    """The sentence for a value that msgspec refused; of its own message, the path alone is used (``… - at `$.rows[0].label```)."""
    _, _, path = reason.rpartition(" - at `")
    for name, index in re.findall(_STEP, path):
        inner = _inside(value, kind, name or index, place)
        if inner is None:
            break
        value, kind, place = inner
    it = place or "it"
    if missing := re.match(_MISSING, reason):
        return f"{it} has no {missing[1]}"
    return f"{it} is {shown(value)}; expected {_described(kind)}"


def _inside(value: Any, kind: Any, step: str, place: str) -> tuple[Any, Any, str] | None:
    """What stands one step further: the value, the type that it should have, and its place; None where there is nothing like that.

    ``step`` is the name of a field, a number in a list, or "..." for some entry of a mapping: there, the first that does not fit.
    """
    for one in map(_bare, _alternatives(kind)):
        origin, arguments = get_origin(one) or one, get_args(one)
        if isinstance(value, Mapping) and origin in (dict, Mapping) and step == "...":
            for key, inner in value.items():
                try:
                    msgspec.convert(inner, arguments[1])
                except (msgspec.ValidationError, UnicodeEncodeError):
                    return inner, arguments[1], f"{place}[{shown(key)}]"
        elif isinstance(value, (list, tuple)) and origin in (list, tuple) and step.isdigit():
            if int(step) < len(value):
                each = arguments[int(step)] if origin is tuple and arguments[-1] is not ... else arguments[0]
                return value[int(step)], each, f"{place}[{step}]"
        elif isinstance(value, Mapping) and step in value and isinstance(origin, type) and step in getattr(origin, "__annotations__", ()):
            return value[step], _hints(origin)[step], _entry(place, step)
    return None


def _described(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Annotated:
        words = [meta.description for meta in get_args(kind)[1:] if isinstance(meta, Meta) and meta.description]
        return words[0] if words else _described(_bare(kind))
    if len(several := _alternatives(kind)) > 1:
        return " or ".join(map(_described, several))
    if get_origin(kind) is Literal:
        return f"{'one of ' if len(get_args(kind)) > 1 else ''}{', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple:
        return "a list" if get_args(kind)[-1] is ... else f"a list of {len(get_args(kind))}"
    return _NAMES.get(get_origin(kind) or kind, "an object")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type alone."""
    bare = _bare(kind)
    return get_args(bare) if get_origin(bare) in (Union, UnionType) else (kind,)


def _bare(kind: Any) -> Any:
    """A type without its bounds."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _entry(place: str, name: object) -> str:
    return f"{place}.{name}" if place else f"{name}"
