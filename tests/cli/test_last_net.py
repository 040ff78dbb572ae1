"""No command ends in a traceback: an error that nobody foresaw is one line, with the exit code 70, in the middle of each command."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cnet_deploy.cli import COMMANDS, main
from cnet_deploy.cli.console import UNEXPECTED
from cnet_deploy.errors import InputRefused, naming

ROOT = Path(__file__).parents[2]
SHAPE = ("--stages", "2-2", "--growth", "4-4")


class Surprise(Exception):
    """What no code expects; its text steers a terminal."""


# A command line for each command, and a function in the middle of it that raises.
MIDDLES = {
    "inspect": (["inspect", "FILE"], "workflows.inspect", "kind_of_file"),
    "convert": (["convert", "FILE"], "workflows.convert", "save"),
    "export": (["export", "FILE", "--onnx"], "workflows.export", "open_session"),
    "verify": (["verify", "ONNX", "FILE"], "workflows.verify", "open_session"),
    "run": (["run", "ONNX", "FILE"], "sessions.base", "walk_given"),
    "evaluate": (["evaluate", "ONNX", "--data", "FILE"], "workflows.evaluate", "open_dataset"),
    "compare": (["compare", "ONNX"], "benchmarks.compare.run", "digest"),
    "include": (["include"], "text", "_write"),
    "bench": (["bench", "ONNX", "--rounds", "2"], "benchmarks.sweep.plan", "digest"),
    "gate": (["gate", "ONNX", "ONNX"], "benchmarks.gate.run", "make_side"),
    "train": (["train", "FILE", *SHAPE], "training.run", "open_dataset"),
    "doctor": (["doctor"], "workflows.doctor", "_version"),
    "completion": (["completion", "bash"], "text", "_write"),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def middle(command: str, monkeypatch: pytest.MonkeyPatch, error: BaseException, places: dict[str, object]) -> list[str]:
    """The command's line; it will raise ``error`` half way."""
    line, module, name = MIDDLES[command]

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(importlib.import_module(f"cnet_deploy.{module}"), name, fail)
    return [str(places.get(word, word)) for word in line]


@pytest.fixture
def places(checkpoint_path: Path, onnx_path: Path) -> dict[str, object]:
    return {"FILE": checkpoint_path, "ONNX": onnx_path}


def test_every_command_is_tried() -> None:
    assert set(MIDDLES) == set(COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("completion", "include")])
def test_in_the_middle_of_each_command(command: str, places: dict[str, object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    line = middle(command, monkeypatch, Surprise("a\n::error::\x1b[2J"), places)
    done = run(*line)
    assert done.exit_code == UNEXPECTED == 70 and done.stdout == ""
    (last,) = [text for text in done.stderr.splitlines() if text.startswith("Error: ")]
    assert done.stderr.splitlines()[-1] == last and "Traceback" not in done.stderr
    assert f"Error: {command}" in last and "(Surprise)" in last and "-v" in last
    assert all(str(places[word]) in last for word in MIDDLES[command][0] if word in places and command != "evaluate")
    assert not list(tmp_path.iterdir())

    done = run(*line, "-v")
    assert done.exit_code == UNEXPECTED and "Traceback" in done.stderr and "issue tracker" in done.stderr.splitlines()[-1]
    assert "\x1b" not in done.stderr and not [text for text in done.stderr.splitlines() if text.lstrip().startswith("::")]


def test_one_in_the_printing_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("cnet_deploy.text")
    write = module._write

    def fail(text: str, stream: Any, error: bool) -> None:
        if not error:
            raise Surprise
        write(text, stream, error)

    monkeypatch.setattr(module, "_write", fail)
    done = run("completion", "bash")
    assert done.exit_code == UNEXPECTED and done.stderr.startswith("Error: completion bash: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "not enough memory (MemoryError)"),
        (RecursionError("maximum recursion depth exceeded"), "(RecursionError)"),
        (OSError(errno.EMFILE, "Too many open files"), "(OSError: Too many open files)"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "(BrokenPipeError: Broken pipe)"),
        (EOFError(), "(EOFError)"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "(UnicodeDecodeError)"),
        (BaseException("a panic in Rust"), "(BaseException)"),
        (GeneratorExit(), "(GeneratorExit)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_that_look_like_something_else(
    error: BaseException, words: str, places: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them is an end of the input, an interruption, or a failure of standard output."""
    done = run(*middle("inspect", monkeypatch, error, places))
    assert done.exit_code == UNEXPECTED and words in done.stderr and done.stderr.count("\n") == 1, done.output


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (InputRefused("no"), 4), (click.UsageError("no"), 2)])
def test_what_is_foreseen_is_as_before(error: BaseException, code: int, places: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*middle("inspect", monkeypatch, error, places)).exit_code == code


def test_an_interruption_behind_another_error(places: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    error = ImportError("a module that was interrupted")
    error.__cause__ = KeyboardInterrupt()
    assert run(*middle("inspect", monkeypatch, error, places)).exit_code == 130


def test_the_file_that_was_at_work_is_named(places: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Surprise) as caught, naming("second[/x]\n.onnx"), naming(None):
        raise Surprise
    done = run(*middle("verify", monkeypatch, caught.value, places))
    assert ", at second[/x]\\n.onnx: stopped by an unexpected error (Surprise)" in done.stderr


def test_a_command_that_can_not_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cnet_deploy.cli.inspect", None)
    done = run("inspect", "m.onnx")
    assert done.exit_code == UNEXPECTED and done.stderr.startswith("Error: cnet-deploy: ") and "ModuleNotFoundError" in done.stderr


def meanwhile(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something in the middle of `inspect`, which then goes on."""
    module = importlib.import_module("cnet_deploy.workflows.inspect")
    kind_of_file = module.kind_of_file

    def both(path: Path) -> Any:
        action()
        return kind_of_file(path)

    monkeypatch.setattr(module, "kind_of_file", both)


def test_a_thread(checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise Surprise

    def begin() -> None:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()

    meanwhile(monkeypatch, begin)
    before = threading.excepthook, sys.unraisablehook, warnings.showwarning
    done = run("inspect", checkpoint_path)
    assert done.exit_code == UNEXPECTED and "Traceback" not in done.stderr and "(Surprise)" in done.stderr
    assert "Traceback" in run("inspect", checkpoint_path, "-v").stderr
    assert (threading.excepthook, sys.unraisablehook, warnings.showwarning) == before


def test_what_nobody_can_catch_and_what_libraries_warn_of(checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless:
        def __del__(self) -> None:
            raise Surprise

    def act() -> None:
        Careless()
        assert logging.lastResort is not None
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("a\n::error::b", UserWarning, "file.py", 1)
        logging.lastResort.handle(logging.LogRecord("library", logging.WARNING, "", 1, "c\n::error::d", None, None))

    meanwhile(monkeypatch, act)
    done = run("inspect", checkpoint_path)
    assert (done.exit_code, done.stderr) == (0, "")
    done = run("inspect", checkpoint_path, "-vv")
    assert "library says: c\\n::error::d" in done.stderr
    assert done.exit_code == 0 and "a library warns: a\\n::error::b (UserWarning)" in done.stderr and "(Surprise)" in done.stderr


def test_help_stays_light() -> None:
    script = "import sys; from cnet_deploy.cli import main; main(['--help']); print({'torch', 'numpy', 'rich'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "set()"
