"""Typed values from JSON: what fits is converted, and what does not is described by its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import (
    MAX_DEPTH,
    Amount,
    Count,
    Finite,
    InvalidValue,
    OtherFormat,
    Samples,
    Seconds,
    Whole,
    check_printable,
    closed,
    coerce_fields,
    convert,
    of_version,
    one_of,
    parse_json,
    reading,
    to_json,
)


class Machine(TypedDict):
    cpu: str
    clocks: list[Amount] | None
    packages: dict[str, str]


@closed
@dataclass(frozen=True)
class Cell:
    threads: Count
    kind: Literal["a", "b"] = "a"
    place: Annotated[str, one_of(("here", "there"))] = "here"


@dataclass(frozen=True)
class Row:
    cells: tuple[Cell, ...]
    rounds: list[Samples]
    size: tuple[Count, Count]
    flops: Whole | None
    fresh: bool = False
    operators: Mapping[str, int] | None = None
    names: str | list[str] = ""


@dataclass(frozen=True)
class Table:
    rows: list[Row]
    machine: Machine
    note: Mapping[str, Any]


def row(**changes: Any) -> dict[str, Any]:
    return {"cells": [{"threads": 1}, {"threads": 2}], "rounds": [[0.5, 1]], "size": [2, 3], "flops": None, **changes}


def table(machine: Any = None, **changes: Any) -> dict[str, Any]:
    values = {"cpu": "x", "clocks": [1], "packages": {"torch": "2"}, **(machine or {})}
    return {"rows": [row(), row(**changes)], "machine": values, "note": {"any": [None, {"x": 1 << 80}]}}


def test_what_fits_is_converted() -> None:
    made = convert(table(), Table)
    assert made.rows[0] == Row((Cell(1), Cell(2)), [[0.5, 1.0]], (2, 3), None) and made.note == {"any": [None, {"x": 1 << 80}]}
    assert made.machine == {"cpu": "x", "clocks": [1.0], "packages": {"torch": "2"}}
    assert convert(table(derived=1, operators={"Conv": 3}), Table).rows[1].operators == {"Conv": 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "it is an empty list; expected an object"),
        (None, "it is null; expected an object"),
        ({}, "it has no rows"),
        (table(cells=[{"threads": 1}, {"threads": "two"}]), 'rows[1].cells[1].threads is "two"; expected a whole number from 1'),
        (table(cells=[{"threads": True}]), "rows[1].cells[0].threads is true; expected a whole number from 1"),
        (table(cells=[{"threads": 1.0}]), "rows[1].cells[0].threads is 1.0; expected a whole number from 1"),
        (table(cells=[{"threads": 0}]), "rows[1].cells[0].threads is 0; expected a whole number from 1"),
        (table(cells=[{"threads": 1 << 70}]), "rows[1].cells[0].threads is a number of 71 bits; expected a whole number from 1"),
        (table(cells=[{"threads": 1, "x\x1b": 1}]), 'rows[1].cells[0] has an unknown entry "x\\u001b"; expected threads, kind, place'),
        (table(cells=[{"threads": 1, "kind": "c"}]), 'rows[1].cells[0].kind is "c"; expected one of a, b'),
        (table(cells=[{"threads": 1, "kind": []}]), "rows[1].cells[0].kind is an empty list; expected one of a, b"),
        (table(cells=[{"threads": 1, "place": "here\n"}]), 'rows[1].cells[0].place is "here\\n"; expected one of here, there'),
        (table(cells=[{}]), "rows[1].cells[0] has no threads"),
        (table(cells={"threads": 1}), "rows[1].cells is an object; expected a list"),
        (table(rounds=[[]]), "rows[1].rounds[0] is an empty list; expected a list of seconds, at least one"),
        (table(rounds=[[1.0], [1.0, -1.0]]), "rows[1].rounds[1][1] is -1.0; expected seconds, from a nanosecond to 1000000"),
        (table(rounds=[[10**400]]), "rows[1].rounds[0][0] is a number of 1329 bits; expected seconds, from a nanosecond to 1000000"),
        (table(rounds=[[float("nan")]]), "rows[1].rounds[0][0] is NaN; expected seconds, from a nanosecond to 1000000"),
        (table(size=[1]), "rows[1].size is a list of 1; expected a list of 2"),
        (table(size=[1, {}]), "rows[1].size[1] is an empty object; expected a whole number from 1"),
        (table(flops="many"), 'rows[1].flops is "many"; expected a whole number from 0 or null'),
        (table(fresh=1), "rows[1].fresh is 1; expected true or false"),
        (table(operators={"Conv": 1, "Relu": "x"}), 'rows[1].operators["Relu"] is "x"; expected a whole number'),
        (table(operators={"\ud800": "x"}), 'rows[1].operators["\\ud800"] is "x"; expected a whole number'),
        (table(names=["a", 1]), "rows[1].names[1] is 1; expected text"),
        (table(names=1), "rows[1].names is 1; expected text or a list"),
        (table(machine={"more": {}}), 'machine has an unknown entry "more"; expected cpu, clocks, packages'),
        (table(machine={"packages": {"torch": None}}), 'machine.packages["torch"] is null; expected text'),
        (table(machine={"clocks": [1, "x" * 100]}), f'machine.clocks[1] is "{"x" * 39} … {"x" * 14}"; expected a number from 0'),
        (table(machine={"\ud800": 1}), "it has a name that is no Unicode"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_described(values: Any, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        convert(values, Table)
    assert str(caught.value) == message


def test_places_begin_where_the_caller_says() -> None:
    for kind, value, message in (
        (Row, row(flops=-1), "table.flops is -1; expected a whole number from 0 or null"),
        (Row, {}, "table has no cells"),
        (Cell, {"threads": 1, "x": 1}, 'table has an unknown entry "x"; expected threads, kind, place'),
        (list[Seconds], [0], "table[0] is 0; expected seconds, from a nanosecond to 1000000"),
        (Finite, "x", 'table is "x"; expected a finite number'),
    ):
        with pytest.raises(InvalidValue) as caught:
            convert(value, kind, "table")
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is no JSON (line 1, column 1: Expecting value)"),
        ('{"a": 1,\n x}', "it is no JSON (line 2, column 2: Expecting property name enclosed in double quotes)"),
        (b"\xff", "it is no text in UTF-8"),
        ("[1]".encode("utf-16"), "it is no text in UTF-8"),
        ('{"a": [NaN]}', "it has NaN, which is no number of JSON"),
        ("-Infinity", "it has -Infinity, which is no number of JSON"),
        ('{"a": [1e999]}', "it has a number that is too large"),
        ("9" * 5000, "it has a number of too many digits"),
        ("[" * 100_000, f"it nests more than {MAX_DEPTH} lists and objects"),
        ("[" * 33 + "]" * 33, f"it nests more than {MAX_DEPTH} lists and objects"),
        ('{"a":' * 32 + "[]" + "}" * 32, f"it nests more than {MAX_DEPTH} lists and objects"),
        ('[{"a": 1, "b": 2, "a": 1}]', 'it has an object with two entries "a"'),
    ],
    ids=range(12),
)
def test_what_is_no_strict_json(text: str | bytes, message: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_json(text)
    assert str(caught.value) == message


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@given(_VALUES)
def test_what_is_written_is_read(value: Any) -> None:
    assert parse_json(to_json(value)) == value == parse_json(to_json(value, indent=1, sort_keys=True).encode())


@given(_VALUES, st.sampled_from(["rows", "machine", "note", "cells", "rounds", "size", "flops", "operators", "names"]))
def test_any_value_anywhere_fits_or_is_described(value: Any, key: str) -> None:
    for values in ({**table(), key: value}, {**table(), "rows": [row(**{key: value})]}, table(machine={key: value, "packages": value})):
        try:
            made = convert(values, Table)
        except InputRefused as error:
            assert str(error).isprintable() and ("; expected " in str(error) or " has no " in str(error))
        else:
            assert isinstance(made, Table)


def test_no_constants_are_written() -> None:
    with pytest.raises(ValueError):
        to_json({"a": float("nan")})


def test_versions() -> None:
    assert of_version({"format": 2, "a": 1}, "format", 2) == {"a": 1}
    for text, message in (
        ('{"format": 1}', "of another version: format is 1; expected 2"),
        ('{"format": true}', "of another version: format is true"),
        ("{}", "of another kind: it has no format; expected format 2"),
        ("[]", "of another kind"),
    ):
        with pytest.raises(OtherFormat, match=message):
            of_version(parse_json(text), "format", 2)


def test_whole_sentences() -> None:
    for text, message in (
        ('{"format": 1}', "a.json is of another version: format is 1; expected 2; make it again"),
        ("{", "a.json is damaged: it is no JSON (line 1, column 2: Expecting property name enclosed in double quotes); make it again"),
    ):
        with pytest.raises(InputRefused) as caught, reading("a.json", "make it again"):
            of_version(parse_json(text), "format", 2)
        assert str(caught.value) == message
    with pytest.raises(InputRefused, match=r"^another$"), reading("a.json", "make it again"):
        raise InputRefused("another")


def test_fields_that_python_code_gave() -> None:
    @dataclass(frozen=True)
    class Point:
        at: tuple[Count, ...]
        weight: Finite = 1.0

        def __post_init__(self) -> None:
            coerce_fields(self)

    Point.__init__.__globals__.update(Count=Count, Finite=Finite)
    made = Point([1, 2], 3)  # type: ignore[arg-type]
    assert made.at == (1, 2) and type(made.weight) is float
    with pytest.raises(InvalidValue, match=r"at\[1\] is 0; expected a whole number from 1"):
        Point((1, 0))


@pytest.mark.parametrize("value", ["\x1b[2J", {"a": ["ok", "\u202e"]}, {"\n": 1}, "x" * 901, "\ud800"])
def test_text_that_can_not_be_printed(value: Any) -> None:
    with pytest.raises(InvalidValue, match="expected printable text of at most 900 characters") as caught:
        check_printable(value, "here")
    assert "here" in str(caught.value)
    check_printable(json.loads('{"a": [1, null, "x"], "é": "ü"}'), "here")


@pytest.mark.parametrize("text", [r'{"a": "\ud800", "\udfff": [{"b": "x\udc00y"}]}', r'["\ud83d\ude00", "é"]'])
def test_halves_of_surrogate_pairs_are_the_same_when_written_again(text: str) -> None:
    value = parse_json(text)
    assert parse_json(to_json(value)) == parse_json(to_json(value, compact=True)) == parse_json(to_json(value, indent=1)) == value
    assert to_json(value).encode()


def test_names_that_would_become_one_are_two_entries() -> None:
    with pytest.raises(InvalidValue, match="two entries"):
        parse_json(r'{"\ud800": 1, "\\ud800": 2}')
