"""Stored baselines: what `bench --save-baseline` measured, to be compared with at another time on the very same machine."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from cnet_deploy.benchmarks.measure.environment import differences, environment, fingerprint
from cnet_deploy.benchmarks.measure.rule import LEAST_ROUNDS
from cnet_deploy.benchmarks.sweep.figures import Figures
from cnet_deploy.benchmarks.sweep.plan import is_named
from cnet_deploy.benchmarks.sweep.results import Report, read_report
from cnet_deploy.errors import InputRefused, Unavailable, printable
from cnet_deploy.files import digest, read_bytes


@dataclass(frozen=True)
class Baseline:
    """One stored cell: the samples of each round in seconds, how it was measured, the digest and the figures of the file that it is of."""

    label: str
    backend: str
    device: str
    threads: int
    batch: int
    rounds: tuple[tuple[float, ...], ...]
    warmup: float
    seconds: float
    least: int
    sha256: str | None
    figures: Figures | None

    @property
    def medians(self) -> tuple[float, ...]:
        """The median of each round."""
        return tuple(map(statistics.median, self.rounds))


def find_baseline(path: Path, head: Path, *, backend: str | None, threads: int | None, new_artifact: bool) -> Baseline:
    """The cell of a stored run that ``head`` is to be compared with.

    It is the one of the same artifact (or, with ``new_artifact``, of the only one that is left), backend and threads. Raises Unavailable,
    for "cannot compare", where the machine's fingerprint or the artifact is another, where the run was not made for this, and where no
    cell or more than one fits; InputRefused for a file that holds no results.
    """
    report = read_report(path)
    if not report.settings.fresh:
        raise Unavailable(
            f"{path}: cannot compare: one process measured all its rounds; record it with `cnet-deploy bench --save-baseline`"
        )
    if changes := differences(fingerprint(environment()), fingerprint(report.environment)):
        raise Unavailable(
            f"{path}: cannot compare: it was measured elsewhere ({'; '.join(changes)}); record it anew here, or gate two artifacts "
            "against each other: cnet-deploy gate BASE HEAD"
        )
    sha256 = None if is_named(str(head)) else digest(read_bytes(head))
    fitting = [
        cell
        for cell in _cells(report)
        if (backend is None or cell.backend == backend) and (threads is None or cell.threads == threads) and cell.rounds
    ]
    same = [cell for cell in fitting if cell.sha256 == sha256 and (sha256 or cell.label == str(head))]
    if not same and not new_artifact:
        stored = ", ".join(f"{printable(cell.label)} ({(cell.sha256 or 'random weights')[:12]})" for cell in fitting) or "nothing"
        own = (sha256 or "random weights")[:12]
        raise Unavailable(
            f"{path}: cannot compare: it holds {stored} and {head} is {own}; if it is meant to take the stored artifact's place, "
            "say --new-artifact"
        )
    chosen = same or fitting
    if len(chosen) != 1:
        names = ", ".join(f"{printable(cell.label)} on {cell.backend} with {cell.threads} threads" for cell in chosen) or "nothing"
        raise Unavailable(f"{path}: cannot compare: {names} fits; expected one: choose with --backend and --threads, or record one alone")
    if len(chosen[0].medians) < LEAST_ROUNDS:
        raise Unavailable(
            f"{path}: cannot compare: it holds {len(chosen[0].medians)} rounds; expected {LEAST_ROUNDS} or more (bench --rounds)"
        )
    fewest = min(map(len, chosen[0].rounds))
    if chosen[0].least > fewest:
        raise InputRefused(
            f"{path} is damaged: settings.least is {chosen[0].least}, and a round has {fewest} samples; expected at least as many; record "
            "it anew with `cnet-deploy bench --save-baseline`"
        )
    return chosen[0]


def _cells(report: Report) -> list[Baseline]:
    settings = report.settings
    return [
        Baseline(
            row.label, result.cell.backend, result.cell.device, result.cell.threads, result.batch,
            tuple(map(tuple, result.rounds)), settings.warmup, settings.seconds, settings.least, row.sha256,
            None if row.figures is None else Figures(**row.figures),
        )
        for row in report.rows
        for result in row.results
    ]  # fmt: skip
