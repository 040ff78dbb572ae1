"""A measurement for people: the progress bar, the table on a terminal, the raw samples in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cnet_deploy.benchmarks.environment import cores
from cnet_deploy.benchmarks.measure import Settings
from cnet_deploy.benchmarks.paper import BASE, CONVENTIONS, Report, Row, bench, paper_ratio
from cnet_deploy.errors import InputRefused, Unavailable, printable
from cnet_deploy.files import atomic_output, check_output

LOG_WIDTH = 180  # a table that wraps can't be read or searched: a log gets the width it needs


def run(
    models: Sequence[str], *, backends: Sequence[str], threads: int | None, rounds: int, seconds: float, output: Path | None = None
) -> Report:  # fmt: skip
    """Measure (see ``bench``), print the table on standard output and keep everything in ``output``.

    Raises Unavailable if no cell at all could be measured, InputRefused if that was for the files alone.
    """
    if output is not None:
        check_output(output)
    threads = threads or cores()
    report = _with_progress(models, backends, threads, Settings(rounds=rounds, seconds=seconds))
    if output is not None:
        with atomic_output(output) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(render(report))
    results = [result for row in report.rows for result in row.results.values()]
    if not any(result.samples for result in results):
        refused = all(result.exit_code == InputRefused.exit_code for result in results)
        raise (InputRefused if refused else Unavailable)(f"nothing could be measured: {results[0].error}")
    return report


def _with_progress(models: Sequence[str], backends: Sequence[str], threads: int, settings: Settings) -> Report:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    # The bar is drawn between turns only: a thread that redraws it would steal time from what is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("prepare", total=None)

        def step(text: str) -> None:
            bar.update(task, description=text, advance=1)
            bar.refresh()

        return bench(
            models, backends=backends, threads=threads, settings=settings, progress=step, total=lambda n: bar.update(task, total=n)
        )


def render(report: Report) -> RenderableType:
    """The table, a row a model; below it the errors, the conditions and whose counts the FLOPs are."""
    in_paper = any(row.paper for row in report.rows)
    base = "MobileNet" if report.base.label == BASE else report.base.label
    table = Table(title="Inference time, batch 1 unless said" + (", beside the paper's table 5" if in_paper else ""), title_justify="left")
    table.add_column("Model")
    for column in ("FLOPs", "Params", *(("Paper: top-1 err.", "Paper: ARM s", "Paper: ratio") if in_paper else ())):
        table.add_column(column, justify="right")
    for backend in report.backends:
        table.add_column(f"{backend}\nmedian (p90) ms", justify="right")
        table.add_column(f"{backend}\nratio", justify="right")
    for row in report.rows:
        table.add_row(*_cells(report, row, in_paper))
    machine = report.environment
    load = (machine["load_average"] or [0.0])[0]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    notes = [f"{row.label} on {backend}: {result.error}" for row in report.rows for backend, result in row.results.items() if result.error]
    notes += [
        f"Ratio: time of an image relative to {base}, on the same backend where it runs there; median over "
        f"{report.settings.rounds} interleaved rounds. One process per cell, {report.threads} thread(s).",
        f"{machine['cpu']}, {machine['cores']} cores, load {load:.1f}; Python {machine['python']}, {versions}.",
    ]
    if in_paper:
        notes += [
            f"FLOPs of {', '.join(row.paper.title for row in report.rows if row.paper and row.paper.convention == key)}: {text}."
            for key, text in CONVENTIONS.items()
            if any(row.paper and row.paper.convention == key for row in report.rows)
        ]
    return Group(table, Text("\n".join(notes), style="dim"))


def _cells(report: Report, row: Row, in_paper: bool) -> list[str]:
    cells = [row.paper.title if row.paper else printable(row.label)]
    cells.append("" if row.flops is None else f"{row.flops / 1e6:,.0f} M")
    cells.append("" if row.params is None else f"{row.params / 1e6:.2f} M")
    if in_paper:
        cells += [f"{row.paper.top1_error:.1f} %", f"{row.paper.arm_seconds:g}", f"{paper_ratio(row.paper):.2f}"] if row.paper else [""] * 3
    for backend in report.backends:
        result = row.results.get(backend)
        if result is None or result.median is None or result.p90 is None:
            cells += ["failed" if result else "", ""]
            continue
        times = report.ratio(row, backend)
        batch = f" batch {result.batch}" if result.batch != 1 else ""
        cells += [f"{result.median * 1e3:.2f} ({result.p90 * 1e3:.2f}){batch}", "" if times is None else f"{times:.2f}"]
    return cells
