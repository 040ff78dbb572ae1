"""The instruction sets of this processor, how many may be used, and the setting that keeps freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cnet_deploy.hardware import cpu


@pytest.mark.parametrize(
    ("features", "isas"),
    [
        ("Features\t: fp asimd asimddp i8mm", ("neon_i8mm", "neon_dotprod", "neon", "baseline")),
        ("Features\t: fp asimd asimddp", ("neon_dotprod", "neon", "baseline")),
        ("Features\t: fp asimd i8mm", ("neon", "baseline")),
        ("", ("neon", "baseline")),
    ],
)
def test_instruction_sets_of_arm(features: str, isas: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "host_machine", lambda: "aarch64")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor\t: 0\n{features}\n")
    assert cpu.host_isas() == isas


@pytest.mark.parametrize(
    ("quota", "usable"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 8), ("", 8)]
)
def test_a_container_s_quota_counts(quota: str, usable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"{quota}\n")
    assert cpu.usable_processors() == usable


def test_instruction_sets_of_a_machine_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "host_machine", lambda: "riscv64")
    assert cpu.host_isas() == ("baseline",)


FAULTS = """
import resource, sys
from cnet_deploy.hardware.cpu import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
parts = [b"x" * (16 << 20) for _ in range(4)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    parts = []
    parts = [b"x" * (16 << 20) for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_used_again() -> None:
    """64 MB, got anew ten times: otherwise page by page each time."""

    def faults(how: str) -> int:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=clean).stdout)

    assert faults("keep") * 4 < faults("leave")


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _: pytest.fail("set anyway"))
    cpu.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _: object())
    cpu.keep_freed_memory()
