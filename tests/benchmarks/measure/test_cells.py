"""The measuring instrument: what it asks a session for, and what becomes of it when things go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cnet_deploy.benchmarks.measure import worker as instrument
from cnet_deploy.benchmarks.measure.cells import Cell, worker
from cnet_deploy.errors import Unavailable
from cnet_deploy.sessions.base import Binding, Floats, Session
from tests.cases import exhaustive, long


def test_options_and_variants_reach_the_session(onnx_path: Path) -> None:
    with worker(Cell("x", str(onnx_path), "onnxruntime", 1, options={"no_such_option": 1})) as held:
        assert "no_such_option" in held.open()["error"]


@exhaustive("tests/sessions/test_torch.py::test_a_compiled_module_computes_the_same")
def test_torch_compile_is_a_backend_of_its_own(checkpoint_path: Path) -> None:
    with worker(Cell("x", str(checkpoint_path), "torch.compile", 1)) as held:
        opened = held.open()
        assert "error" not in opened, opened
        assert opened["first_seconds"] > 10 * min(held.ask({"warmup": 0.0, "seconds": 0.0, "least": 5})["samples"])  # it compiled then


@long
def test_a_device_is_asked_for_where_it_is_not_the_cpu() -> None:
    """Installations of other revisions, which the gate runs, build networks without being told of a device."""
    with worker(Cell("x", "name:condensenet-50", "torch", 1)) as held:
        assert "error" not in held.open()
    with worker(Cell("x", "name:condensenet-50", "torch", 1, device="nowhere")) as held:
        found = held.open()
    assert found["exit_code"] in (4, 5) and "nowhere" in found["error"]


def test_it_says_who_ran(onnx_path: Path) -> None:
    with worker(Cell("x", str(onnx_path), "onnxruntime", 1)) as held:
        opened = held.open()
    assert Path(opened["installation"]) == Path(instrument.__file__).parents[2]
    assert opened["cold_seconds"] > opened["open_seconds"]


@long
def test_another_batch_than_the_artifacts_own_is_refused(tmp_path: Path, converted) -> None:  # type: ignore[no-untyped-def]
    import cnet_deploy as cd

    path = cd.export(converted, "onnx", tmp_path / "m.onnx", batch=2).path
    for batch, expected in ((1, 2), (2, 2)):
        with worker(Cell("x", str(path), "onnxruntime", 1, batch)) as held:
            assert held.open()["batch"] == expected
    with worker(Cell("x", str(path), "onnxruntime", 1, 4)) as held:
        found = held.open()
    assert found["exit_code"] == 4 and "its batch is fixed at 2, so 4 can't be measured" in found["error"]


def test_a_python_that_is_not_there(onnx_path: Path) -> None:
    with pytest.raises(Unavailable, match="expected a Python that has cnet-deploy"), worker(Cell("x", "x", "torch", 1), "/no/python"):
        pass


def test_a_python_without_the_package(onnx_path: Path, tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    with worker(Cell("x", str(onnx_path), "onnxruntime", 1), str(bare)) as held:
        found = held.open()
    assert found["exit_code"] == 5 and "No module named" in found["error"]


def test_a_process_that_dies_is_an_error_with_its_last_words(onnx_path: Path, tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' x >&2; echo >&2; echo 'last words' >&2; exit 7\n")
    dying.chmod(0o755)
    with worker(Cell("x", str(onnx_path), "onnxruntime", 1), str(dying)) as held:
        found = held.open()
    assert found == {"error": "the measuring process ended with status 7: last words", "exit_code": 5}


def test_its_own_folder_is_not_on_the_path(tmp_path: Path) -> None:
    """A script finds its neighbours first; here they are called report, results, summary …"""
    (tmp_path / "cnet_deploy").mkdir()  # nor may a folder where it happens to be started shadow what is installed
    (tmp_path / "cnet_deploy" / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    asked = {"model": "none.onnx", "backend": "onnxruntime", "threads": 1, "batch": 1, "options": {}}
    done = subprocess.run(
        [sys.executable, instrument.__file__], input=json.dumps(asked), capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout)["error"] == "none.onnx: no such file"


class Clock(Session):
    """A session on a device with a clock of its own: a thread that sleeps."""

    backend, device, input_shape, classes = "clock", "clock", (None, 3, 2, 2), 2

    def bind(self, batch: Floats) -> Binding:
        return Ticks()


class Ticks(Binding):
    def __init__(self) -> None:
        self.calls: list[str] = []

    def upload(self) -> None:
        self.calls.append("upload")
        time.sleep(0.003)

    def enqueue(self) -> None:
        self.calls.append("enqueue")

    def wait(self) -> None:
        self.calls.append("wait")

    def download(self) -> None:
        self.calls.append("download")

    def result(self) -> Floats:
        return np.zeros((1, 2), np.float32)

    def device_seconds(self, n: int) -> float | None:
        return 0.001 * n


def test_a_devices_own_time_and_the_transfers_stand_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instrument, "_open", lambda *_: Clock())
    cell = instrument.OpenCell("x", "clock", 1, 1, {}, "clock")
    found = cell.measure(warmup=0.0, seconds=0.0, least=4)
    assert found["device_seconds"] == pytest.approx(0.001)
    assert found["upload_seconds"] >= 0.003 > found["download_seconds"]
    assert isinstance(cell.binding, Ticks)
    assert cell.binding.calls[1:11] == ["enqueue", "wait"] * 5 and cell.binding.calls[11:] == ["upload", "wait", "download", "wait"]


def test_a_process_that_does_not_answer_is_ended(tmp_path: Path) -> None:
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\nsleep 1000\n")
    silent.chmod(0o755)
    with worker(Cell("x", "name:x", "torch", 1), str(silent)) as held:
        assert held.ask({}, seconds=0.2) == {"error": "the measuring process did not answer within 0.2 s; it was ended", "exit_code": 5}
