"""A sweep for people: the progress bar, the tables on a terminal, the files that were asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cnet_deploy.benchmarks.measure.rounds import Result, Settings
from cnet_deploy.benchmarks.measure.samples import UNSTABLE, milliseconds
from cnet_deploy.benchmarks.report import device_lines as on_device
from cnet_deploy.benchmarks.report.advice import warnings_of
from cnet_deploy.benchmarks.report.page import page, picture
from cnet_deploy.benchmarks.report.text import CSV_COLUMNS, comma_separated, group_title, markdown, ratio_of
from cnet_deploy.benchmarks.sweep.paper import CONVENTIONS, ratio_text
from cnet_deploy.benchmarks.sweep.plan import bench
from cnet_deploy.benchmarks.sweep.results import FORMAT, Journal, Keep, Report, part_of, read_report
from cnet_deploy.benchmarks.sweep.results import Group as Cells
from cnet_deploy.errors import InputRefused, Interrupted, OutputRefused, Unavailable
from cnet_deploy.files import check_output, exists, write_text
from cnet_deploy.files.replacing import key_of
from cnet_deploy.sessions import backends
from cnet_deploy.svg import require_matplotlib
from cnet_deploy.text import LINE_LENGTH, StreamFailed, Where, shown, write_block

LOG_WIDTH = 180  # a table that wraps can't be read or searched: a log gets the width it needs
WIDE = 130  # columns that the paper's table takes with a line per row
SHORT = 80  # and a table with a line for each cell of a CPU
NARROW = 98  # and that it takes folded; below that a ratio stands under its time


@dataclass(frozen=True)
class Outputs:
    """Files to write, None where none is wanted. ``json`` and ``baseline`` hold the same; a baseline is measured with fresh processes."""

    json: Path | None = None
    baseline: Path | None = None
    html: Path | None = None
    markdown: Path | None = None
    csv: Path | None = None
    svg: Path | None = None

    def check(self, models: Sequence[str]) -> None:
        """Refuse names that results are not kept under: a model's, its manifest's, the same twice. Raises OutputRefused, and Unavailable
        where pictures are wanted and matplotlib is missing."""
        wanted = [(entry.name, path) for entry in fields(self) if (path := getattr(self, entry.name)) is not None]
        for kind, path in wanted:
            suffixes = _SUFFIXES.get(kind, (".json",))
            artifact = path.with_suffix("")  # whose manifest a file of this name would be
            a_manifest = path.suffix == ".json" and artifact.suffix in {
                suffix for known in backends().values() for suffix in known.suffixes
            }
            if path.suffix not in suffixes or a_manifest or is_any(path, models):
                expected = f"expected a name that ends in {' or '.join(suffixes)} and is no manifest's"
                raise OutputRefused(f"{path}: results are not written there; {expected}")
            if [other.resolve() for _, other in wanted].count(path.resolve()) > 1:
                raise OutputRefused(f"{path}: is asked for twice; expected a name for each output")
            like = key_of(kind if kind in _SUFFIXES else FORMAT, CSV_COLUMNS[0])
            for place in (path,) if kind in _SUFFIXES else (path, part_of(path)):
                check_output(place, like=like)
        if self.html or self.svg:
            require_matplotlib()

    def write(self, report: Report) -> list[Path]:
        """Write what people read; the files that were written. Raises OutputRefused for the first that can't be, after the others."""
        refused: OutputRefused | None = None
        written = []
        for kind, render in _RENDERED.items():
            path: Path | None = getattr(self, kind)
            try:
                if path is not None:
                    write_text(path, render(report))
                    written.append(path)
            except OutputRefused as error:
                refused = refused or error
        if refused is not None:
            raise refused
        return written


_SUFFIXES = {"html": (".html", ".htm"), "markdown": (".md", ".markdown"), "csv": (".csv",), "svg": (".svg",)}
_RENDERED: dict[str, Callable[[Report], str]] = {"html": page, "markdown": markdown, "csv": comma_separated, "svg": picture}


def run(
    models: Sequence[str], *, backends: Sequence[str] = (), threads: Sequence[int] = (), batches: Sequence[int] = (),
    device: str = "cpu", settings: Settings | None = None, outputs: Outputs | None = None, resume: bool = False, quiet: bool = False,
    input_size: tuple[int, int] | None = None, weights: str | None = None, calibrate: Path | None = None,
    notify: Callable[[str], None] = lambda _: None,
) -> Report:  # fmt: skip
    """Measure (see ``bench``), print the tables on standard output and write ``outputs``; JSON is kept while the run goes on.

    ``quiet`` leaves the progress bar and the names of written files out. ``resume`` continues the run whose results are in ``outputs.json``
    (or ``outputs.baseline``). ``notify`` hears how long the run will take. Raises Unavailable if no cell at all could be measured,
    InputRefused if that was for the files alone; Unavailable, after everything was written, if a cell failed that was asked for, or for
    another reason than a runtime that is missing here; Interrupted by Ctrl-C after what was measured is shown and written.
    """
    outputs, settings = outputs or Outputs(), settings or Settings()
    outputs.check(models)
    kept = [path for path in (outputs.json, outputs.baseline) if path is not None]
    if resume and not kept:
        raise InputRefused("nothing to resume; expected the results of the interrupted run with --json")
    begun = next((path for path in (*map(part_of, kept), *kept) if resume and exists(path)), None)
    earlier = None if begun is None else read_report(begun)
    journal = Journal(*kept, resumed=begun)
    latest: list[Report] = []

    def keep(report: Report) -> None:
        latest[:] = [report]
        journal.keep(report)

    try:
        report = _with_progress(
            models, backends, threads, batches or [1], device, settings, keep, earlier, quiet, input_size, weights, calibrate, notify
        )
    except KeyboardInterrupt:
        if not latest:
            raise
        _show(latest[0])
        _write(latest[0], journal, outputs, quiet=quiet)
        where = (
            f"it is in {journal.places[kept[0]]}, and the same command with --resume goes on"
            if kept
            else "--json FILE would have kept it for --resume"
        )
        raise Interrupted(f"interrupted; what was measured is above: {where}") from None
    _show(report)  # first, since it is all that is left of the run where the disk is full
    _write(report, journal, outputs, quiet=quiet)
    results = list(report.results)
    failed = [result for result in results if result.error is not None]
    if any(result.samples for result in results) and any(backends or result.exit_code != Unavailable.exit_code for result in failed):
        count = f"{len(failed)} of {len(results)} cells"
        raise Unavailable(f"{count} could not be measured, the others are above; {failed[0].cell.backend}: {failed[0].error}")
    if not any(result.samples for result in results):
        refused = all(result.exit_code == InputRefused.exit_code for result in results)
        raise (InputRefused if refused else Unavailable)(f"nothing could be measured: {results[0].error}")
    return report


def _show(report: Report) -> None:
    console = _console()
    show(render(report, console.width if console.is_terminal else LOG_WIDTH))


def show(what: RenderableType) -> None:
    """Print on standard output, as wide as a log wants it where that is no terminal (see ``put``)."""
    console = _console()
    if not console.is_terminal:
        console = _console(width=LOG_WIDTH)
    with console.capture() as text:
        console.print(what)
    put(text.get().removesuffix("\n"))


def put(*texts: str, command: str = "") -> None:
    """Write lines to standard output (see ``text.write_block``). A reader who has gone, or a full disk behind it, loses no file and changes
    no exit code."""
    with contextlib.suppress(StreamFailed):
        write_block(*texts, command=command)


def _console(**options: Any) -> Console:
    """A console that takes nothing in a name for markup or for an emoji."""
    return Console(markup=False, emoji=False, **options)


def is_any(path: Path, others: Iterable[Path | str]) -> bool:
    """Whether it is one of these files, by whatever name."""
    return any(path.resolve() == Path(other).resolve() for other in others)


def _write(report: Report, journal: Journal, outputs: Outputs, *, quiet: bool) -> None:
    written: list[Path] = []
    try:
        written += journal.close(report)
    finally:
        written += outputs.write(report)
        for path in [] if quiet else written:
            put(f"wrote {shown(path, Where.TERMINAL)}")


def _with_progress(
    models: Sequence[str], backends: Sequence[str], threads: Sequence[int], batches: Sequence[int], device: str, settings: Settings,
    keep: Keep, earlier: Report | None, quiet: bool, input_size: tuple[int, int] | None, weights: str | None,
    calibrate: Path | None, notify: Callable[[str], None],
) -> Report:  # fmt: skip
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = _console(stderr=True)
    # The bar is drawn between turns only: a thread that redraws it would steal time from what is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("prepare", total=None)

        def step(text: str) -> None:
            bar.update(task, description=shown(text, Where.RICH, 80), advance=1)
            bar.refresh()

        return bench(
            models, backends=backends, threads=threads, batches=batches, device=device, settings=settings, progress=step,
            total=lambda n: bar.update(task, total=n), keep=keep, earlier=earlier, input_size=input_size, weights=weights,
            calibrate=calibrate, notify=notify,
        )  # fmt: skip


def render(report: Report, width: int = LOG_WIDTH) -> RenderableType:
    """A table for each number of threads and batch size, a row a model; below them errors, conditions and whose counts the FLOPs are.

    Narrow terminals get them folded.
    """
    notes = [
        f"{shown(row.label, Where.RICH)} on {result.cell.backend}: {shown(result.error, Where.RICH)}"
        for row in report.rows
        for result in row.results
        if result.error
    ]
    machine = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    load = (machine["load_average"] or [0.0])[0]
    each = "a process for every turn" if report.settings.fresh else "one process per cell"
    notes += [
        f"Ratio: {ratio_of(report, Where.RICH)}; median over {report.settings.rounds} interleaved rounds, {each}. p90 stands where samples "
        f"support it; ~ marks a coefficient of variation above {UNSTABLE:.1%}.",
        *on_device.notes(report),
        *report.notes,
        f"{machine['cpu']}, {machine['cores']} cores, load {load:.1f}; Python {machine['python']}, {versions}.",
    ]
    if not report.by_cell:
        notes += [
            f"{shown(row.label, Where.RICH)} on {result.cell.backend} runs the training form: {result.flops / 1e6:,.0f} M FLOPs."
            for row in report.rows
            for result in row.results
            if result.flops is not None
        ]
    if any(row.paper for row in report.rows):
        notes += [
            f"FLOPs of {', '.join(row.paper.title for row in report.rows if row.paper and row.paper.convention == key)}: {text}."
            for key, text in CONVENTIONS.items()
            if any(row.paper and row.paper.convention == key for row in report.rows)
        ]
    draw = _cell_table if report.by_cell else _table
    tables = [draw(report, group, width) for group in report.groups]
    below = [*notes, *(f"! {text}" for text in warnings_of(report))]
    return Group(*tables, Text("\n".join(shown(line, Where.RICH, LINE_LENGTH) for line in below), style="dim"))


def _empty_table(report: Report, group: Cells, *, fold: bool) -> Table:
    looks = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True} if fold else {}
    what = "Inference time" if group[1] == 1 else "Throughput"
    beside = "the paper's table" if report.timed_in_paper else "the published errors"
    title = f"{what}, {group_title(report, group)}" + (f", beside {beside}" if any(row.paper for row in report.rows) else "")
    return Table(title=title, title_justify="left", **looks)  # type: ignore[arg-type]


def _cell_table(report: Report, group: Cells, width: int) -> Table:
    """A line for each cell. Narrow terminals get the model's name above its lines."""
    fold = width < (SHORT if report.device == "cpu" else WIDE)
    table = _empty_table(report, group, fold=fold)
    headings = on_device.headings(report, group)
    first = headings.index("backend")
    for heading in headings[first:] if fold else headings:
        text = heading.replace("with transfers", "with\ntransfers") if fold else heading
        table.add_column(text, justify="left" if heading in ("Model", "backend") else "right", overflow="fold")
    for _, _, cells in on_device.lines(report, group, Where.RICH):
        if fold and cells[0]:
            table.add_row(cells[0])
        table.add_row(*([f" {cells[first]}", *cells[first + 1 :]] if fold else cells))
    return table


def _table(report: Report, group: Cells, width: int) -> Table:
    fold, stack = width < WIDE, width < NARROW
    table = _empty_table(report, group, fold=fold)
    table.add_column("Model", overflow="fold")
    paper = ("Paper:\ntop-1 err.", *(("Paper:\nARM s", "Paper:\nratio") if report.timed_in_paper else ()))
    for column in ("M FLOPs", "M params", *paper):
        table.add_column(column.replace(" ", "\n") if fold else column, justify="right")
    figure = "ms (p90)" if group[1] == 1 else "images/s"
    for backend in report.backends:
        for heading in (f"{backend}\n{figure}\nratio",) if stack else (f"{backend}\n{figure}", "\nratio"):
            table.add_column(heading.replace(" (", "\n(") if fold else heading, justify="right")
    for row in report.rows:
        cells = [shown(row.title, Where.RICH), "" if row.flops is None else f"{row.flops / 1e6:,.0f}"]
        cells.append("" if row.params is None else f"{row.params / 1e6:.2f}")
        error, seconds = (row.paper.top1_error, row.paper.arm_seconds) if row.paper else (None, None)
        known = ["" if error is None else f"{error:.1f} %", "" if seconds is None else f"{seconds:g}", ratio_text(row.paper)]
        cells += known[: len(paper)]
        for backend in report.backends:
            time, times = _figures(report, row.find(backend, group))
            cells += [f"{time}\n{times}".strip()] if stack else [time, times]
        table.add_row(*(cell.replace(" (", "\n(") if fold else cell for cell in cells))
    return table


def _figures(report: Report, result: Result | None) -> tuple[str, str]:
    if result is None:
        return "", ""
    summary, times = result.summary, report.ratio(result)
    if summary is None:
        return "failed" if result.error else "not yet", ""
    if result.cell.batch == 1:
        text = milliseconds(summary.median) + (f" ({milliseconds(summary.p90)})" if summary.p90 is not None else "")
    else:
        text = f"{result.images_per_second:,.1f}"
    text += f" batch {result.batch}" if result.batch != result.cell.batch else ""
    return ("~" if summary.unstable else "") + text, "" if times is None else f"{times:.2f}"
