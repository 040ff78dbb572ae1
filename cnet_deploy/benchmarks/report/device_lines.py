"""Cells in reports, a line for each. On a device time is measured in three ways (by the host, by the device, with transfers)."""

from __future__ import annotations

from collections.abc import Iterator

from cnet_deploy.benchmarks.measure.rounds import Result
from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.sweep.paper import ratio_text
from cnet_deploy.benchmarks.sweep.results import Group, Report, Row
from cnet_deploy.sessions import backends
from cnet_deploy.text import Where, shown

NOTE = (
    "On a device: ms is what the host waits for an inference whose images lie on the device already (p90 where samples support it), "
    "device ms the same by the device's own events, with transfers ms adds the upload of the images and the download of the logits. "
    "The cells of one model take turns with each other."
)


def headings(report: Report, group: Group) -> list[str]:
    """Of ``lines``: the model's columns, its backend, figures."""
    paper = ["Paper: top-1 err.", *(["Paper: ratio"] if report.timed_in_paper else [])] if any(row.paper for row in report.rows) else []
    figures = ["ms (p90)"] if group[1] == 1 else ["images/s", "ms a batch"]
    transfers = [] if report.device == "cpu" else ["device ms", "with transfers ms"]
    return ["Model", "M FLOPs", "M params", *paper, "backend", *figures, *transfers, "ratio"]


def lines(report: Report, group: Group, where: Where) -> Iterator[tuple[Row, Result, list[str]]]:
    """Each cell of a group with its words as they are shown there; what is the model's stands in its first line alone."""
    columns = sum(heading.startswith("Paper") for heading in headings(report, group))
    for row in report.rows:
        paper = [f"{row.paper.top1_error:.1f} %" if row.paper else "", ratio_text(row.paper)][:columns]
        name, counted = shown(row.title, where), None
        for backend in report.backends:
            if (result := row.find(backend, group)) is not None:
                if row.counted(result) != counted:
                    counted = flops, params = row.counted(result)
                    counts = ["" if flops is None else f"{flops / 1e6:,.0f}" if flops >= 1e8 else f"{flops / 1e6:,.1f}"]
                    counts.append("" if params is None else f"{params / 1e6:.2f}")
                else:
                    counts = ["", ""]
                yield row, result, [name, *counts, *paper, backend, *_figures(report, result)]
                name, paper = "", [""] * columns


def notes(report: Report) -> list[str]:
    """What is measured how, and on which device; nothing for a CPU's report."""
    if report.device == "cpu":
        return []
    rounding = [backend for backend in report.backends if _rounds_to_tf32(backend)]
    tf32 = f"TF32 is on for {', '.join(rounding)} alone." if rounding else "TF32 is off everywhere."
    machine = report.environment
    return [f"{NOTE} {tf32}", f"{machine['gpu'] or 'a GPU whose name could not be read'}, driver {machine['driver'] or 'unknown'}."]


def _rounds_to_tf32(name: str) -> bool:
    backend, *parts = name.split(".")
    known = backends()[backend].parts
    return any(known[part].rounds_to_tf32 for part in parts) and not {"fp16", "bf16", "int8"}.intersection(parts)


def _figures(report: Report, result: Result) -> list[str]:
    summary, times, batch = result.summary, report.ratio(result), result.cell.batch
    if summary is None:
        others = len(headings(report, (result.cell.threads, batch))) - headings(report, (result.cell.threads, batch)).index("backend") - 2
        return ["failed" if result.error else "not yet", *[""] * others]
    first = milliseconds(summary.median)
    if batch == 1:
        first += f" ({milliseconds(summary.p90)})" if summary.p90 is not None else ""
    else:
        first = f"{result.images_per_second:,.1f}"
    first = ("~" if summary.unstable else "") + first + (f" batch {result.batch}" if result.batch != batch else "")
    whole = [] if batch == 1 else [milliseconds(summary.median)]
    rest = [] if report.device == "cpu" else [milliseconds(result.device_median), milliseconds(result.end_to_end)]
    return [first, *whole, *rest, "" if times is None else f"{times:.2f}"]
