"""What a gate's outcome says, in each of the places where it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cnet_deploy.benchmarks.gate import verdict as verdicts
from cnet_deploy.benchmarks.gate.run import SETTINGS, Outcome, Round
from cnet_deploy.benchmarks.gate.verdict import Places, run, to_dict, verdict
from cnet_deploy.benchmarks.measure.rule import decide, self_test
from cnet_deploy.benchmarks.sweep.figures import Change
from cnet_deploy.cli import main
from cnet_deploy.errors import CheckFailed, Inconclusive, OutputRefused, Unavailable
from cnet_deploy.text import write_lines

GREW = Change("operators", "120", "144", worse=True)


def outcome(ratio: float = 1.0, *, noise: float = 0.0, **changes: Any) -> Outcome:
    """Eight rounds in which head took ``ratio`` times as long."""
    made = Outcome("a.onnx", "b`|.onnx", ("onnxruntime", "native"), 2, 0.05, SETTINGS)
    made.self_rounds = [Round("AB", (0.010, 0.010), (0.010 * (1 + noise * (-1) ** n),)) for n in range(8)]
    made.self_test = self_test([0.01] * 8, [part.medians[1] for part in made.self_rounds], 0.05)
    if made.self_test.passed:
        made.rounds = [Round("BA" if n % 2 else "AB", (0.010,), (0.010 * ratio,)) for n in range(8)]
        made.decision = decide([0.01] * 8, [0.01 * ratio] * 8, 0.05)
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("made", "code", "line"),
    [
        (outcome(1.006), 0, "pass: head takes 0.6 % more time than base (99 % bounds: 0.6 % more, 0.6 % more; tolerance 5.0 %; 8 rounds)"),
        (outcome(0.9), 0, "pass: head takes 10.0 % less time"),
        (outcome(1.1), 1, "regression: head takes 10.0 % more time"),
        (outcome(1.0, changes=[GREW]), 1, "regression: operators 120 -> 144; head takes 0.0 % more time"),
        (outcome(1.0, changes=[GREW], allow_changes=True), 0, "pass: head takes"),
        (outcome(1.0, changes=[replace(GREW, worse=False)]), 0, "pass: head takes"),
        (outcome(noise=0.1), 3, "inconclusive: this machine is too noisy for a tolerance of 5.0 %: base against itself varies by"),
        (outcome(noise=0.1, changes=[GREW]), 1, "regression: operators 120 -> 144; this machine is too noisy for a tolerance of 5.0 %"),
    ],
)
def test_one_line_and_one_code(made: Outcome, code: int, line: str) -> None:
    assert verdict(made).startswith(line) and "\n" not in verdict(made)
    assert made.exit_code == code and to_dict(made)["exit_code"] == code


@pytest.mark.parametrize(
    ("made", "error", "level"),
    [(outcome(), None, "notice"), (outcome(1.2), CheckFailed, "error"), (outcome(noise=0.1), Inconclusive, "error")],
)
def test_every_place_has_it(
    made: Outcome, error: type[Exception] | None, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(verdicts, "gate", lambda *_, **__: made)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    places = Places(tmp_path / "g.json", tmp_path / "s.md")
    if error is None:
        assert run(["condensenet-50"], None, places) is made
    else:
        with pytest.raises(error):
            run(["condensenet-50"], None, places)
    said = capsys.readouterr().out
    assert f"::{level} title=Latency gate::{verdict(made).replace('%', '%25')}\n" in said
    assert said.count(made.verdict.value) == 1  # once
    if made.self_rounds:
        assert said.index("::group::") < said.index("self-test 1") < said.index("::endgroup::") < said.index(f"::{level} ")
    stored = json.loads((tmp_path / "g.json").read_text())
    assert stored["line"] == verdict(made) and stored["verdict"] == made.verdict.value
    assert [part["order"] for part in stored["rounds"]] == [part.order for part in made.rounds]
    summary = (tmp_path / "s.md").read_text()
    assert verdict(made) in summary and r"b'\|.onnx" in summary
    rows = [line for line in summary.splitlines() if line.startswith(("| round", "| self-test"))]
    assert len(rows) == (len(made.rounds) + len(made.self_rounds))
    assert "round 8" in said or not made.rounds


def test_networks_of_two_tasks_are_named_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    unlike = "not the same task: base tells 10 classes apart and head 100"
    monkeypatch.setattr(verdicts, "gate", lambda *_, **__: outcome(unlike=unlike))
    run(["condensenet-50"], None, Places(tmp_path / "g.json", tmp_path / "s.md"))
    assert capsys.readouterr().out.splitlines()[0] == unlike
    assert json.loads((tmp_path / "g.json").read_text())["unlike"] == unlike
    assert f"**{unlike}**\n\n| | base | head | change |\n" in (tmp_path / "s.md").read_text()


def test_what_could_not_be_measured_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: object, **__: object) -> Outcome:
        raise Unavailable("base: x.onnx: no such file\n::error::forged")

    monkeypatch.setattr(verdicts, "gate", missing)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    with pytest.raises(Unavailable):
        run(["condensenet-50"], None, Places(tmp_path / "g.json", tmp_path / "s.md"))
    said = capsys.readouterr().out.splitlines()
    (line,) = said
    assert line.startswith("::error title=Latency gate::not measured: base: ")
    assert json.loads((tmp_path / "g.json").read_text())["exit_code"] == 5


def test_the_summary_has_a_small_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "gate", lambda *_, **__: outcome(1.006, changes=[GREW], allow_changes=True))
    run(["condensenet-50"], None, Places(None, tmp_path / "s.md"))
    table, _, folded = (tmp_path / "s.md").read_text().partition("<details>")
    assert [line for line in table.splitlines() if line.startswith("|")] == [
        "| | base | head | change |",
        "|---|---:|---:|---:|",
        "| model | `a.onnx` | `b'\\|.onnx` |  |",
        "| runtime | onnxruntime | native | cpu, 2 threads |",
        "| median, ms | 10.00 | 10.06 | 0.6 % more (99 %: 0.6 % more, 0.6 % more) |",
        "| operators | 120 | 144 | **worse** |",
    ]
    assert "| round 8 |" in folded


def test_noise_may_be_accepted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made = outcome(noise=0.1)
    monkeypatch.setattr(verdicts, "gate", lambda *_, **__: made)
    with pytest.raises(Inconclusive, match=r"use one thread \(--threads 1, now 2\), a quieter machine"):
        run(["condensenet-50"], None, Places())
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert run(["condensenet-50"], None, Places(), inconclusive="pass") is made
    assert "::warning title=Latency gate::inconclusive" in capsys.readouterr().out


def test_lines_of_rounds_are_a_group(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def heard(line: str) -> None:
        write_lines(line, error=True)

    def gate(*_: object, notify: Callable[[str], None], **__: object) -> Outcome:
        for line in ("base: exporting", "self-test 1", "round 1"):
            notify(line)
        return outcome()

    monkeypatch.setattr(verdicts, "gate", gate)
    run(["condensenet-50"], None, Places(), notify=heard)
    assert capsys.readouterr().err.splitlines() == ["base: exporting", "self-test 1", "round 1"]
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    run(["condensenet-50"], None, Places(), notify=heard)
    assert capsys.readouterr().err.splitlines() == ["base: exporting", "::group::Rounds", "self-test 1", "round 1", "::endgroup::"]


def test_wrong_usage_is_an_annotation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for arguments in (["a.onnx"], ["a", "b", "--tolerance", "much"], ["a", "b", "--nonsense"]):
        done = CliRunner().invoke(main, ["gate", *arguments])
        assert done.exit_code == 2 and done.stdout.startswith("::error title=Latency gate::"), arguments
    monkeypatch.delenv("GITHUB_ACTIONS")
    assert CliRunner().invoke(main, ["gate", "a.onnx"]).stdout == ""


@pytest.mark.parametrize("name", ["results.txt", "missing/g.json"])
def test_places_are_checked_before_anything_is_measured(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputRefused):
        run(["condensenet-50"], None, Places(tmp_path / name, None))
