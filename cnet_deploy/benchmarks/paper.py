"""The paper's inference-time table (section 4; also in the reference's README.md), measured here beside what it printed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cnet_deploy.architecture import NAMED
from cnet_deploy.benchmarks.environment import environment
from cnet_deploy.benchmarks.measure import NAMED as NAMED_CELL
from cnet_deploy.benchmarks.measure import Cell, Result, Settings, measure, ratio, steps
from cnet_deploy.deployment import export
from cnet_deploy.errors import CnetDeployError, InputRefused
from cnet_deploy.exporters import FAMILY_ONLY, SUFFIXES
from cnet_deploy.files import check_input
from cnet_deploy.models import NAMES, build_named
from cnet_deploy.models.baselines import BASELINES, INPUT_SIZE
from cnet_deploy.models.counting import count
from cnet_deploy.sessions import BACKENDS, PEERS, backend_of
from cnet_deploy.sessions.native import MAX_THREADS

FORMAT_VERSION = 1
OURS = "native"  # which takes no more threads than its interface allows


@dataclass(frozen=True)
class PaperRow:
    """A row as the paper prints it: FLOPs in millions, top-1 error in per cent, seconds for one image on an ARM processor.

    ``convention`` names whose count the FLOPs are.
    """

    model: str
    title: str
    mflops: int
    top1_error: float
    arm_seconds: float
    convention: str


CONVENTIONS = {
    "convolutions": "multiply-adds of the convolutions alone (He et al., 2016)",
    "multiply-adds": "multiply-adds of convolutions and classifier (Howard et al., 2017)",
    "reference": "CondenseNet's own count: multiply-adds, ReLUs, poolings and the classifier's biases (utils.py)",
}
BASE = "mobilenet-1.0-224"
PAPER = (
    PaperRow("vgg-16", "VGG-16", 15300, 28.5, 354, "convolutions"),
    PaperRow("resnet-18", "ResNet-18", 1818, 30.2, 8.14, "reference"),
    PaperRow(BASE, "MobileNet 1.0-224", 569, 29.4, 1.96, "multiply-adds"),
    PaperRow("condensenet-74-g4", "CondenseNet-74 (G=C=4)", 529, 26.2, 1.89, "reference"),
    PaperRow("condensenet-74-g8", "CondenseNet-74 (G=C=8)", 274, 29.0, 0.99, "reference"),
)


@dataclass(frozen=True)
class Row:
    """A model's figures: FLOPs and parameters as counted here, what the paper prints (None outside its table), one result a backend."""

    label: str
    flops: int | None
    params: int | None
    paper: PaperRow | None
    results: dict[str, Result]


@dataclass(frozen=True)
class Report:
    """Rows, the row that the others are compared with, and what was measured how and where."""

    rows: tuple[Row, ...]
    base: Row
    backends: tuple[str, ...]
    settings: Settings
    threads: int
    environment: dict[str, Any]

    def ratio(self, row: Row, backend: str) -> float | None:
        """How many times as long as the base row it takes: on the same backend, or on the base's quickest where that does not run it."""
        if backend not in row.results:
            return None
        known = [result for result in self.base.results.values() if result.median is not None] or [*self.base.results.values()]
        quickest = min(known, key=lambda result: (result.median or 0) / result.batch)
        return ratio(row.results[backend], self.base.results.get(backend) or quickest)

    def to_dict(self) -> dict[str, Any]:
        """Everything, raw samples included, JSON-ready."""
        return {
            "cnet_deploy_bench": FORMAT_VERSION,
            "environment": self.environment,
            "settings": {**asdict(self.settings), "threads": self.threads},
            "base": self.base.label,
            "rows": [
                {
                    "label": row.label, "flops": row.flops, "params": row.params,
                    "paper": row.paper and {**asdict(row.paper), "ratio": paper_ratio(row.paper)},
                    "cells": [
                        {
                            **asdict(replace(result, cell=replace(result.cell, model=row.label))),  # not where it lay meanwhile
                            "median_seconds": result.median, "p90_seconds": result.p90, "ratio": self.ratio(row, backend),
                        }
                        for backend, result in row.results.items()
                    ],
                }
                for row in self.rows
            ],
        }  # fmt: skip


def paper_ratio(row: PaperRow) -> float:
    """How many times as long as MobileNet it took on the paper's ARM board."""
    return row.arm_seconds / next(other.arm_seconds for other in PAPER if other.model == BASE)


def counted(model: str) -> tuple[int, int]:
    """FLOPs, in the convention of the paper's figure, and parameters of a named network."""
    if model in NAMED:
        return NAMED[model].flops, NAMED[model].params
    total = count(BASELINES[model](), INPUT_SIZE)
    convention = next(row.convention for row in PAPER if row.model == model)
    return {"convolutions": total.conv_macs, "multiply-adds": total.macs, "reference": total.flops}[convention], total.params


def bench(
    models: Sequence[str] = (), *, backends: Sequence[str] = (), threads: int = 1, settings: Settings | None = None,
    progress: Callable[[str], None] = lambda _: None, total: Callable[[int], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Measure the paper's table, or any files and named networks.

    A named network runs with random weights on every backend of ``backends`` (all, if none is given); a file runs on the backend that opens
    it. Ratios are to MobileNet where it is there, else to the first row. ``progress`` hears what is being done, ``total`` how many
    steps there will be. Raises InputRefused for what can't be measured before anything is.
    """
    settings = settings or Settings()
    known = tuple(backends) or tuple(name for name in reversed(BACKENDS) if name not in PEERS)
    if wrong := [name for name in known if name not in BACKENDS]:
        raise InputRefused(f"no backend is called {wrong[0]!r}; expected some of {', '.join(BACKENDS)}")
    names = list(dict.fromkeys(models)) or [row.model for row in PAPER]
    plan = {name: _backends_of_network(name, known) if name in NAMES else _backends_of_file(name, backends) for name in names}
    total(len(names) + steps(sum(map(len, plan.values())), settings))
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-bench-") as folder:
        for name in names:
            progress(f"prepare {name}")
            results += [_prepared(name, backend, threads, Path(folder)) for backend in plan[name]]
        measured = iter(measure([result.cell for result in results if result.error is None], settings, progress))
    results = [result if result.error is not None else next(measured) for result in results]
    rows = tuple(_row(name, [result for result in results if result.cell.label == name]) for name in names)
    # A row that could not be measured is nothing to compare with.
    bases = [row for row in rows if any(result.samples for result in row.results.values())] or rows
    base = next((row for row in bases if row.label == BASE), bases[0])
    return Report(rows, base, tuple(dict.fromkeys(result.cell.backend for result in results)), settings, threads, environment())


def _prepared(name: str, backend: str, threads: int, folder: Path) -> Result:
    """A cell whose artifact is there, or the error that kept it from being made: a missing backend is shown in its own cell only."""
    if backend == OURS:
        threads = min(threads, MAX_THREADS)
    if name not in NAMES:
        return Result(Cell(name, name, backend, threads))
    target = _target_of(backend)
    if target is None:  # nothing is exported for this backend: it runs the network itself
        return Result(Cell(name, NAMED_CELL + name, backend, threads))
    cell = Cell(name, str(folder / f"{name}{SUFFIXES[target]}"), backend, threads)
    if Path(cell.model).exists():  # made for another backend
        return Result(cell)
    try:
        export(build_named(name), target, cell.model)
    except CnetDeployError as error:
        return Result(cell, error=str(error), exit_code=error.exit_code)
    return Result(cell)


def _target_of(backend: str) -> str | None:
    """What a named network is exported to for a backend; None for one that runs the network itself."""
    return next((target for target, suffix in SUFFIXES.items() if suffix in BACKENDS[backend]), None)


def _backends_of_network(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Those that run it; if none does, all the same, for the reason to be shown."""
    return tuple(b for b in known if name not in BASELINES or _target_of(b) not in FAMILY_ONLY) or known


def _row(name: str, results: list[Result]) -> Row:
    flops, params = counted(name) if name in NAMES else _counted_file(name)
    paper = next((row for row in PAPER if row.model == name), None)
    return Row(name, flops, params, paper, {result.cell.backend: result for result in results})


def _counted_file(path: str) -> tuple[int | None, int | None]:
    from cnet_deploy.inspection import inspect

    try:
        found = inspect(path)
    except InputRefused:
        return None, None  # not of the family: it can be measured all the same
    if found.architecture is None or found.form is None:
        return None, None
    cost = found.architecture.cost("training" if found.form == "training" else "group-conv")
    return cost.flops, cost.params


def _backends_of_file(path: str, wanted: Sequence[str]) -> tuple[str, ...]:
    if not Path(path).exists():
        raise InputRefused(f"{path}: no such file, and no network of that name; expected a file or one of {', '.join(NAMES)}")
    check_input(path)
    backend = backend_of(path)
    if not wanted:
        return (backend,)
    fitting = tuple(name for name in wanted if Path(path).suffix in BACKENDS[name])
    if not fitting:
        raise InputRefused(f"{path}: runs on {backend}, which is not among {', '.join(wanted)}")
    return fitting
