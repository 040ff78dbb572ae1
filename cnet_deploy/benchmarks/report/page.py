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
from cnet_deploy.benchmarks.report.text import group_title, ratio_of, result_of
from cnet_deploy.benchmarks.sweep.paper import CONVENTIONS, ratio_text
from cnet_deploy.benchmarks.sweep.results import Group, Report
from cnet_deploy.text import LINE_LENGTH, Where, printable, shown

WIDTHS = {"wide": 860, "narrow": 340}
PICTURE_WIDTH = 860


def picture(report: Report) -> str:
    """Latency against top-1 error, as an SVG file."""
    return plots.latency_and_error(report, PICTURE_WIDTH) + "\n"


def page(report: Report) -> str:
    """The page. Whatever the template prints is escaped (see ``_safe``)."""
    return template_of(__package__).render(
        report=report,
        groups=[_group(report, group) for group in report.groups],
        machine=(report.environment["gpu"] if report.device != "cpu" else None) or report.environment["cpu"],
        ratio=ratio_of(report, Where.TERMINAL),
        result=result_of(report),
        gaps=any(row.find(b, g) is None for row in report.rows for b in report.backends for g in report.groups),
        warnings=warnings_of(report),
        pictures={kind: {size: draw(report, width) for size, width in WIDTHS.items()} for kind, draw in _PICTURES.items()},
        has_errors=any(row.top1_error is not None for row in report.rows),
        environment=environment_of(report),
        settings=asdict(report.settings),
        conventions=[
            (text, [row.title for row in report.rows if row.paper and row.paper.convention == key]) for key, text in CONVENTIONS.items()
        ],
        device_notes=[*on_device.notes(report), *report.notes],
        has_paper=any(row.paper for row in report.rows),
        ratio_text=ratio_text,
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
    """What people look for first, then the rest, with units."""
    apart = ("packages", "processor_ticks", "gpu_state", "memory_gib")
    entries = [
        (_NAMES.get(key, key.replace("_", " ")), _in_units(key, value)) for key, value in report.environment.items() if key not in apart
    ]
    for when, state in (("before", report.environment["gpu_state"]), ("after", report.after and report.after["gpu_state"])):
        entries += [
            (f"GPU {when}, {_NAMES.get(key, key.replace('_', ' '))}", _in_units(key, value)) for key, value in (state or {}).items()
        ]
    entries += [(name, str(version)) for name, version in report.environment["packages"].items()]
    return [(printable(name), printable(value)) for name, value in entries]


_NAMES = {
    "clock_mhz": "clocks", "memory_bytes": "memory", "affinity": "cores that may be used", "machine_cores": "cores of the machine",
    "virtual": "virtual machine", "load_average": "load average (1, 5, 15 minutes)", "sm_mhz": "clock", "memory_mhz": "memory clock",
    "max_sm_mhz": "highest clock", "max_memory_mhz": "highest memory clock", "celsius": "temperature", "watts": "power",
    "limit_watts": "power limit", "reasons": "slowed down by", "slowdown_microseconds": "slowed down since the driver started",
}  # fmt: skip


def _in_units(key: str, value: Any) -> str:
    """A value of an ``environment`` for people.

    >>> _in_units("clock_mhz", [2596.1, 2400.0]), _in_units("virtual", True), _in_units("memory_bytes", 8 << 30), _in_units("turbo", None)
    ('2400 to 2596 MHz', 'yes', '8.0 GiB', 'not known on this system')
    """
    if value is None or isinstance(value, bool):
        return {None: "not known on this system", True: "yes", False: "no"}[value]
    if key == "clock_mhz":
        low, high = (f"{clock:.0f}" for clock in (min(value), max(value)))
        return f"{low} MHz" if low == high else f"{low} to {high} MHz"
    if key == "memory_bytes":
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, (dict, list)):
        parts = [f"{name.replace('_', ' ')} {part / 1e6:.1f} s" for name, part in value.items() if part] if isinstance(value, dict) else [
            f"{part:.2f}" if isinstance(part, float) else str(part) for part in value
        ]  # fmt: skip
        return ", ".join(parts) or "none"
    units = {"mhz": "MHz", "celsius": "°C", "watts": "W"}
    unit = next((unit for ending, unit in units.items() if key.endswith(ending)), "")
    return f"{value:.0f} {unit}" if unit else str(value)


class _Html(str):
    """A text that is HTML already."""

    __slots__ = ()

    def __html__(self) -> str:
        return self


def _safe(value: object) -> object:
    """What stands between the template's braces, as HTML. Drawings are left as they are: their writer escaped what is in them."""
    return value if hasattr(value, "__html__") else _Html(shown(value, Where.HTML, LINE_LENGTH))


@functools.cache
def template_of(package: str) -> jinja2.Template:
    """The template ``page.html.j2`` of a package, in which all values are escaped as HTML; it may include files that lie beside this."""
    surroundings = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in dict.fromkeys((package, __package__))]),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_safe,
    )  # fmt: skip
    surroundings.filters |= {"ms": milliseconds, "printable": printable}
    return surroundings.get_template("page.html.j2")
