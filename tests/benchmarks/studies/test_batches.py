"""benchmarks/studies/batches.py, in haste: that every part of it measures something and keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.studies import batches
from cnet_deploy.benchmarks.studies.overhead import EXAMPLE
from tests.cases import long

QUICK = Settings(rounds=1, seconds=0.0, least=1, warmup=0.0, rewarm=0.0)


@long
def test_what_threads_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "NETWORKS", {"the example": EXAMPLE})
    said: list[str] = []
    batches.main(tmp_path / "b.json", said.append, QUICK)
    (found,) = json.loads((tmp_path / "b.json").read_text())["results"]
    assert len(found["cells"]) == len(batches.KEYS) == 4 + 2 * 7 and all(cell["error"] is None for cell in found["cells"])
    assert all(cell["images_per_second"] > 0 and "/" not in cell["cell"]["model"] for cell in found["cells"])
    bytes_ = {(one["threads"], one["sharing"]): one["reserved_bytes"] for one in found["memory"]}
    assert bytes_[2, "layers"] == bytes_[1, "auto"] < bytes_[2, "auto"] <= bytes_[4, "auto"]
    limits = {one["what"]: one.get("least") for one in found["bars"]}
    assert limits["the example, batch 32: 2 threads for 1"] == 1.8 and limits["the example, batch 1: 4 threads for 2"] == 0.9
    assert all(one["measured"] > 0 for one in found["bars"]) and any("reserved" in line for line in said)
