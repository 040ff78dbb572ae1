"""What a network takes is known before any of it is allocated."""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import safetensors.numpy

import cnet_deploy as cd
from cnet_deploy.checkpoints.metadata import METADATA_KEY, own_metadata
from cnet_deploy.errors import InputRefused
from cnet_deploy.models import demands
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build_random
from cnet_deploy.models.demands import bytes_for, images_at_once, require_runnable
from tests.attacks.helpers import refused
from tests.builders import TINY


def test_the_paper_s_networks_run_anywhere() -> None:
    for name in NAMED:
        arch = Architecture.from_name(name)
        require_runnable(arch)
        assert images_at_once(arch) is None and bytes_for(arch, 2) == 2 * bytes_for(arch)


def test_more_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = replace(TINY, input_size=(4096, 4096))
    assert 4 << 30 < bytes_for(huge) < 32 << 30
    monkeypatch.setattr(demands, "memory_bytes", lambda: 4 << 30)
    with pytest.raises(InputRefused, match=r"4096x4096 pixels, and an image would take some .* GiB of memory; this machine has 4\.0"):
        require_runnable(huge)
    monkeypatch.setattr(demands, "memory_bytes", lambda: 64 << 30)
    require_runnable(huge)
    assert images_at_once(huge) == (64 << 30) // 4 // bytes_for(huge)
    wide = replace(TINY, stages=(40, 40, 40), growth=(64, 64, 64), input_size=(4096, 4096))
    monkeypatch.setattr(demands, "memory_bytes", lambda: 1 << 60)
    with pytest.raises(InputRefused, match=r"one would take .* multiply-adds; expected at most 1e\+13"):
        require_runnable(wide)


def test_a_small_file_of_large_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 kB of weights that claim images of 3500x3500 pixels: no command begins to run them."""
    monkeypatch.setattr(demands, "memory_bytes", lambda: 2 << 30)
    cd.save(build_random(TINY), tmp_path / "m.safetensors")
    model = cd.load(tmp_path / "m.safetensors")
    with safetensors.safe_open(tmp_path / "m.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model.architecture = replace(TINY, input_size=(3500, 3500))
    model.preprocessing = model.preprocessing.of_size((3500, 3500))
    path = tmp_path / "claims.safetensors"
    safetensors.numpy.save_file(tensors, path, {METADATA_KEY: own_metadata(model)})
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert cd.inspect(path).architecture == model.architecture
    for line in (("export", path, "--onnx"), ("run", path, path), ("verify", path, path)):
        assert "3500x3500 pixels" in refused(*line, seconds=60)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KB
    assert time.process_time() - start < 20
