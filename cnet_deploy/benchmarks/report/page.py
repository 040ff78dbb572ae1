"""A report as one HTML page that needs no network: every figure that the JSON has, for a browser, a phone and paper."""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

import jinja2

from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report import device_lines as on_device
from cnet_deploy.benchmarks.report import plots
from cnet_deploy.benchmarks.report.advice import warnings_of
from cnet_deploy.benchmarks.report.text import group_title, ratio_of
from cnet_deploy.benchmarks.sweep.paper import CONVENTIONS, paper_ratio
from cnet_deploy.benchmarks.sweep.results import Group, Report
from cnet_deploy.text import LINE_LENGTH, Where, printable, shown

WIDTHS = {"wide": 860, "narrow": 340}
PICTURE_WIDTH = 860


def picture(report: Report) -> str:
    """Latency against top-1 error, as an SVG file."""
    return plots.latency_and_error(report, PICTURE_WIDTH) + "\n"


def page(report: Report) -> str:
    """The page. Whatever the template prints is escaped (see ``_safe``)."""
    return _template().render(
        report=report,
        groups=[_group(report, group) for group in report.groups],
        machine=(report.environment["gpu"] if report.device != "cpu" else None) or report.environment["cpu"],
        ratio=ratio_of(report, Where.TERMINAL),
        warnings=warnings_of(report),
        pictures={kind: {size: draw(report, width) for size, width in WIDTHS.items()} for kind, draw in _PICTURES.items()},
        has_errors=any(row.top1_error is not None for row in report.rows),
        environment=environment_of(report),
        settings=asdict(report.settings),
        conventions=[
            (text, [row.title for row in report.rows if row.paper and row.paper.convention == key]) for key, text in CONVENTIONS.items()
        ],
        device_notes=on_device.notes(report),
        has_paper=any(row.paper for row in report.rows),
        paper_ratio=paper_ratio,
    )


_PICTURES = {"latency": plots.latency_and_error, "distributions": plots.distributions, "settling": plots.settling}


def _group(report: Report, group: Group) -> dict[str, Any]:
    cells = {row.label: {backend: row.find(backend, group) for backend in report.backends} for row in report.rows}
    values = {"title": group_title(report, group), "batch": group[1], "cells": cells}
    return values if not report.by_cell else {**values, "headings": on_device.headings(report, group), "lines": _lines(report, group)}


def _lines(report: Report, group: Group) -> list[dict[str, Any]]:
    """Lines of cells: what is the model's, the backend, figures; and the result they are of."""
    first = on_device.headings(report, group).index("backend")
    return [
        {
            "model": [row.title if words[0] else "", *words[1:first]],
            "backend": words[first],
            "figures": words[first + 1 :],
            "result": result,
        }
        for row, result, words in on_device.lines(report, group, Where.TERMINAL)
    ]


def environment_of(report: Report) -> list[tuple[str, str]]:
    """What people look for first, then the rest as it is."""
    apart = ("packages", "processor_ticks", "gpu_state")
    entries = [(key.replace("_", " "), value) for key, value in report.environment.items() if key not in apart]
    for when, state in (("before", report.environment["gpu_state"]), ("after", report.after and report.after["gpu_state"])):
        entries += [(f"GPU {when}, {key.replace('_', ' ')}", value) for key, value in (state or {}).items()]
    entries += list(report.environment["packages"].items())
    return [(name, "not known on this system" if value is None else printable(value)) for name, value in entries]


class _Html(str):
    """A text that is HTML already."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def _safe(value: object) -> object:
    """What stands between the template's braces, as HTML. Drawings are left as they are: their writer escaped what is in them."""
    return value if hasattr(value, "__html__") else _Html(shown(value, Where.HTML, LINE_LENGTH))


@functools.cache
def _template() -> jinja2.Template:
    surroundings = jinja2.Environment(
        loader=jinja2.PackageLoader("cnet_deploy.benchmarks.report", "."), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_safe,
    )  # fmt: skip
    surroundings.filters |= {"ms": milliseconds, "printable": printable}
    return surroundings.get_template("page.html.j2")
