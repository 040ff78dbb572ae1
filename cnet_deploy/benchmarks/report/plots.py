"""A report's pictures as SVG: latency against top-1 error, how each cell's times are distributed, how they settle after the start.

Every picture is drawn for a width, since text that is scaled down to a phone can't be read.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as Xml

import numpy as np

from cnet_deploy import svg as drawing
from cnet_deploy.benchmarks.measure.rounds import Result
from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report.text import group_title
from cnet_deploy.benchmarks.sweep.results import Report, Row
from cnet_deploy.errors import printable

WARMUP_SHOWN = 60  # inferences; what settles later is told by the distributions
LEGEND_LINE, LANE = 20, 22


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from ``low`` to ``high`` over pixels ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; equal steps where the axis is too short for them."""
        if self.high / self.low < 4:
            size = (self.high - self.low) / 4
            step = next(s for s in (m * 10.0 ** math.floor(math.log10(size)) for m in (1, 2, 5, 10)) if s >= size)
            return [round(n * step, 9) for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 10) if self.high / self.low > 1e4 else (1, 2, 5)
        return sorted({v for power in powers for step in steps if self.low <= (v := step * 10.0**power) <= self.high})


def axis(values: Sequence[float], start: float, end: float, room: float = 1.15) -> Axis:
    """An axis that holds all values, with room at both ends."""
    low, high = min(values), max(values)
    return Axis(low / room, high * room, start, end)


def latency_and_error(report: Report, width: int) -> str:
    """Median time of an image in the first group against top-1 error; rows whose error is not known get a lane of their own below."""
    group = report.groups[0]
    points = [(row, r, r.median / r.batch * 1e3) for row in report.rows for r in _cells(row, group) if r.median]
    if not points:
        return _nothing(width)
    rows = list({id(row): row for row, _, _ in points}.values())
    known = [row for row in rows if row.top1_error is not None]
    unknown = [row for row in rows if row.top1_error is None]
    errors = sorted({row.top1_error for row in known if row.top1_error is not None})
    low, high = (math.floor(errors[0] - 0.4), math.ceil(errors[-1] + 0.4)) if errors else (0, 1)
    closest = min((b - a for a, b in itertools.pairwise(errors)), default=1.0)
    plot = min(560.0, max(150.0, (high - low) / closest * 1.4 * LANE)) if known else 0.0  # so that names stand apart
    left, right, top = 56 if known else 12, 12, 12 + _legend_height(report, width)
    height = top + plot + 2 * LANE * len(unknown) + 46
    svg, x = drawing.canvas(width, height), axis([time for *_, time in points], left, width - right, 1.3)
    _legend(svg, report, width)
    bottom = height - 46
    _scale(svg, x, top, bottom, f"ms an image, {group_title(report, group)}")
    heights: dict[int, float] = {}
    if known:
        for row in known:
            assert row.top1_error is not None
            heights[id(row)] = round(top + (row.top1_error - low) / (high - low) * plot, 1)
        for tick in range(low, high + 1, max(1, (high - low) // 6)):
            place = top + (tick - low) / (high - low) * plot
            drawing.line(svg, left, place, width - right, place, "grid")
            drawing.text(svg, left - 6, place + 4, f"{tick} %", "end", "quiet")
        title = drawing.text(svg, 0, 0, "top-1 error", "middle", "quiet")
        title.set("transform", f"translate(12 {top + plot / 2}) rotate(-90)")
    for number, row in enumerate(unknown):
        heights[id(row)] = top + plot + 2 * LANE * number + 1.4 * LANE
    for row in rows:
        place = heights[id(row)]
        drawing.line(svg, left, place, width - right, place, "lane")
        drawing.text(svg, left + 6, place - 10, printable(row.title, 60), "start", "quiet")
    for row, result, time in points:
        _marker(svg, report, result, x.at(time), heights[id(row)], f"{row.title} on {result.cell.backend}: {milliseconds(time / 1e3)} ms")
    return drawing.to_string(svg)


def distributions(report: Report, width: int) -> str:
    """How each cell's samples scatter about its median: a line from the 5th to the 95th percentile, a box from quartile to quartile, a dot
    for each round's median."""
    lanes = [(row, r) for group in report.groups for row in report.rows for r in _cells(row, group) if r.rounds]
    if not lanes:
        return _nothing(width)
    middles = [result.median or 1.0 for _, result in lanes]
    spreads = [[float(np.quantile(r.samples, q)) / m for q in (0.05, 0.25, 0.75, 0.95)] for (_, r), m in zip(lanes, middles, strict=True)]
    dots = [[statistics.median(part) / middle for part in r.rounds] for (_, r), middle in zip(lanes, middles, strict=True)]
    top, bottom = 8 + _legend_height(report, width), 8 + _legend_height(report, width) + 2 * LANE * len(lanes)
    svg = drawing.canvas(width, bottom + 46)
    _legend(svg, report, width)
    x = axis([0.9, 1.2, *(value for found in (*spreads, *dots) for value in found)], 8, width - 8, 1.02)
    _scale(svg, x, top, bottom, "times of the cell's median")
    for number, (row, result) in enumerate(lanes):
        colour = _colour(report, result)
        low, first, third, high = spreads[number]
        place = top + 2 * LANE * number + 1.5 * LANE
        title = f"{printable(row.title, 40)}, {result.cell.backend}, {milliseconds(middles[number])} ms"
        title += f", {group_title(report, (result.cell.threads, result.cell.batch))}" if len(report.groups) > 1 else ""
        drawing.text(svg, 8, place - 14, title, "start", "quiet")
        drawing.line(svg, x.at(low), place, x.at(high), place).set("stroke", colour)
        box = {"x": x.at(first), "y": place - 6, "width": max(1.0, round(x.at(third) - x.at(first), 1)), "height": 12, "rx": 2}
        drawing.add(svg, "rect", **box, fill=colour, fill_opacity=0.25, stroke=colour)
        drawing.line(svg, x.at(1.0), place - 9, x.at(1.0), place + 9).set("style", f"stroke:{colour};stroke-width:2.5")
        for dot in dots[number]:
            drawing.add(svg, "circle", cx=x.at(dot), cy=place, r=2, fill=colour)
    return drawing.to_string(svg)


def settling(report: Report, width: int) -> str:
    """The first inferences after the start, as multiples of the cell's steady median."""
    curves = [(r, [time / r.median for time in r.warmup[:WARMUP_SHOWN]]) for r in report.results if r.median and r.warmup]
    if not curves:
        return _nothing(width)
    top = 8 + _legend_height(report, width)
    svg = drawing.canvas(width, top + 220 + 46)
    _legend(svg, report, width)
    y = axis([0.8, 2.5, *(value for _, curve in curves for value in curve)], top + 220, top, 1.05)
    x = Axis(1, max(2, *(len(curve) for _, curve in curves)), 46, width - 12)
    for tick in y.ticks():
        drawing.line(svg, 46, y.at(tick), width - 12, y.at(tick), "grid")
        drawing.text(svg, 40, y.at(tick) + 4, f"{tick:g}x", "end", "quiet")
    _scale(svg, x, top, top + 220, "number of the inference after the start")
    for result, curve in curves:
        places = " ".join(f"{x.at(number)},{y.at(value)}" for number, value in enumerate(curve, 1))
        drawing.add(svg, "polyline", points=places, fill="none", stroke=_colour(report, result), stroke_opacity=0.8, stroke_width=1.3)
    return drawing.to_string(svg)


def _cells(row: Row, group: tuple[int, int]) -> Iterator[Result]:
    return (result for result in row.results if (result.cell.threads, result.cell.batch) == group)


def _colour(report: Report, result: Result) -> str:
    return drawing.COLOURS[report.backends.index(result.cell.backend) % len(drawing.COLOURS)]


def _places(report: Report, width: int) -> list[tuple[int, int]]:
    """Where the legend's entries stand: column and line, as many in a line as there is room for."""
    each = 12 * max(map(len, report.backends)) + 24
    columns = max(1, (width - 16) // each)
    return [(8 + number % columns * each, 14 + number // columns * LEGEND_LINE) for number in range(len(report.backends))]


def _legend_height(report: Report, width: int) -> int:
    return _places(report, width)[-1][1] + 10


def _legend(svg: Xml.Element, report: Report, width: int) -> None:
    for number, (backend, (x, y)) in enumerate(zip(report.backends, _places(report, width), strict=True)):
        _shape(svg, number, x + 6, y)
        drawing.text(svg, x + 18, y + 4, printable(backend), "start")


def _marker(svg: Xml.Element, report: Report, result: Result, x: float, y: float, title: str) -> None:
    shape = _shape(svg, report.backends.index(result.cell.backend), x, y)
    Xml.SubElement(shape, "title").text = printable(title)


def _shape(svg: Xml.Element, number: int, x: float, y: float) -> Xml.Element:
    """A backend's own colour and form: in print and for some eyes there is no colour."""
    forms = (
        f"M{x - 6} {y}a6 6 0 1 0 12 0a6 6 0 1 0 -12 0z",
        f"M{x - 5.5} {y - 5.5}h11v11h-11z",
        f"M{x} {y - 7}l7 12h-14z",
        f"M{x} {y - 7.5}l7.5 7.5l-7.5 7.5l-7.5 -7.5z",
        f"M{x} {y + 7}l7 -12h-14z",
        f"M{x - 7} {y - 2.5}h14v5h-14z",
    )
    form = forms[(number + number // len(drawing.COLOURS)) % len(forms)]  # another where colours begin anew
    return drawing.add(svg, "path", d=form, fill=drawing.COLOURS[number % len(drawing.COLOURS)], fill_opacity=0.85)


def _scale(svg: Xml.Element, x: Axis, top: float, bottom: float, title: str) -> None:
    last = -math.inf
    for tick in x.ticks():
        drawing.line(svg, x.at(tick), top, x.at(tick), bottom, "grid")
        if x.at(tick) - last > 34:  # else the figures would run into each other
            drawing.text(svg, x.at(tick), bottom + 16, f"{tick:g}", "middle", "quiet")
            last = x.at(tick)
    drawing.text(svg, (x.start + x.end) / 2, bottom + 36, title, "middle", "quiet")


def _nothing(width: int) -> str:
    svg = drawing.canvas(width, 40)
    drawing.text(svg, 8, 24, "Nothing was measured.", "start")
    return drawing.to_string(svg)
