"""The GPU as ``nvidia-smi`` tells of it: which one, which driver, its clocks, and what slows it down."""

from __future__ import annotations

import csv
import os
import re
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

TIMEOUT_SECONDS = 20  # the driver may have to wake the device first
_MODES = ("persistence", "compute_mode", "mig_mode", "performance_state")
# What is asked for -> what it is called here. Numbers in MHz, degrees Celsius and watts.
_NUMBERS = {
    "clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "clocks.max.sm": "max_sm_mhz", "clocks.max.mem": "max_memory_mhz",
    "temperature.gpu": "celsius", "power.draw": "watts", "power.limit": "limit_watts",
}  # fmt: skip
_WORDS = dict(zip(("persistence_mode", "compute_mode", "mig.mode.current", "pstate"), _MODES, strict=True))
# Since the start of the driver, in microseconds: told by newer drivers alone.
_COUNTERS = {
    f"clocks_event_reasons_counters.{name}": name
    for name in ("sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
}
# Of what a driver calls reasons, bit by bit (nvml.h). The first two are no slowdown.
_REASONS = (
    "idle", "application setting", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal_slowdown", "hw_thermal_slowdown",
    "hw_power_brake_slowdown", "display setting",
)  # fmt: skip
_BASE = ("name", "driver_version", *_NUMBERS, *_WORDS)
# The newest driver's words first: one that does not know a field refuses all of them.
QUERIES = (
    (*_BASE, "clocks_event_reasons.active", *_COUNTERS),
    (*_BASE, "clocks_event_reasons.active"),
    (*_BASE, "clocks_throttle_reasons.active"),
)


class Gpu(NamedTuple):
    """A GPU's name, its driver's version, and its state at this moment: see ``check_state`` for what is in it."""

    name: str | None
    driver: str | None
    state: dict[str, Any]


def read_gpu() -> Gpu | None:
    """The GPU that a process sees first; None where there is none, or where ``nvidia-smi`` is missing or fails."""
    for fields in QUERIES:
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", *_chosen()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0 and (found := parse_gpu(done.stdout, fields)):
            return found
    return None


def parse_gpu(text: str, fields: tuple[str, ...] = QUERIES[0]) -> Gpu | None:
    """The first line of what ``nvidia-smi`` prints for these fields; None if it is no such line. What it does not tell is None.

    >>> parse_gpu("NVIDIA H200, [N/A]", ("name", "driver_version")).driver is None
    True
    """
    row = next(csv.reader(text.strip().splitlines()[:1], skipinitialspace=True), [])
    if len(row) != len(fields):
        return None
    told = {field: value.strip() for field, value in zip(fields, row, strict=True)}
    known = {field: value for field, value in told.items() if value and not value.startswith("[")}
    state: dict[str, Any] = {name: _number(known.get(field)) for field, name in _NUMBERS.items()}
    state |= {name: known.get(field) for field, name in _WORDS.items()}
    counters = {name: _number(known.get(field)) for field, name in _COUNTERS.items()}
    state["slowdown_microseconds"] = {name: count for name, count in counters.items() if count is not None} or None
    state["reasons"] = _reasons(known.get("clocks_event_reasons.active", known.get("clocks_throttle_reasons.active")))
    return Gpu(known.get("name"), known.get("driver_version"), state)


def check_state(found: Any) -> tuple[list[Any], list[Any]]:
    """The texts and the numbers of a state, for ``check_environment`` to look at. Raises ValueError or TypeError for what is none.

    Clocks in MHz; ``reasons`` are what clocks were held down by at that moment, ``slowdown_microseconds`` for how long since the driver
    was started. None stands for what the driver does not tell.
    """
    if found is None:
        return [], []
    if not isinstance(found, dict) or set(found) != {*_NUMBERS.values(), *_MODES, "reasons", "slowdown_microseconds"}:
        raise ValueError("its GPU's state is none")
    counters = found["slowdown_microseconds"] or {}
    if not isinstance(found["reasons"] or [], list) or not isinstance(counters, dict):
        raise ValueError("what slowed its GPU down is none")
    texts = [*(found[name] for name in _MODES), *(found["reasons"] or ()), *counters]
    return texts, [*(found[name] for name in _NUMBERS.values()), *counters.values()]


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
    """The version in ``/proc/driver/nvidia/version``, for where ``nvidia-smi`` is not.

    >>> driver_of_module("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.03  Tue Nov 4 01:00:00 UTC 2026")
    '580.159.03'
    """
    found = re.search(r"\b\d{3,}(\.\d+)+\b", text)
    return found[0] if found else None


def _chosen() -> list[str]:
    """The option that names the device which CUDA counts first, where the surroundings say so in words that nvidia-smi takes."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return [f"--id={first}"] if first.isdigit() or first.startswith("GPU-") else []


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < 1 << 62 else None


def _reasons(text: str | None) -> list[str] | None:
    try:
        bits = int(text or "", 16)
    except ValueError:
        return None
    return [name for bit, name in enumerate(_REASONS) if bits >> bit & 1]
