"""The measuring machinery with real workers; nothing here asserts how long anything takes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.rounds import Result, measure, proceed, ratio, steps
from tests.benchmarks.helpers import QUICK, result
from tests.cases import few, long


def test_statistics_by_hand() -> None:
    found = result([3.0, 1.0], [2.0, 10.0, 4.0], batch=6)
    assert found.samples == [3.0, 1.0, 2.0, 10.0, 4.0]
    assert found.median == 3.0 and found.images_per_second == 2.0
    assert result().median is None and result().summary is None and result().images_per_second is None


def test_ratio_is_taken_within_rounds() -> None:
    # The machine slows down tenfold from round to round; within each round one takes twice as long as the other.
    slow, fast = result([2.0], [20.0], [200.0]), result([1.0], [10.0], [100.0])
    assert ratio(slow, fast) == 2.0
    assert ratio(result(), fast) is None


def test_cells_are_measured_each_in_its_own_process(onnx_path: Path, checkpoint_path: Path) -> None:
    cells = [Cell("a", str(onnx_path), "onnxruntime", 1), Cell("b", str(checkpoint_path), "torch", 1, 3)]
    said: list[str] = []
    results = measure(cells, QUICK, said.append)
    assert [found.cell for found in results] == cells
    for found in results:
        assert found.error is None and [found.batch] == [found.cell.batch]
        assert len(found.rounds) == 2 and all(len(part) >= 2 for part in found.rounds)
        assert all(sample > 0 for sample in found.samples)
        assert len(found.cold_seconds) == len(found.open_seconds) == 1
        assert found.cold_seconds[0] > found.open_seconds[0] > 0  # the process itself and the first inference come on top
        assert found.warmup and found.peak_bytes is not None and found.peak_bytes > 10 << 20
        assert found.device_rounds == found.transfer_rounds == []
    assert len(said) == steps(len(cells), QUICK)
    assert json.loads(json.dumps([found.rounds for found in results])) == [found.rounds for found in results]


def test_warm_up_stands_apart(onnx_path: Path) -> None:
    (found,) = measure([Cell("a", str(onnx_path), "onnxruntime", 1)], replace(QUICK, warmup=0.05))
    assert len(found.warmup) > 3 and all(len(part) == 2 for part in found.rounds)


def test_fresh_processes_start_anew_each_round(onnx_path: Path) -> None:
    said: list[str] = []
    settings = replace(QUICK, fresh=True)
    (found,) = measure([Cell("a", str(onnx_path), "onnxruntime", 1)], settings, said.append)
    assert len(found.cold_seconds) == len(found.rounds) == 2
    assert len(said) == steps(1, settings) == 2


@pytest.mark.parametrize("fresh", few([True, False]))
@long
def test_a_cell_that_fails_does_not_end_the_run(onnx_path: Path, tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"broken")
    cells = [
        Cell("broken", str(tmp_path / "broken.onnx"), "onnxruntime", 1),
        Cell("unknown", "name:no-such-network", "torch", 1),
        Cell("good", str(onnx_path), "onnxruntime", 1),
    ]
    broken, unknown, good = measure(cells, replace(QUICK, fresh=fresh))
    assert broken.error is not None and "expected an ONNX file" in broken.error and broken.median is None and broken.exit_code == 4
    assert unknown.error is not None and "unknown network" in unknown.error
    assert good.error is None and good.median


def test_an_interrupted_run_goes_on_with_whole_rounds(onnx_path: Path) -> None:
    cells = [Cell(name, str(onnx_path), "onnxruntime", 1) for name in "abc"]
    settings = replace(QUICK, rounds=3)
    done = measure(cells, QUICK)
    done[0].rounds.append([9.0, 9.0])  # a third round that only one cell had before the run was killed
    done[2].error = "it failed before"
    before = [list(found.rounds) for found in done]
    said: list[str] = []
    kept: list[list[int]] = []
    proceed(done, settings, said.append, lambda: kept.append([len(found.rounds) for found in done]))
    assert len(said) == steps(2, settings, 2)
    assert [len(found.rounds) for found in done] == [3, 3, 2]  # what failed is not tried again
    assert all(found.rounds[:2] == old[:2] for found, old in zip(done, before, strict=True))
    assert done[0].rounds[2] != [9.0, 9.0]
    assert kept[-1] == [3, 3, 2] and len(kept) == 4  # two warm-ups, two turns
    assert [len(found.cold_seconds) for found in done] == [2, 2, 1]
    proceed(done, settings, said.append)
    assert len(said) == steps(2, settings, 2)  # nothing was left to do


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


def test_what_a_device_tells_is_kept() -> None:
    found = Result(Cell("x", "x", "torch", 1, device="cuda"))
    answer = {
        "warmup": [0.3],
        "samples": [0.2],
        "peak_bytes": None,
        "device_seconds": 0.1,
        "upload_seconds": 0.01,
        "download_seconds": 0.02,
    }
    assert found.measured(answer, counts=True)
    assert found.device_rounds == [0.1] and found.transfer_rounds == [0.03] and found.peak_bytes is None
    assert not found.measured({"error": "lost", "exit_code": 5}, counts=True) and found.error == "lost"
