"""The sentence and the file of a comparison with known figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.benchmarks.compare.results import Accuracy, Images, ModelComparison, Variant, read_comparison, write_comparison
from cnet_deploy.benchmarks.compare.show import check_outputs, page, render
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.sweep.results import Report, Row
from cnet_deploy.errors import InputRefused, OutputRefused
from tests.benchmarks.helpers import result

TIMES = {"torch": 0.02, "torch.bf16": 0.03, "onnxruntime": 0.008, "native": 0.002, "native.bf16": 0.001}


def comparison(times: dict[str, float] = TIMES, model: str = "m.pth", **accuracies: Accuracy) -> ModelComparison:
    """Variants that took so many seconds; ``native_bf16`` gives that variant's answers."""
    results = [result([seconds] * 3, [seconds] * 3, label=model, backend=name) for name, seconds in times.items()]
    row = Row(model, 10, 10, "ab" * 32, None, results)
    known = {**dict.fromkeys(times, Accuracy(1000, 900, 990, 0, 1000, 0, 0)), **{k.replace("_", "."): v for k, v in accuracies.items()}}
    variants = tuple(
        Variant(name, "bf16" if "bf16" in name else "fp32", 1024, r, known[name]) for name, r in zip(times, results, strict=True)
    )
    return ModelComparison(Report([row], Settings(rounds=2), after=environment()), variants, Images("data", "val", 1000, 1000, 10))


def test_the_sentence() -> None:
    assert comparison().sentence() == (
        "native.bf16 is the fastest: 1.00 ms an image (batch 1, 1 thread), 2.0 times as fast as native, 8.0 times as fast as onnxruntime, "
        "20.0 times as fast as torch. On 1,000 images torch has a top-1 error of 10.0 % (95 %: 8.3 to 12.0); no other variant differs "
        "from it beyond chance."
    )
    worse = comparison(native_bf16=Accuracy(1000, 850, 980, 0, 940, 55, 5))
    assert "; different from it beyond chance: native.bf16 +5.0 points (+3.5 to +6.5)." in worse.sentence()
    assert "about as fast as torch" in comparison({"native": 0.01, "torch": 0.0101}).sentence()
    nothing = comparison({})
    nothing.report.rows[0].results = []
    assert nothing.sentence() == "m.pth: no variant could be measured."


def test_without_fp32_there_is_no_reference(tmp_path: Path) -> None:
    made = comparison({"native.bf16": 0.1}, native_bf16=Accuracy(10, 5, 9, 0))
    assert made.reference is None and made.variants[0].accuracy is not None and made.variants[0].accuracy.difference is None
    write_comparison(tmp_path / "c.json", made)
    assert read_comparison(tmp_path / "c.json").variants == made.variants
    assert "nothing to compare answers with" in page(made)


def test_foreign_words_stay_words() -> None:
    made = comparison(model="<script>\n::error::x[/red].pth")
    assert "<script>\n" not in page(made) and "<script>" not in page(made)
    assert render(made)


def damaged(change: dict[str, Any]) -> dict[str, Any]:
    values = comparison().to_dict()
    for path, value in change.items():
        *most, last = path.split(".")
        place: Any = values
        for step in most:
            place = place[int(step) if step.isdigit() else step]
        place[last] = value
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cnet_deploy_compare": 2}, "is of another version"),
        ({"variants": []}, "variants are not those of latency"),
        ({"variants.0.backend": "native"}, "variants are not those of latency"),
        ({"variants.1.precision": "fp9"}, r"variants\[1\].precision is \"fp9\"; expected one of fp32"),
        ({"variants.0.accuracy.right1": 1001}, r"variants\[0\].accuracy counts more than its 1000 images"),
        ({"images.total": -1}, "images.total is -1"),
        ({"latency.rows": []}, "rows is an empty list"),
    ],
)
def test_a_file_that_is_damaged(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(damaged(change)))
    with pytest.raises(InputRefused, match=message):
        read_comparison(path)


def test_what_can_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    made = comparison()
    made.variants = (replace(made.variants[0], accuracy=Accuracy(10, 8, 12, 0)), *made.variants[1:])
    with pytest.raises(OutputRefused, match="could not be read again"):
        write_comparison(tmp_path / "c.json", made)
    assert not (tmp_path / "c.json").exists()


@pytest.mark.parametrize("name", ["c.txt", "m.onnx.json", "none/c.json"])
def test_names_under_which_nothing_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(OutputRefused):
        check_outputs("m.onnx", json=tmp_path / name)
