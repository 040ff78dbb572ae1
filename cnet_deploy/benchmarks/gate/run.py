"""The latency gate: is head slower than base? It runs fresh processes round by round; ``measure/rule.py`` decides.

``gate`` compares two artifacts or models, or two installations with one model; ``gate_baseline`` compares a model with a stored baseline.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from cnet_deploy.benchmarks.gate.baseline import find_baseline
from cnet_deploy.benchmarks.gate.sides import Notify, Side, interpreter, make_side, needs_ranges, require_file
from cnet_deploy.benchmarks.measure.cells import worker
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.estimate import in_words, turns
from cnet_deploy.benchmarks.measure.rounds import Result, Settings, take_turn
from cnet_deploy.benchmarks.measure.rule import LEAST_ROUNDS, Decision, SelfTest, Verdict, adaptively, decide, self_test, surely_faster
from cnet_deploy.benchmarks.sweep.figures import Change, Figures, changes, other_precision
from cnet_deploy.benchmarks.sweep.plan import is_named
from cnet_deploy.benchmarks.sweep.ranges import Ranges
from cnet_deploy.errors import CheckFailed, Inconclusive, Unavailable, printable
from cnet_deploy.files import exists, temporary_folder

SETTINGS = Settings(warmup=0.5, seconds=0.5, least=5, fresh=True)
MAX_ROUNDS = 64


@dataclass(frozen=True)
class Round:
    """One process of each side. ``order`` is AB if base ran first, BA if head did, - if they were not measured together."""

    order: str
    base: tuple[float, ...]
    head: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        """Seconds of base and of head."""
        return statistics.median(self.base), statistics.median(self.head)


@dataclass
class Outcome:
    """The result of a gate. If the self-test failed, ``decision`` is None, unless head is much faster than base (see ``surely_faster``).
    ``changes`` are those of counts that do not vary from run to run; ``compared`` summarises them, or says why they could not be
    compared. ``unlike`` says how the networks differ in what they read and give; "" if they don't, and against a baseline, which does not
    tell."""

    base: str
    head: str
    backends: tuple[str, str]
    threads: int
    tolerance: float
    settings: Settings
    changes: list[Change] = field(default_factory=list)
    compared: str = "not compared"
    allow_changes: bool = False
    unlike: str = ""
    self_rounds: list[Round] = field(default_factory=list)
    self_test: SelfTest | None = None
    rounds: list[Round] = field(default_factory=list)
    decision: Decision | None = None
    installations: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    environment: dict[str, Any] = field(default_factory=environment)

    @property
    def worse(self) -> list[Change]:
        """Changes that fail the gate by themselves."""
        return [] if self.allow_changes else [change for change in self.changes if change.worse]

    @property
    def verdict(self) -> Verdict:
        """A count that grew is a regression by itself; without rounds the verdict is inconclusive."""
        if self.worse:
            return Verdict.REGRESSION
        return self.decision.verdict if self.decision else Verdict.INCONCLUSIVE

    @property
    def exit_code(self) -> int:
        return {Verdict.PASS: 0, Verdict.REGRESSION: CheckFailed.exit_code, Verdict.INCONCLUSIVE: Inconclusive.exit_code}[self.verdict]


def gate(
    base: str, head: str, *, backend: str | None = None, threads: int | None = None, tolerance: float = 0.05, max_rounds: int = MAX_ROUNDS,
    settings: Settings = SETTINGS, base_python: str | None = None, head_python: str | None = None, allow_changes: bool = False,
    device: str = "cpu", notify: Notify = lambda _: None, weights: str | None = None, calibrate: Path | None = None,
) -> Outcome:  # fmt: skip
    """Compare ``head`` with ``base``: files or named networks, each run by an interpreter that has cnet-deploy (None: this one).

    A model that the backend can't open is exported for it first, by that side's installation. ``weights`` is the key of a set of weights,
    for checkpoints that hold several; ``calibrate`` are the images with which int8 networks are calibrated (None: random ones). ``notify``
    gets lines of text. Raises Unavailable if either side is missing or can't be run, and if both interpreters load the same installation;
    InputRefused for a file that is refused.
    """
    two_pythons = base_python is not None or head_python is not None
    ranged = [needs_ranges(name, model, backend, device) for name, model in (("base", base), ("head", head))]
    Ranges(calibrate).require_use(used=any(ranged))
    with temporary_folder("gate") as folder:
        sides = [
            make_side(name, model, backend, threads, interpreter(python), folder, notify, device, weights=weights, calibrate=calibrate)
            for name, model, python in (("base", base, base_python), ("head", head, head_python))
        ]
        a, b = sides
        chosen = (a.cell.backend, b.cell.backend)
        outcome = Outcome(base, head, chosen, a.cell.threads, tolerance, settings, allow_changes=allow_changes, device=device)
        _compare(outcome, a.figures, b.figures, notify)
        # Both must open before minutes are spent on measuring one.
        opened = [_open(side, outcome) for side in sides]
        _require_one_batch(*(one.batch for one in opened))
        outcome.unlike = _differences(*opened)
        if outcome.unlike:
            notify(outcome.unlike)
        if two_pythons:
            _require_two_installations(outcome)

        def itself(number: int) -> None:
            outcome.self_rounds.append(_round(number, a, a, outcome, notify, "self-test"))

        def together(number: int) -> None:
            outcome.rounds.append(_round(number, a, b, outcome, notify, "round"))

        def quiet() -> bool:
            outcome.self_test = self_test(*_columns(outcome.self_rounds), tolerance)
            return outcome.self_test.passed

        def decided() -> bool:
            outcome.decision = decide(*_columns(outcome.rounds), tolerance)
            return outcome.decision.verdict is not Verdict.INCONCLUSIVE

        notify(_announcement([one.seconds for one in opened], settings, max_rounds))
        adaptively(itself, quiet, max_rounds)
        if outcome.self_test and outcome.self_test.passed:
            adaptively(together, decided, max_rounds)
        elif outcome.self_test and outcome.self_test.rounds >= LEAST_ROUNDS:
            for number in range(LEAST_ROUNDS):
                together(number)
            outcome.decision = surely_faster(*_columns(outcome.rounds), outcome.self_test)
    return outcome


def gate_baseline(
    baseline: Path, head: str, *, backend: str | None = None, threads: int | None = None, tolerance: float = 0.05,
    max_rounds: int = MAX_ROUNDS, new_artifact: bool = False, allow_changes: bool = False, notify: Notify = lambda _: None,
    weights: str | None = None, calibrate: Path | None = None,
) -> Outcome:  # fmt: skip
    """Compare ``head`` with rounds that ``bench --save-baseline`` stored, measured in the same way.

    Raises Unavailable if the two can't be compared (see ``find_baseline``).
    """
    if not is_named(head):
        require_file("head", head)
    if not exists(baseline):
        raise Unavailable(f"{baseline}: no such file; record a baseline with `cnet-deploy bench --save-baseline {baseline}`")
    stored = find_baseline(baseline, Path(head), backend=backend, threads=threads, new_artifact=new_artifact)
    settings = replace(SETTINGS, warmup=stored.warmup, seconds=stored.seconds, least=stored.least)
    Ranges(calibrate).require_use(used=needs_ranges("head", head, stored.backend, stored.device))
    name = f"{baseline} ({stored.label})"
    chosen = (stored.backend, stored.backend)
    outcome = Outcome(name, head, chosen, stored.threads, tolerance, settings, allow_changes=allow_changes, device=stored.device)
    outcome.self_test = self_test(stored.medians, stored.medians, tolerance, paired=False)
    with temporary_folder("gate") as folder:
        side = make_side(
            "head", head, stored.backend, stored.threads, sys.executable, folder, notify, stored.device, stored.batch, weights, calibrate
        )  # fmt: skip
        _compare(outcome, stored.figures, side.model_figures, notify)
        opened = _open(side, outcome)
        _require_one_batch(stored.batch, opened.batch)
        notify(_announcement([opened.seconds], settings, max_rounds))

        def measure(number: int) -> None:
            notify(f"round {number + 1}")
            outcome.rounds.append(Round("-", (statistics.median(stored.medians),), _turn(side, outcome)))

        def decided() -> bool:
            outcome.decision = decide(stored.medians, [part.medians[1] for part in outcome.rounds], tolerance, paired=False)
            return outcome.decision.verdict is not Verdict.INCONCLUSIVE

        if outcome.self_test.passed:
            adaptively(measure, decided, max_rounds)
        elif outcome.self_test.rounds >= LEAST_ROUNDS <= max_rounds:
            for number in range(LEAST_ROUNDS):
                measure(number)
            heads = [part.medians[1] for part in outcome.rounds]
            outcome.decision = surely_faster(stored.medians, heads, outcome.self_test, paired=False)
    return outcome


def _announcement(openings: list[float], settings: Settings, max_rounds: int) -> str:
    """How long a gate takes, for processes that need so many seconds to open base and head, or head alone.

    A quiet machine needs the least number of rounds for the self-test and as many for the comparison.
    """
    both = 1 if len(openings) == 1 else 4  # turns of two rounds, one of each kind
    least, most = (turns(both * count, max(openings), settings) for count in (LEAST_ROUNDS, max(max_rounds, LEAST_ROUNDS)))
    return f"this takes about {in_words(least)}, on a noisy machine up to {in_words(most)} (--max-rounds)"


def _columns(rounds: list[Round]) -> tuple[list[float], list[float]]:
    return [part.medians[0] for part in rounds], [part.medians[1] for part in rounds]


def _round(number: int, base: Side, head: Side, outcome: Outcome, notify: Notify, what: str) -> Round:
    """One process of each side, in alternating order, so that neither is always the second."""
    notify(f"{what} {number + 1}")
    if number % 2:
        second = _turn(head, outcome)
        return Round("BA", _turn(base, outcome), second)
    first = _turn(base, outcome)
    return Round("AB", first, _turn(head, outcome))


def _turn(side: Side, outcome: Outcome) -> tuple[float, ...]:
    result = Result(side.cell, batch=side.cell.batch)
    take_turn(result, outcome.settings, side.python)
    side.check(result.error, result.exit_code)
    return tuple(result.samples)


class _Opened(NamedTuple):
    """A side's images per inference, the shape [channels, H, W] of each, its classes, and the seconds to its first result."""

    batch: int
    shape: tuple[int, ...]
    classes: int
    seconds: float = 0.0


def _open(side: Side, outcome: Outcome) -> _Opened:
    """Open a side once, and record its installation. Raises its error if it can't be run."""
    with worker(side.cell, side.python) as held:
        opened = held.open()
    side.check(opened.get("error"), opened.get("exit_code"))
    outcome.installations[side.name] = f"{opened['version']} in {opened['installation']}"
    return _Opened(int(opened["batch"]), tuple(opened["shape"]), int(opened["classes"]), float(opened["cold_seconds"]))


def _compare(outcome: Outcome, base: Figures | None, head: Figures | None, notify: Notify) -> None:
    if base is None or head is None:
        outcome.compared = "not compared: a network that its backend builds has no file to count them in"
    elif base.format != head.format:
        outcome.compared = f"not compared: {base.format} and {head.format} are counted in different ways"
    else:
        outcome.changes = changes(base, head)
        outcome.compared = f"{len(outcome.changes)} changed" if outcome.changes else "no change"
        if other_precision(base, head):
            both = f"{printable(base.precision)} and {printable(head.precision)}"
            outcome.compared += f"; operators, multiply-adds and parameters are not compared between {both}"
            notify(outcome.compared)
    for change in outcome.changes:
        notify(str(change))


def _differences(base: _Opened, head: _Opened) -> str:
    """What makes the networks two different ones, as a sentence; "" if they read the same images and tell as many classes apart."""
    unlike = []
    if base.shape != head.shape:
        unlike.append("base reads images of {} and head of {} (channels x height x width)".format(
            *("x".join(map(str, one.shape)) for one in (base, head))
        ))  # fmt: skip
    if base.classes != head.classes:
        unlike.append(f"base tells {base.classes} classes apart and head {head.classes}")
    return f"not the same task: {' and '.join(unlike)}" if unlike else ""


def _require_one_batch(base: int, head: int) -> None:
    if base != head:
        raise Unavailable(
            f"cannot compare: base takes {base} images per inference and head {head}; export both with the same batch, or a free one"
        )


def _require_two_installations(outcome: Outcome) -> None:
    if len(set(outcome.installations.values())) == 1:
        raise Unavailable(
            f"both interpreters load cnet-deploy {outcome.installations['base']}, so there is nothing to compare; install the two "
            "revisions in separate environments (not editable, PYTHONPATH unset)"
        )
