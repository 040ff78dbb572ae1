"""The parent's side of ``worker.py``: cells, and processes that each hold one."""

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
from cnet_deploy.files.strict_json import Count, closed, one_of
from cnet_deploy.sessions import DEVICES, resolve_backend

SETTLE_SECONDS = 0.12  # the threads of onnxruntime spin for up to 0.1 s after an inference, and would steal from the next cell
_SCRIPT = Path(__file__).with_name("worker.py")


@closed
@dataclass(frozen=True)
class Cell:
    """What is measured: a model (a file, or ``name:`` and a network's name) on a backend, with its threads and batch.

    ``backend`` may be a variant ("torch.compile", see ``resolve_backend``); ``options`` are the backend's own (see ``open_session``).
    """

    label: str
    model: str
    backend: str
    threads: Count
    batch: Count = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    device: Annotated[str, one_of(DEVICES)] = "cpu"


class Worker:
    """A process that holds one cell; it sleeps unless it is asked."""

    def __init__(self, process: subprocess.Popen[str], cell: Cell, start: float, said: IO[str]) -> None:
        self._process, self._cell, self._start, self._said = process, cell, start, said

    def open(self) -> dict[str, Any]:
        """Open the cell and run it once. ``cold_seconds`` in the answer is from the start of the process to the first result."""
        cell = self._cell
        variant = resolve_backend(cell.backend)
        answer = self.ask(
            {
                "model": cell.model if cell.model.startswith(NAMED) else str(Path(cell.model).resolve()),
                "backend": variant.backend, "threads": cell.threads, "batch": cell.batch,
                "options": {**variant.options, **cell.options}, "device": cell.device,
            }
        )  # fmt: skip
        if "first_at" in answer:  # on the clock that all processes of a machine share
            answer["cold_seconds"] = answer["first_at"] - self._start
        return answer

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and wait for its answer; a worker that dies answers with an error."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or ["out of memory?" if status < 0 else "is it a Python that has cnet-deploy?"]
            return _broken(f"the measuring process ended with status {status}: {said[-1]}")
        try:
            answer: dict[str, Any] = json.loads(line)
            if not isinstance(answer, dict):
                raise ValueError("no object")
        except ValueError:
            return _broken(
                f"the measuring process answered {printable(line.strip(), 80)!r}; expected a Python that has cnet-deploy and prints nothing"
            )
        return answer


def _broken(message: str) -> dict[str, Any]:
    return {"error": message, "exit_code": Unavailable.exit_code}


@contextlib.contextmanager
def worker(cell: Cell, python: str = sys.executable) -> Iterator[Worker]:
    """A process for a cell, run by the interpreter ``python``; killed when the block ends. Raises Unavailable if it can't be started."""
    # The number of OpenMP's threads is fixed before torch is imported: a pool that was larger once goes on spinning.
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(cell.threads), "PYTHONUNBUFFERED": "1"}
    start = time.monotonic()
    # What it writes to standard error goes to a file: a pipe that nobody empties would stop it once it is full.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        try:
            process = subprocess.Popen(
                [python, str(_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=surroundings
            )
        except OSError as error:
            raise Unavailable(f"{python}: can't be run ({error.strerror}); expected a Python that has cnet-deploy installed") from None
        try:
            yield Worker(process, cell, start, said)
        finally:
            if process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
