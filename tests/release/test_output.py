"""Whatever is printed goes through ``cnet_deploy/text.py``: nothing else writes on a standard stream, or lets rich read names as markup."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cnet_deploy"
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))

# Who may print or hold a stream, and why; everything else asks ``text.py``.
STREAMS = {
    "text.py": "the writer",
    "cli/console.py": "whether a stream is a terminal; where its output goes once it failed",
    "workflows/doctor.py": "its child answers it in JSON over a pipe",
    "benchmarks/studies/timed.py": "two numbers, for the study that starts it",
}
PRINTING = {"print", "input", "breakpoint", "click.echo", "click.secho", "click.echo_via_pager", "rich.print", "pprint.pprint"}
PRINTING |= {"traceback.print_exc", "traceback.print_exception", "traceback.print_stack", "faulthandler.dump_traceback", "warnings.warn"}
HELD = {"sys.stdout", "sys.stderr", "sys.__stdout__", "sys.__stderr__"}


def name_of(node: ast.AST) -> str:
    """``a.b.c`` of names and attributes; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := name_of(node.value)):
        return f"{before}.{node.attr}"
    return ""


def bypasses(source: str) -> Iterator[str]:
    """What writes on a standard stream past the writer, or could."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = name_of(node.func)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            off = {arg for arg, value in given.items() if isinstance(value, ast.Constant) and value.value is False}
            if name in PRINTING:
                yield f"{node.lineno}: {name}"
            if name.rpartition(".")[2] == "Console" and not {"markup", "emoji"} <= off:
                yield f"{node.lineno}: a console of rich with markup or emoji"
            if name.rpartition(".")[2] == "TextColumn" and "markup" not in off:
                yield f"{node.lineno}: a column of rich with markup"
            if name == "os.write" and isinstance(node.args[0], ast.Constant) and node.args[0].value in (1, 2):
                yield f"{node.lineno}: os.write"
        elif isinstance(node, ast.Attribute) and name_of(node) in HELD:
            yield f"{node.lineno}: {name_of(node)}"
        elif isinstance(node, ast.ImportFrom) and node.module in ("click", "rich", "sys", "pprint", "warnings"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from (f"{node.lineno}: from {name}" for name in sorted(names & (PRINTING | HELD)))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_prints_past_the_writer(path: Path) -> None:
    if path.relative_to(PACKAGE).as_posix() not in STREAMS:
        assert not list(bypasses(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "source",
    [
        "print(path)", "import click\nclick.echo(name)", "sys.stdout.write(label)", "from sys import stderr", "os.write(2, b'')",
        "print(name, file=sys.stderr)", "Console()", "rich.console.Console(stderr=True, markup=False)", "from rich import print",
        'TextColumn("{task.description}")', "traceback.print_exc()",
    ],
)  # fmt: skip
def test_the_test_finds(source: str) -> None:
    assert list(bypasses(source))
    assert not list(bypasses("write_lines(path)\nConsole(markup=False, emoji=False)\nos.write(handle, b'')\nlog.warning(path)"))


def test_templates_escape_all_that_they_print() -> None:
    from cnet_deploy.benchmarks.report.page import template_of

    surroundings = template_of("cnet_deploy.benchmarks.report").environment
    assert surroundings.autoescape is True and surroundings.finalize is not None
    made_here = [path for path in MODULES if "jinja2.Environment" in path.read_text(encoding="utf-8")]
    assert [path.name for path in made_here] == ["page.py"]
    for path in PACKAGE.rglob("*.j2"):
        safe = [line for line in path.read_text(encoding="utf-8").splitlines() if "| safe" in line]
        assert all("pictures[" in line or '"' in line.partition("| safe")[0] for line in safe), safe
    assert surroundings.from_string("{{ a }}").render(a="<b>\n\x1b\udcff") == "&lt;b&gt;\\n\\x1b\\xff"
    assert surroundings.from_string("<p title='{{ a }}'>").render(a="' onload='x") == "<p title='&#x27; onload=&#x27;x'>"
