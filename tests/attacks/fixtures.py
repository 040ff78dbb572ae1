"""What the attacks of a bad day share: the process that forks, and two models that can be told apart."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cnet_deploy.checkpoints.load import load
from cnet_deploy.checkpoints.save import save
from cnet_deploy.models.convert import convert
from tests.forks import Forks

from .disks import Disk, namespace
from .helpers import STEM, training_state, written


class Models(NamedTuple):
    """One network with two sets of weights, as checkpoints and converted. Not to be changed."""

    old: Path
    new: Path
    old_converted: Path
    new_converted: Path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    old = written(folder, training_state(), "old.pth.tar")
    new = written(folder, training_state(**{STEM: training_state()[STEM] * 2}), "new.pth.tar")
    converted = [folder / "old.safetensors", folder / "new.safetensors"]
    for path, out in zip((old, new), converted, strict=True):
        save(convert(load(path)), out)
    return Models(old, new, *converted)


@pytest.fixture(scope="session")
def mounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """One that has mounts of its own. Skipped by name where nobody may mount, or failed, as for a system tool that is missing."""
    if not (prefix := namespace()):
        message = "needs the system tool unshare, and the right to mount"
        if os.environ.get("CNET_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    found = Forks(tmp_path_factory.mktemp("mounting"), prefix)
    yield found
    found.close()


@pytest.fixture
def disk(mounting: Forks, tmp_path: Path) -> Iterator[Disk]:
    found = Disk(mounting, tmp_path / "disk")
    yield found
    found.unmount()


@pytest.fixture(scope="session")
def kills() -> int:
    """How often each command is killed: a few times in the suite, a hundred times by ``make attack``."""
    return int(os.environ.get("CNET_KILLS", "2"))
