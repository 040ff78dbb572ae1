"""A report's pictures as SVG: latency against top-1 error, how each cell's times are distributed, how they settle after the start.

Every picture is drawn for a width, since text that is scaled down to a phone can't be read.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np

from cnet_deploy import svg as drawing
from cnet_deploy.benchmarks.measure.rounds import Result
from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report.text import group_title
from cnet_deploy.benchmarks.sweep.results import Report, Row
from cnet_deploy.sessions import PRECISIONS
from cnet_deploy.svg import COLOURS, MARKERS, QUIET, Canvas
from cnet_deploy.text import Where, shown

WARMUP_SHOWN = 60  # inferences; the distributions show what settles later
LANE, LINE, BOTTOM = 22, 14, 46
LETTER = 7.5  # pixels of an average letter of a title, and a little more
_SIZES = {"o": 12.0, "s": 11.0, "^": 13.5, "D": 10.5, "v": 13.5, "X": 13.0}


def latency_and_error(report: Report, width: int) -> str:
    """Median time of an image in the first group against top-1 error; rows whose error is not known get a lane of their own below.

    What is exported in a smaller precision than fp32 is hollow, since its error may be another than the row's.
    """
    group = report.groups[0]
    points = [(row, r, r.median / r.batch * 1e3) for row in report.rows for r in _cells(row, group) if r.median]
    if not points:
        return _nothing(width)
    rows = list({id(row): row for row, _, _ in points}.values())
    unknown = [row for row in rows if row.top1_error is None]
    errors = sorted({row.top1_error for row in rows if row.top1_error is not None})
    low, high = (math.floor(errors[0] - 0.4), math.ceil(errors[-1] + 0.4)) if errors else (0, 0)
    closest = min((b - a for a, b in itertools.pairwise(errors)), default=1.0)
    plot = min(560.0, max(150.0, (high - low) / closest * 1.4 * LANE)) if errors else 0.0  # so that names stand apart
    pixel = (high - low) / plot if errors else 1.0  # in per cent
    heights = {id(row): high + (2 * number + 1.4) * LANE * pixel for number, row in enumerate(unknown)}
    heights |= {id(row): row.top1_error for row in rows if row.top1_error is not None}
    names: dict[float, list[str]] = {}
    for row in rows:
        names.setdefault(heights[id(row)], []).append(row.title)
    left, right = 56 if errors else 20, 20
    times = [time for *_, time in points]
    used = {part for _, result, _ in points for part in result.cell.backend.split(".")}
    smaller = [precision for precision in PRECISIONS[1:] if errors and precision in used]
    with drawing.canvas("latency", width, 0) as canvas:
        top = _legend(canvas, report)
        bottom = top + plot + 2 * LANE * len(unknown)
        canvas.resize(bottom + BOTTOM + (LINE if smaller else 0))
        axes = canvas.axes(left, top, width - right, bottom)
        if smaller:
            canvas.text(14, bottom + BOTTOM + 4, f"hollow: {', '.join(smaller)}, at the error of fp32", color=QUIET, size=12)
        drawing.logarithmic(axes.xaxis, min(times) / 1.3, max(times) * 1.3)
        axes.set_xlabel(f"ms an image, {group_title(report, group)}")
        axes.set_ylim(high + 2 * LANE * len(unknown) * pixel, low)
        ticks = range(low, high + 1, max(1, (high - low) // 6)) if errors else range(0)
        axes.set_yticks(ticks, [f"{tick} %" for tick in ticks])
        if errors:
            canvas.text(
                14, top + plot / 2, "top-1 error, less is up", rotation=90, rotation_mode="anchor", ha="center", color=QUIET, size=12
            )
        places = [(height - low) / pixel for height in names]
        for place, moved, (height, titles) in zip(places, drawing.apart(places, LINE), names.items(), strict=True):
            axes.axhline(height, **drawing.DOTTED)
            words = shown(", ".join(titles), Where.SVG, min(60, int((width - left - right) / LETTER)))
            drawing.note(axes, words, (axes.get_xlim()[0], height), (6, moved - place - 10))
        for row, result, time in points:
            looks = _look(report, result)
            if any(part in smaller for part in result.cell.backend.split(".")):
                looks |= {"markerfacecolor": "none", "markeredgewidth": 2.0}
            (marker,) = axes.plot(time, heights[id(row)], alpha=0.85, **looks)
            canvas.title(marker, f"{row.title} on {result.cell.backend}: {milliseconds(time / 1e3)} ms")
        return canvas.to_string()


def distributions(report: Report, width: int) -> str:
    """How each cell's samples scatter about its median: a line from the 5th to the 95th percentile, a box from quartile to quartile, a dot
    for each round's median."""
    lanes = [(row, r) for group in report.groups for row in report.rows for r in _cells(row, group) if r.rounds]
    if not lanes:
        return _nothing(width)
    middles = [result.median or 1.0 for _, result in lanes]
    spreads = [[float(np.quantile(r.samples, q)) / m for q in (0.05, 0.25, 0.75, 0.95)] for (_, r), m in zip(lanes, middles, strict=True)]
    dots = [[statistics.median(part) / middle for part in r.rounds] for (_, r), middle in zip(lanes, middles, strict=True)]
    values = [0.9, 1.2, *itertools.chain(*spreads, *dots)]
    titles = [_titles(report, row, result) for row, result in lanes]
    stacked = any(len(", ".join(pair)) * LETTER > width - 16 for pair in titles)  # the model's name on a line of its own
    lane = 2 * LANE + (LINE if stacked else 0)
    with drawing.canvas("distributions", width, 0) as canvas:
        top = _legend(canvas, report)
        canvas.resize(top + lane * len(lanes) + BOTTOM)
        axes = canvas.axes(16, top, width - 16, top + lane * len(lanes))
        drawing.logarithmic(axes.xaxis, min(values) / 1.02, max(values) * 1.02)
        axes.set(xlabel="times of the cell's median", ylim=(lane * len(lanes), 0), yticks=[])
        for number, (_, result) in enumerate(lanes):
            colour = _look(report, result)["color"]
            low, first, third, high = spreads[number]
            place = lane * (number + 1) - 0.5 * LANE
            for line, words in enumerate(reversed(titles[number] if stacked else [", ".join(titles[number])])):
                drawing.note(axes, words, (axes.get_xlim()[0], place), (-8, -14 - line * LINE))
            axes.hlines(place, low, high, colour, linewidth=1)
            axes.barh(place, third - first, 12, first, facecolor=(colour, 0.25), edgecolor=colour, linewidth=1)
            axes.vlines(1.0, place - 9, place + 9, colour, linewidth=2.5)
            axes.plot(dots[number], [place] * len(dots[number]), "o", color=colour, markersize=4)
        return canvas.to_string()


def _titles(report: Report, row: Row, result: Result) -> tuple[str, str]:
    """A cell's model, and the rest that it is called by."""
    rest = f"{result.cell.backend}, {milliseconds(result.median or 0.0)} ms"
    rest += f", {group_title(report, (result.cell.threads, result.cell.batch))}" if len(report.groups) > 1 else ""
    return shown(row.title, Where.SVG, 40), rest


def settling(report: Report, width: int) -> str:
    """The first inferences after the start, as multiples of the cell's steady median."""
    curves = [(r, [time / r.median for time in r.warmup[:WARMUP_SHOWN]]) for r in report.results if r.median and r.warmup]
    if not curves:
        return _nothing(width)
    values = [0.8, 2.5, *itertools.chain.from_iterable(curve for _, curve in curves)]
    with drawing.canvas("settling", width, 0) as canvas:
        top = _legend(canvas, report)
        canvas.resize(top + 220 + BOTTOM)
        axes = canvas.axes(50, top, width - 16, top + 220)
        drawing.logarithmic(axes.yaxis, min(values) / 1.05, max(values) * 1.05, "{x:g}x")
        drawing.logarithmic(axes.xaxis, 1, max(2, *(len(curve) for _, curve in curves)), whole=True)
        axes.set_xlabel("number of the inference after the start")
        for result, curve in curves:
            looks = _look(report, result) | {"linestyle": "-", "markersize": 5, "markevery": [0]}
            axes.plot(range(1, len(curve) + 1), curve, alpha=0.8, linewidth=1.3, **looks)
        return canvas.to_string()


def _cells(row: Row, group: tuple[int, int]) -> Iterator[Result]:
    return (result for result in row.results if (result.cell.threads, result.cell.batch) == group)


def _look(report: Report, result: Result) -> dict[str, Any]:
    return _looks(report.backends.index(result.cell.backend))


def _looks(number: int) -> dict[str, Any]:
    """A backend's own colour and shape: another shape where colours begin anew."""
    shape = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]
    return {"color": COLOURS[number % len(COLOURS)], "marker": shape, "markersize": _SIZES[shape]}


def _legend(canvas: Canvas, report: Report) -> float:
    return canvas.legend({backend: _looks(number) for number, backend in enumerate(report.backends)})


def _nothing(width: int) -> str:
    with drawing.canvas("nothing", width, 40) as canvas:
        canvas.text(8, 24, "Nothing was measured.")
        return canvas.to_string()
