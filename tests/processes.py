"""Processes that tests start."""

from __future__ import annotations

import sys


def interruptible(command: list[str], *, dies_with_us: bool = False) -> list[str]:
    """The command with Ctrl-C as a terminal gives it: what is started in the background may have been told to ignore it.

    ``dies_with_us`` has the kernel kill it when the thread that started it ends, however that ends.
    """
    script = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    if dies_with_us:
        script += "import ctypes; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "  # PR_SET_PDEATHSIG
    return [sys.executable, "-c", script + "os.execv(sys.argv[1], sys.argv[1:])", *command]
