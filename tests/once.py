"""What is made once in a run of the tests, however many processes share them."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

DONE = "done"


class Once:
    """Folders that all processes of a run see. Who comes first fills one; the others wait."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        own = factory.getbasetemp()
        self._place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """The folder of this name, filled by ``make``. If that raises, the next one tries again."""
        folder = self._place / f"once-{name}"
        with (self._place / f"once-{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if lock.read() != DONE:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                lock.write(DONE)
        return folder
