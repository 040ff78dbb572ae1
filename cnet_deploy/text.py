"""Foreign text on its way to where it is shown: names of files, labels, errors of libraries, fields of a file.

Whatever is printed or written into a report goes through ``shown``, or as a whole line through ``write_lines``. Both make one printable
line of it, so that no name can end a line, control a terminal, or become markup of the page that it stands in.
"""

from __future__ import annotations

import contextlib
import enum
import html
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

MAX_LENGTH = 900
LINE_LENGTH = 4000  # of a whole line of output, which may name several files

# Characters that Python calls printable and that nobody sees: Unicode's Default_Ignorable_Code_Point, and the empty braille cell.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


class Where(enum.Enum):
    """Where a text is shown, which decides what must be escaped in it."""

    TERMINAL = "a line on a terminal"
    LOG = "a line of a log"
    RICH = "a cell or a bar of rich, whose markup is off"
    SVG = "a text of a drawing, whose writer escapes XML"
    GITHUB = "the message of a workflow command of GitHub"
    MARKDOWN = "a paragraph, list or table of Markdown"
    CODE = "words between backticks of Markdown"
    HTML = "a text or an attribute of HTML"
    CSV = "a cell of comma-separated values"


def printable(text: object, length: int = MAX_LENGTH) -> str:
    """The text as one line that is safe to print: control characters, marks of direction and what can't be seen are escaped; shortened in
    the middle if it is too long. Bytes of a file's name that are no UTF-8 are shown as such.

    >>> printable("a\\x1b[31m\\n"), printable("m\\udcff.onnx")
    ('a\\\\x1b[31m\\\\n', 'm\\\\xff.onnx')
    """
    line = str(text)[: length * 20]
    if not line.isprintable() or _INVISIBLE.search(line):
        line = "".join(_visible(c) for c in line)
    return line if len(line) <= length else f"{line[: length * 2 // 3]} … {line[-length // 4 :]}"


def _visible(c: str) -> str:
    if c.isprintable() and not _INVISIBLE.match(c):
        return c
    if "\udc80" <= c <= "\udcff":  # how Python holds a byte of a name that it can't decode
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()


def shown(text: object, where: Where, length: int = MAX_LENGTH) -> str:
    """A foreign text as it may stand at ``where``: ``printable``, and without meaning for what reads it there.

    >>> shown("=1+1", Where.CSV), shown("<b>", Where.HTML), shown("a|*b*", Where.MARKDOWN)
    ("'=1+1", '&lt;b&gt;', 'a\\\\|\\\\*b\\\\*')
    """
    return _ESCAPES[where](printable(text, length))


def _plain(line: str) -> str:
    return line


def _no_command(line: str) -> str:
    """A line that GitHub's runner does not take for a command: ``::`` at its start, or ``##[`` anywhere."""
    line = line.replace("##[", "#\\x23[")
    start = len(line) - len(line.lstrip())
    return f"{line[:start]}\\x3a{line[start + 1 :]}" if line.startswith("::", start) else line


def _of_markdown(line: str) -> str:
    line = html.escape(line, quote=False)
    line = re.sub(r"([\\`*_{}\[\]|~$!])", r"\\\1", line)
    line = re.sub(r"^(\s*)([-+=#]|\d+(?=[.)](\s|$)))", lambda m: f"{m[1]}{m[2]}\\" if m[2].isdigit() else f"{m[1]}\\{m[2]}", line)
    # What would become a link, a mention or an emoji of its own accord is broken by a comment.
    line = re.sub(r"(?i)(?<=[a-z]:)(?=//)|(?<=\bwww)(?=\.)|(?<=@)(?=\w)|(?<=:)(?=[\w+-]+:)|(?<=#)(?=\d)|\b(?<=GH)(?=-\d)", "<!-- -->", line)
    return line


def _of_code(line: str) -> str:
    return line.replace("`", "'")


def _of_github(line: str) -> str:
    return line.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _of_csv(line: str) -> str:
    """A spreadsheet takes what begins with these, or with their wide forms, for a formula; the apostrophe makes it text."""
    return f"'{line}" if line.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") else line


_ESCAPES: dict[Where, Callable[[str], str]] = {
    Where.TERMINAL: _plain,
    Where.LOG: _plain,
    Where.RICH: _no_command,
    Where.SVG: _plain,
    Where.GITHUB: _of_github,
    Where.MARKDOWN: _of_markdown,
    Where.CODE: _of_code,
    Where.HTML: html.escape,
    Where.CSV: _of_csv,
}


def whole_text(value: Any) -> Any:
    r"""A value for JSON whose texts have no half of a surrogate pair, which strict readers refuse: it is shown as in ``printable``.

    >>> whole_text("m\udcff") == r"m\xff"
    True
    """
    if isinstance(value, str):
        return value if value.isascii() else "".join(_visible(c) if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, Mapping):
        return {whole_text(key): whole_text(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [whole_text(entry) for entry in value]
    return value


def strict_json(value: object, indent: int | None = 2) -> str:
    """JSON that strict readers take: see ``whole_text``; numbers that are not finite are null.

    >>> strict_json({"a": [float("nan"), 1.5]}, None)
    '{"a": [null, 1.5]}'
    """
    return json.dumps(_finite(whole_text(value)), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value


class StreamFailed(Exception):
    """Standard output can't be written to; the message is the system's."""


class ReaderLeft(StreamFailed):
    """Who read standard output has closed it, as ``head -1`` does."""


def write_lines(*lines: object, error: bool = False, length: int = LINE_LENGTH) -> None:
    """Write lines on standard output, or with ``error`` on standard error; each becomes one printable line.

    Raises ReaderLeft or StreamFailed for standard output alone: nothing is lost where a note can't be shown.
    """
    write_block(*(printable(line, length) for line in lines), error=error)


def write_json(value: object) -> None:
    """Write JSON on standard output. Raises as ``write_lines`` does."""
    write_block(strict_json(value).replace("##[", "#\\u0023["))


def write_block(*texts: str, error: bool = False, command: str = "") -> None:
    """Write texts of our own making, whose foreign parts went through ``shown``; they may have several lines, and colours.

    ``command`` is a workflow command of GitHub that stands in a line behind them; no other line is taken for one. Raises as
    ``write_lines`` does.
    """
    written = "".join(f"{text}\n" for text in texts)
    if "::" in written or "##[" in written:  # seldom, and a text may have half a million lines
        written = "\n".join(map(_no_command, written.split("\n")))
    _write(f"{written}{command}\n" if command else written, sys.stderr if error else sys.stdout, error)


def _write(text: str, stream: IO[str] | None, error: bool) -> None:
    if stream is None or stream.closed:  # Python's, where the descriptor was closed before the start
        return
    try:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError as problem:
        if error:
            return
        # What is left in the buffer would fail again at the end of the process.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise (ReaderLeft if isinstance(problem, BrokenPipeError) else StreamFailed)(problem.strerror or str(problem)) from None


def take_any_text(*streams: IO[str] | None) -> None:
    """Let streams escape what their encoding lacks, instead of failing: for what others write, as a command's help."""
    for stream in streams:
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
