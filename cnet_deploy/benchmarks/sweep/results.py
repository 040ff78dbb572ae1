"""A sweep's results: rows of models, cells of raw samples, and the file that keeps them (one format, written and read here)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import check_environment, environment
from cnet_deploy.benchmarks.measure.rounds import Result, Settings, ratio
from cnet_deploy.benchmarks.sweep.paper import BASE, PaperRow, paper_ratio, paper_row
from cnet_deploy.errors import InputRefused, OutputRefused, printable
from cnet_deploy.files import exists, read_bytes, write_text
from cnet_deploy.sessions import DEVICES, names, resolve_backend

FORMAT = "cnet_deploy_bench"
FORMAT_VERSION = 2
MAX_BYTES = 1 << 30
MAX_SECONDS = 1e6
WRITING_SHARE = 0.05  # of a run's time, at most: a long run's file is large, and is not written after every turn

Group = tuple[int, int]


@dataclass
class Row:
    """A model's figures and its cells.

    ``flops`` and ``params`` as counted here, None if unknown; ``sha256`` None for a named network. ``top1_error`` in per cent is the
    paper's own, or what the file's manifest tells of the images that it was verified on; None if neither is known. ``figures`` are
    those of a baseline's file (figures.py).
    """

    label: str
    flops: int | None
    params: int | None
    sha256: str | None
    top1_error: float | None
    results: list[Result]
    figures: dict[str, Any] | None = None

    @property
    def paper(self) -> PaperRow | None:
        """What the paper prints; None outside its table."""
        return paper_row(self.label)

    @property
    def title(self) -> str:
        """The name for people."""
        return self.paper.title if self.paper else self.label

    def find(self, backend: str, group: Group) -> Result | None:
        """The cell of a backend with so many threads and so large a batch."""
        return next((r for r in self.results if (r.cell.backend, r.cell.threads, r.cell.batch) == (backend, *group)), None)


@dataclass
class Report:
    """Rows, and what was measured how and where. ``after`` is the environment when the run had ended; None while it has not."""

    rows: list[Row]
    settings: Settings
    environment: dict[str, Any] = field(default_factory=environment)
    after: dict[str, Any] | None = None

    @property
    def results(self) -> Iterator[Result]:
        """All cells, row by row."""
        return (result for row in self.rows for result in row.results)

    @property
    def device(self) -> str:
        """What all cells were measured on: "cpu" or "cuda"."""
        return next(result.cell.device for result in self.results)

    @property
    def backends(self) -> tuple[str, ...]:
        """Those that were measured, ours last, a variant beside its backend."""
        order = list(reversed(names()))
        found = dict.fromkeys(result.cell.backend for result in self.results)
        return tuple(sorted(found, key=lambda name: (order.index(resolve_backend(name).backend), name)))

    @property
    def groups(self) -> tuple[Group, ...]:
        """(threads, batch) of the cells that were measured with each other; ratios are taken within one."""
        return tuple(dict.fromkeys((result.cell.threads, result.cell.batch) for result in self.results))

    @property
    def base(self) -> Row:
        """The row that the others are compared with: MobileNet, else the first, of those that could be measured."""
        known = [row for row in self.rows if any(result.rounds for result in row.results)] or self.rows
        return next((row for row in known if row.label == BASE), known[0])

    def ratio(self, result: Result) -> float | None:
        """How many times as long as the base row it takes: on the same backend, or on the base's quickest where that does not run it."""
        group = (result.cell.threads, result.cell.batch)
        others = [found for backend in self.backends if (found := self.base.find(backend, group)) and found.median is not None]
        if not others:
            return None
        quickest = min(others, key=lambda other: (other.median or 0) / other.batch)
        return ratio(result, next((other for other in others if other.cell.backend == result.cell.backend), quickest))

    def to_dict(self) -> dict[str, Any]:
        """Everything, raw samples included, JSON-ready."""
        return {
            FORMAT: FORMAT_VERSION,
            "complete": self.after is not None,
            "environment": self.environment,
            "environment_after": self.after,
            "settings": asdict(self.settings),
            "base": self.base.label,
            "rows": [
                {
                    "label": row.label, "flops": row.flops, "params": row.params, "sha256": row.sha256, "top1_error": row.top1_error,
                    "figures": row.figures,
                    "paper": row.paper and {**asdict(row.paper), "ratio": paper_ratio(row.paper)},
                    "cells": [self._cell(row, result) for result in row.results],
                }
                for row in self.rows
            ],
        }  # fmt: skip

    def _cell(self, row: Row, result: Result) -> dict[str, Any]:
        values = asdict(replace(result, cell=replace(result.cell, model=row.label)))  # not where it lay meanwhile
        summary = result.summary
        derived = {
            "summary": summary and {**asdict(summary), "unstable": summary.unstable},
            "images_per_second": result.images_per_second,
            "device_seconds": result.device_median,
            "transfer_seconds": result.transfer_median,
            "end_to_end_seconds": result.end_to_end,
            "ratio": self.ratio(result),
        }
        return {**derived, **values}


def read_report(path: Path | str) -> Report:
    """The inverse of ``to_dict``, from a file. Raises InputRefused for anything that is not this version's results."""
    data = read_bytes(path, MAX_BYTES)
    try:
        values = json.loads(data)
        if not isinstance(values, dict) or values.get(FORMAT) != FORMAT_VERSION:
            raise InputRefused(f"{path}: holds no results of this version ({FORMAT} {FORMAT_VERSION}); measure again with `bench --json`")
        names = {entry.name for entry in fields(Result)}
        rows = []
        for row in values["rows"]:
            cells = [{key: cell[key] for key in names} for cell in row["cells"]]
            results = [Result(**{**cell, "cell": Cell(**cell["cell"])}) for cell in cells]
            _check(results)
            rows.append(Row(row["label"], row["flops"], row["params"], row["sha256"], row["top1_error"], results, row["figures"]))
            _check_row(rows[-1])
        if not rows:
            raise ValueError("no rows")
        settings, here, after = Settings(**values["settings"]), values["environment"], values["environment_after"]
        _check_settings(settings)
        here, after = _state(here), None if after is None else _state(after)
        report = Report(rows, settings, here, after)
        if len({result.cell.device for result in report.results}) != 1:
            raise ValueError("cells of two devices")
        return report
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputRefused(f"{path}: is damaged ({type(error).__name__}: {error}); measure again with `bench --json`") from None


def _state(found: dict[str, Any]) -> dict[str, Any]:
    """An environment that was checked. Runs that were recorded before GPUs were looked at tell nothing of one."""
    found = {**found, "gpu_state": found.get("gpu_state")}
    check_environment(found)
    return found


def _check(results: list[Result]) -> None:
    for result in results:
        cell = result.cell
        parts = [*result.rounds, result.cold_seconds, result.open_seconds, result.warmup, result.device_rounds, result.transfer_rounds]
        if not all(type(part) is list and all(type(time) is float and 0 < time < MAX_SECONDS for time in part) for part in parts):
            raise ValueError("a time is no number of seconds")
        if not all(result.rounds):
            raise ValueError("a round is empty")
        counts = [cell.threads, cell.batch, result.batch, result.peak_bytes or 1, result.exit_code or 1]
        if not all(type(number) is int and 0 < number < 1 << 62 for number in counts):
            raise ValueError("threads, batch or memory is no whole number")
        if not isinstance(cell.label, str) or not isinstance(cell.backend, str) or type(result.error) not in (str, type(None)):
            raise ValueError("a label, a backend or an error is no text")
        resolve_backend(cell.backend)
        if cell.device not in DEVICES:
            raise ValueError("a device is none")
        result.error = result.error and printable(result.error)


def _check_row(row: Row) -> None:
    if not isinstance(row.label, str) or not row.results or any(result.cell.label != row.label for result in row.results):
        raise ValueError("a row's cells are another's")
    for number, most in ((row.flops, 1 << 62), (row.params, 1 << 62), (row.top1_error, 100)):
        if number is not None and not (type(number) in (int, float) and 0 <= number <= most):
            raise ValueError("a figure is no number")
    if type(row.sha256) not in (str, type(None)) or type(row.figures) not in (dict, type(None)):
        raise ValueError("a digest or figures are none")


def _check_settings(settings: Settings) -> None:
    if type(settings.rounds) is not int or type(settings.least) is not int or type(settings.fresh) is not bool or settings.rounds < 1:
        raise ValueError("settings are none")
    if not all(type(time) in (int, float) and 0 <= time < MAX_SECONDS for time in (settings.seconds, settings.warmup, settings.rewarm)):
        raise ValueError("settings are none")


class Journal:
    """The files that a run's results are kept in while it goes on, so that it may be killed at any time.

    A file that holds a finished run already is replaced only by another finished one: until then ``part_of`` it grows beside it. What can't
    be written is told at the end, by ``close``: a run is not given up for a disk that is full.
    """

    def __init__(self, *paths: Path, resumed: Path | None = None) -> None:
        self.places = {path: part_of(path) if exists(path) and path != resumed else path for path in paths}
        self._quiet_until = 0.0
        self._refused: OutputRefused | None = None

    def keep(self, report: Report) -> None:
        """Write the results if enough time has passed for what that costs."""
        if time.monotonic() >= self._quiet_until:
            start = time.monotonic()
            self._write(report, self.places.values())
            end = time.monotonic()
            self._quiet_until = end + (end - start) / WRITING_SHARE

    def close(self, report: Report) -> None:
        """Write the results; under their own name if the run is complete. Raises OutputRefused where that can't be done."""
        self._write(report, self.places.values() if report.after is None else self.places)
        if self._refused is not None:
            raise self._refused
        if report.after is not None:
            for path, place in self.places.items():
                if place != path:
                    place.unlink(missing_ok=True)

    def _write(self, report: Report, paths: Iterable[Path]) -> None:
        self._refused = None
        text = json.dumps(report.to_dict(), indent=1) + "\n"
        for path in paths:
            try:
                write_text(path, text)
            except OutputRefused as error:
                self._refused = error


def part_of(path: Path) -> Path:
    """Where an unfinished run grows beside a finished one.

    >>> part_of(Path("results.json")).as_posix()
    'results.part.json'
    """
    return path.with_suffix(".part.json")


Keep = Callable[[Report], None]
