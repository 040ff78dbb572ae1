"""Signals, ends of pipes, homes that can't be written to, clocks that go back, inputs that change: no traceback, and nothing half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cnet_deploy.hardware.cpu import host_machine
from tests.cases import few, long
from tests.forks import Forks

from .fixtures import Models
from .helpers import ROOT, STEM, one_line
from .outputs import CONVERT, NATIVE, ONNX, PLOT, QUICK, SHAPE, Command, emptied, nobody_left, whole_results, whole_run

STOPPED = {signal.SIGINT: {130}, signal.SIGTERM: {143}, signal.SIGHUP: {129}}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return emptied(tmp_path / "place")


@pytest.mark.parametrize("number", STOPPED)
@pytest.mark.parametrize("command", few([ONNX, CONVERT, NATIVE, PLOT]), ids=str)
def test_stopped_half_way(command: Command, number: signal.Signals, models: Models, forks: Forks, place: Path) -> None:
    """Once its temporary file is there. A signal that came too late changed nothing."""
    assert forks.run(*command.line(models, False, place)).code == 0
    done = forks.run(*command.line(models, True, place), folder=place, upon=1, after=0, signal=number)
    assert done.code in STOPPED[number] | {0}, done
    assert command.check(models, place) == ("old" if done.code else "new")
    if done.code > 0:
        assert {entry.name for entry in place.iterdir()} == set(command.names)
        assert "nothing was written" in one_line(done.stderr.splitlines(keepends=True)[-1])
    nobody_left(done.session)


@pytest.mark.parametrize("number", few([signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGKILL], 2))
def test_a_compiler_does_not_outlive_its_command(
    number: signal.Signals, models: Models, forks: Forks, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (slow := tmp_path / "g++").write_text(f"#!/bin/sh\ncase $1 in -*n*) echo {host_machine()}-linux-gnu;; *) sleep 1000;; esac\n")
    slow.chmod(0o755)
    env = {"CXX": str(slow), "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(place)}
    pid = forks.start(*NATIVE.line(models, True, tmp_path), env=env, folder=place, upon=1, after=1, signal=number)
    done = forks.wait(pid)
    assert done.code in {*STOPPED.get(number, ()), -number}, done
    nobody_left(done.session)
    if number != signal.SIGKILL:
        assert list(place.iterdir()) == []


@pytest.mark.parametrize("number", few(STOPPED))
def test_measuring_is_stopped(number: signal.Signals, models: Models, forks: Forks, place: Path, tmp_path: Path) -> None:
    assert forks.run(*ONNX.line(models, True, tmp_path)).code == 0
    line = ("bench", tmp_path / "m.onnx", "--json", place / "r.json", "--rounds", "200", *QUICK[2:])
    done = forks.run(*line, folder=place, upon=2, after=0.2, signal=number)
    assert done.code in STOPPED[number], done
    assert whole_results(place) == "part"
    nobody_left(done.session)
    if done.code > 0:
        assert "with --resume goes on" in done.stderr and "interleaved rounds" in " ".join(done.stdout.split()), done.stdout


@long
@pytest.mark.parametrize("number", few(STOPPED))
def test_training_is_stopped(number: signal.Signals, forks: Forks, place: Path, small_dataset: Path) -> None:
    line = ("train", small_dataset, *SHAPE, "--epochs", "50", "--savedir", place)
    (place / "save_models").mkdir()
    done = forks.run(*line, folder=place / "save_models", upon=4, after=0.1, signal=number)
    assert done.code in STOPPED[number], done
    assert whole_run(place) >= 1
    if done.code > 0:
        assert "--resume continues from" in one_line(done.stderr.splitlines(keepends=True)[-1])


# Where an interrupt is lost: in a callback of a library, whose errors nobody can catch, or in code that makes another error of it.
LOST = {
    "a callback": """
        class Thing: pass
        thing = Thing()
        kept = weakref.ref(thing, lambda _: [os.kill(os.getpid(), signal.SIGINT), *range(1000)])
        del thing""",
    "another error": """
        try: os.kill(os.getpid(), signal.SIGINT); time.sleep(10)
        except KeyboardInterrupt: failed = True
        if failed: raise ValueError("Invalid affine transformation matrix")""",
}
AT_AN_EPOCH = """
import os, signal, time, weakref
from cnet_deploy.training.journal import Journal
write = Journal.write
def interrupted(journal, event, **entries):
    write(journal, event, **entries)
    if event == "epoch":{}
Journal.write = interrupted
"""


@long
@pytest.mark.parametrize("how", LOST)
def test_an_interrupt_that_is_lost(how: str, forks: Forks, place: Path, small_dataset: Path) -> None:
    line = ("train", small_dataset, *SHAPE, "--epochs", "50", "--savedir", place)
    done = forks.run(*line, setup=AT_AN_EPOCH.format(LOST[how]))
    assert done.code == 130 and done.stderr.splitlines()[-1].startswith("Error: interrupted"), done
    assert 1 <= whole_run(place) < 20


ENDS = [("stdin", "closed"), ("stdout", "closed"), ("stderr", "closed"), ("stdout", "/dev/full"), ("stderr", "/dev/full")]


@pytest.mark.parametrize(("end", "what"), ENDS)
@pytest.mark.parametrize("command", few([CONVERT, ONNX]), ids=str)
def test_an_end_that_is_closed_or_full(command: Command, end: str, what: str, models: Models, forks: Forks, place: Path) -> None:
    """The file is what was wanted, and is there; that nobody heard of it may change the exit code, and is no traceback."""
    done = forks.run(*command.line(models, True, place), **{end: what})
    assert command.check(models, place) == "new"
    assert done.code in ((0, 4) if what == "/dev/full" else (0,)) and "Traceback" not in done.stderr, done


@pytest.mark.parametrize("line", [["inspect", "FILE"], ["inspect", "FILE", "--json"], ["--help"], ["export", "--help"]])
def test_a_reader_that_leaves(line: list[str], models: Models) -> None:
    """``| head -1``"""
    words = [sys.executable, "-m", "cnet_deploy", *(str(models.new) if word == "FILE" else word for word in line)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0 and not said, said


@pytest.mark.parametrize("variable", few(["HOME", "XDG_CACHE_HOME"]))
@pytest.mark.parametrize("home", few(["/proc/none", "/dev/null"]))
def test_a_home_that_can_not_be_written_to(
    variable: str, home: str, models: Models, forks: Forks, place: Path, quick_compiler: Path
) -> None:
    """Kernels are compiled without being kept."""
    environment = {"XDG_CACHE_HOME": "", "CXX": str(quick_compiler), variable: home}
    done = forks.run(*NATIVE.line(models, True, place), env=environment)
    assert done.code == 0 and NATIVE.check(models, place) == "new", done


@pytest.mark.parametrize("scratch", few(["/no/such/folder", "/dev/null", "/proc"]))
@pytest.mark.parametrize("command", [ONNX, NATIVE], ids=str)
def test_a_scratch_folder_that_is_not_there(command: Command, scratch: str, models: Models, forks: Forks, place: Path) -> None:
    """Another is taken, as Python's tempfile does."""
    done = forks.run(*command.line(models, True, place), env={"TMPDIR": scratch})
    assert done.code == 0 and command.check(models, place) == "new", done


BACKWARDS = """
import itertools, time
hours = itertools.count()
now = time.time()
time.time = lambda: now - 3600 * next(hours)
"""


@long
def test_a_clock_that_goes_back(models: Models, forks: Forks, place: Path, small_dataset: Path, tmp_path: Path) -> None:
    assert forks.run("train", small_dataset, *SHAPE, "--savedir", place / "run", setup=BACKWARDS).code == 0
    assert whole_run(place / "run") == 2
    assert forks.run(*ONNX.line(models, True, tmp_path), setup=BACKWARDS).code == 0
    done = forks.run("bench", tmp_path / "m.onnx", "--json", emptied(tmp_path / "r") / "r.json", *QUICK, setup=BACKWARDS)
    assert done.code == 0 and whole_results(tmp_path / "r") == "done", done


@pytest.fixture(params=["replaced", "written over"])
def restless(request: pytest.FixtureRequest, models: Models, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A checkpoint that is now the old one, now the new one, all the time."""
    path, stop = tmp_path / "restless.pth.tar", threading.Event()
    contents = [models.old.read_bytes(), models.new.read_bytes()]
    path.write_bytes(contents[0])

    def change() -> None:
        number = 0
        while not stop.wait(0.0003):
            number += 1
            if request.param == "replaced":
                (tmp_path / "next").write_bytes(contents[number % 2])
                (tmp_path / "next").rename(path)
            else:
                path.write_bytes(contents[number % 2])

    thread = threading.Thread(target=change)
    thread.start()
    yield path, request.param
    stop.set()
    thread.join()


@long
def test_an_input_that_changes(restless: tuple[Path, str], models: Models, forks: Forks, place: Path) -> None:
    """What is read is one or the other, read once. One that is written over in place may be refused, or be a mixture that says so."""
    path, how = restless
    weights = {load_file(model)[STEM].numpy().tobytes() for model in (models.old_converted, models.new_converted)}
    for _ in range(6):
        done = forks.run("convert", path, "-o", emptied(place) / "m.safetensors")
        if how == "replaced":
            assert done.code == 0, done
            assert load_file(place / "m.safetensors")[STEM].numpy().tobytes() in weights
        else:
            assert done.code in (0, 4) and "Traceback" not in done.stderr, done
            assert (place / "m.safetensors").exists() == (done.code == 0)
