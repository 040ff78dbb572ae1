"""The README's commands, run as they stand, in a folder that has the examples and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.startswith("cnet-deploy ")]


def hurried(line: str) -> str:
    """The command as it stands; where it measures, no longer than it takes to see that it does."""
    shorter = {
        "bench": "--rounds 1 --seconds 0 --warmup 0", "gate": "--seconds 0 --warmup 0 --max-rounds 8", "train": "--epochs 1",
    }  # fmt: skip
    if line.startswith("cnet-deploy bench --"):  # the whole table is what `make demo` measures
        shorter["bench"] += " mobilenet-1.0-224 condensenet-74-g8"
    if "--save-baseline" in line:
        shorter["bench"] = "--rounds 8 --seconds 0 --warmup 0"
    if "--baseline" in line:
        shorter["gate"] = "--max-rounds 8"
    return f"{line} {shorter.get(line.split()[1], '')}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Path:
    made = tmp_path_factory.mktemp("readme")
    (made / "examples").symlink_to(ROOT / "examples")
    (made / "cifar-10-batches-bin").symlink_to(small_dataset)  # what it holds is seen, whatever it is called
    return made


def test_there_is_something_to_run() -> None:
    assert {line.split()[1] for line in commands()} == {
        "inspect",
        "convert",
        "export",
        "verify",
        "evaluate",
        "train",
        "bench",
        "gate",
        "doctor",
    }
    assert len(blocks("python")) == 1
    assert "make demo" in README and "make test" in README


@pytest.mark.slow
def test_commands_in_their_order(folder: Path) -> None:
    for line in map(hurried, commands()):
        surroundings = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        surroundings["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(line, shell=True, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
        codes = (0, 3) if " gate " in line else (0,)  # a busy machine may be too noisy to say
        assert done.returncode in codes, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_python_block(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", blocks("python")[0]], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 10)\n"
