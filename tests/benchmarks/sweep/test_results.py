"""The file of results: what is written is read again, what is damaged is refused, and a run may be killed at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.sweep.results import Journal, Report, part_of, read_report
from cnet_deploy.errors import InputRefused, OutputRefused
from tests.benchmarks.helpers import STATE, on_cuda, report
from tests.cases import few, long
from tests.forks import Forks
from tests.processes import interruptible


@pytest.mark.parametrize("make", [report, on_cuda, lambda: report(notes=["int8 was calibrated with <b>."])])
def test_round_trip(make: Callable[[], Report], tmp_path: Path) -> None:
    made = make()
    path = tmp_path / "r.json"
    path.write_text(json.dumps(made.to_dict()))
    found = read_report(path)
    assert found == made and found.to_dict() == json.loads(path.read_text())


def test_runs_that_were_recorded_before_gpus_were_looked_at(tmp_path: Path) -> None:
    recorded = Path(__file__).parents[3] / "cnet_deploy" / "benchmarks" / "results"
    on_gpu = read_report(recorded / "nvidia-h200" / "table-cuda.json")  # of this version; interrupted, so it has no second environment
    assert on_gpu.device == "cuda" and on_gpu.environment["gpu"] == "NVIDIA H200" and on_gpu.after is None
    assert [bool(result.samples) for result in on_gpu.results] == [result.cell.batch == 1 for result in on_gpu.results]
    for path in (recorded / "amd-epyc-2-cores").glob("table-*.json"):
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


DAMAGE: list[tuple[str, Any, str]] = [
    ("cnet_deploy_bench", 1, "is of another version: cnet_deploy_bench is 1; expected 2"),
    ("cnet_deploy_bench", None, "is of another version: cnet_deploy_bench is null; expected 2"),
    ("rows", [], "is damaged: rows is an empty list; expected a list of rows, at least one"),
    ("rows", None, "is damaged: rows is null; expected a list of rows, at least one"),
    ("rows", [{"label": "x"}], "is damaged: rows[0] has no flops"),
    (
        "settings",
        {"rounds": 1, "more": 2},
        'is damaged: settings has an unknown entry "more"; expected rounds, seconds, least, warmup, rewarm',
    ),
    ("settings", {"rounds": 0}, "is damaged: settings.rounds is 0; expected a whole number from 1"),
    ("settings", {"rounds": 1, "fresh": 0}, "is damaged: settings.fresh is 0; expected true or false"),
    ("environment", None, "is damaged: environment is null; expected an object"),
    ("environment_after", {}, "is damaged: environment_after has no time"),
]


@pytest.mark.parametrize(("key", "value", "message"), DAMAGE, ids=str)
def test_damage_is_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({**report().to_dict(), key: value}))
    with pytest.raises(InputRefused) as caught:
        read_report(path)
    assert str(caught.value).startswith(f"{path} {message}") and str(caught.value).endswith("; measure again with `bench --json`")


def test_a_row_that_does_not_fit_is_described(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    figures = {"format": ".onnx", "bytes": 5, "multiply_adds": None, "params": 1, "precision": "fp32", "operators": {"Conv": 3}}
    for change, message in (
        ({"flops": -1}, "rows[1].flops is -1; expected a whole number from 0 or null"),
        ({"top1_error": 101}, "rows[1].top1_error is 101; expected a number from 0 to 100 or null"),
        ({"sha256": 5}, "rows[1].sha256 is 5; expected text or null"),
        ({"label": None}, "rows[1].label is null; expected text"),
        ({"label": "x"}, 'rows[1].cells[0].cell.label is "condensenet-74-g8"; expected "x", the label of its row'),
        ({"cells": []}, "rows[1].cells is an empty list; expected a list of cells, at least one"),
        ({"figures": {**figures, "bytes": "5"}}, 'rows[1].figures.bytes is "5"; expected a whole number from 0'),
        ({"figures": {**figures, "operators": {"Conv": 1.5}}}, 'rows[1].figures.operators["Conv"] is 1.5; expected a whole number from 0'),
        ({"figures": {**figures, "more": 1}}, 'rows[1].figures has an unknown entry "more"; expected format, bytes'),
    ):
        values = report().to_dict()
        values["rows"][1].update(change)
        path.write_text(json.dumps(values))
        with pytest.raises(InputRefused) as caught:
            read_report(path)
        assert f"{path} is damaged: {message}" in str(caught.value)
    values = report().to_dict()
    values["rows"][1]["figures"] = figures
    path.write_text(json.dumps(values))
    assert read_report(path).rows[1].figures == figures


def test_whole_numbers_stand_for_times(tmp_path: Path) -> None:
    """Other writers of JSON leave out a fraction of 0."""
    values = report().to_dict()
    values["rows"][0]["cells"][0]["rounds"][0] = [1, 2.0]
    values["settings"]["seconds"] = 0
    (tmp_path / "r.json").write_text(json.dumps(values))
    read = read_report(tmp_path / "r.json")
    assert read.rows[0].results[0].rounds[0] == [1.0, 2.0] and type(read.rows[0].results[0].rounds[0][0]) is float
    assert type(read.settings.seconds) is float


ENVIRONMENTS: list[Any] = [
    {}, "x", {"packages": None}, {"packages": {"torch": "\x1b[2J"}}, {"load_average": 5}, {"governor": 7}, {"cores": "x"}, {"cores": 0},
    {"clock_mhz": ["x"]}, {"processor_ticks": {"a": 1}}, {"cpu": None}, {"turbo": "on"}, {"more": 1},
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


CELLS: list[tuple[str, Any, str]] = [
    ("warmup", [0.0], "warmup[0] is 0.0; expected seconds, from a nanosecond to 1000000"),
    ("peak_bytes", "x", 'peak_bytes is "x"; expected a whole number from 1 or null'),
    ("device_rounds", ["a"], 'device_rounds[0] is "a"; expected seconds'),
    ("transfer_rounds", 5, "transfer_rounds is 5; expected a list"),
    ("batch", 0, "batch is 0; expected a whole number from 1"),
    ("batch", True, "batch is true; expected a whole number from 1"),
    ("exit_code", "x", 'exit_code is "x"; expected a whole number'),
    ("rounds", [[]], "rounds[0] is an empty list; expected a list of seconds, at least one"),
    ("rounds", [5], "rounds[0] is 5; expected a list of seconds, at least one"),
    ("cold_seconds", [True], "cold_seconds[0] is true; expected seconds"),
    ("cell", {}, "cell has no label"),
    ("cell", {"threads": "two"}, 'cell.threads is "two"; expected a whole number from 1'),
    ("cell", {"label": "another"}, 'cell.label is "another"; expected "mobilenet-1.0-224", the label of its row'),
    ("cell", {"device": "tpu"}, 'cell.device is "tpu"; expected one of cpu, cuda'),
    ("cell", {"device": "cuda"}, "it has cells of the devices cpu, cuda; expected one device"),
    ("cell", {"backend": "torch.fast"}, "cell.backend: no backend is called 'torch.fast'"),
    ("cell", {"more": 1}, 'cell has an unknown entry "more"; expected label, model'),
]


@pytest.mark.parametrize(("key", "value", "message"), CELLS, ids=str)
def test_a_cell_that_does_not_fit_is_refused(key: str, value: Any, message: str, tmp_path: Path) -> None:
    values = report().to_dict()
    cell = values["rows"][0]["cells"][0]
    cell[key] = {**cell["cell"], **value} if value and isinstance(value, dict) else value
    path = tmp_path / "r.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputRefused) as caught:
        read_report(path)
    place = "" if message.startswith("it has") else "rows[0].cells[0]."
    assert str(caught.value).startswith(f"{path} is damaged: {place}{message}")


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


@long
@pytest.mark.parametrize("kill", few([signal.SIGINT, signal.SIGTERM]), ids=lambda s: s.name)  # SIGKILL: tests/attacks/test_kills.py
def test_a_run_may_be_killed_at_any_time(onnx_path: Path, tmp_path: Path, forks: Forks, kill: signal.Signals) -> None:
    """As a user would: kill it, look at the file, and let --resume finish."""
    path = tmp_path / "r.json"
    command = [str(forks.command), "bench", str(onnx_path), "--threads", "1", "--rounds", "8", "--seconds", "0.05"]
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
