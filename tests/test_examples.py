"""The example in every command's help, run as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cnet_deploy.cli import main
from tests.test_readme import ROOT, hurried

# In the order in which one makes what the next one reads.
ORDER = ("inspect", "convert", "export", "verify", "run", "evaluate", "train", "bench", "gate", "doctor", "completion")


def examples(command: str) -> list[str]:
    """The lines under "Example" in a command's help."""
    text = CliRunner().invoke(main, [command, "--help"]).output
    found = re.search(r"^Examples?:\n((?:  .*\n?)+)", text, re.MULTILINE)
    return [line.strip() for line in found[1].splitlines()] if found else []


def test_every_command_has_some() -> None:
    assert set(ORDER) == set(main.commands)
    for command in ORDER:
        assert examples(command), command
        assert all(f"cnet-deploy {command} " in f"{line} " for line in examples(command)), command


@pytest.mark.slow
def test_they_work(tmp_path: Path, small_dataset: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "cifar-10-batches-bin").symlink_to(small_dataset)
    surroundings = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for command in ORDER:
        if command == "gate":  # what is in production, and what may come after it
            for suffix in ("", ".json"):
                shutil.copy(tmp_path / f"model.onnx{suffix}", tmp_path / f"candidate.onnx{suffix}")
            prepared = "cnet-deploy bench model.onnx --save-baseline baseline.json --rounds 8 --seconds 0 --warmup 0"
            subprocess.run(prepared, shell=True, cwd=tmp_path, env=surroundings, check=True, capture_output=True)
        for line in examples(command):
            short = hurried(line) if line.startswith("cnet-deploy") and "#" not in line else line
            short = short.replace("14-14-14", "1-1-1")  # as deep a network as is quick to train
            done = subprocess.run(["bash", "-c", short], cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
            codes = (0, 3) if command == "gate" else (0,)  # a busy machine may be too noisy to say
            assert done.returncode in codes, f"{line}\n{done.stdout}\n{done.stderr}"
