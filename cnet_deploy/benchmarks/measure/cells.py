"""The parent's side of ``worker.py``: cells, and the processes that measure them."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

from cnet_deploy import subprocesses
from cnet_deploy.benchmarks.measure.worker import NAMED
from cnet_deploy.errors import CnetDeployError, Unavailable, printable
from cnet_deploy.files import temporary_text
from cnet_deploy.files.strict_json import Few, closed, one_of
from cnet_deploy.sessions import DEVICES, resolve_backend, try_first

SETTLE_SECONDS = 0.12  # onnxruntime's threads spin for up to 0.1 s after an inference, which would slow the next cell
OPEN_SECONDS = 3600.0  # time limit of an opening with its first inference: a GPU's runtime may build an engine meanwhile
_SPARE_SECONDS = 300.0  # that a turn may take beyond ten times what it was asked to take
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

    def __init__(
        self, process: subprocesses.Process, cell: Cell, start: float, stderr: IO[str], refused: dict[str, Any] | None = None
    ) -> None:
        self._process, self._cell, self._start, self._stderr = process, cell, start, stderr
        self._first_seconds, self._refused = 0.0, refused

    def open(self) -> dict[str, Any]:
        """Open the cell and run it once. ``cold_seconds`` in the answer is the time from the process's start to the first result."""
        if self._refused is not None:
            return self._refused
        cell = self._cell
        variant = resolve_backend(cell.backend)
        answer = self.ask(
            {
                "model": cell.model if cell.model.startswith(NAMED) else str(Path(cell.model).resolve()),
                "backend": variant.backend, "threads": cell.threads, "batch": cell.batch,
                "options": {**variant.options, **cell.options}, "device": cell.device,
            },
            OPEN_SECONDS,
        )  # fmt: skip
        self._first_seconds = answer.get("first_seconds", 0.0)
        if "first_at" in answer:  # by the monotonic clock, which all processes share
            answer["cold_seconds"] = answer["first_at"] - self._start
        return answer

    def measure(self, warmup: float, seconds: float, least: int) -> dict[str, Any]:
        """Measure a turn of the opened cell: see ``OpenCell.measure``."""
        limit = _SPARE_SECONDS + 10 * (warmup + seconds + (least + 2) * self._first_seconds)
        return self.ask({"warmup": warmup, "seconds": seconds, "least": least}, limit)

    def ask(self, command: dict[str, Any], seconds: float = OPEN_SECONDS) -> dict[str, Any]:
        """Send a command and wait for its answer at most ``seconds``; if the worker dies or is late the answer is an error."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = subprocesses.read_line(self._process, seconds)
        except BrokenPipeError:
            line = ""
        except subprocesses.TooLong:
            return _broken(f"the measuring process did not answer within {seconds:g} s; it was ended")
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


def _refused(cell: Cell) -> dict[str, Any] | None:
    """The error of a stranger's file that can't be measured, because it crashes or never ends; None for any other."""
    if cell.model.startswith(NAMED):
        return None
    try:
        status = Path(cell.model).stat()
    except (OSError, ValueError):  # reported by who opens it
        return None
    variant = resolve_backend(cell.backend)
    tried = repr((cell, status.st_ino, status.st_size, status.st_mtime_ns))
    if tried in _TRIED:
        return None
    try:
        try_first(Path(cell.model), variant.backend, cell.device, cell.threads, {**variant.options, **cell.options})
    except CnetDeployError as error:
        return {"error": str(error), "exit_code": error.exit_code}
    _TRIED.add(tried)
    return None


_TRIED: set[str] = set()  # cells whose files need not be tried again


def _broken(message: str) -> dict[str, Any]:
    return {"error": message, "exit_code": Unavailable.exit_code}


@contextlib.contextmanager
def worker(cell: Cell, python: str = sys.executable) -> Iterator[Worker]:
    """Start a process for a cell with the interpreter ``python``; killed when the block ends. Raises Unavailable if it can't be started."""
    # OpenMP's threads are limited before torch is imported, since threads of a pool that was once larger go on spinning.
    surroundings = {"OMP_NUM_THREADS": str(cell.threads)}
    foreign = python != sys.executable
    command = [python, str(_SCRIPT)] if foreign else subprocesses.python(str(_SCRIPT))
    refused = _refused(cell)  # before the start, since the time from there on is measured
    start = time.monotonic()
    # Standard error goes to a file, because a pipe that is not read blocks the process when it is full.
    with contextlib.ExitStack() as stack:
        stderr = stack.enter_context(temporary_text())
        try:
            process = stack.enter_context(
                subprocesses.started(command, environment=surroundings, foreign=foreign, stdin=subprocesses.PIPE, stderr=stderr)
            )
        except OSError as error:
            raise Unavailable(f"{python}: can't be run ({error.strerror}); expected a Python that has cnet-deploy installed") from None
        yield Worker(process, cell, start, stderr, refused)
