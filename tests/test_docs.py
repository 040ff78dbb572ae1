"""The API reference holds what the package promises, and the picture of the house is the house."""

from __future__ import annotations

import html
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cnet_deploy as cd

ROOT = Path(__file__).parent.parent


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
