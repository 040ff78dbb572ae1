"""No refusal is in Python's own words.

Every attack's messages are checked: those of the package's errors in the test's process by the fixture ``plain_words``, those of other
processes where they are read (``helpers.one_line``). Here it is shown that the check finds what it looks for, and that exceptions of
libraries are put into words.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.errors import CnetDeployError, InputRefused, in_words
from cnet_deploy.files.strict_json import convert, parse_json, reading

from .helpers import one_line
from .words import require_plain

WORDS_OF_PYTHON = [
    "cannot identify image file <_io.BytesIO object at 0x7f00>",
    f"cannot identify image file {io.BytesIO.__name__!r} object",
    "KeyError: '0'",
    "UnicodeDecodeError: 'utf-8' codec can't decode byte 0x82 in position 0",
    "settings are none",
    "its label is None",
    f"input is {int}",
    f"{len!r} is no number",
    "at position 0, opcode b'n' unknown",
    "invalid literal for int() with base 10",
    "'StoredTensor' object has no attribute 'append'",
    "[Errno 2] No such file",
    "is damaged (NoneType)",
]


@pytest.mark.parametrize("message", WORDS_OF_PYTHON, ids=range(len(WORDS_OF_PYTHON)))
def test_the_check_finds_them(message: str) -> None:
    with pytest.raises(AssertionError, match="Python's own words"):
        require_plain(f"/tmp/m.onnx: {message}; get it again")
    with pytest.raises(AssertionError, match="Python's own words"):
        one_line(f"Error: m.onnx: {message}\n")


@pytest.mark.parametrize(
    "message",
    [
        "m.pth: a condensenet has no tensors a.weight; expected its state dict alone",
        "rows[3].label is null; expected text",
        "m.onnx: none of its 3 images can be read",
        "gives float32 [any, any]; expected ['x'], ['y'] or 'b'",
        "its number is nan; expected a finite one",
    ],
)
def test_the_check_leaves_sentences_alone(message: str) -> None:
    require_plain(message)


def test_every_message_of_a_test_is_seen(plain_words: list[str], folder: Path) -> None:
    (folder / "m.onnx").write_bytes(b"\0")
    with pytest.raises(InputRefused):
        cd.open_session(folder / "m.onnx")
    assert any(message.startswith(f"{folder / 'm.onnx'}: ") for message in plain_words)
    CnetDeployError("KeyError: 0")
    assert plain_words.pop() == "KeyError: 0"  # taken out, else this test would fail too


def raised(make: Callable[[], object]) -> BaseException:
    try:
        make()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def refuse(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: {}["0"], "a part that it refers to is missing"),
        ([].pop, "it refers to more than it has"),
        (b"\xff".decode, "its text is damaged"),
        (lambda: struct.unpack("<q", b""), "it ends too early"),
        (lambda: int("x"), "its content does not fit together"),
        (lambda: None + 1, "its parts are of the wrong kinds"),  # type: ignore[operator]
        (lambda: Path("/missing/file").read_bytes(), "No such file or directory"),
        (lambda: refuse(ValueError("the archive has no entry a\nmore")), "the archive has no entry a"),
        (lambda: refuse(RuntimeError()), "its content does not fit together"),
    ],
)
def test_exceptions_of_libraries_in_words(make: Callable[[], object], words: str) -> None:
    found = in_words(raised(make))
    assert found == words
    require_plain(found)


@pytest.mark.parametrize("value", [None, [], {"rounds": None}], ids=str)
def test_json_speaks_of_null(value: object) -> None:
    with pytest.raises(InputRefused) as caught, reading("b.json", "measure anew"):
        convert(value, Settings, "settings")
    require_plain(str(caught.value))
    with pytest.raises(InputRefused, match="is no JSON") as caught, reading("b.json"):
        parse_json("{'a': None}")
    require_plain(str(caught.value))
