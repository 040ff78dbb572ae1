"""What tests of measuring share."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy.models.build import build_random
from tests.benchmarks.gate.gating import NETWORK
from tests.builders import TINY
from tests.once import Once


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asserts how long anything takes, so none has to wait until another cell's threads have gone to sleep."""
    monkeypatch.setattr("cnet_deploy.benchmarks.measure.rounds.SETTLE_SECONDS", 0.0)


@pytest.fixture(scope="session")
def artifacts(once: Once) -> dict[str, Path]:
    """A network, the same again, and one that does twice the work on as many operators. Small ones, where speed does not matter."""
    folder = once("gate", make_artifacts)
    return {name: folder / f"{name}.onnx" for name in ("base", "equal", "double", "small", "small equal", "missing")}


def make_artifacts(folder: Path) -> None:
    size = (96, 96)
    larger = (int(96 * 2**0.5) // 4 * 4, int(96 * 2**0.5) // 4 * 4 + 4)
    made = {"base": replace(NETWORK, input_size=size), "double": replace(NETWORK, input_size=larger), "small": TINY}
    paths = {name: cd.export(build_random(arch), "onnx", folder / f"{name}.onnx").path for name, arch in made.items()}
    assert 1.8 < made["double"].cost().macs / made["base"].cost().macs < 2.3
    for name, equal in (("base", "equal"), ("small", "small equal")):
        for suffix in ("", ".json"):
            shutil.copy(f"{paths[name]}{suffix}", folder / f"{equal}.onnx{suffix}")
