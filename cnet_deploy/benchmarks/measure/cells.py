"""The parent's side of ``worker.py``: cells, and the processes that measure them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

from cnet_deploy.benchmarks.measure.worker import NAMED
from cnet_deploy.errors import Unavailable, printable
from cnet_deploy.files.strict_json import Few, closed, one_of
from cnet_deploy.sessions import DEVICES, resolve_backend

SETTLE_SECONDS = 0.12  # onnxruntime's threads spin for up to 0.1 s after an inference, which would slow the next cell
_SCRIPT = Path(__file__).with_name("worker.py")


@closed
@dataclass(frozen=True)
class Cell:
    """What is measured: a model (a file, or ``name:`` and a network's name) on a backend, with a number of threads and a batch size.

    ``backend`` may be a variant ("torch.compile", see ``resolve_backend``); ``options`` are the backend's own (see ``open_session``).
    """

    label: str
    model: str
    backend: str
    threads: Few
    batch: Few = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    device: Annotated[str, one_of(DEVICES)] = "cpu"


class Worker:
    """A process that holds one cell. It sleeps between commands."""

    def __init__(self, process: subprocess.Popen[str], cell: Cell, start: float, stderr: IO[str]) -> None:
        self._process, self._cell, self._start, self._stderr = process, cell, start, stderr

    def open(self) -> dict[str, Any]:
        """Open the cell and run it once. ``cold_seconds`` in the answer is the time from the process's start to the first result."""
        cell = self._cell
        variant = resolve_backend(cell.backend)
        answer = self.ask(
            {
                "model": cell.model if cell.model.startswith(NAMED) else str(Path(cell.model).resolve()),
                "backend": variant.backend, "threads": cell.threads, "batch": cell.batch,
                "options": {**variant.options, **cell.options}, "device": cell.device,
            }
        )  # fmt: skip
        if "first_at" in answer:  # by the monotonic clock, which all processes share
            answer["cold_seconds"] = answer["first_at"] - self._start
        return answer

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer; if the worker dies the answer is an error."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._stderr.seek(0)
            lines = self._stderr.read().strip().splitlines() or ["out of memory?" if status < 0 else "is it a Python that has cnet-deploy?"]
            return _broken(f"the measuring process ended with status {status}: {lines[-1]}")
        try:
            answer: dict[str, Any] = json.loads(line)
            if not isinstance(answer, dict):
                raise ValueError("not an object")
        except ValueError:
            return _broken(
                f"the measuring process answered {printable(line.strip(), 80)!r}; expected a Python that has cnet-deploy and prints nothing"
            )
        return answer


def _broken(message: str) -> dict[str, Any]:
    return {"error": message, "exit_code": Unavailable.exit_code}


@contextlib.contextmanager
def worker(cell: Cell, python: str = sys.executable) -> Iterator[Worker]:
    """Start a process for a cell with the interpreter ``python``; killed when the block ends. Raises Unavailable if it can't be started."""
    # OpenMP's threads are limited before torch is imported, since threads of a pool that was once larger go on spinning.
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(cell.threads), "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    # Standard error goes to a file, because a pipe that is not read blocks the process when it is full.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        try:
            process = subprocess.Popen(
                [python, str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=surroundings
            )
        except OSError as error:
            raise Unavailable(f"{python}: can't be run ({error.strerror}); expected a Python that has cnet-deploy installed") from None
        try:
            yield Worker(process, cell, start, stderr)
        finally:
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
