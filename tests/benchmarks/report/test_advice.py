"""Every warning says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.report.advice import warnings_of
from tests.benchmarks.helpers import STATE, on_cuda, report, result

QUIET = {
    "governor": "performance", "turbo": False, "virtual": False, "clock_mhz": [3000.0, 3000.0], "load_average": [0.0, 0.0, 0.0], "cores": 1,
    "machine_cores": 1, "processor_ticks": None,
}  # fmt: skip


def warned(after: dict[str, Any] | None = None, **changes: Any) -> list[str]:
    here = {**environment(), **QUIET}
    made = report(environment={**here, **changes}, after={**here, **changes, **(after or {})})
    made.rows = made.rows[:1]
    return warnings_of(made)


def test_a_quiet_machine_needs_none() -> None:
    assert warned() == []


@pytest.mark.parametrize(
    ("changes", "after", "finds", "does"),
    [
        ({"governor": "powersave"}, {}, "governor is 'powersave'", "cpupower frequency-set -g performance"),
        ({"turbo": True}, {}, "Turbo is on", "cpufreq/boost"),
        ({"governor": None, "virtual": True}, {}, "virtual machine", "Trust ratios"),
        ({}, {"clock_mhz": [2000.0, 3000.0]}, "Clocks float: 2000 to 3000 MHz", "fix the frequency"),
        ({"load_average": [0.9, 0, 0]}, {}, "load average was 0.9", "stop what else runs"),
        ({"cores": 4, "machine_cores": 4}, {}, "not pinned", "taskset -c 0-0"),
        (
            {"processor_ticks": {"user": 0, "steal": 0}}, {"processor_ticks": {"user": 90, "steal": 10}},
            "gave 10.0% of the cores' time", "cores of its own",
        ),
    ],
)  # fmt: skip
def test_what_was_found_and_what_to_do(changes: dict[str, Any], after: dict[str, Any], finds: str, does: str) -> None:
    (text,) = warned(after, **changes)
    assert finds in text and does in text


def test_threads_beyond_the_cores() -> None:
    made = report(environment={**environment(), **QUIET})
    made.rows = made.rows[:1]
    made.rows[0].results = [result([0.01] * 40, [0.01] * 40, label="mobilenet-1.0-224", threads=3)]
    assert any("3 threads share 1 cores" in text and "--threads 1" in text for text in warnings_of(made))


def test_unstable_failed_and_unfinished() -> None:
    made = report(after=None, environment={**environment(), **QUIET})
    made.rows[0].results[0].rounds[0][0] = 1.0
    found = warnings_of(made)
    assert any("1 of 11 cells are unstable" in text and "MobileNet 1.0-224 on onnxruntime" in text and "--rounds" in text for text in found)
    assert any("1 cell failed" in text for text in found) and any("--resume" in text for text in found)


def warned_of_gpu(state: dict[str, Any] | None, after: dict[str, Any] | None) -> list[str]:
    here = {**environment(), **QUIET, "gpu_state": state}
    made = on_cuda(environment=here, after={**here, "gpu_state": after})
    made.rows = made.rows[:1]
    return warnings_of(made)


def test_a_quiet_gpu_needs_none() -> None:
    idle = {**STATE, "reasons": ["idle", "application setting"], "sm_mhz": 345.0}
    assert warned_of_gpu(STATE, STATE) == warned_of_gpu(idle, STATE) == []


@pytest.mark.parametrize(
    ("before", "after", "finds", "does"),
    [
        ({}, {"reasons": ["idle", "hw_thermal_slowdown"]}, "held its clocks down (hw_thermal_slowdown)", "nvidia-smi -lgc"),
        ({}, {"slowdown_microseconds": {"sw_power_cap": 2_500_012.0}}, "(sw_power_cap for 2.5 s)", "power limit"),
        ({"persistence": "Disabled"}, {}, "persistence mode is off", "nvidia-smi -pm 1"),
        ({}, {"sm_mhz": 1500.0}, "clock floats: 1500 to 1980 MHz", "nvidia-smi -lgc"),
    ],
)
def test_what_the_gpu_did_and_what_to_do(before: dict[str, Any], after: dict[str, Any], finds: str, does: str) -> None:
    (text,) = warned_of_gpu({**STATE, **before}, {**STATE, **before, **after})
    assert finds in text and does in text


def test_a_gpu_that_nobody_tells_of() -> None:
    (text,) = warned_of_gpu(None, None)
    assert "could not be read" in text and "pip install nvidia-ml-py" in text and "utility" in text
    assert not any("GPU" in text for text in warned())
