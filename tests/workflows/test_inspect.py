"""What inspect tells of each kind of file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused
from cnet_deploy.files import digest
from cnet_deploy.models.build import build_random
from cnet_deploy.workflows.convert import convert_file
from tests.builders import TINY, save_checkpoint, state_dict, training_model


def test_training_checkpoint(checkpoint_path: Path) -> None:
    found = cd.inspect(checkpoint_path)
    assert (found.container, found.form, found.problem) == ("zip", "training", None)
    assert found.sha256 == digest(checkpoint_path.read_bytes())
    assert found.architecture is not None and found.architecture.stages == (4, 4, 4)
    assert len(found.layers) == 12 and all(layer.finished and layer.stage == 3 for layer in found.layers)
    assert (found.layers[0].in_channels, found.layers[0].survivors) == (16, (4, 4))
    assert "4 of 16 channels per group, stage 3, finished" in found.summary()
    assert json.loads(json.dumps(found.to_dict()))["cost"]["flops"] == found.architecture.flops


@pytest.mark.parametrize("stage", [1, 2])
def test_unfinished_training_is_described_not_refused(tmp_path: Path, stage: int) -> None:
    found = cd.inspect(save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY, stage=stage))))
    assert found.architecture == TINY
    assert found.problem is not None and f"training reached stage {stage} of 3" in found.problem
    assert not any(layer.finished for layer in found.layers)
    assert f"stage {stage}, unfinished" in found.summary()


def test_training_that_has_not_begun_to_prune(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY, stage=0)))
    found = cd.inspect(path)
    assert found.architecture is None and found.problem is not None and "has not begun" in found.problem
    assert [layer.finished for layer in found.layers] == [None] * 5
    assert cd.inspect(path, groups=4, condense_factor=4).architecture == TINY


def test_own_format(checkpoint_path: Path, tmp_path: Path) -> None:
    cd.save(cd.convert(cd.load(checkpoint_path)), tmp_path / "m.safetensors")
    found = cd.inspect(tmp_path / "m.safetensors")
    assert (found.container, found.form, found.layers) == ("safetensors", "group-conv", ())
    assert found.details["source"]["sha256"] == digest(checkpoint_path.read_bytes())
    assert str(tmp_path) not in json.dumps(found.details)


def test_a_network_without_an_original_file_names_none(tmp_path: Path) -> None:
    cd.save(build_random(TINY), tmp_path / "m.safetensors")
    found = cd.inspect(tmp_path / "m.safetensors")
    assert found.details["tool"] and "source" not in found.details and "source:" not in found.summary()


def test_artifact(onnx_path: Path) -> None:
    found = cd.inspect(onnx_path)
    assert (found.container, found.problem) == ("onnx", None)
    assert found.architecture is not None and found.architecture.classifier_keep == 0.5
    assert found.operators["Conv"] == 25 and sum(found.operators.values()) == 105
    assert found.details["manifest"]["precision"] == "fp32"
    assert "operators: Conv 25" in found.summary()


def test_a_swapped_manifest_is_told(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(onnx_path.read_bytes())
    (tmp_path / "m.onnx.json").write_text(Path(f"{onnx_path}.json").read_text().replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(InputRefused, match="does not belong together"):
        cd.inspect(tmp_path / "m.onnx")


def test_onnx_is_inspected_without_a_runtime(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "cnet_deploy.sessions.onnxruntime", None)
    assert cd.inspect(onnx_path).form == "group-conv"


@pytest.mark.parametrize("content", [b"\x00", b"text\0", b"\x08\x08", b"\x08\x08\x3a"])
def test_what_is_no_onnx(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputRefused, match="is no readable ONNX model"):
        cd.inspect(tmp_path / "m.onnx")


def test_the_parameters_of_both_classifiers_are_named(checkpoint_path: Path, tmp_path: Path) -> None:
    """`inspect` counts what `convert` writes, and says which it is."""
    lines = cd.inspect(checkpoint_path).summary().splitlines()
    assert "as group-conv form: 11.50 M FLOPs, 10.93 M multiply-adds, 81,562 params (classifier whole)" in lines
    half = "80,362 params (classifier reads 120 of 240 features)"
    assert f"as `convert` makes it by default: 11.50 M FLOPs, 10.93 M multiply-adds, {half}" in lines
    done = convert_file(checkpoint_path, tmp_path / "m.safetensors")
    assert "params in group-conv form: 80,362 with 120 of 240 inputs of the classifier, 81,562 with all" in done.summary()
    assert half in cd.inspect(tmp_path / "m.safetensors").summary()


def test_details_are_in_words(onnx_path: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    """Without brackets, quotation marks and None of Python; a verification is a sentence."""
    converted = tmp_path / "model.safetensors"
    convert_file(checkpoint_path, converted)
    for path in (onnx_path, converted):
        text = cd.inspect(path).summary()
        assert not [line for line in text.splitlines() if any(mark in line for mark in ("{", "['", "None"))], text
    lines = cd.inspect(onnx_path).summary().splitlines()
    assert "precision: fp32" in lines
    assert any(line.startswith("verified on random inputs") and "max error" in line for line in lines)
