"""The measuring machinery with real workers; nothing here asserts how long anything takes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.environment import environment
from cnet_deploy.benchmarks.measure import Cell, Result, Settings, measure, ratio, steps

QUICK = Settings(rounds=2, seconds=0.0, least=2, warmup=0.0, rewarm=0.0)


def result(*rounds: list[float]) -> Result:
    return Result(Cell("x", "x", "torch", 1), rounds=list(rounds))


def test_statistics_by_hand() -> None:
    found = result([3.0, 1.0], [2.0, 10.0, 4.0])
    assert found.samples == [3.0, 1.0, 2.0, 10.0, 4.0]
    assert found.median == 3.0
    assert found.p90 == 10.0
    assert result([float(n) for n in range(1, 11)]).p90 == 9.0
    assert result().median is None and result([]).p90 is None


def test_ratio_is_taken_within_rounds() -> None:
    # The machine slows down tenfold from round to round; within each round one takes twice as long as the other.
    slow, fast = result([2.0], [20.0], [200.0]), result([1.0], [10.0], [100.0])
    assert ratio(slow, fast) == 2.0
    assert ratio(result(), fast) is None


def test_cells_are_measured_each_in_its_own_process(onnx_path: Path, checkpoint_path: Path) -> None:
    cells = [Cell("a", str(onnx_path), "onnxruntime", 1), Cell("b", str(checkpoint_path), "torch", 1)]
    said: list[str] = []
    results = measure(cells, QUICK, said.append)
    assert [found.cell for found in results] == cells
    for found in results:
        assert found.error is None and found.open_seconds is not None and found.open_seconds > 0
        assert len(found.rounds) == 2 and all(len(part) >= 2 for part in found.rounds)
        assert all(sample > 0 for sample in found.samples)
    assert len(said) == steps(len(cells), QUICK)
    assert json.loads(json.dumps([found.rounds for found in results])) == [found.rounds for found in results]


def test_a_cell_that_fails_does_not_end_the_run(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    cells = [
        Cell("broken", str(tmp_path / "broken.onnx"), "onnxruntime", 1),
        Cell("unknown", "name:no-such-network", "torch", 1),
        Cell("good", str(onnx_path), "onnxruntime", 1),
    ]
    broken, unknown, good = measure(cells, QUICK)
    assert broken.error is not None and "can't load it" in broken.error and broken.median is None
    assert unknown.error is not None and "no model is called" in unknown.error
    assert good.error is None and good.median


def test_no_worker_is_left_behind(onnx_path: Path) -> None:
    def children() -> set[str]:
        mine = str(os.getpid())
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if fields[1] == mine:
                    found.add(entry.name)
        return found

    before = children()

    class Stop(Exception):
        pass

    def interrupt(text: str) -> None:
        if text.startswith("round 1"):
            raise Stop

    with pytest.raises(Stop):
        measure([Cell("a", str(onnx_path), "onnxruntime", 1)], QUICK, interrupt)
    time.sleep(0.1)
    assert children() <= before


def test_environment_is_json() -> None:
    found = json.loads(json.dumps(environment()))
    assert found["cores"] >= 1 and found["cpu"] and "torch" in found["packages"]
