"""nvml.py: the real nvidia-ml-py against a management library that stands in for a driver's, good and bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.benchmarks.measure.environment import environment, read_environment
from cnet_deploy.hardware.nvml import read_gpu, slowdowns
from tests.benchmarks.helpers import STATE

READ = """
import ctypes, json
from cnet_deploy.hardware.nvml import read_gpu
found = read_gpu()
try: open_count = ctypes.CDLL("libnvidia-ml.so.1").stand_in_live()
except (OSError, AttributeError): open_count = 0
assert open_count == 0, open_count  # shut down as often as it was started
print(json.dumps(found))
"""
UNKNOWN = dict.fromkeys(STATE)
EVERYTHING = {
    "sm_mhz": 1410.0, "memory_mhz": 3201.0, "max_sm_mhz": 1980.0, "max_memory_mhz": 3202.0, "celsius": 61.0, "watts": 76.12,
    "limit_watts": 700.0, "persistence": "Enabled", "compute_mode": "Exclusive_Process", "mig_mode": "Disabled", "performance_state": "P2",
    "reasons": ["sw_power_cap", "sw_thermal_slowdown"],
    "slowdown_microseconds": {
        "sw_power_cap": 74_000.0, "sw_thermal_slowdown": 269_000.0, "hw_thermal_slowdown": 270_000.0, "hw_power_brake_slowdown": 271_000.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a new driver's library and an older one's."""
    made = {}
    for kind, options in (("new", []), ("older", ["-DOLDER"])):
        made[kind] = tmp_path_factory.mktemp(kind)
        source = Path(__file__).with_name("stand_in_nvml.c")
        command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", *options, "-o", str(made[kind] / "libnvidia-ml.so.1"), str(source)]
        subprocess.run(command, check=True, capture_output=True)
    return made


@pytest.fixture
def read(system_tool: Callable[[str], str], request: pytest.FixtureRequest) -> Callable[..., list[Any] | None]:
    """What a process finds with a library, in surroundings."""
    system_tool("cc")

    def find(kind: str = "new", **surroundings: str) -> Any:
        folder = request.getfixturevalue("libraries").get(kind, kind)
        kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        everything = {**kept, "LD_LIBRARY_PATH": str(folder), **surroundings}
        done = subprocess.run([sys.executable, "-c", READ], env=everything, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    return find


def test_everything_that_a_driver_knows(read: Callable[..., Any]) -> None:
    name, driver, state = read()
    assert (name, driver) == ("Stand-in 9000", "580.159.03") and state == EVERYTHING
    assert list(state) == [*list(EVERYTHING)[:11], "slowdown_microseconds", "reasons"]  # as in results of before
    read_environment({**environment(), "gpu_state": state})
    name, driver, state = read("older")
    assert (name, driver) == ("Stand-in 9000", "580.159.03") and state == EVERYTHING


def test_what_is_not_supported_is_none(read: Callable[..., Any]) -> None:
    unsupported = " PowerUsage MigMode PerformanceState FieldValues "
    _, _, state = read(STAND_IN_UNSUPPORTED=unsupported)
    lost = dict.fromkeys(("watts", "mig_mode", "performance_state", "slowdown_microseconds"))
    assert state == {**EVERYTHING, **lost}
    everything = " Name DriverVersion ClockInfo MaxClockInfo Temperature PowerManagementLimit PersistenceMode ComputeMode Reasons"
    name, driver, state = read(STAND_IN_UNSUPPORTED=everything + unsupported)
    assert (name, driver) == (None, None) and state == UNKNOWN
    read_environment({**environment(), "gpu_state": state})


def test_counters_are_found_where_a_driver_has_them(read: Callable[..., Any]) -> None:
    """Drivers number them in two ways; what else has these numbers is not taken for a counter."""
    thermal = {name: number * 1000.0 for name, number in zip(list(EVERYTHING["slowdown_microseconds"])[1:], (251, 252, 253), strict=True)}
    power = {"sw_power_cap": 74_000.0}
    assert read(STAND_IN_FIELDS="early")[2]["slowdown_microseconds"] == {**power, **thermal}
    assert read(STAND_IN_FIELDS="both")[2]["slowdown_microseconds"] == power  # it can't be told which are which
    assert read(STAND_IN_FIELDS="none")[2]["slowdown_microseconds"] is None


@pytest.mark.parametrize(
    ("visible", "name"),
    [
        ("", "Stand-in 9000"), ("0", "Stand-in 9000"), ("1,0", "Stand-in 9100"), ("GPU-2222", "Stand-in 9100"),
        ("GPU-2222,0", "Stand-in 9100"), ("MIG-1", "Stand-in 9000"), ("-1", "Stand-in 9000"), ("2", None), ("GPU-3", None),
    ],
)  # fmt: skip
def test_the_first_device_that_a_process_sees(read: Callable[..., Any], visible: str, name: str | None) -> None:
    found = read(CUDA_VISIBLE_DEVICES=visible)
    assert (found and found[0]) == name
    if name == "Stand-in 9100":
        assert found[2] == {**EVERYTHING, "performance_state": None}  # which it calls unknown


@pytest.mark.parametrize(
    "surroundings", [{"STAND_IN_INIT": "9"}, {"STAND_IN_INIT": "999"}, {"STAND_IN_DEVICES": "0"}], ids=["driver", "unknown", "no device"]
)
def test_no_device_to_be_had(read: Callable[..., Any], surroundings: dict[str, str]) -> None:
    assert read(**surroundings) is None


def test_no_library_and_one_that_is_none(read: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    assert read(str(tmp_path)) is None
    system = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    if "libnvidia-ml.so.1" not in system:
        assert read(str(tmp_path / "nothing")) is None


def test_the_environment_has_it(libraries: dict[str, Path], system_tool: Callable[[str], str]) -> None:
    script = """
from cnet_deploy.benchmarks.measure.environment import environment, read_environment
from cnet_deploy.hardware.nvml import read_gpu
here = environment()
read_environment(here)
assert (here["gpu"], here["driver"], here["gpu_state"]) == read_gpu()
"""
    surroundings = {**os.environ, "LD_LIBRARY_PATH": str(libraries["new"])}
    subprocess.run([sys.executable, "-c", script], env=surroundings, check=True)


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_gpu() is None


def test_what_slowed_it_down() -> None:
    after = {**STATE, "reasons": ["idle", "sync_boost"], "slowdown_microseconds": {"sw_power_cap": 1_000_012.0, "hw_thermal_slowdown": 0.0}}
    assert slowdowns(STATE, after) == {"sync_boost": None, "sw_power_cap": 1.0}
    assert slowdowns(STATE, STATE) == slowdowns(None, STATE) == slowdowns(STATE, None) == {}
