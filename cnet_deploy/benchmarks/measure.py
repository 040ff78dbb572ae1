"""Interleaved measurement: one worker process per cell, one measuring at a time, the rest blocked on a pipe.

Samples of one process are correlated and machines drift, so cells are compared within rounds (see ``ratio``).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnet_deploy.errors import Unavailable

SETTLE_SECONDS = 0.12  # the threads of onnxruntime spin for up to 0.1 s after an inference, and would steal from the next cell
NAMED = "name:"  # before the name of a network, where a cell's model is no file


@dataclass(frozen=True)
class Cell:
    """What is measured: a model (a file, or ``name:`` and a network's name) on a backend, with its threads and batch.

    ``options`` are the backend's own (see ``open_session``).
    """

    label: str
    model: str
    backend: str
    threads: int
    batch: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Result:
    """A cell's raw samples in seconds, round by round; or why there are none.

    ``batch`` is how many images an inference takes: the cell's, unless the artifact has a fixed one. ``exit_code`` is the error's.
    """

    cell: Cell
    open_seconds: float | None = None
    batch: int = 1
    rounds: list[list[float]] = field(default_factory=list)
    error: str | None = None
    exit_code: int | None = None

    def fail(self, answer: dict[str, Any]) -> None:
        """Take over the error of an answer, if it has one."""
        self.error, self.exit_code = answer.get("error"), answer.get("exit_code")

    @property
    def samples(self) -> list[float]:
        return [sample for part in self.rounds for sample in part]

    @property
    def median(self) -> float | None:
        """Seconds; None where nothing was measured."""
        return statistics.median(self.samples) if self.samples else None

    @property
    def p90(self) -> float | None:
        """Seconds that nine of ten inferences did not exceed; None where nothing was measured."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, -(-9 * len(ordered) // 10) - 1)] if ordered else None


@dataclass(frozen=True)
class Settings:
    """How long is measured: ``rounds`` turns of every cell, each of ``seconds`` and at least ``least`` inferences.

    Before its first turn a cell warms up for ``warmup`` seconds, and before each for ``rewarm``, since others had the caches meanwhile.
    """

    rounds: int = 10
    seconds: float = 0.2
    least: int = 3
    warmup: float = 0.5
    rewarm: float = 0.1


def ratio(result: Result, base: Result) -> float | None:
    """How many times as long as ``base`` an image takes: the median over rounds of the ratio of the round's medians."""
    both = [(a, b) for a, b in zip(result.rounds, base.rounds, strict=False) if a and b]
    pairs = [(statistics.median(a) / result.batch, statistics.median(b) / base.batch) for a, b in both]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def measure(cells: Sequence[Cell], settings: Settings, progress: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Measure all cells, interleaved, in a new order each round. A cell that fails keeps its error and the rest goes on.

    ``progress`` is called with a cell's label before each of its turns: one to open, one to warm up, one per round.
    """
    results = [Result(cell, batch=cell.batch) for cell in cells]
    order = random.Random(0)
    with contextlib.ExitStack() as stack:
        workers: dict[int, _Worker] = {}
        for number, result in enumerate(results):
            progress(f"open {result.cell.label} on {result.cell.backend}")
            workers[number] = stack.enter_context(_worker(result.cell))
            answer = workers[number].ask({key: getattr(result.cell, key) for key in ("model", "backend", "threads", "batch", "options")})
            result.fail(answer)
            result.open_seconds, result.batch = answer.get("open_seconds"), answer.get("batch", result.batch)
        for turn in range(settings.rounds + 1):
            numbers = list(workers)
            order.shuffle(numbers)
            for number in numbers:
                result = results[number]
                progress(f"{'warm up' if not turn else f'round {turn}'}: {result.cell.label} on {result.cell.backend}")
                if result.error is not None:
                    continue
                time.sleep(SETTLE_SECONDS)
                counted = {"warmup": settings.rewarm, "seconds": settings.seconds, "least": settings.least}
                answer = workers[number].ask(counted if turn else {"warmup": settings.warmup, "seconds": 0.0, "least": 1})
                result.fail(answer)
                if turn and result.error is None:
                    result.rounds.append(answer.get("samples", []))
    return results


def steps(cells: int, settings: Settings) -> int:
    """How often ``measure`` calls ``progress`` for so many cells."""
    return cells * (settings.rounds + 2)


class _Worker:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

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
            said = (self._process.stderr.read() if self._process.stderr else "").strip().splitlines()
            reason = said[-1] if said else "out of memory?"
            return {
                "error": f"the measuring process ended with status {self._process.wait()}: {reason}",
                "exit_code": Unavailable.exit_code,
            }
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def _worker(cell: Cell) -> Iterator[_Worker]:
    # The number of OpenMP's threads is fixed before torch is imported: a pool that was larger once goes on spinning.
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(cell.threads), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cnet_deploy.benchmarks.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings,
    )
    try:
        yield _Worker(process)
    finally:
        if process.stdin:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
