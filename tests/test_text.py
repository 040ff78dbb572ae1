"""Any text comes out as one harmless line, wherever it is shown and whatever the stream can write."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import hypothesis
import hypothesis.strategies as some
import msgspec
import pytest
from rich.console import Console
from rich.table import Table

from cnet_deploy import errors
from cnet_deploy.text import (
    LINE_LENGTH,
    ReaderLeft,
    StreamFailed,
    Where,
    printable,
    shown,
    strict_json,
    take_any_text,
    whole_text,
    write_block,
    write_json,
    write_lines,
)
from tests.cases import examples

FULL_WIDTH = "\uff1d\uff0b\uff0d\uff20"  # = + - @, which some spreadsheets take for those
HOSTILE = [
    "a\n::error::b", "::stop-commands::x", " \t::set-env name=A::b", "a ##[error]b", "##[add-mask]a", "%0A::error::b",
    "\x1b]0;title\x07", "\x1b[2J\x1b[31m", "\0", "\r", "v[/x].onnx", "[bold red]a[/]", "run:x:.onnx",
    "<script>alert(1)</script>", "<img src=x onerror=y>", "]]>", "&amp;", "=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", f"{FULL_WIDTH[0]}1",
    "m\udcff.onnx", "\ud800", "a\u202eb", "\u200fa\u200b", "\u3164", "a\u2028b\u2029c\x85d", "\ufeff",
    "a|b", "`a` ``b``", "![x](http://e.com/i.png)", "[a](javascript:b)", "www.example.com", "http://example.com", "@someone",
    "# a", "1. a", "- a", "a\\", "$x$", "~~a~~", "x" * 5000,
]  # fmt: skip
JOINED = some.lists(some.sampled_from(HOSTILE), max_size=3).map("".join)
TEXTS = some.one_of(some.sampled_from(HOSTILE), some.text(some.characters()), JOINED)
TREES = some.recursive(TEXTS | some.floats(), lambda inner: some.lists(inner) | some.dictionaries(TEXTS, inner), max_leaves=6)
UNSEEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def invisible(text: str) -> list[str]:
    """Characters that end a line, control something, or can't be seen."""
    return [c for c in text if unicodedata.category(c) in UNSEEN or c in "\u3164\u115f\ufe0f\u034f\u2800"]


class TestShown:
    @examples(300)
    @hypothesis.given(TEXTS, some.sampled_from(Where))
    def test_one_short_line_that_can_be_seen(self, text: str, where: Where) -> None:
        line = shown(text, where)
        assert not invisible(line) and line.isprintable()
        assert len(printable(text)) <= 900

    def test_names_that_are_no_utf8_show_their_bytes(self) -> None:
        assert shown(Path("m\udcff\udc80.onnx"), Where.TERMINAL) == "m\\xff\\x80.onnx"
        assert errors.printable is printable

    def test_what_everybody_writes_stays_as_it_is(self) -> None:
        for text in ("model.onnx", "CondenseNet-74 (G=C=4)", "Öl ± 3 % … 日本語", "a/b c-d_e", "it's 5 < 6"):
            assert shown(text, Where.TERMINAL) == text

    @examples(100)
    @hypothesis.given(TEXTS)
    def test_html(self, text: str) -> None:
        line = shown(text, Where.HTML)
        assert not re.search(r"""[<>"']""", line) and html.unescape(line) == printable(text)

    @examples(100)
    @hypothesis.given(TEXTS)
    def test_svg_and_xml(self, text: str) -> None:
        element = Xml.Element("text")
        element.text = shown(text, Where.SVG)
        assert Xml.fromstring(Xml.tostring(element, encoding="unicode")).text in (element.text, element.text or None)

    @examples(100)
    @hypothesis.given(TEXTS)
    def test_csv(self, text: str) -> None:
        out = io.StringIO()
        csv.writer(out).writerow([shown(text, Where.CSV), "next"])
        ((cell, after),) = csv.reader(io.StringIO(out.getvalue()))
        assert after == "next" and cell.lstrip()[:1] not in tuple("=+-@" + FULL_WIDTH)
        assert cell.removeprefix("'") == printable(text).removeprefix("'")

    @examples(100)
    @hypothesis.given(TEXTS)
    def test_markdown(self, text: str) -> None:
        line = shown(text, Where.MARKDOWN).replace("<!-- -->", "")
        assert not re.search(r"[<>]", line)
        plain = re.sub(r"\\[\\`*_{}\[\]|~$!#+=.)-]", "x", line)
        assert not re.search(r"[`*_\[\]|~$\\]", plain) and not re.match(r"\s*([-+=#]|\d+[.)]\s)", plain)
        assert not re.search(r"(?i)[a-z]://|\bwww\.|@\w", shown(text, Where.MARKDOWN))

    def test_words_between_backticks(self) -> None:
        assert "`" not in shown("a`b``", Where.CODE)

    @examples(100)
    @hypothesis.given(TEXTS)
    def test_the_message_of_an_annotation(self, text: str) -> None:
        line = shown(text, Where.GITHUB)
        assert line.replace("%25", "%") == printable(text).replace("%25", "%") or "%25" in printable(text)
        assert not re.search("%(?!25)", line)

    @examples(50)
    @hypothesis.given(TEXTS)
    def test_a_cell_of_a_table(self, text: str) -> None:
        console = Console(markup=False, emoji=False, width=20_000, file=io.StringIO())
        table = Table("head", title="title")
        table.add_row(shown(text, Where.RICH))
        with console.capture() as out:
            console.print(table)
        assert shown(text, Where.RICH).strip() in out.get()


class Stream(io.TextIOWrapper):
    """A standard stream of an encoding, and what was written to it."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding, "strict", newline="\n")

    def lines(self) -> list[str]:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue().decode(self.encoding).split("\n")[:-1]


@pytest.fixture(params=["utf-8", "latin-1", "ascii"])
def streams(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def commands(lines: list[str]) -> list[str]:
    """Those that GitHub's runner takes for a command."""
    return [line for line in lines if line.lstrip().startswith("::") or "##[" in line]


class TestWritten:
    @examples(100)
    @hypothesis.given(some.lists(TEXTS, min_size=1, max_size=4), some.sampled_from(["utf-8", "latin-1", "ascii"]), some.booleans())
    def test_lines(self, texts: list[str], encoding: str, error: bool) -> None:
        stream = Stream(encoding)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stderr" if error else "stdout", stream)
            write_lines(*texts, error=error)
            write_block(*(shown(text, Where.LOG) for text in texts), error=error)
        lines = stream.lines()
        assert len(lines) == 2 * len(texts) and not commands(lines) and not any(map(invisible, lines))
        assert all(len(line) <= 20 * LINE_LENGTH for line in lines)

    @examples(100)
    @hypothesis.given(TEXTS)
    def test_a_command_of_ours_is_the_only_one(self, text: str) -> None:
        stream = Stream("ascii")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            write_block(shown(text, Where.LOG), command=f"::error title=Latency gate::{shown(text, Where.GITHUB)}")
        assert len(commands(stream.lines())) == 1 and stream.lines()[-1].startswith("::error title=Latency gate::")

    @examples(100)
    @hypothesis.given(TREES)
    def test_json_for_strict_readers(self, value: Any) -> None:
        stream = Stream("ascii")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            write_json(value)
        assert not commands(stream.lines())
        text = "\n".join(stream.lines())
        assert json.loads(text) == msgspec.json.decode(text) == json.loads(strict_json(value, None))

    def test_nothing_is_lost_but_halves_of_pairs(self) -> None:
        value = {"a\n": ["😀", "\ud800b", 1, None, True, ("x",)]}
        assert whole_text(value) == {"a\n": ["😀", "\\ud800b", 1, None, True, ["x"]]}

    def test_streams_that_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Full(io.StringIO):
            problem: OSError = OSError(28, "No space left on device")

            def write(self, _: str) -> int:
                raise self.problem

        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, Full())
        write_lines("a note", error=True)
        with pytest.raises(StreamFailed, match="No space left"):
            write_lines("a result")
        Full.problem = BrokenPipeError(32, "Broken pipe")
        with pytest.raises(ReaderLeft):
            write_json({})
        monkeypatch.setattr(sys, "stdout", None)
        write_lines("nobody listens")

    def test_a_stream_that_takes_any_text(self, streams: str) -> None:
        stream = Stream(streams)
        take_any_text(stream, None)
        stream.write("Öl … \udcff\n")
        assert len(stream.lines()) == 1
