"""What a run tells while it goes on: log.jsonl, a line of JSON for each event, and curves.svg, drawn anew after every epoch.

Events: "start", "stage" (inputs were dropped), "epoch", "end". A run that was resumed repeats epochs after the checkpoint that it went on
from; the last line of an epoch counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from msgspec import Meta

from cnet_deploy import svg as drawing
from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.files import append, atomic_output, check_output
from cnet_deploy.files.strict_json import Count, Whole, convert, parse_json, to_json
from cnet_deploy.svg import COLOURS

log = logging.getLogger(__name__)

WIDTH, PLOT, LEFT, RIGHT, GAP = 720, 190, 64, 110, 56
LABEL = 15  # pixels that words need above each other
STAGE_LINES = 3  # on which stages are named in turn, since they may follow each other closely


_Epoch = Annotated[int, Meta(ge=0, lt=1_000_000, description="a whole number from 0, under 1,000,000")]
_Figure = Annotated[float, Meta(ge=0, le=1e39, description="a number from 0 to 1e39")] | None  # null: it was not finite


@dataclass(frozen=True)
class _Scored:
    """What is drawn of the images of one epoch."""

    loss: _Figure
    top1_error: _Figure


@dataclass(frozen=True)
class _Done:
    """What is drawn of an "epoch"."""

    epoch: _Epoch
    lr: _Figure
    train: _Scored
    test: _Scored


@dataclass(frozen=True)
class _Stage:
    """What is drawn of a "stage"."""

    epoch: _Epoch
    stage: Whole
    live: Whole
    total: Count


_DRAWN: dict[str, type[_Done | _Stage]] = {"epoch": _Done, "stage": _Stage}


class Journal:
    """The log and the curves of a run in ``savedir``."""

    def __init__(self, savedir: Path, epochs: int) -> None:
        self.path, self.curves, self.epochs = savedir / "log.jsonl", savedir / "curves.svg", epochs
        self._held: BinaryIO | None = None

    def claim(self) -> None:
        """Keep other runs out of ``savedir`` until ``close``, by a lock on the log, which a kill lets go of.

        Raises OutputRefused where another run has it. Where the file system has no locks nobody is kept out.
        """
        check_output(self.curves)
        with contextlib.suppress(OSError):
            self.path.open("x").close()
        with contextlib.suppress(OSError):  # ``begin`` reports whatever is wrong with it
            while True:
                self._held = _locked(self.path)
                if os.path.samestat(os.fstat(self._held.fileno()), self.path.stat()):
                    return
                self.close()  # a run that has ended since had replaced it

    def begin(self, first_epoch: int) -> None:
        """Make the log ready to go on after ``first_epoch`` - 1; 0 begins a new one. A line that a kill cut off is dropped, and so are
        damaged ones, with a warning."""
        kept, damaged = _read(self.path) if first_epoch else ([], 0)
        if damaged:
            log.warning("%s: %d damaged %s left out", self.path, damaged, "line is" if damaged == 1 else "lines are")
        with atomic_output(self.path) as temporary:
            temporary.write_text("".join(to_json(event) + "\n" for event in kept), encoding="utf-8")
            held = None if self._held is None else _locked(temporary)  # before it takes its name
        self.close()
        self._held = held

    def close(self) -> None:
        """Let other runs in."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def write(self, event: str, **values: Any) -> None:
        """Append an event; numbers that are not finite become null. Raises OutputRefused where that can't be done, and leaves no half of
        one."""
        try:
            append(self.path, to_json({"event": event, **_finite(values)}).encode() + b"\n")
        except OSError as error:
            raise OutputRefused(f"{self.path}: can't be written: {error.strerror}; --resume goes on from the last checkpoint") from None

    def draw(self) -> None:
        """The curves so far."""
        with atomic_output(self.curves) as temporary:
            temporary.write_text(curves(read(self.path), self.epochs), encoding="utf-8")


def _locked(path: Path) -> BinaryIO:
    """A file that nobody else can lock until it is closed. Raises OutputRefused where somebody has."""
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise OutputRefused(f"{path.parent}: another run is training there; wait for its end, or give another --savedir") from None
    except OSError:
        pass  # no locks here
    return file


def read(path: Path) -> list[dict[str, Any]]:
    """All whole events of a log, in order; none where there is no log. Damaged lines are left out, and numbers that are not finite, which
    version 0.1.0 wrote, are None. Raises InputRefused where it can't be read."""
    return _read(path)[0]


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The events of a log, and the number of damaged lines; a last line that was cut off is none of these."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    except OSError as error:
        raise InputRefused(f"{path}: can't be read: {error.strerror}") from None
    found = [_event(line) for line in lines]
    damaged = sum(event is None and bool(line.strip()) for event, line in zip(found[:-1], lines, strict=False))
    return [event for event in found if event is not None], damaged


def _event(line: str) -> dict[str, Any] | None:
    """The event in a line; None where it is damaged."""
    try:
        event = parse_json(to_json(_finite(json.loads(line))))
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            return None
        if event["event"] in _DRAWN:
            convert(event, _DRAWN[event["event"]])
    except (ValueError, RecursionError, InputRefused):
        return None
    return event


def _finite(value: Any) -> Any:
    """``value`` with None for every number that is not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drawn(value: float | None) -> float:
    return math.nan if value is None else value


def curves(events: Sequence[dict[str, Any]], epochs: int) -> str:
    """Loss, top-1 error and learning rate by epoch, as SVG; dashed where a condensation stage began. What is no number leaves a gap."""
    done = {event["epoch"]: convert(event, _Done) for event in events if event["event"] == "epoch"}
    stages = {event["stage"]: convert(event, _Stage) for event in events if event["event"] == "stage"}
    numbers = sorted(done)
    plots: Sequence[tuple[str, Mapping[str, Callable[[_Done], float | None]]]] = (
        ("cross entropy", {"train": lambda e: e.train.loss, "test": lambda e: e.test.loss}),
        ("top-1 error, %", {"train": lambda e: e.train.top1_error, "test": lambda e: e.test.top1_error}),
        ("learning rate", {"rate": lambda e: e.lr}),
    )
    with drawing.canvas("curves", WIDTH, len(plots) * (PLOT + GAP) + 8) as canvas:
        for row, (title, series) in enumerate(plots):
            top = 24 + row * (PLOT + GAP)
            axes = canvas.axes(LEFT, top, WIDTH - RIGHT, top + PLOT)
            lines = {name: [_drawn(value(done[number])) for number in numbers] for name, value in series.items()}
            colours = dict(zip(lines, COLOURS, strict=False))
            highest = max(filter(math.isfinite, itertools.chain(*lines.values())), default=1.0) * 1.05 or 1.0
            axes.set(title=title, xlim=(0, max(epochs, 1, *numbers)), ylim=(0, highest))
            axes.locator_params("x", integer=True)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.grid(visible=False, axis="x")
            for number, (stage, event) in enumerate(stages.items()):
                axes.axvline(event.epoch, **drawing.DOTTED)
                if row == 0:
                    words = f"stage {stage}: {event.live / event.total:.0%} live"
                    drawing.note(axes, words, (event.epoch, highest), (3, 12 + number % STAGE_LINES * LABEL))
            for name, values in lines.items():
                axes.plot([number + 1 for number in numbers], values, color=colours[name], linewidth=1.8)
            lines = {name: values for name, values in lines.items() if values and math.isfinite(values[-1])}
            places = drawing.apart([values[-1] for values in lines.values()], highest * LABEL / PLOT)
            for place, (name, values) in zip(places, lines.items(), strict=True):
                drawing.note(axes, f"{name} {values[-1]:.3g}", (numbers[-1] + 1, place), (6, 4), color=colours[name], size=13)
        axes.set_xlabel("epochs done")
        return canvas.to_string()
