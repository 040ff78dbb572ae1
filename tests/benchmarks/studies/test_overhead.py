"""That what the harness costs is measured at all; how much it is, `make bench` records."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnet_deploy.benchmarks.measure.worker import OpenCell
from cnet_deploy.benchmarks.studies.overhead import overhead


def test_both_loops_run_the_same_inferences(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = OpenCell(str(onnx_path), "onnxruntime", 1, 1, {})
    ran: list[int] = []
    enqueue = cell.binding.enqueue
    monkeypatch.setattr(cell.binding, "enqueue", lambda: (ran.append(1), enqueue())[1])
    found = overhead(cell, 5, rounds=3)
    assert len(ran) == 2 * 5 * 4  # two loops, one round of warm-up
    assert len(found["bare_seconds"]) == len(found["harness_seconds"]) == 3 and found["ratio"] > 0
