"""What modules say of themselves without being imported, and the promise that rests on it: a backend is two files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnet_deploy.declarations import declared

ROOT = Path(__file__).parents[2]

EXPORTER = '''
"""Plain arrays: the Program, pickled by numpy."""

from cnet_deploy.exporters import Written

SUFFIX = ".npy"
HELP = "Write plain arrays."


def write(network, path, *, precision="fp32"):
    import numpy as np

    with path.open("wb") as file:
        np.save(file, np.array([network], dtype=object))
    return Written(precision)
'''
SESSION = '''
"""Plain arrays, run by the Program's own numpy."""

import io

import numpy as np

from cnet_deploy.sessions.base import Binding, Session

SUFFIXES = (".npy",)
DEVICES = ("cpu",)


class ArraysSession(Session):
    backend = "arrays"

    def __init__(self, pair):
        self.manifest = pair.require_manifest("a pickle")
        self.program = np.load(io.BytesIO(pair.data), allow_pickle=True)[0]
        self.architecture, self.preprocessing = self.program.architecture, self.program.preprocessing
        self.input_shape, self.classes = (None, 3, *self.architecture.input_size), self.architecture.classes

    def bind(self, batch):
        return Arrays(self.program, self.check(batch))


class Arrays(Binding):
    def __init__(self, program, batch):
        self.program, self.batch = program, batch

    def enqueue(self):
        self.logits = self.program.run(self.batch)

    def result(self):
        return self.logits


def open_file(pair, *, device, threads):
    return ArraysSession(pair)
'''


def test_constants_of_modules_and_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_backends"
    (package / "second").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "first.py").write_text(
        "import nothing_like_it\nA = 1\nB: int = 2\nC = max(1, 2)\nd = 3\nA_B = {'x': (1, [2])}\ndef f():\n    E = 5\n"
    )
    (package / "second" / "__init__.py").write_text("A = 'package'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert declared("some_backends") == {"first": {"A": 1, "B": 2, "A_B": {"x": (1, [2])}}, "second": {"A": "package"}}
    assert "some_backends.first" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        declared("no_such_package")


@pytest.mark.slow
def test_a_backend_is_two_files(tmp_path: Path, checkpoint_path: Path) -> None:
    shutil.copytree(ROOT / "cnet_deploy", tmp_path / "cnet_deploy", ignore=shutil.ignore_patterns("__pycache__", "results"))
    (tmp_path / "cnet_deploy" / "exporters" / "arrays.py").write_text(EXPORTER)
    (tmp_path / "cnet_deploy" / "sessions" / "arrays.py").write_text(SESSION)

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cnet_deploy", *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=False,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "--arrays" in run("export", "--help") and "Write plain arrays." in run("export", "--help")
    assert "wrote m.npy" in run("export", checkpoint_path, "--arrays", "-o", "m.npy")
    assert "m.npy computes what" in run("verify", "m.npy", checkpoint_path)
    assert "condensenet 4-4-4" in run("inspect", "m.npy")
    quick = ("--rounds", 1, "--seconds", 0, "--warmup", 0)
    assert "arrays" in run("bench", "m.npy", *quick)
    assert "arrays" in run("bench", checkpoint_path, "--backend", "arrays", *quick)
