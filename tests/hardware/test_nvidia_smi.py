"""What nvidia-smi prints, in words of old and new drivers; and that nothing it does ends a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.hardware.nvidia_smi import QUERIES, check_state, parse_gpu, read_gpu, slowdowns
from tests.benchmarks.helpers import STATE

H200 = (
    "NVIDIA H200, 580.159.03, 1980, 3201, 1980, 3201, 34, 76.12, 700.00, Enabled, Default, Disabled, P0, "
    "0x0000000000000024, 1200, 0, 7, 0\n"
)
# A card without MIG on a driver that knows no counters; a virtual GPU that tells next to nothing.
CARD = "NVIDIA GeForce GTX 1080, 470.57.02, 139, 405, 1911, 5005, 31, 8.25, 180.00, Disabled, Default, [N/A], P8, 0x0000000000000001"
VIRTUAL = "GRID V100D-8C, 460.91, " + ", ".join(["[Not Supported]"] * 5 + ["[N/A]", "[Unknown Error]"]) + ", Enabled, Default, [N/A], P0, "


def test_a_new_drivers_words() -> None:
    found = parse_gpu(H200)
    assert found is not None and found[:2] == ("NVIDIA H200", "580.159.03")
    assert found.state == {
        "sm_mhz": 1980.0, "memory_mhz": 3201.0, "max_sm_mhz": 1980.0, "max_memory_mhz": 3201.0, "celsius": 34.0, "watts": 76.12,
        "limit_watts": 700.0, "persistence": "Enabled", "compute_mode": "Default", "mig_mode": "Disabled", "performance_state": "P0",
        "reasons": ["sw_power_cap", "sw_thermal_slowdown"],
        "slowdown_microseconds": {
            "sw_power_cap": 1200.0, "sw_thermal_slowdown": 0.0, "hw_thermal_slowdown": 7.0, "hw_power_brake_slowdown": 0.0,
        },
    }  # fmt: skip
    assert set(found.state) == set(STATE)
    texts, numbers = check_state(found.state)
    assert "sw_power_cap" in texts and 1980.0 in numbers


def test_what_is_not_told_is_none() -> None:
    card = parse_gpu(CARD, QUERIES[2])
    assert card is not None and card.state["reasons"] == ["idle"] and card.state["slowdown_microseconds"] is None
    assert card.state["mig_mode"] is None and card.state["performance_state"] == "P8"
    virtual = parse_gpu(VIRTUAL + "[N/A]", QUERIES[1])
    assert virtual is not None and virtual.name == "GRID V100D-8C" and virtual.state["reasons"] is None
    assert all(virtual.state[name] is None for name in ("sm_mhz", "max_sm_mhz", "celsius", "watts", "limit_watts"))
    check_state(virtual.state)


@pytest.mark.parametrize("text", ["", "\n", "No devices were found", 'Field "mig.mode.current" is not a valid field to query.', CARD])
def test_what_is_no_answer(text: str) -> None:
    assert parse_gpu(text) is None


def test_the_first_of_several_devices() -> None:
    found = parse_gpu(H200 + H200.replace("H200", "H100"))
    assert found is not None and found.name == "NVIDIA H200"


def test_what_slowed_it_down() -> None:
    after = {**STATE, "reasons": ["idle", "sync_boost"], "slowdown_microseconds": {"sw_power_cap": 1_000_012.0, "hw_thermal_slowdown": 0.0}}
    assert slowdowns(STATE, after) == {"sync_boost": None, "sw_power_cap": 1.0}
    assert slowdowns(STATE, STATE) == slowdowns(None, STATE) == slowdowns(STATE, None) == {}


@pytest.mark.parametrize(
    ("script", "name"),
    [
        (f"echo '{H200.strip()}'", "NVIDIA H200"),
        (f"case $1 in *counters*) echo no such field; exit 2;; *) echo '{', '.join(H200.split(', ')[:14])}';; esac", "NVIDIA H200"),
        (f"case $1 in *event*) exit 2;; *) echo '{CARD}';; esac", "NVIDIA GeForce GTX 1080"),
        ("echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9", None),
        ("head -c 200 /dev/urandom", None),
        ("exec sleep 60", None),
        (None, None),
    ],
)
def test_whatever_nvidia_smi_does(script: str | None, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script else str(tmp_path))
    monkeypatch.setattr("cnet_deploy.hardware.nvidia_smi.TIMEOUT_SECONDS", 2)
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    found = read_gpu()
    assert (found and found.name) == name
    if name:
        here = environment()
        assert found is not None and (here["gpu"], here["driver"], here["gpu_state"]) == found
