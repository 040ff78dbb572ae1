"""One cell in a process of its own: ``python -m cnet_deploy.benchmarks.worker``, driven by lines of JSON on its standard input.

Between commands it is blocked on the pipe, so that it takes nothing from the process that measures.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import IO, Any

import numpy as np

from cnet_deploy.benchmarks.measure import NAMED
from cnet_deploy.errors import CnetDeployError, Unavailable
from cnet_deploy.sessions import Binding, Session, open_session


def main() -> None:
    """Answer one line of JSON per line of JSON until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand among the answers
    cell: OpenCell | None = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            if cell is None:
                cell = OpenCell(**command)
                _answer(answers, {"open_seconds": cell.open_seconds, "batch": cell.batch})
            else:
                _answer(answers, {"samples": cell.measure(**command)})
        except CnetDeployError as error:
            _answer(answers, {"error": str(error), "exit_code": error.exit_code})
        # A cell that fails is a figure that is missing, never the end of the run: the parent shows what it was.
        except Exception as error:
            _answer(answers, {"error": f"{type(error).__name__}: {error}", "exit_code": Unavailable.exit_code})


class OpenCell:
    """A session with a batch bound to it."""

    def __init__(self, model: str, backend: str, threads: int, batch: int, options: dict[str, Any]) -> None:
        start = time.perf_counter()
        self.session = _open(model, backend, threads, options)
        self.open_seconds = time.perf_counter() - start
        fixed, *shape = self.session.input_shape
        self.batch = fixed or batch
        images = np.random.default_rng(0).standard_normal((self.batch, *shape), np.float32)
        self.binding: Binding = self.session.bind(images)
        self.binding.upload()

    def measure(self, warmup: float, seconds: float, least: int) -> list[float]:
        """Seconds of each inference for ``seconds``, at least ``least`` of them; those of the ``warmup`` seconds before don't count."""
        self._repeat(warmup, 1)
        return self._repeat(seconds, least)

    def _repeat(self, seconds: float, least: int) -> list[float]:
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while len(samples) < least or time.perf_counter() < end:
            samples.append(self._once())
        return samples

    def _once(self) -> float:
        start = time.perf_counter()
        self.binding.enqueue()
        self.binding.wait()
        return round(time.perf_counter() - start, 9)


def _open(model: str, backend: str, threads: int, options: dict[str, Any]) -> Session:
    if model.startswith(NAMED):
        from cnet_deploy.sessions.torch import open_named

        return open_named(model.removeprefix(NAMED), threads=threads, **options)
    return open_session(model, backend=backend, threads=threads, **options)


def _answer(stream: IO[str], answer: dict[str, Any]) -> None:
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


if __name__ == "__main__":
    main()
