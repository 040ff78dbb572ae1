"""The GPU as its driver's management library (NVML) describes it: which one, which driver, its clocks, and what slows it down.

Read through nvidia-ml-py, whose module is ``pynvml``.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from cnet_deploy.errors import raise_if_interrupted

_NUMBERS = ("sm_mhz", "memory_mhz", "max_sm_mhz", "max_memory_mhz", "celsius", "watts", "limit_watts")
_SWITCH = {0: "Disabled", 1: "Enabled"}
_COMPUTE_MODES = {0: "Default", 1: "Exclusive_Thread", 2: "Prohibited", 3: "Exclusive_Process"}
# Of what a driver calls reasons, bit by bit (nvml.h). The first two and the last are no slowdown.
_REASONS = (
    "idle", "application setting", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal_slowdown", "hw_thermal_slowdown",
    "hw_power_brake_slowdown", "display setting",
)  # fmt: skip
_POWER_CAP = 74  # its counter has had this number in every driver
_SLOWDOWNS = ("sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
# These counters have other numbers in drivers 575 to 580.65 than in later ones (nvml.h). Where one driver has counters, another has
# settings of power smoothing, which are no 64-bit numbers: so the type tells which driver it is.
_SLOWDOWN_FIELDS = ((269, 270, 271), (251, 252, 253))


class Gpu(NamedTuple):
    """A GPU's name, its driver's version, and its state at this moment; None for what the driver does not report.

    In the state, clocks are in MHz; ``reasons`` are what held clocks down at that moment, ``slowdown_microseconds`` for how long since the
    driver was started. benchmarks/measure/environment.py has the type of each entry.
    """

    name: str | None
    driver: str | None
    state: dict[str, Any]


def read_gpu() -> Gpu | None:
    """The GPU that a process sees first; None where there is none, or where its driver or nvidia-ml-py is missing or fails."""
    try:
        import pynvml
    except ImportError as error:
        raise_if_interrupted(error)
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
        if first.startswith("GPU-"):
            device = _Device(pynvml, pynvml.nvmlDeviceGetHandleByUUID(first))
        else:
            device = _Device(pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdecimal() else 0))
        return Gpu(device.ask("Name"), device.driver(), device.state())
    except pynvml.NVMLError:
        return None
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


class _Device:
    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    def ask(self, what: str, *arguments: Any) -> Any:
        """What ``nvmlDeviceGet…`` returns; None where the device or its driver does not support it."""
        try:
            return getattr(self.nvml, f"nvmlDeviceGet{what}")(self.handle, *arguments)
        except (self.nvml.NVMLError, UnicodeDecodeError):
            return None

    def driver(self) -> str | None:
        try:
            return str(self.nvml.nvmlSystemGetDriverVersion())
        except (self.nvml.NVMLError, UnicodeDecodeError):
            return None

    def state(self) -> dict[str, Any]:
        sm, memory = self.nvml.NVML_CLOCK_SM, self.nvml.NVML_CLOCK_MEM
        numbers = (
            self.ask("ClockInfo", sm), self.ask("ClockInfo", memory), self.ask("MaxClockInfo", sm), self.ask("MaxClockInfo", memory),
            self.ask("Temperature", self.nvml.NVML_TEMPERATURE_GPU), _watts(self.ask("PowerUsage")),
            _watts(self.ask("PowerManagementLimit")),
        )  # fmt: skip
        level = self.ask("PerformanceState")
        bits = self.ask("CurrentClocksEventReasons")
        if bits is None:  # by its name in older drivers
            bits = self.ask("CurrentClocksThrottleReasons")
        return {
            **{name: None if number is None else float(number) for name, number in zip(_NUMBERS, numbers, strict=True)},
            "persistence": _SWITCH.get(self.ask("PersistenceMode")),
            "compute_mode": _COMPUTE_MODES.get(self.ask("ComputeMode")),
            "mig_mode": _SWITCH.get((self.ask("MigMode") or [None])[0]),
            "performance_state": None if level is None or level == self.nvml.NVML_PSTATE_UNKNOWN else f"P{level}",
            "slowdown_microseconds": self.slowdown_microseconds() or None,
            "reasons": None if bits is None else [name for bit, name in enumerate(_REASONS) if bits >> bit & 1],
        }

    def slowdown_microseconds(self) -> dict[str, float]:
        """For how long each cause has held clocks down since the driver was started. The driver counts nanoseconds."""
        fields = [_POWER_CAP, *_SLOWDOWN_FIELDS[0], *_SLOWDOWN_FIELDS[1]]
        counts = {
            value.fieldId: float(value.value.ullVal // 1000)
            for value in self.ask("FieldValues", fields) or ()
            if value.nvmlReturn == self.nvml.NVML_SUCCESS and value.valueType == self.nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
        }
        found = {"sw_power_cap": counts[_POWER_CAP]} if _POWER_CAP in counts else {}
        complete = [numbers for numbers in _SLOWDOWN_FIELDS if counts.keys() >= set(numbers)]
        if len(complete) == 1:
            found |= {name: counts[number] for name, number in zip(_SLOWDOWNS, complete[0], strict=True)}
        return found


def slowdowns(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> dict[str, float | None]:
    """What held a GPU's clocks down between two states, with its seconds; None for what was seen, but not for how long."""
    if not before or not after:
        return {}
    seen: dict[str, float | None] = dict.fromkeys(
        reason for state in (before, after) for reason in state["reasons"] or () if reason not in _REASONS[:2] + _REASONS[-1:]
    )
    first, last = before["slowdown_microseconds"] or {}, after["slowdown_microseconds"] or {}
    return seen | {name: (last[name] - first[name]) / 1e6 for name in last if name in first and last[name] > first[name]}


def driver_of_module(text: str) -> str | None:
    """The version in ``/proc/driver/nvidia/version``, for where the management library is not.

    >>> driver_of_module("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.03  Tue Nov 4 01:00:00 UTC 2026")
    '580.159.03'
    """
    found = re.search(r"\b\d{3,}(\.\d+)+\b", text)
    return found[0] if found else None


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 2)
