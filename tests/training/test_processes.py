"""Two processes over gloo train one model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.training.processes import gathered
from tests.cases import long
from tests.conftest import ROOT


def torchrun(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """As users start it: two processes on this machine, a port that is free."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=300)


@long
def test_two_processes_prune_alike_and_count_every_image_once(small_dataset: Path, tmp_path: Path) -> None:
    done = torchrun("-m", "tests.training.two_processes", small_dataset, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (dict(np.load(tmp_path / f"rank{rank}.npz")) for rank in range(2))
    for name in first:
        assert np.array_equal(first[name], second[name]), f"{name} differs between the processes"
    images, _, tested, *_, stage = first["figures"]
    assert (images, tested, stage) == (96, 41, 3)  # 41 is odd: one process has an image more
    masks = [value for name, value in first.items() if name.endswith("._mask")]
    assert masks and all(value.sum() * 4 == value.size for value in masks)
    assert "strides" not in done.stderr, "gradients are copied for want of the same layout"


@long
def test_the_command_under_torchrun(small_dataset: Path, tmp_path: Path) -> None:
    options = ["--stages", "1-1", "--growth", "8-8", "--epochs", "2", "-b", "32"]
    done = torchrun("-m", "cnet_deploy", "train", small_dataset, *options, "--savedir", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("epoch 1: loss") == 1 and done.stdout.count("top-1 error") == 1, "the leader alone speaks"
    again = torchrun("-m", "cnet_deploy", "train", small_dataset, *options, "--savedir", tmp_path, "--resume", "--epochs", "3")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "going on after epoch 1" in again.stderr
    assert (tmp_path / "save_models" / "checkpoint_002.pth.tar").is_file()


def test_half_of_torchrun_s_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputRefused, match="only RANK is set; start with torchrun"), gathered("cpu"):
        pass


@pytest.mark.parametrize(
    ("message", "raised"), [("[gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:1", Unavailable), ("shapes differ", RuntimeError)]
)
def test_another_process_that_has_ended(message: str, raised: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    for name in ("init_process_group", "barrier", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    with pytest.raises(raised, match="another process of this run" if raised is Unavailable else message), gathered("cpu"):
        raise RuntimeError(message)


def test_one_process_alone_is_its_own_leader() -> None:
    with gathered("cpu") as peers:
        assert peers.leads and peers.processes == 1 and peers.from_leader("x") == "x"
        values = torch.ones(3)
        assert peers.total(values) is values


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device here")
def test_a_device_that_is_not_here() -> None:
    with pytest.raises(Unavailable, match="leave --device out to train on the CPU"), gathered("cuda"):
        pass
