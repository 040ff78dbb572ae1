"""The latency gate: is head slower than base? Fresh processes round by round; ``rule.py`` decides.

``gate`` compares two artifacts or models, or one that two installations run; ``gate_baseline`` one with what was stored.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cnet_deploy.benchmarks.gate.baseline import find_baseline
from cnet_deploy.benchmarks.gate.sides import Say, Side, interpreter, make_side, require_file
from cnet_deploy.benchmarks.measure.cells import worker
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Result, Settings, take_turn
from cnet_deploy.benchmarks.measure.rule import Decision, SelfTest, Verdict, adaptively, decide, self_test
from cnet_deploy.benchmarks.sweep.figures import Change, Figures, changes
from cnet_deploy.benchmarks.sweep.plan import is_named
from cnet_deploy.errors import CheckFailed, Inconclusive, Unavailable
from cnet_deploy.files import exists

SETTINGS = Settings(warmup=0.5, seconds=0.5, least=5, fresh=True)
MAX_ROUNDS = 64


@dataclass(frozen=True)
class Round:
    """One process of each side. ``order`` is AB where base came first, BA where head did, - where they were not measured together."""

    order: str
    base: tuple[float, ...]
    head: tuple[float, ...]

    @property
    def medians(self) -> tuple[float, float]:
        """Seconds of base and of head."""
        return statistics.median(self.base), statistics.median(self.head)


@dataclass
class Outcome:
    """What a gate found. ``rounds`` are empty where the self-test failed; ``changes`` are of figures that don't flicker, and ``compared``
    says of them "no change", or why there was nothing to compare."""

    base: str
    head: str
    backends: tuple[str, str]
    threads: int
    tolerance: float
    settings: Settings
    changes: list[Change] = field(default_factory=list)
    compared: str = "not compared"
    allow_changes: bool = False
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
        """A figure that grew is a regression whatever the clock says; without rounds there is nothing to conclude."""
        if self.worse:
            return Verdict.REGRESSION
        return self.decision.verdict if self.decision else Verdict.INCONCLUSIVE

    @property
    def exit_code(self) -> int:
        return {Verdict.PASS: 0, Verdict.REGRESSION: CheckFailed.exit_code, Verdict.INCONCLUSIVE: Inconclusive.exit_code}[self.verdict]


def gate(
    base: str, head: str, *, backend: str | None = None, threads: int | None = None, tolerance: float = 0.05, max_rounds: int = MAX_ROUNDS,
    settings: Settings = SETTINGS, base_python: str | None = None, head_python: str | None = None, allow_changes: bool = False,
    device: str = "cpu", say: Say = lambda _: None,
) -> Outcome:  # fmt: skip
    """Gate ``head`` against ``base``: files or named networks, each run by an interpreter that has cnet-deploy (None: this one).

    A model that the backend does not open is exported for it first, by that side's own installation. Raises Unavailable where either side
    is missing or can't be run, and where both interpreters load the same installation; InputRefused for a file that is refused.
    """
    apart = base_python is not None or head_python is not None
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-gate-") as folder:
        sides = [
            make_side(name, model, backend, threads, interpreter(python), Path(folder), say, device)
            for name, model, python in (("base", base, base_python), ("head", head, head_python))
        ]
        a, b = sides
        chosen = (a.cell.backend, b.cell.backend)
        outcome = Outcome(base, head, chosen, a.cell.threads, tolerance, settings, allow_changes=allow_changes, device=device)
        _compare(outcome, a.figures, b.figures, say)
        # Before minutes are spent on the one, the other must open too.
        _require_one_batch(*(_open(side, outcome) for side in sides))
        if apart:
            _require_two_installations(outcome)

        def itself(number: int) -> None:
            outcome.self_rounds.append(_round(number, a, a, outcome, say, "self-test"))

        def together(number: int) -> None:
            outcome.rounds.append(_round(number, a, b, outcome, say, "round"))

        def quiet() -> bool:
            outcome.self_test = self_test(*_columns(outcome.self_rounds), tolerance)
            return outcome.self_test.passed

        def decided() -> bool:
            outcome.decision = decide(*_columns(outcome.rounds), tolerance)
            return outcome.decision.verdict is not Verdict.INCONCLUSIVE

        adaptively(itself, quiet, max_rounds)
        if outcome.self_test and outcome.self_test.passed:
            adaptively(together, decided, max_rounds)
    return outcome


def gate_baseline(
    baseline: Path, head: str, *, backend: str | None = None, threads: int | None = None, tolerance: float = 0.05,
    max_rounds: int = MAX_ROUNDS, new_artifact: bool = False, allow_changes: bool = False, say: Say = lambda _: None,
) -> Outcome:  # fmt: skip
    """Gate ``head`` against rounds that ``bench --save-baseline`` stored, measured in the same way.

    Raises Unavailable where the two can't be compared (see ``find_baseline``).
    """
    if not is_named(head):
        require_file("head", head)
    if not exists(baseline):
        raise Unavailable(f"{baseline}: no such file; record a baseline with `cnet-deploy bench --save-baseline {baseline}`")
    stored = find_baseline(baseline, Path(head), backend=backend, threads=threads, new_artifact=new_artifact)
    settings = replace(SETTINGS, warmup=stored.warmup, seconds=stored.seconds, least=stored.least)
    name = f"{baseline} ({stored.label})"
    chosen = (stored.backend, stored.backend)
    outcome = Outcome(name, head, chosen, stored.threads, tolerance, settings, allow_changes=allow_changes, device=stored.device)
    outcome.self_test = self_test(stored.medians, stored.medians, tolerance, paired=False)
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-gate-") as folder:
        side = make_side("head", head, stored.backend, stored.threads, sys.executable, Path(folder), say, stored.device, stored.batch)
        _compare(outcome, stored.figures, side.model_figures, say)
        _require_one_batch(stored.batch, _open(side, outcome))
        if not outcome.self_test.passed:
            return outcome

        def measure(number: int) -> None:
            say(f"round {number + 1}")
            outcome.rounds.append(Round("-", (statistics.median(stored.medians),), _turn(side, outcome)))

        def decided() -> bool:
            outcome.decision = decide(stored.medians, [part.medians[1] for part in outcome.rounds], tolerance, paired=False)
            return outcome.decision.verdict is not Verdict.INCONCLUSIVE

        adaptively(measure, decided, max_rounds)
    return outcome


def _columns(rounds: list[Round]) -> tuple[list[float], list[float]]:
    return [part.medians[0] for part in rounds], [part.medians[1] for part in rounds]


def _round(number: int, base: Side, head: Side, outcome: Outcome, say: Say, what: str) -> Round:
    """One process of each, in turns first: what the machine does to the second comes to both alike."""
    say(f"{what} {number + 1}")
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


def _open(side: Side, outcome: Outcome) -> int:
    """Open it once, which tells whose code runs it, or why it can't be run. How many images it takes an inference."""
    with worker(side.cell, side.python) as held:
        opened = held.open()
    side.check(opened.get("error"), opened.get("exit_code"))
    outcome.installations[side.name] = f"{opened['version']} in {opened['installation']}"
    return int(opened["batch"])


def _compare(outcome: Outcome, base: Figures | None, head: Figures | None, say: Say) -> None:
    if base is None or head is None:
        outcome.compared = "not compared: a network that its backend builds has none"
    elif base.format != head.format:
        outcome.compared = f"not compared: {base.format} and {head.format} are counted in different ways"
    else:
        outcome.changes = changes(base, head)
        outcome.compared = f"{len(outcome.changes)} changed" if outcome.changes else "no change"
    for change in outcome.changes:
        say(str(change))


def _require_one_batch(base: int, head: int) -> None:
    if base != head:
        raise Unavailable(
            f"cannot compare: base takes {base} images an inference and head {head}; export both with the same batch, or with a free one"
        )


def _require_two_installations(outcome: Outcome) -> None:
    if len(set(outcome.installations.values())) == 1:
        raise Unavailable(
            f"both interpreters load cnet-deploy {outcome.installations['base']}, so there is nothing to compare; install the two "
            "revisions apart (not editable, PYTHONPATH unset)"
        )
