"""The API reference holds what the package promises, and the picture of the house is the house."""

from __future__ import annotations

import html
import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import cnet_deploy as cd

ROOT = Path(__file__).parents[2]


def words(text: str) -> str:
    """Without tags, entities and marks."""
    return " ".join(re.findall(r"\w+", html.unescape(re.sub(r"<[^>]+>", " ", text))))


@pytest.mark.slow
def test_the_reference_has_every_public_name_with_its_docstring(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "docs/reference.py", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-3000:]
    page = (tmp_path / "cnet_deploy.html").read_text(encoding="utf-8")
    parts = dict(zip(re.findall(r'<section id="(\w+)">', page), re.split(r'<section id="\w+">', page)[1:], strict=True))
    for name in set(cd.__all__) - {"__version__"}:
        told = inspect.getdoc(getattr(cd, name))
        assert told, name
        assert words(told.split("\n\n")[0]) in words(parts[name]), name
    for module in (ROOT / "cnet_deploy").rglob("[!_]*.py"):
        assert (tmp_path / module.relative_to(ROOT)).with_suffix(".html").is_file(), module


def diagrams() -> list[str]:
    return re.findall(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL)


def test_rooms_in_the_pictures_exist() -> None:
    road, _, export = diagrams()
    assert road.startswith("flowchart") and export.startswith("sequenceDiagram")
    for picture, least in ((road, 20), (export, 10)):
        named = set(re.findall(r"[a-z_]+/[a-z_/]*(?:\.py)?|[a-z_]+\.py", picture.replace("<br/>", " ")))
        assert len(named) >= least
        assert {name for name in named if not (ROOT / "cnet_deploy" / name).exists()} == set()


def test_layers_in_the_picture_are_those_that_are_tested() -> None:
    """Each layer is a box; the boxes stand in the order in which they may import."""
    boxes = [set(re.split(r" · |<br/>", text)) for text in re.findall(r'\["([^"]+)"\]', diagrams()[1])]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert boxes == [set(layer.split(" | ")) for layer in layers]
    chained = re.sub(r'\["[^"]*"\]', "", diagrams()[1])
    for floor in re.findall(r"subgraph.*?end\n", chained, re.DOTALL):
        ids = list(dict.fromkeys(re.findall(r"\b[a-e]\d\b", floor)))
        arrows = [pair for line in floor.splitlines() for pair in itertools.pairwise(line.split(" --> "))]
        assert [(a.strip(), b.strip()) for a, b in arrows] == list(itertools.pairwise(ids))
