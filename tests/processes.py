"""Processes that tests start."""

from __future__ import annotations

import sys


def interruptible(command: list[str]) -> list[str]:
    """The command with Ctrl-C as a terminal gives it: what is started in the background may have been told to ignore it."""
    script = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", script, *command]
