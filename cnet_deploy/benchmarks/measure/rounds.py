"""Interleaved measurement: one worker process per cell. Only one measures at a time; the others are blocked on a pipe.

Samples of one process are correlated and machines drift, so cells are compared within rounds (see ``ratio``).
"""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from msgspec import Meta

from cnet_deploy.benchmarks.measure.cells import SETTLE_SECONDS, Cell, Worker, worker
from cnet_deploy.benchmarks.measure.samples import Summary, summarise
from cnet_deploy.files.strict_json import Count, Few, Samples, Seconds, Whole, closed, coerce_fields

MAX_TURN = 300  # seconds
MAX_LEAST = 1_000_000


@dataclass
class Result:
    """A cell's raw samples in seconds, round by round; or the ``error`` that prevented them, with its ``exit_code``.

    ``batch`` is the number of images per inference: the cell's, or the artifact's if that is fixed. ``cold_seconds`` is the time from the
    start of a process to its first result, ``open_seconds`` that of opening alone, one of each per process. ``warmup`` has the samples of
    the first process before measuring began, the first inference included. ``peak_bytes`` is the peak memory of a process.
    ``device_rounds`` and ``transfer_rounds`` are the times of an inference by the device's clock and of the transfers, round by round;
    empty on a CPU. ``flops`` and ``params`` are those of the form that the cell runs, where it is another than its row's.
    """

    cell: Cell
    batch: Few = 1
    cold_seconds: list[Seconds] = field(default_factory=list)
    open_seconds: list[Seconds] = field(default_factory=list)
    warmup: list[Seconds] = field(default_factory=list)
    rounds: list[Samples] = field(default_factory=list)
    device_rounds: list[Seconds] = field(default_factory=list)
    transfer_rounds: list[Seconds] = field(default_factory=list)
    peak_bytes: Count | None = None
    error: str | None = None
    exit_code: Count | None = None
    flops: Whole | None = None
    params: Whole | None = None

    @property
    def samples(self) -> list[float]:
        return [sample for part in self.rounds for sample in part]

    @property
    def summary(self) -> Summary | None:
        """The summary of all samples; None if nothing was measured."""
        return summarise(self.samples)

    @property
    def median(self) -> float | None:
        """Seconds of an inference; None if nothing was measured. On a GPU the inputs are already on the device."""
        return statistics.median(self.samples) if self.rounds else None

    @property
    def device_median(self) -> float | None:
        """Seconds of an inference by the device's clock: the median over rounds; None on a CPU."""
        return statistics.median(self.device_rounds) if self.device_rounds else None

    @property
    def transfer_median(self) -> float | None:
        """Seconds to upload the batch and to download the logits: the median over rounds; None on a CPU."""
        return statistics.median(self.transfer_rounds) if self.transfer_rounds else None

    @property
    def end_to_end(self) -> float | None:
        """Seconds from images on the host to logits on the host: the median inference and the median transfers; None on a CPU."""
        return None if self.median is None or self.transfer_median is None else self.median + self.transfer_median

    @property
    def images_per_second(self) -> float | None:
        """Throughput: the batch size over the median time; None if nothing was measured."""
        return self.batch / self.median if self.median else None

    def opened(self, answer: dict[str, Any]) -> bool:
        """Store the worker's answer to opening; False if that failed."""
        if self._failed(answer):
            return False
        self.batch = answer["batch"]
        self.cold_seconds.append(answer["cold_seconds"])
        self.open_seconds.append(answer["open_seconds"])
        if not self.warmup:
            self.warmup.append(answer["first_seconds"])
        return True

    def measured(self, answer: dict[str, Any], *, counts: bool) -> bool:
        """Store the answer of a turn (``counts`` False: of the warm-up); False if it failed."""
        if self._failed(answer):
            return False
        if len(self.cold_seconds) == 1 and not self.rounds:
            self.warmup += answer["warmup"]
        if counts:
            self.rounds.append(answer["samples"])
            if "device_seconds" in answer:
                self.device_rounds.append(answer["device_seconds"])
                self.transfer_rounds.append(answer["upload_seconds"] + answer["download_seconds"])
        self.peak_bytes = max(self.peak_bytes or 0, answer["peak_bytes"] or 0) or None
        return True

    def _failed(self, answer: dict[str, Any]) -> bool:
        error, self.exit_code = answer.get("error"), answer.get("exit_code")
        # By the name that the user gave: the file that failed may be a copy or an export.
        self.error = None if error is None else error.replace(self.cell.model, self.cell.label)
        return self.error is not None


Turn = Annotated[float, Meta(ge=0, le=MAX_TURN, description=f"seconds, from 0 to {MAX_TURN}")]
Rounds = Annotated[int, Meta(ge=1, le=100_000, description="a whole number from 1 to 100000")]
Least = Annotated[int, Meta(ge=0, le=MAX_LEAST, description=f"a whole number from 0 to {MAX_LEAST}")]


@closed
@dataclass(frozen=True)
class Settings:
    """How long to measure: ``rounds`` turns of every cell, each of ``seconds`` and at least ``least`` inferences.

    A process warms up for ``warmup`` seconds before its first turn, and for ``rewarm`` before each, since others used the caches meanwhile.
    ``fresh`` runs every turn in a new process, as the gate does: slower, but comparable with later measurements. Raises InputRefused for
    numbers beyond any use: a file's settings decide how long a gate measures.
    """

    rounds: Rounds = 10
    seconds: Turn = 0.2
    least: Least = 3
    warmup: Turn = 0.5
    rewarm: Turn = 0.1
    fresh: bool = False

    def __post_init__(self) -> None:
        coerce_fields(self)  # what could not be read from a file is not measured with either

    def turn(self) -> dict[str, Any]:
        """The command for a turn that counts."""
        return {"warmup": self.warmup if self.fresh else self.rewarm, "seconds": self.seconds, "least": self.least}


def ratio(result: Result, base: Result) -> float | None:
    """The time per image relative to ``base``: the median over rounds of the ratio of the round's medians."""
    both = [(a, b) for a, b in zip(result.rounds, base.rounds, strict=False) if a and b]
    pairs = [(statistics.median(a) / result.batch, statistics.median(b) / base.batch) for a, b in both]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def measure(cells: Sequence[Cell], settings: Settings, progress: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Measure all cells, interleaved, in a new order each round. A cell that fails keeps its error and the others go on.

    ``progress`` is called with a cell's label before each of its turns: one to open, one to warm up, one per round.
    """
    results = [Result(cell, batch=cell.batch) for cell in cells]
    proceed(results, settings, progress)
    return results


def proceed(
    results: list[Result],
    settings: Settings,
    progress: Callable[[str], None] = lambda _: None,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """``measure`` for results that may have some rounds already; they are changed in place.

    An incomplete round, which not every cell has, is measured again, since ratios are taken within rounds. Results with an error are not
    changed. ``keep`` is called after every turn, while nothing is being measured.
    """
    alive = [result for result in results if result.error is None]
    done = rounds_of(results, settings)
    for result in alive:
        del result.rounds[done:], result.device_rounds[done:], result.transfer_rounds[done:]
    if done < settings.rounds:
        in_processes = _in_fresh_processes if settings.fresh else _in_lasting_processes
        in_processes(alive, range(done, settings.rounds), settings, progress, keep)


def rounds_of(results: Sequence[Result], settings: Settings) -> int:
    """The number of rounds that all cells without an error have."""
    return min((len(result.rounds) for result in results if result.error is None), default=settings.rounds)


def _in_lasting_processes(
    results: list[Result], rounds: range, settings: Settings, progress: Callable[[str], None], keep: Callable[[], None]
) -> None:
    with contextlib.ExitStack() as stack:
        workers: list[tuple[Result, Worker]] = []
        for result in results:
            progress(f"open {_name(result)}")
            time.sleep(SETTLE_SECONDS)  # before a start too, since its time is reported
            held = stack.enter_context(worker(result.cell))
            workers.append((result, held))
            result.opened(held.open())
        for turn in (None, *rounds):
            for result, held in _shuffled(workers, turn):
                progress(f"{'warm up' if turn is None else f'round {turn + 1}'}: {_name(result)}")
                if result.error is not None:
                    continue
                time.sleep(SETTLE_SECONDS)
                command = {"warmup": settings.warmup, "seconds": 0.0, "least": 1} if turn is None else settings.turn()
                result.measured(held.measure(**command), counts=turn is not None)
                keep()


def _in_fresh_processes(
    results: list[Result], rounds: range, settings: Settings, progress: Callable[[str], None], keep: Callable[[], None]
) -> None:
    for turn in rounds:
        for result in _shuffled(results, turn):
            progress(f"round {turn + 1}: {_name(result)}")
            if result.error is None:
                take_turn(result, settings)
                keep()


def take_turn(result: Result, settings: Settings, python: str = sys.executable) -> None:
    """Measure one turn of a cell in a new process, and add it to the result."""
    time.sleep(SETTLE_SECONDS)
    with worker(result.cell, python) as held:
        if result.opened(held.open()):
            result.measured(held.measure(**settings.turn()), counts=True)


def steps(cells: int, settings: Settings, done: int = 0) -> int:
    """How often ``measure`` calls ``progress`` for this number of cells; ``done`` rounds were measured before."""
    if done >= settings.rounds:
        return 0
    return cells * (settings.rounds - done + (0 if settings.fresh else 2))


def _shuffled(items: list[Any], turn: int | None) -> list[Any]:
    return random.Random(-1 if turn is None else turn).sample(items, len(items))


def _name(result: Result) -> str:
    return f"{result.cell.label} on {result.cell.backend}"
