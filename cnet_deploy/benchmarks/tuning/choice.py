"""The form that was chosen for each dense block: how rounds decide it, and the file that keeps it beside an artifact."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from cnet_deploy.benchmarks.measure.environment import differences, environment, fingerprint, read_environment
from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.measure.rule import Decision, Verdict, decide
from cnet_deploy.exporters import target_of
from cnet_deploy.files import read_bytes
from cnet_deploy.files.strict_json import (
    Few,
    InvalidValue,
    Samples,
    check_printable,
    closed,
    convert,
    of_version,
    one_of,
    parse_json,
    reading,
    shown,
    to_json,
)
from cnet_deploy.program.forms import FORMS, blocks
from cnet_deploy.program.program import Program

FORMAT = "cnet_deploy_lowering"
FORMAT_VERSION = 1
MAX_BYTES = 64 << 20
PLAIN, COMBINED = FORMS[0], "combined"

Forms = dict[str, Annotated[str, one_of(FORMS)]]
Rounds = dict[str, Annotated[list[Samples], Meta(min_length=1, description="a list of rounds, at least one")]]
_DERIVED = ("ratio", "ratios")


@closed
@dataclass(frozen=True)
class Choice:
    """The form of each block, and the measurement that chose it.

    ``alone`` and ``together`` hold the first and the second run's raw samples in seconds, round by round, by what was measured: "gather",
    "denseblock_1 dense", "dense", "combined" … What a rewriting leaves as it was is not measured; nothing at all, where all do. ``winner``
    is the one of ``together`` that was chosen; ``options`` are the export's. The digests are the Program's own, weights included, and the
    checkpoint's.
    """

    forms: Annotated[Forms, Meta(min_length=1, description="the forms of one or more blocks")]
    winner: str
    alone: Rounds
    together: Rounds
    settings: Settings
    environment: Mapping[str, Any]
    target: str
    device: str
    threads: Few
    batch: Few
    options: Mapping[str, Any]
    program_sha256: str
    source_sha256: str

    @property
    def ratio(self) -> Decision | None:
        """The chosen network's time over that of the one as lowered, in the second run; None if that is the chosen one."""
        return None if self.winner == PLAIN else compare(self.together, self.winner)

    @property
    def ratios(self) -> dict[str, Decision]:
        """Of all that the first run measured, over the network as lowered."""
        return {label: compare(self.alone, label) for label in self.alone if label != PLAIN}

    def summary(self) -> str:
        """One line for people."""
        if (ratio := self.ratio) is None:
            return "form: gather for all blocks; no other is faster here with 99 % confidence"
        chosen = ", ".join(f"{form} for {block}" for block, form in self.forms.items())
        return f"forms: {chosen}; {ratio.estimate:.3f} of gather's time ({ratio.lower:.3f} to {ratio.upper:.3f})"

    def fits(
        self, program: Program, *, target: str, device: str, threads: int, batch: int, options: Mapping[str, Any]
    ) -> str | None:  # fmt: skip
        """Why this was not measured for such an artifact on this machine; None if it was."""
        wanted = {"target": target, "device": device, "threads": threads, "batch": batch, "options": plain(target, options)}
        there = {"network": self.program_sha256, **{key: getattr(self, key) for key in wanted}, **fingerprint(self.environment)}
        changes = differences({"network": program_digest(program), **wanted, **fingerprint(environment())}, there)
        if not changes and set(self.forms) != set(blocks(program)):
            return f"it speaks of the blocks {', '.join(self.forms)}; expected {', '.join(blocks(program))}"
        return "; ".join(changes) or None

    def to_json(self) -> str:
        """Everything, raw samples included, and the ratios, for people who read the file."""
        derived = {"ratio": self.ratio and _bounds(self.ratio), "ratios": {label: _bounds(each) for label, each in self.ratios.items()}}
        return to_json({FORMAT: FORMAT_VERSION, **derived, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Choice:
        """The inverse of ``to_json``. Raises InputRefused for anything that is not a measurement of this version."""
        values = of_version(parse_json(text), FORMAT, FORMAT_VERSION)
        if missing := [name for name in _DERIVED if name not in values]:
            raise InvalidValue(f"it has no {missing[0]}")
        choice = convert({name: value for name, value in values.items() if name not in _DERIVED}, cls)
        choice = replace(choice, environment=read_environment(choice.environment))
        _check(choice)
        return choice


def compare(rounds: Mapping[str, Sequence[Sequence[float]]], label: str) -> Decision:
    """How long it takes beside "gather": PASS means surely less."""
    base, head = ([statistics.median(part) for part in rounds[name]] for name in (PLAIN, label))
    return decide(base, head, 0.0)


def quickest(rounds: Mapping[str, Sequence[Sequence[float]]], labels: Sequence[str]) -> str:
    """The one with the least ratio of those that are surely quicker than "gather"; "gather" where none is."""
    decisions = {label: compare(rounds, label) for label in labels if label in rounds}
    sure = [label for label, decision in decisions.items() if decision.verdict is Verdict.PASS]
    return min(sure, key=lambda label: decisions[label].estimate, default=PLAIN)


def decide_forms(names: Sequence[str], rounds: Mapping[str, Sequence[Sequence[float]]]) -> Forms:
    """For each block the form that is quickest with that block alone in it, from the first run's rounds."""
    chosen = {name: quickest(rounds, [label_of(name, form) for form in FORMS[1:]]) for name in names}
    return {name: label.rpartition(" ")[2] for name, label in chosen.items()}


def choice_path(artifact: Path | str) -> Path:
    """The file of the measurement that chose an artifact's forms.

    >>> choice_path("model.onnx").as_posix()
    'model.onnx.forms.json'
    """
    return Path(f"{artifact}.forms.json")


def earlier_path(artifact: Path | str) -> Path:
    """Where version 0.1.0 kept it."""
    return Path(f"{artifact}.lowering.json")


def read(path: Path | str) -> Choice:
    """A stored measurement. Raises InputRefused for a file that holds anything else."""
    data = read_bytes(path, MAX_BYTES)
    with reading(path):
        return Choice.from_json(data)


def program_digest(program: Program) -> str:
    """SHA-256 of everything that a Program computes with."""
    sha256 = hashlib.sha256(json.dumps(program.architecture.to_dict(), sort_keys=True).encode())

    def add(values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                add(value)
            elif isinstance(value, np.ndarray):
                sha256.update(f"{key} {value.dtype.str} {value.shape}".encode())
                sha256.update(np.ascontiguousarray(value).tobytes())
            elif key != "window":  # of the last pooling: the architecture tells it
                sha256.update(f"{key} {value}".encode())

    for part in (program.stem, *program.body, program.pool, program.head):
        add(asdict(part))
    return sha256.hexdigest()


def label_of(block: str, form: str) -> str:
    """What the network with this block alone in this form is called."""
    return f"{block} {form}"


def _bounds(ratio: Decision) -> dict[str, Any]:
    return {"estimate": ratio.estimate, "lower": ratio.lower, "upper": ratio.upper, "rounds": ratio.rounds}


def plain(target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """An export's options as JSON has them, without those that decide nothing."""
    deciding = {option.name for option in target_of(target).options if option.affects_artifact}
    kept = {key: value for key, value in options.items() if key in deciding and value is not None}
    plain_options: dict[str, Any] = json.loads(json.dumps(kept))
    return plain_options


def _check(choice: Choice) -> None:
    """What the fields' types can't express: names can be printed, rounds are of its blocks' forms, the winner was measured."""
    check_printable(choice.forms, "forms")
    for field in ("target", "device", "program_sha256", "source_sha256"):
        check_printable(getattr(choice, field), field)
    labels = {*FORMS, *(label_of(name, form) for name in choice.forms for form in FORMS[1:])}
    for field, rounds, known in (("alone", choice.alone, labels), ("together", choice.together, {*FORMS, COMBINED})):
        if unknown := sorted(set(rounds) - known):
            raise InvalidValue(f"{field} has rounds of {shown(unknown[0])}, which is not a form of its blocks")
        if rounds and PLAIN not in rounds:
            raise InvalidValue(f"{field} has no rounds of {PLAIN}, which the others are compared with")
        if len(counts := {len(parts) for parts in rounds.values()}) > 1:
            raise InvalidValue(f"{field} has {min(counts)} rounds of one form and {max(counts)} of another; expected as many of each")
    if choice.winner not in (PLAIN, *choice.together):
        raise InvalidValue(f"winner is {shown(choice.winner)}; expected one of {', '.join(choice.together) or PLAIN}, which were measured")
    if (choice.winner == PLAIN) != (set(choice.forms.values()) == {PLAIN}):
        raise InvalidValue(f"winner is {shown(choice.winner)}, which does not agree with its forms {', '.join(choice.forms.values())}")
