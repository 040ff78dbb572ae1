"""A backend is two files: added to a copy of the package, every command knows it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cnet_deploy.exporters import targets
from cnet_deploy.sessions import names
from tests.cases import long

ROOT = Path(__file__).parents[2]
# Rooms that are about single backends: their own two, what reads a machine, and the studies, each of one runtime.
THEIR_OWN = ("sessions", "exporters", "hardware", "benchmarks/studies")
# What is called like a backend and isn't one: a module in a pickle, a package whose version is recorded, a kind of file.
OTHERS = {
    ("files/kinds.py", "onnx"),
    ("checkpoints/tensor_pickle.py", "torch"),
    ("training/run.py", "torch"),
    ("benchmarks/measure/environment.py", "onnx"),
}

EXPORTER = '''
"""Plain arrays: the Program, pickled by numpy."""

from cnet_deploy.exporters.base import Option, Target, Written

TARGET = Target(
    suffix=".npy", title="arrays", help="Write plain arrays.", options=(Option("precision", "choice", "fp32", choices=("fp32",)),)
)


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

from cnet_deploy.sessions.base import Backend, Binding, Session
from tests.cases import long

BACKEND = Backend(suffixes=(".npy",), devices=("cpu",), packages=("numpy",), table={"cpu": ("",)})


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


# Command lines by lines of JSON, in one process: they are many, and each would import torch.
COMMANDS = """
import json, sys
from click.testing import CliRunner
from cnet_deploy.cli import main
for line in sys.stdin:
    done = CliRunner().invoke(main, json.loads(line))
    print(json.dumps([done.exit_code, done.stdout, done.stderr]), flush=True)
"""


@long
def test_a_backend_is_two_files(tmp_path: Path, checkpoint_path: Path) -> None:
    shutil.copytree(ROOT / "cnet_deploy", tmp_path / "cnet_deploy", ignore=shutil.ignore_patterns("__pycache__", "results"))
    (tmp_path / "cnet_deploy" / "exporters" / "arrays.py").write_text(EXPORTER)
    (tmp_path / "cnet_deploy" / "sessions" / "arrays.py").write_text(SESSION)

    def run(*arguments: object, expected: int = 0) -> str:
        print(json.dumps([str(argument) for argument in arguments]), file=process.stdin, flush=True)
        code, stdout, stderr = json.loads(process.stdout.readline() or '[70, "", "it has ended"]')
        assert code == expected, stderr
        return str(stderr if expected else stdout)

    surroundings = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS], cwd=tmp_path, env=surroundings, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    assert "--arrays" in run("export", "--help") and "Write plain arrays." in run("export", "--help")
    assert "wrote m.npy" in run("export", checkpoint_path, "--arrays", "-o", "m.npy")
    refused = run("export", checkpoint_path, "--arrays", "--triton", "models", expected=4)
    assert "Triton serves no arrays artifacts; expected one of `export` with --onnx or --native or --tensorrt" in refused
    assert "m.npy computes what" in run("verify", "m.npy", checkpoint_path)
    assert "condensenet 4-4-4" in run("inspect", "m.npy")
    quick = ("--rounds", 1, "--seconds", 0, "--warmup", 0)
    assert "arrays" in run("bench", "m.npy", *quick)
    assert "arrays" in run("bench", checkpoint_path, "--backend", "arrays", *quick)
    assert "arrays" in run("bench", "--help")
    (line,) = run("doctor", "arrays").splitlines()
    assert line.split()[:2] == ["arrays", "works"]
    completion = {"_CNET_DEPLOY_COMPLETE": "bash_complete", "COMP_WORDS": "cnet-deploy run x --backend a", "COMP_CWORD": "4"}
    process.stdin.close()
    process.stdout.close()
    assert process.wait() == 0
    done = subprocess.run(
        [sys.executable, "-m", "cnet_deploy"], cwd=tmp_path, env=surroundings | completion, capture_output=True, text=True, check=False
    )
    assert "plain,arrays" in done.stdout, done.stderr


def test_no_backend_is_named_outside_its_own_files() -> None:
    package = ROOT / "cnet_deploy"
    called = sorted({*targets(), *names()})
    # "onnx" and "torch" are also what a file or a package is; alone in a string, they are a choice.
    pattern = re.compile(rf"^({'|'.join(called)})$|\b({'|'.join(set(called) - {'onnx', 'torch'})})\b")
    seen = set()
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).as_posix()
        if module.startswith(THEIR_OWN):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in prose]
        seen |= {(module, text) for text in strings if pattern.search(text) and not text.startswith("cnet-deploy ")}
    assert seen <= OTHERS
    assert ("checkpoints/tensor_pickle.py", "torch") in seen  # it does look
