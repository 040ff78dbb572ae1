"""Measuring forms with real workers; nothing here asserts how long anything takes, nor what is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnet_deploy.benchmarks.tuning import tune
from cnet_deploy.benchmarks.tuning.choice import Choice, choice_path, read
from cnet_deploy.benchmarks.tuning.tune import choose, choose_beside, chooser
from cnet_deploy.checkpoints.load import load
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
from tests.cases import long

pytestmark = pytest.mark.usefixtures("warm")

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


@long
def test_what_is_quicker_alone_is_measured_together(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"denseblock_1": "gather", "denseblock_2": "dense"}
    monkeypatch.setattr(tune, "decide_forms", lambda names, rounds: taken)
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


@long
def test_a_measurement_is_kept_and_used_again(tmp_path: Path) -> None:
    artifact, program = tmp_path / "model.onnx", lower(build_random(SMALL))
    said: list[str] = []
    first = choose_beside(artifact, program, **ON_CPU, options={}, settings=SETTINGS, notify=said.append)
    assert read(choice_path(artifact)) == first and said == [f"{first.summary()} (kept in model.onnx.forms.json)"]
    kept = choice_path(artifact).read_bytes()

    steps: list[str] = []
    again = choose_beside(
        artifact, program, **ON_CPU, options={}, settings=SETTINGS, notify=said.append, progress=lambda t, _: steps.append(t)
    )
    assert again == first and steps == [] and choice_path(artifact).read_bytes() == kept
    assert "measured 20" in said[1] and "kept in model.onnx.forms.json" in said[1]

    # For another network, and where somebody damaged it, it is measured anew.
    other = lower(build_random(SMALL, seed=1))
    third = choose_beside(artifact, other, **ON_CPU, options={}, settings=SETTINGS, notify=said.append)
    assert "was measured for something else (network: " in said[2] and third.fits(other, **ON_CPU, options={}) is None
    choice_path(artifact).write_text("{}", encoding="utf-8")  # somebody else's
    with pytest.raises(
        OutputRefused, match=r"forms.json: is a JSON file, which would be replaced by a measurement of `export --form auto`"
    ):
        choose_beside(artifact, other, **ON_CPU, options={}, settings=SETTINGS, notify=said.append)
    choice_path(artifact).write_text('{"cnet_deploy_lowering": 0}', encoding="utf-8")
    choose_beside(artifact, other, **ON_CPU, options={}, settings=SETTINGS, notify=said.append)
    assert "forms.json is of another version: cnet_deploy_lowering is 0; expected 1" in said[4] and said[4].endswith(": measuring anew")
    assert read(choice_path(artifact)).fits(other, **ON_CPU, options={}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx.forms.json"]


def test_where_nothing_can_be_kept_nothing_is_measured(tmp_path: Path) -> None:
    choice_path(tmp_path / "model.onnx").mkdir()
    with pytest.raises(OutputRefused, match="is a directory"):
        choose_beside(tmp_path / "model.onnx", lower(build_random(SMALL)), **ON_CPU, options={})


@long
def test_forms_for_a_file_that_is_exported_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SETTINGS", SETTINGS)
    model = build_random(SMALL)
    save(model, tmp_path / "model.safetensors")
    lines: list[str] = []
    artifact = tmp_path / "model.onnx"
    source: dict[str, Any] = {"source": tmp_path / "model.safetensors", "target": "onnx"}
    loads: list[object] = []
    monkeypatch.setattr("cnet_deploy.workflows.prepare.load", lambda *args, **more: loads.append(args) or load(*args, **more))
    choose_forms = chooser(artifact, **source, options={"batch": 2}, notify=lines.append)
    done = export(tmp_path / "model.safetensors", "onnx", form=choose_forms, batch=2)
    assert len(loads) == 1  # the model is opened once, for the choice and for the artifact
    stored = read(tmp_path / "model.onnx.forms.json")
    assert set(stored.forms) == {"denseblock_1", "denseblock_2"} and len(lines) == 1
    assert (stored.batch, stored.options) == (2, {"batch": 2})
    assert done.manifest.details.get("form", dict.fromkeys(stored.forms, "gather")) == stored.forms
    (tmp_path / "model.onnx.forms.json").rename(tmp_path / "model.onnx.lowering.json")  # where version 0.1.0 kept it
    chooser(artifact, **source, options={"batch": 2}, notify=lines.append)(lower(load(tmp_path / "model.safetensors")))
    assert "kept in model.onnx.lowering.json" in lines[1] and not (tmp_path / "model.onnx.forms.json").exists()
    mixed = {**stored.forms, "denseblock_2": "dense"}
    done = export(tmp_path / "model.safetensors", "onnx", lowering=mixed, batch=2)  # its name until 0.1.0
    with open_session(done.path) as session:
        assert session.run(noise(model)) == pytest.approx(lower(model).run(noise(model).astype(np.float64)), rel=1e-3, abs=1e-4)
    with pytest.raises(InputRefused, match="only networks of the CondenseNet family have forms"):
        export("mobilenet-1.0-224", "onnx", tmp_path / "mobilenet.onnx", form=choose_forms)
    with pytest.raises(InputRefused, match="the target 'native' has no forms to choose from; expected one of onnx, tensorrt"):
        chooser(tmp_path / "model.so", source=source["source"], target="native", options={})


def test_what_can_not_be_measured_is_refused() -> None:
    program = lower(build_random(SMALL))
    with pytest.raises(InputRefused, match="the target 'native' has no forms to choose from; expected one of onnx, tensorrt"):
        choose(program, **{**ON_CPU, "target": "native"})
    with pytest.raises(InputRefused, match="no device is called 'tpu'"):
        choose(program, **{**ON_CPU, "device": "tpu"})
    # onnxruntime has no bf16 convolution for CPUs: written it can be, opened it can not.
    with pytest.raises(
        Unavailable, match="no form can be chosen: the form 'gather' can't be measured: gather: it computes in bf16, for which onnxruntime"
    ):
        choose(program, **ON_CPU, options={"precision": "bf16"}, settings=SETTINGS)
    with pytest.raises(Unavailable, match="tensorrt does not run on cpu"):
        choose(program, **{**ON_CPU, "target": "tensorrt"}, settings=SETTINGS)


@pytest.mark.skipif(why_no_device() is None, reason="a CUDA device is here")
@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
def test_a_missing_device_is_told_before_anything_is_built(target: str) -> None:
    with pytest.raises(Unavailable, match="forms are measured on the device that they are for, and "):
        choose(lower(build_random(SMALL)), target=target, device="cuda", threads=1, batch=1)


@pytest.mark.gpu
def test_forms_of_an_engine() -> None:
    program = lower(build_random(SMALL))
    found = choose(program, target="tensorrt", device="cuda", threads=1, batch=1, settings=SETTINGS)
    assert (
        set(found.together) == set(FORMS) and found.fits(program, target="tensorrt", device="cuda", threads=1, batch=1, options={}) is None
    )
