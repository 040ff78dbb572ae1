"""The machine and its software, as every measurement records them, and the fingerprint by which two machines are the same."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from cnet_deploy.files.strict_json import Amount, Count, Whole, check_printable, convert
from cnet_deploy.hardware.nvml import driver_of_module, read_gpu
from cnet_deploy.sessions import backends

_PACKAGES = ("onnx", "numpy", "pycuda", "cuda-python", "cuda-bindings")  # and those of all backends
_CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq"
_FINGERPRINT = ("cpu", "cores", "affinity", "memory_gib", "system", "python", "packages", "gpu", "driver")
# The types of what ``environment`` gives, as files keep it; null is what the system does not report. They are no classes, since their
# entries are used as keys alone. Of a GPU: clocks in MHz, degrees Celsius, watts; ``reasons`` are what held its clocks down at that
# moment, ``slowdown_microseconds`` for how long since the driver was started.
_Ticks = TypedDict(  # noqa: UP013
    "_Ticks",
    {"user": Whole, "nice": Whole, "system": Whole, "idle": Whole, "iowait": Whole, "irq": Whole, "softirq": Whole, "steal": Whole},
)
_GpuState = TypedDict(  # noqa: UP013
    "_GpuState",
    {
        "sm_mhz": Amount | None, "memory_mhz": Amount | None, "max_sm_mhz": Amount | None, "max_memory_mhz": Amount | None,
        "celsius": Amount | None, "watts": Amount | None, "limit_watts": Amount | None,
        "persistence": str | None, "compute_mode": str | None, "mig_mode": str | None, "performance_state": str | None,
        "reasons": list[str] | None, "slowdown_microseconds": dict[str, Amount] | None,
    },
)  # fmt: skip
_Environment = TypedDict(  # noqa: UP013
    "_Environment",
    {
        "time": str, "cpu": Annotated[str, Meta(min_length=1, description="the name of a processor")], "cores": Count,
        "affinity": list[Whole] | None, "machine_cores": Count | None, "governor": str | None, "turbo": bool | None, "virtual": bool,
        "clock_mhz": list[Amount] | None, "memory_bytes": Whole | None, "memory_gib": Whole | None, "load_average": list[Amount] | None,
        "processor_ticks": _Ticks | None, "system": str, "python": str, "packages": dict[str, str], "gpu": str | None,
        "driver": str | None, "gpu_state": _GpuState | None,
    },
)  # fmt: skip


def environment() -> dict[str, Any]:
    """What decides a latency and can be read without privileges; None where the system does not report it.

    ``clock_mhz`` are the cores' clocks at this moment, ``processor_ticks`` what all cores have done since the machine started
    (hundredths of a second by kind): two of them give what a hypervisor took in between (see ``stolen``). ``gpu_state`` is the state
    of the first GPU (see ``_GpuState``); it is no part of the fingerprint.
    """
    gpu = read_gpu()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": cores(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "machine_cores": os.cpu_count(),
        "governor": _read(f"{_CPUFREQ}/scaling_governor"),
        "turbo": _turbo(),
        "virtual": "hypervisor" in (_cpuinfo("flags") or "").split(),
        "clock_mhz": [float(clock) for clock in _all_cpuinfo("cpu MHz")] or None,
        "memory_bytes": memory,
        "memory_gib": None if memory is None else round(memory / 2**30),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "processor_ticks": _ticks(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in _packages() if (version := _version(name))},
        "gpu": gpu and gpu.name,
        "driver": (gpu and gpu.driver) or driver_of_module(_read("/proc/driver/nvidia/version") or ""),
        "gpu_state": gpu and gpu.state,
    }


def read_environment(values: object, place: str = "environment") -> dict[str, Any]:
    """An ``environment`` from a file; its texts can be put into reports and onto terminals. Raises InputRefused for anything else.

    ``place`` is its place in the file. Runs that were recorded before GPUs were looked at have no ``gpu_state``: it is None then.
    """
    if isinstance(values, dict):
        values = {**values, "gpu_state": values.get("gpu_state")}
    made = convert(values, _Environment, place)
    check_printable(made, place)
    return dict(made)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an ``environment`` that must be identical for two times of different days to be compared at all."""
    return {key: values.get(key) for key in _FINGERPRINT}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What two fingerprints differ in: ``cpu: A here, B there`` and so on; empty if they are identical."""
    found = []
    for key in sorted({*here, *there}):
        a, b = here.get(key), there.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += [f"{key} {difference}" for difference in differences(a, b)]
        else:
            found.append(f"{key}: {_in_words(a)} here, {_in_words(b)} there")
    return found


def _in_words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value[:20])) or "nothing"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {entry}" for key, entry in value.items()) or "nothing"
    return "nothing" if value is None else str(value)


def stolen(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """The share of the cores' time between two ``environment``s that the hypervisor gave to others; None where that is not known."""
    first, last = before.get("processor_ticks"), after.get("processor_ticks")
    if not first or not last or (passed := sum(last.values()) - sum(first.values())) <= 0:
        return None
    return float((last["steal"] - first["steal"]) / passed)


def _turbo() -> bool | None:
    if (off := _read("/sys/devices/system/cpu/intel_pstate/no_turbo")) is not None:
        return off == "0"
    boost = _read("/sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def _ticks() -> dict[str, int] | None:
    words = (_read("/proc/stat") or "").partition("\n")[0].split()[1:]
    kinds = list(_Ticks.__annotations__)
    return dict(zip(kinds, map(int, words), strict=False)) if len(words) >= len(kinds) else None


def _packages() -> list[str]:
    return sorted({*_PACKAGES, *(package for backend in backends().values() for package in backend.packages)})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str | None:
    return next(_all_cpuinfo(key), None)


def _all_cpuinfo(key: str) -> Iterator[str]:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            yield value.strip()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
