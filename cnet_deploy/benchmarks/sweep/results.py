"""A sweep's results: rows of models, cells of raw samples, and the file that keeps them (one format, written and read here)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from cnet_deploy.benchmarks.measure.environment import environment, read_environment
from cnet_deploy.benchmarks.measure.rounds import Result, Settings, ratio
from cnet_deploy.benchmarks.sweep.figures import Figures
from cnet_deploy.benchmarks.sweep.paper import BASE, PaperRow, paper_ratio, paper_row
from cnet_deploy.errors import InputRefused, OutputRefused, printable
from cnet_deploy.files import exists, read_bytes, write_text
from cnet_deploy.files.strict_json import InvalidValue, Percent, Whole, convert, of_version, parse_json, reading, shown, to_json
from cnet_deploy.sessions import names, resolve_backend

FORMAT = "cnet_deploy_bench"
FORMAT_VERSION = 2
MAX_BYTES = 1 << 30
WRITING_SHARE = 0.05  # of a run's time, at most: a long run's file is large, and is not written after every turn

Group = tuple[int, int]


@dataclass
class Row:
    """A model's figures and its cells.

    ``flops`` and ``params`` as counted here, None if unknown; ``sha256`` None for a named network. ``top1_error`` in per cent is the
    paper's, or that of the images which the file was verified on, by its manifest; None if neither is known. ``figures`` are the
    values of a file's Figures (figures.py) in a baseline.
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
        """What the paper prints, or that of CondenseNet V2; None outside their tables."""
        return paper_row(self.label)

    @property
    def title(self) -> str:
        """The name for people."""
        return self.paper.title if self.paper else self.label

    def counted(self, result: Result) -> tuple[int | None, int | None]:
        """FLOPs and parameters of the form that a cell runs."""
        return (self.flops, self.params) if result.flops is None else (result.flops, result.params)

    def find(self, backend: str, group: Group) -> Result | None:
        """The cell of a backend with so many threads and so large a batch."""
        return next((r for r in self.results if (r.cell.backend, r.cell.threads, r.cell.batch) == (backend, *group)), None)


@dataclass
class Report:
    """Rows, how they were measured, and where. ``after`` is the environment at the end of the run; None while it goes on.

    ``notes`` are sentences about what was measured.
    """

    rows: list[Row]
    settings: Settings
    environment: dict[str, Any] = field(default_factory=environment)
    after: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

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
        backends = dict.fromkeys(result.cell.backend for result in self.results)
        return tuple(sorted(backends, key=lambda name: (order.index(resolve_backend(name).backend), name)))

    @property
    def groups(self) -> tuple[Group, ...]:
        """(threads, batch) of the cells that were measured with each other; ratios are taken within one."""
        return tuple(dict.fromkeys((result.cell.threads, result.cell.batch) for result in self.results))

    @property
    def by_cell(self) -> bool:
        """Whether tables have a line for each cell: on a device, and where nothing is compared with a paper's table."""
        return self.device != "cpu" or not any(row.paper for row in self.rows)

    @property
    def timed_in_paper(self) -> bool:
        """Whether any row has a time in its paper."""
        return any(row.paper is not None and row.paper.arm_seconds is not None for row in self.rows)

    @property
    def base(self) -> Row:
        """The row that the others are compared with: MobileNet, else the first, of those that could be measured."""
        known = [row for row in self.rows if any(result.rounds for result in row.results)] or self.rows
        return next((row for row in known if row.label == BASE), known[0])

    def ratio(self, result: Result) -> float | None:
        """How many times as long as the base row it takes: on the same backend, or on the base's quickest where that does not run it.

        With one row: as the quickest backend.
        """
        group = (result.cell.threads, result.cell.batch)
        quickest = self.quickest(group)
        if quickest is None or len(self.rows) == 1:
            return None if quickest is None else ratio(result, quickest)
        others = [there for backend in self.backends if (there := self.base.find(backend, group)) and there.median is not None]
        return ratio(result, next((other for other in others if other.cell.backend == result.cell.backend), quickest))

    def quickest(self, group: Group) -> Result | None:
        """The cell of the base row that takes the least time for an image; None if none of that group was measured."""
        known = [result for result in self.base.results if (result.cell.threads, result.cell.batch) == group and result.median is not None]
        return min(known, key=lambda result: (result.median or 0) / result.batch, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, raw samples included, JSON-ready."""
        return {
            FORMAT: FORMAT_VERSION,
            "complete": self.after is not None,
            "environment": self.environment,
            "environment_after": self.after,
            "settings": asdict(self.settings),
            "base": self.base.label,
            **({"notes": self.notes} if self.notes else {}),
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
        for name in ("flops", "params"):  # where they are the row's
            if values[name] is None:
                del values[name]
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


@dataclass(frozen=True)
class _StoredRow:
    """A row as the file has it; what follows from the rest (summary, ratio …) is left out."""

    label: str
    flops: Whole | None
    params: Whole | None
    sha256: str | None
    top1_error: Percent | None
    figures: Figures | None
    cells: Annotated[list[Result], Meta(min_length=1, description="a list of cells, at least one")]


@dataclass(frozen=True)
class _Stored:
    rows: Annotated[list[_StoredRow], Meta(min_length=1, description="a list of rows, at least one")]
    settings: Settings
    environment: dict[str, Any]
    environment_after: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)


def read_report(path: Path | str) -> Report:
    """The inverse of ``to_dict``, from a file. Raises InputRefused for anything that is not this version's results."""
    data = read_bytes(path, MAX_BYTES)
    with reading(path, "measure again with `bench --json`"):
        return report_from(parse_json(data))


def report_from(values: object) -> Report:
    """The inverse of ``to_dict``. Raises InvalidValue and OtherFormat for anything else."""
    stored = convert(of_version(values, FORMAT, FORMAT_VERSION), _Stored)
    rows = [_row(row, f"rows[{number}]") for number, row in enumerate(stored.rows)]
    if len(devices := {result.cell.device for row in rows for result in row.results}) > 1:
        raise InvalidValue(f"it has cells of the devices {', '.join(sorted(devices))}; expected one device")
    before, after = stored.environment, stored.environment_after
    after = None if after is None else read_environment(after, "environment_after")
    return Report(rows, stored.settings, read_environment(before), after, [printable(note) for note in stored.notes])


def _row(stored: _StoredRow, place: str) -> Row:
    for number, result in enumerate(stored.cells):
        cell, where = result.cell, f"{place}.cells[{number}].cell"
        if cell.label != stored.label:
            raise InvalidValue(f"{where}.label is {shown(cell.label)}; expected {shown(stored.label)}, the label of its row")
        try:
            resolve_backend(cell.backend)
        except InputRefused as error:
            raise InvalidValue(f"{where}.backend: {error}") from None
        result.error = result.error and printable(result.error)
    figures = None if stored.figures is None else stored.figures.to_dict()
    return Row(stored.label, stored.flops, stored.params, stored.sha256, stored.top1_error, stored.cells, figures)


class Journal:
    """The files that keep a run's results while it goes on, so that it may be killed at any time.

    A file of a finished run is replaced by another finished run only: until then the new one grows in a file beside it (``part_of``). A
    full disk does not end a run: ``close`` raises what went wrong.
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

    def close(self, report: Report) -> list[Path]:
        """Write the results, under their own name if the run is complete; where they are. Raises OutputRefused where that can't be done."""
        paths = list(self.places.values() if report.after is None else self.places)
        self._write(report, paths)
        if self._refused is not None:
            raise self._refused
        if report.after is not None:
            for path, place in self.places.items():
                if place != path:
                    place.unlink(missing_ok=True)
        return paths

    def _write(self, report: Report, paths: Iterable[Path]) -> None:
        self._refused = None
        text = to_json(report.to_dict(), indent=1) + "\n"
        for path in paths:
            try:
                write_text(path, text, reader=read_report)
            except OutputRefused as error:
                self._refused = error


def part_of(path: Path) -> Path:
    """Where an unfinished run grows beside a finished one.

    >>> part_of(Path("results.json")).as_posix()
    'results.part.json'
    """
    return path.with_suffix(".part.json")


Keep = Callable[[Report], None]
