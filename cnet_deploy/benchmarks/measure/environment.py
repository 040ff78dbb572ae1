"""The machine and its software, as they stand beside every measurement, and the fingerprint that tells whether two are the same."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cnet_deploy.errors import printable
from cnet_deploy.hardware.nvml import check_state, driver_of_module, read_gpu
from cnet_deploy.sessions import backends

_PACKAGES = ("onnx", "numpy", "pycuda", "cuda-python", "cuda-bindings")  # and those of all backends
_KEYS = frozenset({
    "time", "cpu", "cores", "affinity", "machine_cores", "governor", "turbo", "virtual", "clock_mhz", "memory_bytes", "memory_gib",
    "load_average", "processor_ticks", "system", "python", "packages", "gpu", "driver", "gpu_state",
})  # fmt: skip
_CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq"
_FINGERPRINT = ("cpu", "cores", "affinity", "memory_gib", "system", "python", "packages", "gpu", "driver")
_TICKS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def environment() -> dict[str, Any]:
    """What decides a latency and can be read without privileges; None where the system does not tell.

    ``clock_mhz`` are the cores' clocks at this moment, ``processor_ticks`` what all cores have done since the machine started
    (hundredths of a second by kind): two of them tell how much a hypervisor took in between (see ``stolen``). ``gpu_state`` is what
    hardware/nvml.py reads of the first GPU; it is no part of the fingerprint.
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


def check_environment(found: Any) -> None:
    """Raise ValueError for something that ``environment`` does not give: what a file holds goes into reports and onto terminals."""
    if not isinstance(found, dict) or set(found) != _KEYS:
        raise ValueError("its environment is none")
    texts = [found[key] for key in ("time", "cpu", "governor", "system", "python", "gpu", "driver")]
    texts += [*found["packages"], *found["packages"].values()]
    numbers = [found[key] for key in ("cores", "machine_cores", "memory_bytes", "memory_gib")]
    more_texts, more_numbers = check_state(found["gpu_state"])
    texts, numbers = texts + more_texts, numbers + more_numbers
    for key in ("affinity", "clock_mhz", "load_average"):
        numbers += [] if found[key] is None else list(found[key])
    if found["processor_ticks"] is not None:
        numbers += [found["processor_ticks"][kind] for kind in _TICKS] + list(found["processor_ticks"].values())
    if not all(text is None or (isinstance(text, str) and printable(text) == text) for text in texts):
        raise ValueError("its environment holds something else than text")
    if not all(type(number) in (int, float) and 0 <= number < 1 << 62 for number in numbers if number is not None) or not found["cores"]:
        raise ValueError("its environment holds something else than numbers")
    if not all(type(found[key]) in (bool, type(None)) for key in ("turbo", "virtual")) or not found["cpu"]:
        raise ValueError("its environment is damaged")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint(found: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an ``environment`` that must be identical for two times of different days to be compared at all."""
    return {key: found.get(key) for key in _FINGERPRINT}


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What two fingerprints differ in: ``cpu: A here, B there`` and so on; empty if they are identical."""
    return [f"{key}: {here.get(key)} here, {there.get(key)} there" for key in sorted({*here, *there}) if here.get(key) != there.get(key)]


def stolen(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """The share of the cores' time between two ``environment``s that the hypervisor gave to others; None where that is not told."""
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
    return dict(zip(_TICKS, map(int, words), strict=False)) if len(words) >= len(_TICKS) else None


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
