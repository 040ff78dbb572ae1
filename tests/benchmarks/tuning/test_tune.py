"""Measuring forms with real workers; nothing here asserts how long anything takes, nor what is chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnet_deploy.benchmarks.tuning import tune as lowerings
from cnet_deploy.benchmarks.tuning.choice import Choice, lowering_path, read
from cnet_deploy.benchmarks.tuning.tune import choose, choose_beside, choose_for_file
from cnet_deploy.checkpoints.save import save
from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.models.build import build_random
from cnet_deploy.program.forms import FORMS, blocks
from cnet_deploy.program.lower import lower
from cnet_deploy.sessions import open_session
from cnet_deploy.workflows.export import export
from tests.benchmarks.helpers import QUICK
from tests.builders import TINY, TINY_DENSENET, noise

SETTINGS = replace(QUICK, rounds=3)
SMALL = replace(TINY, stages=(1, 1), growth=(8, 8), input_size=(16, 16), classifier_keep=0.5)
ON_CPU = {"target": "onnx", "device": "cpu", "threads": 1, "batch": 2}


def test_choose_measures_each_block_and_the_whole(tmp_path: Path) -> None:
    program = lower(build_random(SMALL))
    told: list[tuple[str, float]] = []
    found = choose(program, **ON_CPU, settings=SETTINGS, progress=lambda text, share: told.append((text, share)))
    assert set(found.forms) == set(blocks(program)) and set(found.forms.values()) <= set(FORMS)
    singles = {f"{block} {form}" for block in blocks(program) for form in ("dense", "absorbed")}
    assert set(found.alone) == {*FORMS, *singles}
    assert all(len(parts) == 3 and all(len(part) >= 2 for part in parts) for parts in found.alone.values())
    assert found.forms == dict.fromkeys(blocks(program), "gather")  # three rounds are too few to say anything else
    assert set(found.together) == set(FORMS) and found.ratio is None
    assert found.fits(program, **ON_CPU, options={}) is None and Choice.from_json(found.to_json()) == found
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[0] >= 0 and 0.9 < shares[-1] <= 1
    assert "write denseblock_1 absorbed" in [text for text, _ in told]


def test_what_is_quicker_alone_is_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"denseblock_1": "gather", "denseblock_2": "dense"}
    monkeypatch.setattr(lowerings, "decide_forms", lambda names, rounds: taken)
    found = choose(lower(build_random(SMALL)), **ON_CPU, settings=replace(SETTINGS, rounds=8))
    assert set(found.together) == {"combined", *FORMS}
    whole = {form: dict.fromkeys(taken, form) for form in FORMS}
    assert found.forms == {"combined": taken, **whole}[found.winner] and Choice.from_json(found.to_json()) == found
    assert found.winner == "gather" or (found.ratio is not None and found.ratio.upper < 1)


def test_what_a_rewriting_leaves_is_not_measured() -> None:
    program = lower(build_random(replace(TINY_DENSENET, group_1x1=1)))
    found = choose(program, **ON_CPU, settings=SETTINGS)
    assert found.alone == found.together == {} and set(found.forms.values()) == {"gather"}
    assert Choice.from_json(found.to_json()) == found


def test_a_measurement_is_kept_and_used_again(tmp_path: Path) -> None:
    artifact, program = tmp_path / "model.onnx", lower(build_random(SMALL))
    said: list[str] = []
    first = choose_beside(artifact, program, **ON_CPU, options={}, settings=SETTINGS, say=said.append)
    assert read(lowering_path(artifact)) == first and said == [f"{first.summary()} (kept in model.onnx.lowering.json)"]
    kept = lowering_path(artifact).read_bytes()

    steps: list[str] = []
    again = choose_beside(
        artifact, program, **ON_CPU, options={}, settings=SETTINGS, say=said.append, progress=lambda t, _: steps.append(t)
    )
    assert again == first and steps == [] and lowering_path(artifact).read_bytes() == kept
    assert "measured 20" in said[1] and "kept in model.onnx.lowering.json" in said[1]

    # For another network, and where somebody damaged it, it is measured anew.
    other = lower(build_random(SMALL, seed=1))
    third = choose_beside(artifact, other, **ON_CPU, options={}, settings=SETTINGS, say=said.append)
    assert "was measured for something else (network: " in said[2] and third.fits(other, **ON_CPU, options={}) is None
    lowering_path(artifact).write_text("{}", encoding="utf-8")
    choose_beside(artifact, other, **ON_CPU, options={}, settings=SETTINGS, say=said.append)
    assert "lowering.json is of another kind: it has no cnet_deploy_lowering; expected" in said[4] and said[4].endswith(": measuring anew")
    assert read(lowering_path(artifact)).fits(other, **ON_CPU, options={}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx.lowering.json"]


def test_where_nothing_can_be_kept_nothing_is_measured(tmp_path: Path) -> None:
    lowering_path(tmp_path / "model.onnx").mkdir()
    with pytest.raises(OutputRefused, match="is a directory"):
        choose_beside(tmp_path / "model.onnx", lower(build_random(SMALL)), **ON_CPU, options={})


def test_forms_for_a_file_that_is_exported_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowerings, "SETTINGS", SETTINGS)
    model = build_random(SMALL)
    save(model, tmp_path / "model.safetensors")
    said: list[str] = []
    forms = choose_for_file(tmp_path / "model.safetensors", "onnx", options={"batch": 2}, images=None, say=said.append)
    assert set(forms) == {"denseblock_1", "denseblock_2"} and len(said) == 1
    stored = read(tmp_path / "model.onnx.lowering.json")
    assert (stored.batch, stored.options, stored.forms) == (2, {"batch": 2}, forms)
    done = export(tmp_path / "model.safetensors", "onnx", lowering={**forms, "denseblock_2": "dense"}, batch=2)
    with open_session(done.path) as session:
        assert session.run(noise(model)) == pytest.approx(lower(model).run(noise(model).astype(np.float64)), rel=1e-3, abs=1e-4)
    with pytest.raises(InputRefused, match="expected .onnx"):
        choose_for_file(tmp_path / "model.safetensors", "onnx", tmp_path / "model.bin", options={})
    with pytest.raises(InputRefused, match="only CondenseNet, DenseNet and their kin have lowerings"):
        choose_for_file("mobilenet-1.0-224", "onnx", tmp_path / "mobilenet.onnx", options={})
    assert json.loads((tmp_path / "model.onnx.lowering.json").read_text())["winner"] == "gather"


def test_what_can_not_be_measured_is_refused() -> None:
    program = lower(build_random(SMALL))
    with pytest.raises(InputRefused, match="the target 'native' has no lowerings to choose from; expected one of onnx, tensorrt"):
        choose(program, **{**ON_CPU, "target": "native"})
    with pytest.raises(InputRefused, match="no device is called 'tpu'"):
        choose(program, **{**ON_CPU, "device": "tpu"})
    # onnxruntime has no bf16 convolution for processors: written it can be, opened it can not.
    with pytest.raises(Unavailable, match="no lowering can be chosen: the form 'gather' can't be measured: gather: onnxruntime can't load"):
        choose(program, **ON_CPU, options={"precision": "bf16"}, settings=SETTINGS)
    with pytest.raises(Unavailable, match="tensorrt runs on no CPU"):
        choose(program, **{**ON_CPU, "target": "tensorrt"}, settings=SETTINGS)


@pytest.mark.skipif(why_no_device() is None, reason="a CUDA device is here")
@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_a_missing_device_is_told_before_anything_is_built(target: str) -> None:
    with pytest.raises(Unavailable, match="lowerings are measured on the device that they are for, and "):
        choose(lower(build_random(SMALL)), target=target, device="cuda", threads=1, batch=1)


@pytest.mark.gpu
def test_forms_of_an_engine() -> None:
    program = lower(build_random(SMALL))
    found = choose(program, target="tensorrt", device="cuda", threads=1, batch=1, settings=SETTINGS)
    assert (
        set(found.together) == set(FORMS) and found.fits(program, target="tensorrt", device="cuda", threads=1, batch=1, options={}) is None
    )
