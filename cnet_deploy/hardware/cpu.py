"""The processor's family and instruction sets, as compilers name them, and a setting for shared machines."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def host_machine() -> str:
    """The processor family: ``x86_64``, ``aarch64`` …"""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def host_isas() -> tuple[str, ...]:
    """The instruction sets of this processor for which native libraries can be compiled, the best first."""
    machine = host_machine()
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    if machine == "aarch64":
        dotprod = "asimddp" in flags
        return (*(("neon_i8mm",) if dotprod and "i8mm" in flags else ()), *(("neon_dotprod",) if dotprod else ()), "neon", "baseline")
    if machine != "x86_64":
        return ("baseline",)
    v3 = {"avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"} <= flags
    v4 = v3 and {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"} <= flags
    bf16 = ("avx512_bf16",) if v4 and "avx512_bf16" in flags else ()
    vnni = ("avx512_vnni",) if v4 and "avx512_vnni" in flags else ()
    avx_vnni = ("avx_vnni",) if v3 and "avx_vnni" in flags else ()
    return (*bf16, *vnni, *(("avx512",) if v4 else ()), *avx_vnni, *(("avx2",) if v3 else ()), "baseline")


def memory_bytes() -> int:
    """The memory of this machine, or what a container or `ulimit -v` leaves of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    if (most := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        limits.append(most)
    return min(limits)


def usable_processors() -> int:
    """The processors that this process may use, by its affinity and by its container's quota, rounded up."""
    usable = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # "max" is no number
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split())
        usable = max(1, min(usable, -(-quota // period)))
    return usable


def share_the_processor() -> None:
    """Let OpenMP's idle threads sleep. If they spin on a busy machine, a check can take ten times as long.

    Must be called before torch is imported. Not for measuring, since deployed programs have spinning threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large tensors for the next ones, instead of giving it back and getting it again page by page.

    A convolution's maps are freed and allocated anew in each layer. For torch on CondenseNet-74, in batches of 64 on one thread, a seventh
    of the page faults is left, and four fifths of the processor time. Nothing is changed where the user has set glibc's own variables, or
    the C library is another.
    """
    if any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # musl has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
