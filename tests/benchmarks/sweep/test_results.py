"""The file of results: what is written is read again, what is damaged is refused, and a run may be killed at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.sweep.results import Journal, Report, part_of, read_report
from cnet_deploy.errors import InputRefused, OutputRefused
from tests.benchmarks.helpers import STATE, on_cuda, report
from tests.processes import interruptible


@pytest.mark.parametrize("make", [report, on_cuda])
def test_round_trip(make: Callable[[], Report], tmp_path: Path) -> None:
    made = make()
    path = tmp_path / "r.json"
    path.write_text(json.dumps(made.to_dict()))
    found = read_report(path)
    assert found == made and found.to_dict() == json.loads(path.read_text())


def test_runs_that_were_recorded_before_gpus_were_looked_at(tmp_path: Path) -> None:
    recorded = sorted((Path(__file__).parents[3] / "cnet_deploy" / "benchmarks" / "results").glob("*/table-*.json"))
    assert recorded
    for path in recorded:
        found = read_report(path)
        assert found.device == "cpu" and found.after is not None and all(result.samples for result in found.results)
    values = report().to_dict()
    del values["environment"]["gpu_state"], values["environment_after"]["gpu_state"]
    (tmp_path / "r.json").write_text(json.dumps(values))
    assert read_report(tmp_path / "r.json").environment["gpu_state"] is None


def test_a_devices_own_figures() -> None:
    made = on_cuda()
    assert made.device == "cuda" and report().device == "cpu"
    cell = made.to_dict()["rows"][0]["cells"][3]
    assert (cell["device_seconds"], cell["transfer_seconds"]) == (0.0015, 0.0008)
    assert cell["end_to_end_seconds"] == pytest.approx(0.0028)
    assert report().to_dict()["rows"][0]["cells"][0]["end_to_end_seconds"] is None


def test_ratios_and_the_base() -> None:
    made = report()
    assert made.base.label == "mobilenet-1.0-224"
    assert made.ratio(made.rows[1].results[0]) == pytest.approx(2.0)
    made.rows[0].results[1].rounds = []  # where the base was not measured, its quickest stands in
    assert made.ratio(made.rows[2].results[1]) == pytest.approx(1.0)
    made.rows[0].results = []
    assert made.base is made.rows[1]


DAMAGE: list[tuple[str, Any]] = [
    ("cnet_deploy_bench", 1),
    ("rows", []),
    ("rows", None),
    ("rows", [{"label": "x"}]),
    ("settings", {"rounds": 1, "more": 2}),
    ("environment", None),
]


@pytest.mark.parametrize(("key", "value"), DAMAGE, ids=str)
def test_damage_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**report().to_dict(), key: value}))
    with pytest.raises(InputRefused, match="measure again with"):
        read_report(path)


ENVIRONMENTS: list[Any] = [
    {}, "x", {"packages": None}, {"packages": {"torch": "\x1b[2J"}}, {"load_average": 5}, {"governor": 7}, {"cores": "x"}, {"cores": 0},
    {"clock_mhz": ["x"]}, {"processor_ticks": {"a": 1}}, {"cpu": "\ud800"}, {"cpu": None}, {"turbo": "on"}, {"more": 1},
    {"gpu": 1}, {"gpu_state": "x"}, {"gpu_state": {}}, {"gpu_state": {**STATE, "sm_mhz": "x"}},
    {"gpu_state": {**STATE, "reasons": ["\x1b[2J"]}}, {"gpu_state": {**STATE, "reasons": "idle"}},
    {"gpu_state": {**STATE, "slowdown_microseconds": {"a": -1.0}}},
    {"gpu_state": {**STATE, "slowdown_microseconds": [1]}}, {"gpu_state": {**STATE, "persistence": 1}},
]  # fmt: skip


@pytest.mark.parametrize("change", ENVIRONMENTS, ids=ascii)
@pytest.mark.parametrize("key", ["environment", "environment_after"])
def test_an_environment_that_is_none_is_refused(change: Any, key: str, tmp_path: Path) -> None:
    values = report().to_dict()
    values[key] = {**values[key], **change} if change and isinstance(change, dict) else change
    path = tmp_path / "r.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputRefused):
        read_report(path)


CELLS: list[tuple[str, Any]] = [
    ("warmup", [0.0]), ("peak_bytes", "x"), ("device_rounds", ["a"]), ("transfer_rounds", 5), ("batch", 0), ("batch", True),
    ("exit_code", "x"), ("rounds", [[]]), ("rounds", [5]), ("cold_seconds", [True]), ("cell", {}), ("cell", {"label": "another"}),
    ("cell", {"device": "tpu"}), ("cell", {"device": "cuda"}), ("cell", {"backend": "torch.fast"}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), CELLS, ids=str)
def test_a_cell_that_is_none_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    values = report().to_dict()
    cell = values["rows"][0]["cells"][0]
    cell[key] = {**cell["cell"], **value} if value and isinstance(value, dict) else value
    path = tmp_path / "r.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputRefused):
        read_report(path)


@pytest.mark.parametrize(
    "value", [None, "text", -1.0, 0.0, 1e308, 10**400, True, float("inf"), float("nan"), [1.0], {}], ids=lambda v: str(v)[:9]
)
def test_times_that_are_none_are_refused(value: Any, tmp_path: Path) -> None:
    values = report().to_dict()
    values["rows"][0]["cells"][0]["rounds"][0][0] = value
    path = tmp_path / "r.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputRefused, match="is damaged"):
        read_report(path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_file_of_results(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    with pytest.raises(InputRefused):
        read_report(path)


def test_a_journal_that_can_not_be_written_tells_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    journal = Journal(folder / "r.json", tmp_path / "s.json")
    folder.rmdir()
    journal.keep(report())
    assert read_report(tmp_path / "s.json") == report(
        environment=read_report(tmp_path / "s.json").environment, after=read_report(tmp_path / "s.json").after
    )
    with pytest.raises(OutputRefused, match="make it first"):
        journal.close(report())


def test_a_finished_run_is_replaced_by_a_finished_one_only(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    Journal(path).close(report())
    finished = path.read_bytes()
    journal = Journal(path)
    journal.keep(report(after=None))
    journal.close(report(after=None))  # as an interrupt leaves it
    assert path.read_bytes() == finished and read_report(part_of(path)).after is None
    resumed = Journal(path, resumed=part_of(path))
    resumed.close(report(settings=Settings(rounds=3)))
    assert read_report(path).settings.rounds == 3 and [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)  # SIGKILL: tests/attacks/test_kills.py
def test_a_run_may_be_killed_at_any_time(onnx_path: Path, tmp_path: Path, kill: signal.Signals) -> None:
    """As a user would: kill it, look at the file, and let --resume finish."""
    path = tmp_path / "r.json"
    command = [sys.executable, "-m", "cnet_deploy", "bench", str(onnx_path), "--threads", "1", "--rounds", "8", "--seconds", "0.05"]
    command += ["--warmup", "0", "--json", str(path)]
    process = subprocess.Popen(interruptible(command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not path.exists() or len(json.loads(path.read_text())["rows"][0]["cells"][0]["rounds"]) < 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, kill)
    stdout, stderr = process.communicate(timeout=60)
    kept = read_report(path)
    rounds = next(kept.results).rounds
    assert kept.after is None and 3 <= len(rounds) < 8
    assert process.returncode == 128 + kill
    if kill is signal.SIGINT:
        assert "interrupted; what was measured is above" in stderr and "--resume" in stderr
        assert "model.onnx" in stdout  # the table of what there is
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    finished = read_report(path)
    assert "interrupted" not in done.stdout and finished.after is not None
    assert next(finished.results).rounds[: len(rounds)] == rounds and len(next(finished.results).rounds) == 8
