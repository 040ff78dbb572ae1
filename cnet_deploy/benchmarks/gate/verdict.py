"""Report a gate's outcome: the verdict in one line, the rounds in a table, JSON, Markdown, annotations."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.benchmarks.gate.run import MAX_ROUNDS, Outcome, Round, gate, gate_baseline
from cnet_deploy.benchmarks.gate.sides import Notify
from cnet_deploy.benchmarks.measure.rule import Verdict
from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report.terminal import is_any, put, show
from cnet_deploy.errors import CheckFailed, CnetDeployError, Inconclusive, OutputRefused
from cnet_deploy.files import append, check_output, write_text
from cnet_deploy.files.replacing import key_of, require_appendable
from cnet_deploy.text import LINE_LENGTH, StreamFailed, Where, printable, shown, strict_json, write_block

FORMAT = "cnet_deploy_gate"
FORMAT_VERSION = 1
NOT_MEASURED = "not measured"
TITLE = "Latency gate"
_TABLE = "Medians of each process"


@dataclass(frozen=True)
class Places:
    """Where a verdict is written besides standard output. The JSON file is replaced; the summary is appended to, as CI requires."""

    json: Path | None = None
    summary: Path | None = None

    def check(self, inputs: Sequence[Path | str]) -> None:
        """Raise OutputRefused for paths that can't be written to, that are an input or its manifest, or that are the same, and for a
        summary in a file that is no text."""
        taken: list[Path | str] = [*inputs, *map(manifest_path, inputs)]
        for path, suffix in ((self.json, ".json"), (self.summary, "")):
            if path is not None:
                if is_any(path, taken) or not path.name.endswith(suffix):
                    expected = "a name that ends in .json" if suffix else "another name"
                    raise OutputRefused(
                        f"{path}: the verdict can't be written there; expected {expected}, and no file of a model or a baseline"
                    )
                check_output(path, like=key_of(FORMAT) if suffix else "")
                if not suffix:
                    require_appendable(path)
                taken.append(path)


def run(
    models: Sequence[str], baseline: Path | None, places: Places, *, quiet: bool = False, inconclusive: str = "fail",
    notify: Notify = lambda _: None, **options: Any,
) -> Outcome:  # fmt: skip
    """Run the gate (see ``gate``, ``gate_baseline``), and report the verdict on standard output, in ``places``, and as a GitHub annotation.

    After the report it raises CheckFailed for a regression, Inconclusive for an inconclusive verdict, unless ``inconclusive`` is "pass",
    and the gate's own error if nothing could be measured.
    """
    places.check([*models, *([] if baseline is None else [baseline])])
    try:
        with _grouped(notify, quiet) as heard:
            if baseline is not None:
                outcome = gate_baseline(baseline, models[0], notify=heard, **options)
            else:
                outcome = gate(models[0], models[-1], notify=heard, **options)
    except CnetDeployError as error:
        _report(NOT_MEASURED, f"{NOT_MEASURED}: {error}", {"exit_code": error.exit_code, "reason": str(error)}, [], places, "error")
        raise
    if outcome.unlike:
        put(shown(outcome.unlike, Where.LOG))
    if (outcome.rounds or outcome.self_rounds) and not quiet:
        with _group(_TABLE):
            show(_table(outcome))
    accepted = outcome.verdict is Verdict.INCONCLUSIVE and inconclusive == "pass"
    level = "notice" if outcome.verdict is Verdict.PASS else "warning" if accepted else "error"  # as the job ends
    values = to_dict(outcome) | ({"exit_code": 0} if accepted else {})
    _report(outcome.verdict.value, verdict(outcome), values, _markdown(outcome), places, level)
    if outcome.verdict is Verdict.REGRESSION:
        raise CheckFailed("the gate did not pass: find what changed in head, or allow the change (--tolerance, --allow-changes)")
    if outcome.verdict is Verdict.INCONCLUSIVE and not accepted:
        most = options.get("max_rounds", MAX_ROUNDS)
        threads = f"one thread (--threads 1, now {outcome.threads}), " if outcome.threads > 1 and outcome.device == "cpu" else ""
        raise Inconclusive(
            f"too noisy to say: use {threads}a quieter machine, more rounds (--max-rounds, now {most}), longer turns (--seconds), "
            "or a larger --tolerance"
        )
    return outcome


def on_github() -> bool:
    """Whether this runs as a step of GitHub Actions, whose log understands commands."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def annotation(level: str, text: str) -> str:
    """The line that makes a text an annotation of a GitHub job: ``level`` is notice, warning or error."""
    return f"::{level} title={TITLE}::{shown(text, Where.GITHUB, LINE_LENGTH)}"


@contextlib.contextmanager
def _group(title: str, *, error: bool = False) -> Iterator[None]:
    """What is printed in the block, on standard output or error, is folded in GitHub's log."""
    with contextlib.suppress(StreamFailed):
        write_block(command=f"::group::{title}" if on_github() else "", error=error)
    try:
        yield
    finally:
        with contextlib.suppress(StreamFailed):
            write_block(command="::endgroup::" if on_github() else "", error=error)


@contextlib.contextmanager
def _grouped(notify: Notify, quiet: bool) -> Iterator[Notify]:
    """``notify``, with all lines from the first round on in a group."""
    with contextlib.ExitStack() as group:
        opened = quiet

        def heard(text: str) -> None:
            nonlocal opened
            if not opened and text.startswith(("self-test ", "round ")):
                opened = True
                group.enter_context(_group("Rounds", error=True))
            notify(text)

        yield heard


def verdict(outcome: Outcome) -> str:
    """The verdict in one line.

    ``pass: head takes 0.6 % more time than base (99 % bounds: 1.1 % less, 0.8 % more; tolerance 5.0 %; 8 rounds): within …``
    """
    parts = [f"{outcome.verdict.value}:"]
    if outcome.worse:
        parts.append("; ".join(f"{change.what} {change.before} -> {change.after}" for change in outcome.worse) + ";")
    decision, quiet = outcome.decision, outcome.self_test
    if decision is not None:
        parts.append(
            f"head takes {_percent(decision.estimate)} time than base (99 % bounds: {_percent(decision.lower)}, "
            f"{_percent(decision.upper)}; tolerance {_share(outcome.tolerance)}; {decision.rounds} rounds): {decision.reason}"
        )
    elif quiet is not None:
        parts.append(
            f"this machine is too noisy for a tolerance of {_share(outcome.tolerance)}: base against itself varies by "
            f"±{_share(quiet.half_width)} (99 %) in {quiet.rounds} rounds; expected at most {_share(quiet.limit)}"
        )
    return " ".join(parts)


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """The whole outcome with its raw samples, JSON-ready. Times are in seconds."""
    decision, quiet = outcome.decision, outcome.self_test
    return {
        "exit_code": outcome.exit_code,
        "base": outcome.base,
        "head": outcome.head,
        "backends": dict(zip(("base", "head"), outcome.backends, strict=True)),
        "installations": outcome.installations,
        "device": outcome.device,
        "threads": outcome.threads,
        "tolerance": outcome.tolerance,
        "settings": asdict(outcome.settings),
        "decision": decision and {**asdict(decision), "verdict": decision.verdict.value},
        "self_test": quiet and {**asdict(quiet), "passed": quiet.passed},
        "compared": outcome.compared,
        **({"unlike": outcome.unlike} if outcome.unlike else {}),
        "changes": [asdict(change) for change in outcome.changes],
        "self_test_rounds": [asdict(part) for part in outcome.self_rounds],
        "rounds": [asdict(part) for part in outcome.rounds],
        "environment": outcome.environment,
    }


def _percent(ratio: float) -> str:
    """``3.1 % more``, ``0.4 % less``."""
    return _share(abs(ratio - 1)) + (" more" if ratio >= 1 else " less")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _report(word: str, line: str, values: dict[str, Any], lines: list[str], places: Places, level: str) -> None:
    line = printable(line, LINE_LENGTH)
    if on_github():
        put(command=annotation(level, line))  # which GitHub's log shows as a line
    else:
        put(line)
    refused: OutputRefused | None = None
    if places.json is not None:
        try:
            write_text(places.json, strict_json({FORMAT: FORMAT_VERSION, "verdict": word, "line": line, **values}, 1) + "\n")
        except OutputRefused as error:
            refused = error
    if places.summary is not None:
        try:
            text = "\n".join([f"### Latency gate: {word}", "", shown(line, Where.MARKDOWN, LINE_LENGTH), "", *lines]).rstrip() + "\n\n"
            append(places.summary, text.encode())
        except OSError as error:
            refused = refused or OutputRefused(f"{places.summary}: can't be written: {error.strerror}")
    if refused is not None:
        raise refused


def _table(outcome: Outcome) -> Table:
    table = Table(title=f"{_TABLE}, {outcome.threads} thread(s)", title_justify="left")
    for heading in ("", "order", f"base\n{outcome.backends[0]}, ms", f"head\n{outcome.backends[1]}, ms", "head / base"):
        table.add_column(heading, justify="left" if heading in ("", "order") else "right")
    for what, rounds in _parts(outcome):
        for number, part in enumerate(rounds, 1):
            table.add_row(*_row(what, number, part))
    return table


def _parts(outcome: Outcome) -> list[tuple[str, list[Round]]]:
    return [("self-test", outcome.self_rounds), ("round", outcome.rounds)]


def _row(what: str, number: int, part: Round) -> tuple[str, ...]:
    base, head = part.medians
    return f"{what} {number}", part.order, milliseconds(base), milliseconds(head), f"{head / base:.3f}"


def _markdown(outcome: Outcome) -> list[str]:
    """The lines under the verdict on a summary page: a table for a pull request; details are folded."""
    lines = [f"**{shown(outcome.unlike, Where.MARKDOWN)}**", ""] if outcome.unlike else []
    lines += ["| | base | head | change |", "|---|---:|---:|---:|"]
    lines.append(_line("model", _code(outcome.base), _code(outcome.head), ""))
    lines.append(_line("runtime", *outcome.backends, f"{outcome.device}, {outcome.threads} thread{'' if outcome.threads == 1 else 's'}"))
    if outcome.rounds:
        base, head = (statistics.median(part.medians[side] for part in outcome.rounds) for side in (0, 1))
        change = ""
        if decision := outcome.decision:
            change = f"{_percent(decision.estimate)} (99 %: {_percent(decision.lower)}, {_percent(decision.upper)})"
        lines.append(_line("median, ms", milliseconds(base), milliseconds(head), change))
    for item in outcome.changes:
        lines.append(_line(_text(item.what), _text(item.before), _text(item.after), "**worse**" if item.worse else ""))
    lines += ["", f"Tolerance {_share(outcome.tolerance)}. Operators, multiply-adds, parameters, bytes: {_text(outcome.compared)}."]
    if quiet := outcome.self_test:
        lines[-1] += (
            f" Base against itself: ±{_share(quiet.half_width)} (99 %) in {quiet.rounds} rounds, at most {_share(quiet.limit)} allowed."
        )
    lines += ["", "<details><summary>Rounds and installations</summary>", ""]
    lines += [f"- {side}: `{shown(where, Where.CODE)}`" for side, where in outcome.installations.items()]
    if outcome.rounds or outcome.self_rounds:
        lines += ["", "| | order | base, ms | head, ms | head / base |", "|---|---|---:|---:|---:|"]
        for what, rounds in _parts(outcome):
            lines += [_line(*_row(what, number, part)) for number, part in enumerate(rounds, 1)]
    return [*lines, "", "</details>"]


def _line(*words: str) -> str:
    return f"| {' | '.join(words)} |"


def _text(text: str) -> str:
    return shown(text, Where.MARKDOWN)


def _code(text: str) -> str:
    """Words in a cell of a table, where a bar ends the cell even between backticks."""
    bar = "\\|"
    return f"`{shown(text, Where.CODE).replace('|', bar)}`"
