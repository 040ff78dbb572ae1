"""How rounds decide each block's form, and the file that keeps it. All figures are made up; nothing is measured."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.tuning.choice import FORMAT, Choice, choice_path, compare, decide_forms, plain, program_digest, quickest, read
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build_random
from cnet_deploy.program.forms import blocks, rewrite
from cnet_deploy.program.lower import lower
from tests.benchmarks.helpers import QUICK
from tests.builders import TINY, TINY_LGC

BLOCKS = ("denseblock_1", "denseblock_2", "denseblock_3")


def rounds(noise: float = 0.01, count: int = 12, seed: int = 0, **times: float) -> dict[str, list[list[float]]]:
    """Rounds of three samples for each label (with _ for the space), on a machine that drifts by half; "gather" takes 10 ms."""
    draw = random.Random(seed)
    found: dict[str, list[list[float]]] = {label: [] for label in ("gather", *times)}
    for number in range(count):
        for label, parts in found.items():
            parts.append([0.01 * times.get(label, 1.0) * (1 + 0.5 * number / count) * draw.uniform(1 - noise, 1 + noise) for _ in range(3)])
    return {label.replace("__", " "): parts for label, parts in found.items()}


def test_a_form_is_taken_where_it_is_surely_quicker() -> None:
    found = rounds(
        denseblock_1__dense=0.9, denseblock_1__absorbed=0.8, denseblock_2__dense=0.95, denseblock_2__absorbed=1.3, denseblock_3__dense=1.2
    )
    assert decide_forms(BLOCKS, found) == dict(zip(BLOCKS, ("absorbed", "dense", "gather"), strict=True))
    assert compare(found, "denseblock_1 absorbed").estimate == pytest.approx(0.8, rel=0.01)


def test_noise_is_gather() -> None:
    for seed in range(50):
        found = rounds(0.2, seed=seed, **{f"{block}__{form}": 1.0 for block in BLOCKS for form in ("dense", "absorbed")})
        chosen = decide_forms(BLOCKS, found)
        # Each bound misses in one case of a hundred; all six of a run at once, never.
        assert list(chosen.values()).count("gather") >= 2
    assert decide_forms(BLOCKS, rounds(0.4, denseblock_2__dense=0.97)) == dict.fromkeys(BLOCKS, "gather")


def test_few_rounds_are_gather() -> None:
    assert decide_forms(BLOCKS, rounds(count=7, denseblock_1__dense=0.5))["denseblock_1"] == "gather"
    assert decide_forms(BLOCKS, rounds(count=8, denseblock_1__dense=0.5))["denseblock_1"] == "dense"


def test_what_was_not_measured_is_gather() -> None:
    assert decide_forms(BLOCKS, {}) == dict.fromkeys(BLOCKS, "gather")


def test_of_the_whole_networks_the_quickest_is_chosen() -> None:
    labels = ("combined", "dense", "absorbed")
    assert quickest(rounds(combined=0.8, dense=0.9, absorbed=2.0), labels) == "combined"
    assert quickest(rounds(combined=0.9, dense=0.8, absorbed=2.0), labels) == "dense"
    assert quickest(rounds(combined=1.1, dense=1.2, absorbed=2.0), labels) == "gather"
    assert quickest(rounds(0.4, combined=0.99, dense=0.98), labels) == "gather"


@pytest.fixture
def choice() -> Choice:
    program = lower(build_random(TINY))
    alone = rounds(denseblock_1__dense=0.8, denseblock_1__absorbed=1.1, dense=1.2)
    return Choice(
        {"denseblock_1": "dense", "denseblock_2": "gather", "denseblock_3": "gather"}, "combined", alone, rounds(combined=0.8, dense=1.2),
        QUICK, environment(), "onnx", "cpu", 2, 1, plain("onnx", {"precision": "fp32"}), program_digest(program), "",
    )  # fmt: skip


FACTS: dict[str, Any] = {"target": "onnx", "device": "cpu", "threads": 2, "batch": 1, "options": {"precision": "fp32"}}


def test_the_file_gives_back_what_was_put_in(choice: Choice, tmp_path: Path) -> None:
    path = choice_path(tmp_path / "model.onnx")
    path.write_text(choice.to_json(), encoding="utf-8")
    assert read(path) == choice
    values = json.loads(choice.to_json())
    assert values["ratio"]["estimate"] == pytest.approx(0.8, rel=0.01) and values["ratio"]["upper"] < 1
    assert set(values["ratios"]) == {"denseblock_1 dense", "denseblock_1 absorbed", "dense"}


def test_the_summary_tells_forms_and_bounds(choice: Choice) -> None:
    assert "dense for denseblock_1, gather for denseblock_2" in choice.summary() and "of gather's time (0." in choice.summary()
    nothing = replace(choice, forms=dict.fromkeys(BLOCKS, "gather"), winner="gather")
    assert nothing.ratio is None and "gather for all blocks" in nothing.summary()


def test_it_fits_what_it_was_measured_for(choice: Choice) -> None:
    program = lower(build_random(TINY))
    assert choice.fits(program, **FACTS) is None
    assert choice.fits(program, **{**FACTS, "options": {"precision": "fp32", "timing_cache": Path("x"), "opset": None}}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "tensorrt"}, "target: tensorrt here, onnx there"), ({"device": "cuda"}, "device: cuda here, cpu there"),
        ({"threads": 1}, "threads: 1 here, 2 there"), ({"batch": 8}, "batch: 8 here, 1 there"),
        ({"options": {}}, "options precision: nothing here, fp32 there"),
    ],
)  # fmt: skip
def test_it_fits_nothing_else(choice: Choice, changes: dict[str, Any], words: str) -> None:
    assert words in (choice.fits(lower(build_random(TINY)), **{**FACTS, **changes}) or "")


def test_it_fits_no_other_network_and_no_other_machine(choice: Choice) -> None:
    assert "network: " in (choice.fits(lower(build_random(TINY, seed=1)), **FACTS) or "")
    assert "network: " in (choice.fits(lower(build_random(TINY_LGC)), **FACTS) or "")
    elsewhere = replace(choice, environment={**choice.environment, "cpu": "another"})
    assert "cpu: " in (elsewhere.fits(lower(build_random(TINY)), **FACTS) or "")
    fewer = replace(choice, forms={"denseblock_1": "dense"})
    assert "it speaks of the blocks denseblock_1; expected denseblock_1, " in (fewer.fits(lower(build_random(TINY)), **FACTS) or "")


def _put(*keys: Any) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def to(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(values: dict[str, Any]) -> None:
            for key in keys[:-1]:
                values = values[key]
            values[keys[-1]] = value

        return change

    return to


@pytest.mark.parametrize(
    "change",
    [
        _put(FORMAT)(99), _put("forms")({}), _put("forms")([]), _put("forms")({"denseblock_1": "fast"}),
        _put("forms")({"\x1b[31m": "dense"}), _put("forms", "denseblock_1")("gather"), _put("winner")("gather"),
        _put("winner")("absorbed"), _put("winner")([]),
        _put("alone", "other")([[1.0]] * 12), _put("alone", "gather")([]), _put("alone", "gather", 0)([]),
        _put("alone", "gather", 0)(["1"]), _put("alone", "gather", 0)([float("nan")]),
        _put("together", "gather", 0, 0)(-1.0), _put("together", "gather", 0, 0)(True),
        _put("together")(7), _put("settings", "rounds")("many"), _put("settings", "seconds")("long"), _put("settings", "other")(1),
        _put("environment", "cpu")("\x1b[2J"), _put("environment")({}), _put("threads")(0), _put("batch")(1.5), _put("target")(None),
        _put("program_sha256")("\n"), _put("options")([]), _put("more")(1), lambda values: values.pop("device"),
        lambda values: values.pop("ratio"), lambda values: values["alone"].pop("gather"),
    ],
)  # fmt: skip
def test_what_is_no_measurement_is_refused(choice: Choice, change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    values = copy.deepcopy(json.loads(choice.to_json()))
    change(values)
    path = tmp_path / "model.onnx.forms.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputRefused, match="forms.json is (damaged: .*|of another version: .*; expected 1$)"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("threads")(0), "threads is 0; expected a whole number from 1"),
        (_put("forms", "denseblock_1")("fast"), 'forms["denseblock_1"] is "fast"; expected one of gather, dense, absorbed'),
        (_put("forms")({"\x1b[31m": "dense"}), 'a name in forms is "\\u001b[31m"; expected printable text'),
        (_put("alone", "other")([[1.0]] * 12), 'alone has rounds of "other", which is not a form of its blocks'),
        (_put("alone", "gather", 3, 0)("x"), 'alone["gather"][3][0] is "x"; expected seconds, from a nanosecond to 1000000'),
        (_put("together", "dense")([[1.0]]), "together has 1 rounds of one form and 12 of another; expected as many of each"),
        (lambda values: values["alone"].pop("gather"), "alone has no rounds of gather, which the others are compared with"),
        (_put("winner")("absorbed"), 'winner is "absorbed"; expected one of gather, combined, dense, which were measured'),
        (_put("winner")("gather"), 'winner is "gather", which does not agree with its forms dense, gather, gather'),
        (_put("settings", "rounds")("many"), 'settings.rounds is "many"; expected a whole number from 1'),
        (_put("environment", "cores")(None), "environment.cores is null; expected a whole number from 1"),
        (lambda values: values.pop("ratio"), "it has no ratio"),
    ],
)  # fmt: skip
def test_damage_is_described(choice: Choice, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path) -> None:
    values = copy.deepcopy(json.loads(choice.to_json()))
    change(values)
    path = tmp_path / "model.onnx.lowering.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputRefused) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path} is damaged: {message}")


@pytest.mark.parametrize("content", [b"\xff", b"[]", b"{", b"[" * 100_000, b"", b"null"])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx.forms.json"
    path.write_bytes(content)
    with pytest.raises(InputRefused, match=r"forms.json(: is empty| is damaged: it | is of another kind: it has no cnet_deploy_lowering)"):
        read(path)


def test_the_digest_is_of_what_is_computed() -> None:
    program = lower(build_random(TINY))
    assert program_digest(program) == program_digest(lower(build_random(TINY))) == program_digest(rewrite(program, "gather"))
    others = [lower(build_random(TINY, seed=1)), *(rewrite(program, {block: "dense"}) for block in blocks(program))]
    assert len({program_digest(other) for other in (program, *others)}) == 5
