"""A report as Markdown and as comma-separated values: for a pull request, and for a spreadsheet."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter

from cnet_deploy.benchmarks.measure.rounds import Result, ratio
from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report import device_lines as on_device
from cnet_deploy.benchmarks.report.advice import warnings_of
from cnet_deploy.benchmarks.sweep.paper import BASE, ratio_text
from cnet_deploy.benchmarks.sweep.results import Group, Report, Row
from cnet_deploy.text import Where, shown

CSV_COLUMNS = (
    "model", "backend", "device", "threads", "batch", "flops", "params", "samples", "median_ms", "mean_ms", "p90_ms", "p95_ms", "p99_ms",
    "variation", "unstable", "device_ms", "transfer_ms", "end_to_end_ms", "images_per_second", "ratio", "cold_start_ms", "open_ms",
    "peak_mib", "error",
)  # fmt: skip


def group_title(report: Report, group: Group) -> str:
    """``batch 1, 2 threads``; ``batch 1, cuda`` on a device, where threads stand only if they tell groups apart."""
    threads, batch = group
    words = [f"batch {batch}", *([] if report.device == "cpu" else [report.device])]
    if report.device == "cpu" or len({threads for threads, _ in report.groups}) > 1:
        words.append(f"{threads} thread{'' if threads == 1 else 's'}")
    return ", ".join(words)


def base_title(report: Report, where: Where) -> str:
    """The short name of the row that the others are compared with, as it is shown there."""
    return "MobileNet" if report.base.label == BASE else shown(report.base.title, where)


def ratio_of(report: Report, where: Where) -> str:
    """What the ratios of a report are, as it is shown there."""
    if len(report.rows) == 1:
        return "time of an image relative to the fastest backend"
    base = base_title(report, where)
    return f"time of an image relative to {base}, on the same backend where it runs there, otherwise on {base}'s fastest"


def result_of(report: Report) -> str:
    """The result in a sentence: which runtime is the fastest in the first group, and how many times as fast as each other it is."""
    group = report.groups[0]
    cells = {row.label: [r for r in row.results if (r.cell.threads, r.cell.batch) == group and r.median] for row in report.rows}
    measured = {label: results for label, results in cells.items() if results}
    if not measured:
        return "Nothing was measured."
    quickest = {label: min(results, key=lambda r: (r.median or 0.0) / r.batch) for label, results in measured.items()}
    wins = Counter(result.cell.backend for result in quickest.values())
    ran = Counter(result.cell.backend for results in measured.values() for result in results)
    best = max(wins, key=lambda name: (wins[name] / ran[name], wins[name], name))
    others = []
    for backend in report.backends:
        pairs = [(_of(results, backend), _of(results, best)) for results in measured.values()]
        times = [value for one, own in pairs if one and own and backend != best and (value := ratio(one, own)) is not None]
        if times:
            others.append(f"{statistics.median(times):.1f} times as fast as {backend}")
    title = group_title(report, group)
    if len(measured) == 1:
        (result,) = quickest.values()
        seconds = (result.median or 0.0) / result.batch
        return ", ".join([f"{best} is the fastest: {milliseconds(seconds)} ms an image ({title})", *others]) + "."
    text = f"{best} is the fastest in {wins[best]} of the {ran[best]} models that it runs ({title})"
    return f"{text}: {', '.join(others)}, by the median over the models that both run." if others else f"{text}."


def _of(results: list[Result], backend: str) -> Result | None:
    return next((result for result in results if result.cell.backend == backend), None)


def markdown(report: Report) -> str:
    """One table for each number of threads and batch size, with the warnings below."""
    lines = []
    for group in report.groups:
        lines += [f"### Inference time, {group_title(report, group)}", ""]
        if report.by_cell:
            head = on_device.headings(report, group)
            lines += [_line(head), _line(["---" if heading in ("Model", "backend") else "---:" for heading in head])]
            lines += [*(_line(words) for _, _, words in on_device.lines(report, group, Where.MARKDOWN)), ""]
            continue
        paper = report.timed_in_paper
        measured = [backend for backend in report.backends if any(row.find(backend, group) for row in report.rows)]
        head = ["Model", "M FLOPs", *(["Paper: ratio"] if paper else [])]
        head += [text for backend in measured for text in (f"{backend}, ms" if group[1] == 1 else f"{backend}, images/s", "ratio")]
        lines += [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
        for row in report.rows:
            words = [shown(row.title, Where.MARKDOWN), "" if row.flops is None else f"{row.flops / 1e6:,.0f}"]
            words += [ratio_text(row.paper)] if paper else []
            for backend in measured:
                words += _figures(report, row.find(backend, group))
            lines.append(_line(words))
        lines.append("")
    lines += [f"Ratio: {ratio_of(report, Where.MARKDOWN)}; the median over {report.settings.rounds} interleaved rounds.", ""]
    lines += [line for text in (*on_device.notes(report), *report.notes) for line in (shown(text, Where.MARKDOWN, 4000), "")]
    lines += [f"- {shown(text, Where.MARKDOWN, 4000)}" for text in warnings_of(report)]
    lines += [
        f"- {shown(row.title, Where.MARKDOWN)} on {result.cell.backend}: {shown(result.error, Where.MARKDOWN)}"
        for row in report.rows
        for result in row.results
        if result.error
    ]
    return "\n".join(lines).rstrip() + "\n"


def _figures(report: Report, result: Result | None) -> list[str]:
    if result is None:
        return ["", ""]
    summary, times = result.summary, report.ratio(result)
    if summary is None:
        return ["failed" if result.error else "not yet", ""]
    figure = milliseconds(summary.median) if result.cell.batch == 1 else f"{result.images_per_second:,.1f}"
    return [figure + ("" if result.batch == result.cell.batch else f" (batch {result.batch})"), "" if times is None else f"{times:.2f}"]


def _line(words: list[str]) -> str:
    return "| " + " | ".join(words) + " |"


def comma_separated(report: Report) -> str:
    """A line for each cell, times in milliseconds; what is not known is empty."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(CSV_COLUMNS)
    for row in report.rows:
        for result in row.results:
            lines.writerow(["" if value is None else value for value in _values(report, row, result)])
    return out.getvalue()


def _values(report: Report, row: Row, result: Result) -> list[object]:
    def ms(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * 1e3

    cell, summary = result.cell, result.summary
    times: list[object] = [None] * 8
    if summary is not None:
        times = [summary.count, *map(ms, (summary.median, summary.mean, summary.p90, summary.p95, summary.p99))]
        times += [summary.variation, summary.unstable]
    return [
        shown(row.label, Where.CSV), cell.backend, cell.device, cell.threads, result.batch, row.flops, row.params, *times,
        ms(result.device_median), ms(result.transfer_median), ms(result.end_to_end),
        result.images_per_second, report.ratio(result),
        ms(min(result.cold_seconds, default=None)), ms(min(result.open_seconds, default=None)),
        None if result.peak_bytes is None else result.peak_bytes / 2**20, result.error and shown(result.error, Where.CSV),
    ]  # fmt: skip
