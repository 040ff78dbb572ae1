"""A checkpoint's file -> the file of its group-conv form, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.workflows.convert import convert_file
from cnet_deploy.workflows.prepare import default_output
from tests.builders import TINY, save_checkpoint, state_dict, tiny, training_model
from tests.cases import few, long


@pytest.mark.parametrize(("count", "before", "after"), few([(100, 0.9, 0.91), (500, 0.894, 0.9)]))
def test_convert_reports_what_it_changed(
    count: int, before: float, after: float, checkpoint_path: Path, first_images: Callable[[int], Path], tmp_path: Path
) -> None:
    done = convert_file(checkpoint_path, tmp_path / "m.safetensors", images=first_images(count))
    assert (done.before.flops, done.after.flops) == (21_721_450, 11_496_634)
    assert done.after.params == 80_362
    assert done.faithful is not None and done.cut is not None
    assert done.faithful.passed and done.faithful.max_error <= 1e-5 * done.faithful.scale
    assert done.faithful.top1 == done.faithful.reference_top1 == done.cut.reference_top1 == pytest.approx(before)
    assert done.cut.top1 == pytest.approx(after)
    assert 0.9 < done.cut.agreement < 1
    assert done.cut.max_error > 0.1  # halving is lossy by design, and said to be
    text = done.summary()
    assert "21.72 M in training form -> 11.50 M in group-conv form (1.89 times less)" in text
    assert "keeps 120 of 240 inputs" in text and f"{before:.2%} -> {after:.2%}" in text


@long
def test_without_images_the_report_says_that_noise_tells_little(checkpoint_path: Path, tmp_path: Path) -> None:
    done = convert_file(checkpoint_path, tmp_path / "m.safetensors")
    assert done.cut is not None and done.cut.inputs == "64 random inputs"
    assert "give --images" in done.summary()


def test_images_without_labels_are_not_called_noise(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY)))
    done = convert_file(path, tmp_path / "m.safetensors", images=Path(__file__).parents[2] / "examples" / "images")
    assert "noise tells little" not in done.summary()
    assert "the images have no labels, so accuracy is not known: give a CIFAR binary file, or use `evaluate`" in done.summary()


def test_nothing_was_cut_nothing_is_reported(checkpoint_path: Path, tmp_path: Path) -> None:
    assert convert_file(checkpoint_path, tmp_path / "m.safetensors", classifier_keep=1.0).cut is None


def test_a_converted_file_is_rewritten_as_it_is(checkpoint_path: Path, tmp_path: Path) -> None:
    convert_file(checkpoint_path, tmp_path / "m.pth.tar")
    done = convert_file(tmp_path / "m.pth.tar", tmp_path / "n.safetensors")
    assert done.faithful is None and "already in group-conv form" in done.summary()
    assert cd.load(tmp_path / "n.safetensors").architecture == cd.load(tmp_path / "m.pth.tar").architecture
    with pytest.raises(InputRefused, match="needs the training checkpoint"):
        convert_file(tmp_path / "m.pth.tar", tmp_path / "x.safetensors", classifier_keep=1.0)


def test_flags_for_what_the_tensors_do_not_tell(tmp_path: Path) -> None:
    state = {name: value for name, value in state_dict(training_model(tiny(2, 4))).items() if not name.endswith(("_stage", "_count"))}
    path = save_checkpoint(tmp_path / "c.pth.tar", state)
    with pytest.raises(InputRefused, match="--condense-factor"):
        convert_file(path, tmp_path / "m.safetensors")
    done = convert_file(path, tmp_path / "m.safetensors", overrides={"groups": 2, "condense_factor": 4})
    assert (done.model.architecture.group_1x1, done.model.architecture.condense_factor) == (2, 4)


def test_the_input_is_never_overwritten(checkpoint_path: Path, tmp_path: Path) -> None:
    convert_file(checkpoint_path, tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    with pytest.raises(OutputRefused, match="is the input itself"):
        convert_file(tmp_path / "m.safetensors", tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "expected"),
    [("a/m.pth.tar", "a/m.onnx"), ("m.safetensors", "m.onnx"), ("m.pt", "m.onnx"), ("m", "m.onnx"), ("v1.2", "v1.2.onnx")],
)
def test_default_output(source: str, expected: str) -> None:
    assert default_output(source, ".onnx") == Path(expected)
