"""Another revision's Python, whose backend is slower: what changed is the code, not the file."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.gate.run import SETTINGS, gate
from tests.benchmarks.gate.gating import QUICK, run
from tests.cases import long

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def slow_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that finds a copy of the package in which every inference is run three times."""
    folder = tmp_path_factory.mktemp("slow")
    shutil.copytree(ROOT / "cnet_deploy", folder / "cnet_deploy", ignore=shutil.ignore_patterns("__pycache__", "results"))
    source = folder / "cnet_deploy" / "sessions" / "onnxruntime.py"
    text = source.read_text()
    line = "        self._logits = self._session.infer(self._batch)\n"
    assert line in text
    source.write_text(text.replace(line, line * 3))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


class TestTwoInstallations:
    """Another revision's Python, whose backend is slower: what changed is the code, not the file."""

    @long
    def test_slower_code_never_passes(self, artifacts: dict[str, Path], slow_python: str, tmp_path: Path) -> None:
        done = run(artifacts["base"], "--head-python", slow_python, "--tolerance", "30%", "--json", tmp_path / "g.json", *QUICK)
        found = json.loads((tmp_path / "g.json").read_text())
        assert done.exit_code in (1, 3) and found["changes"] == []
        if found["decision"]:
            assert found["decision"]["estimate"] > 1.5
            assert found["installations"]["base"] != found["installations"]["head"]

    @long
    def test_a_network_is_exported_by_each_sides_own_installation(self, slow_python: str, tmp_path: Path) -> None:
        """Here head's exporter writes another graph: the figures show it before any clock does."""
        graph = Path(slow_python).parent / "cnet_deploy" / "exporters" / "onnx" / "__init__.py"
        original = graph.read_text()
        wrapper = "def write(network, path, **options):\n    from cnet_deploy.program.forms import dense_pointwise\n"
        wrapper += "    return _write(dense_pointwise(network), path, **options)\n\n\ndef _write("
        graph.write_text(original.replace("def write(", wrapper, 1))
        lines: list[str] = []
        try:
            found = gate(
                "condensenet-50", "condensenet-50", backend="onnxruntime", threads=1, head_python=slow_python, max_rounds=8, tolerance=0.9,
                settings=replace(SETTINGS, seconds=0.0, warmup=0.0), notify=lines.append,
            )  # fmt: skip
        finally:
            graph.write_text(original)
        assert [text for text in lines if "exporting" in text] == [
            f"{side}: exporting condensenet-50 for onnxruntime" for side in ("base", "head")
        ]
        assert found.exit_code == 1 and "multiply-adds" in [change.what for change in found.worse]

    def test_one_installation_under_two_names_compares_nothing(self, artifacts: dict[str, Path], tmp_path: Path) -> None:
        other = tmp_path / "python"
        other.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        other.chmod(0o755)
        done = run(artifacts["base"], "--head-python", other, "--tolerance", "99%", *QUICK)
        assert done.exit_code == 5 and "nothing to compare" in done.stderr
