"""A measurement for people: the progress bar, the table on a terminal, the raw samples in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cnet_deploy.benchmarks.environment import cores
from cnet_deploy.benchmarks.measure import Settings
from cnet_deploy.benchmarks.paper import BASE, CONVENTIONS, Report, Row, bench, paper_ratio
from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable, printable
from cnet_deploy.files import atomic_output, check_output
from cnet_deploy.sessions import BACKENDS

LOG_WIDTH = 180  # a table that wraps can't be read or searched: a log gets the width it needs
WIDE = 130  # columns that the paper's table takes with a line per row
NARROW = 98  # and that it takes folded; below that a ratio stands under its time


def run(
    models: Sequence[str], *, backends: Sequence[str], threads: int | None, rounds: int, seconds: float, output: Path | None = None
) -> Report:  # fmt: skip
    """Measure (see ``bench``), print the table on standard output and keep everything in ``output``.

    Raises Unavailable if no cell at all could be measured, InputRefused if that was for the files alone.
    """
    if output is not None:
        _check_results(output, models)
    threads = threads or cores()
    report = _with_progress(models, backends, threads, Settings(rounds=rounds, seconds=seconds))
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    console.print(render(report, console.width))
    if output is not None:  # after the table, which is all that is left of the run where the disk is full
        with atomic_output(output) as temporary:
            temporary.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    results = [result for row in report.rows for result in row.results.values()]
    if not any(result.samples for result in results):
        refused = all(result.exit_code == InputRefused.exit_code for result in results)
        raise (InputRefused if refused else Unavailable)(f"nothing could be measured: {results[0].error}")
    return report


def _check_results(output: Path, models: Sequence[str]) -> None:
    """Refuse to write results over a model, or over anything that results are not kept in."""
    artifact = output.with_suffix("")  # whose manifest a file of this name would be
    a_manifest = artifact.suffix in {suffix for suffixes in BACKENDS.values() for suffix in suffixes}
    if output.suffix != ".json" or a_manifest or str(output) in models:
        raise OutputRefused(f"{output}: results are not written there; expected a name that ends in .json and is no manifest's")
    check_output(output)


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


def render(report: Report, width: int = LOG_WIDTH) -> RenderableType:
    """The table, a row a model; below it the errors, the conditions and whose counts the FLOPs are. Narrow terminals get it folded."""
    in_paper = any(row.paper for row in report.rows)
    base = "MobileNet" if report.base.label == BASE else report.base.label
    title = "Inference time, batch 1 unless said" + (", beside the paper's table" if in_paper else "")
    fold = width < WIDE
    looks = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True} if fold else {}
    table = Table(title=title, title_justify="left", **looks)  # type: ignore[arg-type]
    table.add_column("Model", overflow="fold")
    paper = ("Paper:\ntop-1 err.", "Paper:\nARM s", "Paper:\nratio") if in_paper else ()
    for column in ("M FLOPs", "M params", *paper):
        table.add_column(column.replace(" ", "\n") if fold else column, justify="right")
    stack = width < NARROW
    for backend in report.backends:
        for heading in (f"{backend}\nms (p90)\nratio",) if stack else (f"{backend}\nms (p90)", "\nratio"):
            table.add_column(heading.replace(" (", "\n(") if fold else heading, justify="right")
    for row in report.rows:
        cells = _cells(report, row, in_paper)
        if stack:
            first = len(cells) - 2 * len(report.backends)
            cells[first:] = [f"{time}\n{times}".strip() for time, times in zip(cells[first::2], cells[first + 1 :: 2], strict=True)]
        table.add_row(*(cell.replace(" (", "\n(") if fold else cell for cell in cells))
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
    cells.append("" if row.flops is None else f"{row.flops / 1e6:,.0f}")
    cells.append("" if row.params is None else f"{row.params / 1e6:.2f}")
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
