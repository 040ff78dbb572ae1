"""The tables of docs/reading.md are the cases of files.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnet_deploy.checkpoints.dialects import DIALECTS
from tests.dialects.files import READ, REFUSED, Case

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"


def table(kind: str, cases: tuple[Case, ...]) -> str:
    """The rows of a table as the page must have them."""
    if kind == "read":
        rows = [f"| {case.title} | {case.origin} | {case.form} |" for case in cases]
        return "\n".join(["| file | from | read as |", "|---|---|---|", *rows])
    rows = [f"| {case.title} | {case.origin} | “{case.says[0]}” |" for case in cases]
    return "\n".join(["| file | from | the message says |", "|---|---|---|", *rows])


@pytest.mark.parametrize(("kind", "cases"), [("read", READ), ("refused", REFUSED)])
def test_the_tables_are_the_cases(kind: str, cases: tuple[Case, ...]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    found = text.partition(f"<!-- {kind} -->\n")[2].partition("\n<!-- end -->")[0]
    assert found == table(kind, cases), f"docs/reading.md should have:\n{table(kind, cases)}"


def test_every_dialect_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for dialect in DIALECTS:
        assert f"| `{dialect.name}` |" in text and dialect.origin in text
