"""The last pooling, from the option to every file, and what is said where two ways of pooling differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.workflows.convert import convert_file
from tests.builders import TINY, logits, noise, save_checkpoint, state_dict, training_model
from tests.cases import long
from tests.exporters.test_final_pool import as_the_reference

SIZE = {"input_size": (48, 48)}
SAID = (
    "the whole last map of 12x12 is averaged (the default, --final-pool whole), but the reference averages 8x8 at its top left: "
    "give --final-pool original if the network was trained or measured so"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small network, whose tensors tell nothing of sizes and pooling."""
    return save_checkpoint(tmp_path_factory.mktemp("pool") / "c.pth.tar", state_dict(training_model(TINY)))


def command(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@long
def test_every_command_takes_it_and_every_file_keeps_it(checkpoint: Path, tmp_path: Path) -> None:
    output = command("convert", checkpoint, "--input-size", 48, "--final-pool", "original", "-o", tmp_path / "m.safetensors")
    assert "averages" not in output and ", final pool original (8x8 of 12x12)" in output
    model = cd.load(tmp_path / "m.safetensors")
    assert model.architecture == replace(TINY, input_size=(48, 48), final_pool="original", classifier_keep=0.5)
    batch = noise(model)
    expected = as_the_reference(model, batch)
    assert np.abs(logits(model, batch) - expected).max() <= 1e-5 * np.abs(expected).max()
    command("export", tmp_path / "m.safetensors", "--onnx", "-o", tmp_path / "m.onnx")
    assert "computes what" in command("verify", tmp_path / "m.onnx", tmp_path / "m.safetensors")
    assert "computes what" in command("verify", tmp_path / "m.onnx", checkpoint)  # pools as the artifact does: no tensor tells
    assert json.loads((tmp_path / "m.onnx.json").read_text())["architecture"]["final_pool"] == "original"
    assert cd.inspect(checkpoint, **SIZE, final_pool="original").architecture == replace(model.architecture, classifier_keep=1.0)
    with cd.open_session(checkpoint, **SIZE, final_pool="original") as session:
        assert session.architecture is not None and session.architecture.final_pool == "original"
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "m.onnx"), str(checkpoint), "--final-pool", "whole"])
    assert done.exit_code == 1 and "outputs differ" in done.output  # what is given is taken


def test_what_is_whole_is_written_as_before(checkpoint: Path, tmp_path: Path) -> None:
    convert_file(checkpoint, tmp_path / "m.safetensors")
    assert b"final_pool" not in (tmp_path / "m.safetensors").read_bytes()
    assert "final pool" not in cd.inspect(checkpoint).summary()
    assert ", final pool whole (12x12)" in cd.inspect(checkpoint, **SIZE).summary()


@long
def test_convert_and_export_say_where_the_two_differ(checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    convert_file(checkpoint, tmp_path / "m.safetensors", overrides=SIZE)
    assert [record.getMessage() for record in caplog.records] == [f"c.pth.tar: {SAID}"]
    caplog.clear()
    cd.export(cd.load(checkpoint, **SIZE), "onnx", tmp_path / "m.onnx")
    assert [record.getMessage() for record in caplog.records] == [f"c.pth.tar: {SAID}"]
    caplog.clear()
    for overrides in (
        {},  # 32 pixels: the same
        {**SIZE, "final_pool": "original"},
        {**SIZE, "final_pool": "whole"},  # somebody chose it
        {"input_size": (16, 16)},  # the original does not run there
        {"input_size": (64, 64)},
    ):
        convert_file(checkpoint, tmp_path / "m.safetensors", overrides=overrides)
    assert caplog.records == []


@pytest.mark.parametrize("size", [(31, 48), (48, 64), (16, 16)])
def test_sizes_that_the_original_cannot_run(size: tuple[int, int], checkpoint: Path) -> None:
    with pytest.raises(InputRefused, match=r"expected an input of 32 to 63 pixels a side, .* or final_pool whole \(--final-pool whole\)"):
        cd.load(checkpoint, input_size=size, final_pool="original")
    model = cd.load(checkpoint, input_size=size)
    with torch.inference_mode(), pytest.raises((RuntimeError, ValueError)):
        as_the_reference(model, noise(model))
