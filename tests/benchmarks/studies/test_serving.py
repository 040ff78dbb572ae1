"""benchmarks/studies/serving.py with a real server, in haste: that every part of it measures something and keeps it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.studies import serving
from cnet_deploy.benchmarks.studies.overhead import EXAMPLE
from cnet_deploy.benchmarks.studies.triton import Tools
from cnet_deploy.errors import Unavailable
from tests.cases import long
from tests.serving.server import find_installation

QUICK = serving.Settings(rounds=2, served=0.15, inside=0.0, rewarm=0.0)


@pytest.fixture(scope="module")
def venv() -> Path:
    return find_installation().venv


@long
def test_through_a_server_and_in_the_process(tmp_path: Path, venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NETWORKS": {"the example": EXAMPLE}, "INSTANCES": ((1, 2), (2, 1)), "CONCURRENCY": (1, 8)}.items():
        monkeypatch.setattr(serving, name, value)
    said: list[str] = []
    serving.main(tmp_path / "s.json", venv, said.append, QUICK)
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["packages"] == {"nvidia-pytriton": "0.7.0", "tritonclient": "2.49.0"}
    served = [entry for entry in found["results"] if entry["what"] == "served"]
    ways = {(entry["instances"], entry["threads"], entry["transport"], entry["concurrency"]) for entry in served}
    one, shared, two = (1, 2, "gRPC"), (1, 2, "gRPC, shared memory"), (2, 1, "gRPC")
    assert ways == {(*way, clients) for way in (one, shared, two) for clients in (1, 8)} and len(served) == len(ways)
    for entry in served:
        assert len(entry["rounds"]) == 2 and entry["images_per_second"] > 0
        assert all(turn["requests"] > 0 and 0 < turn["p50_seconds"] <= turn["p99_seconds"] for turn in entry["rounds"])
    inside = [entry for entry in found["results"] if entry["what"] == "in process"]
    assert {(entry["threads"], entry["batch"]) for entry in inside} == {(t, b) for t in (1, 2) for b in serving.BATCHES}
    assert all(len(turn["samples"]) >= 3 for entry in inside for turn in entry["rounds"])
    limits = {each["what"]: each.get("least") for each in found["bars"]}
    assert limits["the example: 8 clients by gRPC, of the rate in the process with 2 thread(s), batch 1"] == 0.85
    assert sum(least is not None for least in limits.values()) == 1 and all(each["measured"] > 0 for each in found["bars"])
    assert any(line.startswith("the example, 1 instance(s) of 2 thread(s), gRPC, 8 client(s): ") for line in said)


@long
def test_a_server_that_does_not_start(tmp_path: Path, venv: Path) -> None:
    with pytest.raises(Unavailable, match=r"has no Triton server with perf_analyzer; make \.venv-triton/ready"):
        Tools.find(tmp_path, tmp_path)
    for name in ("libraries", "backends", "models"):
        (tmp_path / name).mkdir()
    tools = Tools.find(venv, tmp_path / "libraries")
    (tmp_path / "models" / "bad").mkdir()
    (tmp_path / "models" / "bad" / "config.pbtxt").write_text("no configuration")
    with (
        pytest.raises(Unavailable, match="the Triton server did not become ready: error"),
        tools.serving(tmp_path / "models", tmp_path / "backends"),
    ):
        pass
    with pytest.raises(Unavailable, match="perf_analyzer: ended with status"):
        tools.load("127.0.0.1:1", "none", concurrency=1, shared_memory=False, seconds=0.1, folder=tmp_path)
