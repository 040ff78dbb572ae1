"""A comparison for people: the table on a terminal, and one HTML page that needs no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cnet_deploy.benchmarks.compare.results import FORMAT, FULL, ModelComparison, Variant, write_comparison
from cnet_deploy.benchmarks.measure.samples import UNSTABLE, milliseconds
from cnet_deploy.benchmarks.report.advice import warnings_of
from cnet_deploy.benchmarks.report.page import environment_of, template_of
from cnet_deploy.benchmarks.report.terminal import is_any
from cnet_deploy.benchmarks.report.text import group_title
from cnet_deploy.errors import OutputRefused
from cnet_deploy.files import check_output, write_text
from cnet_deploy.files.replacing import key_of
from cnet_deploy.sessions import backends
from cnet_deploy.text import LINE_LENGTH, Where, shown

TIME = 2  # the column of the latency


def check_outputs(model: Path | str, *, json: Path | None = None, html: Path | None = None) -> None:
    """Refuse names under which results are not written: a model's, a manifest's, another suffix. Raises OutputRefused."""
    manifests = {suffix for spec in backends().values() for suffix in spec.suffixes}
    for path, suffixes in ((json, (".json",)), (html, (".html", ".htm"))):
        if path is not None:
            if path.suffix not in suffixes or path.with_suffix("").suffix in manifests or is_any(path, [model]):
                expected = f"expected a name that ends in {' or '.join(suffixes)} and is no manifest's"
                raise OutputRefused(f"{path}: results are not written there; {expected}")
            check_output(path, like=key_of(FORMAT if path is json else "html"))


def write_outputs(comparison: ModelComparison, *, json: Path | None = None, html: Path | None = None) -> Iterator[Path]:
    """Write the files that were asked for, and name each. Raises OutputRefused."""
    if json is not None:
        write_comparison(json, comparison)
        yield json
    if html is not None:
        write_text(html, page(comparison))
        yield html


def headings(comparison: ModelComparison) -> list[str]:
    """Of ``words_of``: the variant, its time, its answers where there are labelled images, its file."""
    time = "ms (p90)" if comparison.group[1] == 1 else "ms an image"
    answers = ["top-1 error, % (95 %)", "points against fp32 (95 %)", "answers as fp32"] if comparison.images is not None else []
    return ["runtime", "precision", time, "time / fastest", *answers, "file, KiB"]


def words_of(comparison: ModelComparison, variant: Variant) -> list[str]:
    """A variant's line; what is not known is a dash."""
    summary, times, accuracy = variant.result.summary, comparison.times_as_slow(variant), variant.accuracy
    if summary is None:
        time = "failed"
    else:
        time = ("~" if summary.unstable else "") + milliseconds(variant.seconds)
        time += f" ({milliseconds(summary.p90)})" if summary.p90 is not None and variant.result.batch == 1 else ""
    answers: list[str] = []
    if comparison.images is not None:
        answers = ["-", "-", "-"]
        if accuracy is not None:
            low, high = accuracy.top1_interval
            answers[0] = f"{accuracy.top1_error:.1f} ({low:.1f} to {high:.1f})"
            if variant is comparison.reference:
                answers[1:] = ["", "reference"]
            elif accuracy.difference is not None and accuracy.agreement is not None:
                points, (least, most) = accuracy.difference
                answers[1:] = [f"{points:+.1f} ({least:+.1f} to {most:+.1f})", f"{accuracy.agreement:.1%}"]
    size = "-" if variant.bytes is None else f"{variant.bytes / 1024:,.0f}"
    return [variant.runtime, variant.precision, time, "-" if times is None else f"{times:.2f}", *answers, size]


def notes(comparison: ModelComparison) -> list[str]:
    """How it was measured, and what the columns mean."""
    settings = comparison.report.settings
    lines = [
        f"Times: the median over {settings.rounds} rounds in which the variants took turns, one process each; p90 where samples support "
        f"it. ~ marks a coefficient of variation above {UNSTABLE:.1%}. time / fastest: the median over rounds."
    ]
    if comparison.images is not None:
        images = comparison.images
        part = "" if images.used + images.refused == images.total else f" of {images.total:,}, evenly spread"
        lines.append(
            f"Answers: on {images.used:,} images{part}, of {images.dataset} ({images.split}, {images.classes} classes). In brackets: 95 % "
            f"intervals (Wilson, 1927; of differences on the same images: Bonett and Price, 2012)."
        )
        if images.refused:
            lines.append(f"{images.refused} images could not be read and are not counted.")
        if comparison.reference is not None:
            lines.append(f"fp32 is {comparison.reference.backend}: differences and equal answers are against it.")
        else:
            lines.append(f"No variant in {FULL} was evaluated, so there is nothing to compare answers with.")
        if odd := [v.backend for v in comparison.variants if v.accuracy is not None and v.accuracy.not_finite]:
            lines.append(f"ANSWERS THAT ARE NOT FINITE: {', '.join(odd)}. They count as wrong.")
    else:
        lines.append("Accuracy was not measured: --data DATA does that.")
    return [*lines, *comparison.report.notes]


def failures(comparison: ModelComparison) -> list[tuple[str, str]]:
    """The variants that were not measured, those with the same reason together."""
    return [(", ".join(variant.backend for variant in those), reason) for reason, those in comparison.failed.items()]


def render(comparison: ModelComparison) -> RenderableType:
    """The sentence, the table, reasons and conditions."""
    title = f"{shown(comparison.model, Where.RICH)}, {group_title(comparison.report, comparison.group)}"
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings(comparison)):
        table.add_column(heading.replace(" (", "\n("), justify="left" if number < TIME else "right", overflow="fold")
    for variant in comparison.variants:
        if variant.result.error is None:
            table.add_row(*(shown(word, Where.RICH) for word in words_of(comparison, variant)))
    machine = comparison.report.environment
    lines = [f"not measured: {names}: {reason}" for names, reason in failures(comparison)]
    lines += notes(comparison)
    lines += [f"{machine['cpu']}, {machine['cores']} cores."]
    lines += [f"! {text}" for text in warnings_of(comparison.report)]
    below = "\n".join(shown(line, Where.RICH) for line in lines)
    return Lines(Text(shown(comparison.sentence(), Where.RICH, LINE_LENGTH)), table, Text(below, style="dim"))


def page(comparison: ModelComparison) -> str:
    """The page. Whatever comes from file names and errors is escaped."""
    report, measured = comparison.report, comparison.measured
    slowest = max((variant.seconds or 0.0 for variant in measured), default=1.0)
    lines = [
        (variant, words_of(comparison, variant), variant.seconds and variant.seconds / slowest)
        for variant in comparison.variants
        if variant.result.error is None
    ]
    return template_of(__package__).render(
        comparison=comparison, report=report, headings=headings(comparison), lines=lines, time_column=TIME, notes=notes(comparison),
        failed=failures(comparison), warnings=warnings_of(report), environment=environment_of(report),
        machine=(report.environment["gpu"] if report.device != "cpu" else None) or report.environment["cpu"],
        title=group_title(report, comparison.group), fastest=measured[0] if measured else None,
    )  # fmt: skip
