"""What an output may take the place of: a file of its own kind, an empty one, or any where the user says so (`--force`)."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.files import kinds

_anything: ContextVar[bool] = ContextVar("replacing_anything", default=False)
_MOST = 4 << 20  # bytes of a JSON file in which its format's name is looked for
# Every record of this package names its format in an entry; those that people give a name of their own are told apart.
_FORMAT = re.compile(rb'"(cnet_deploy_[a-z]+)"\s*:\s*\d')
_RECORDS = {
    "cnet_deploy_manifest": "a manifest of `export`",
    "cnet_deploy_bench": "results of `bench`",
    "cnet_deploy_compare": "a comparison of `compare`",
    "cnet_deploy_gate": "a verdict of `gate`",
    "cnet_deploy_lowering": "a measurement of `export --form auto`",
}
_PAGES = ("unknown", kinds.TEXT.name, kinds.WEB_PAGE.name, kinds.XML.name)  # what text can be added to: Markdown may begin with tags


@dataclass(frozen=True)
class Sort:
    """Files that may replace each other, and what to call one of them."""

    key: str
    name: str


@contextlib.contextmanager
def replacing_anything() -> Iterator[None]:
    """In the block, outputs replace files of any kind, as with `--force` on the command line."""
    before = _anything.set(True)
    try:
        yield
    finally:
        _anything.reset(before)


def require_replaceable(target: Path, output: Path) -> None:
    """Raise OutputRefused if ``target`` is a file of another kind than ``output``, which is about to take its place.

    A missing file, an empty one and a link may be replaced: with a link, no content is lost.
    """
    if _anything.get() or target.is_symlink() or (there := sort_of(target)) is None or (new := sort_of(output)) is None:
        return
    if there.key != new.key:
        raise _refused(target, there, new.name)


def require_like(target: Path, like: str) -> None:
    """``require_replaceable`` before the output exists: ``like`` is the key of its sort (see ``key_of``)."""
    if not _anything.get() and like and not target.is_symlink() and (there := sort_of(target)) and there.key != like:
        raise _refused(target, there, kinds.EXPECTED.get(like) or _RECORDS.get(like.removeprefix("JSON "), like.partition(" of ")[0]))


def require_appendable(page: Path) -> None:
    """Raise OutputRefused if text can't be added to the end of ``page`` without damaging it: a model, a picture, a record in JSON.

    A missing file, an empty one and any text may be added to, also one of a kind that is not known. A link is followed, as `append` does.
    """
    there = sort_of(page)
    if there is None or there.key in _PAGES or (there.key == "JSON " and page.suffix != ".json"):  # Markdown may begin as JSON does
        return
    raise OutputRefused(f"{page}: is {there.name}, which text at its end would damage; expected a Markdown file, or the name of a new one")


def key_of(format: str, column: str = "") -> str:
    """The key of the sort of an output: of what is opened as "checkpoint", "onnx" … (see Kind), of a record by its format's name, or of
    "html", "svg", "csv" (with its first ``column``) and "markdown".
    """
    texts = {"html": kinds.WEB_PAGE.name, "svg": kinds.SVG.name, "markdown": kinds.TEXT.name, "csv": f"a table of {column}"}
    return texts.get(format) or (f"JSON {format}" if format in _RECORDS else format)


def sort_of(path: Path) -> Sort | None:
    """The sort of a file; None where there is none, or where it has no content."""
    try:
        if not path.is_file() or not path.stat().st_size:
            return None
        kind = kinds.kind_of_file(path)
        if kind is None:
            return Sort("unknown", "a file of a kind that is not known here")
        if kind is kinds.JSON:
            with path.open("rb") as file:
                found = _FORMAT.search(file.read(_MOST))
            record = found[1].decode() if found else ""
            return Sort(f"JSON {record}", _RECORDS.get(record, kind.name))
        if kind is kinds.TEXT and path.suffix == ".csv":
            with path.open("rb") as file:
                first = file.readline(kinds.HEAD).split(b",")[0].strip()
            return Sort(f"a table of {first.decode(errors='replace')}", "a table of other columns")
    except OSError as error:
        raise InputRefused(f"{path}: can't be read: {error.strerror}") from None
    return Sort(kind.opened_by or kind.name, kind.name)


def _refused(target: Path, there: Sort, new: str) -> OutputRefused:
    return OutputRefused(
        f"{target}: is {there.name}, which would be replaced by {new if new != there.name else 'another'}; give another name, or --force "
        "(in Python: with cnet_deploy.files.replacing.replacing_anything())"
    )
