"""Comparisons that pass, and every way in which one must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.images.probabilities import are_probabilities
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.workflows.verify import Comparison, compare, compare_all
from tests.builders import TINY, ending_in_softmax, save_checkpoint, state_dict, training_model
from tests.cases import few, long

LOGITS = np.array([[1.0, -8.0, 3.0], [0.5, 0.25, 4.0]], np.float32)


def against(other: Any, labels: Any = None, tolerance: float = 1e-4) -> Comparison:
    batches = [(np.zeros((2, 3, 1, 1), np.float32), None if labels is None else np.array(labels))]
    return compare(lambda _: np.asarray(other, np.float32), lambda _: LOGITS, batches, inputs="x", tolerance=tolerance)


def test_figures_by_hand() -> None:
    other = LOGITS.copy()
    other[0] += [4.0, 0.0, -0.5]
    found = against(other, labels=[2, 0])
    assert found.images == 2 and found.scale == 8
    assert found.max_error == 4 and found.mean_error == pytest.approx(4.5 / 6)
    assert found.agreement == 0.5
    assert (found.top1, found.reference_top1) == (0.0, 0.5)
    a, b = other.astype(np.float64).ravel(), LOGITS.astype(np.float64).ravel()
    assert found.cosine == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert not found.passed


def test_the_tolerance_is_relative_to_the_largest_logit() -> None:
    assert against(LOGITS + 7e-4).passed
    assert not against(LOGITS + 9e-4).passed
    assert against(LOGITS + 9e-4, tolerance=2e-4).passed
    assert against(LOGITS, tolerance=0.0).passed


def in_int8(other: Any, count_others: bool = True) -> Comparison:
    batches = [(np.zeros((2, 3, 1, 1), np.float32), None)]
    run, reference = (lambda _, logits=logits: np.asarray(logits, np.float32) for logits in (other, LOGITS))
    return compare(run, reference, batches, inputs="x", tolerance=0.4, least_cosine=0.95, count_others=count_others)


def test_int8_is_judged_by_the_cosine_and_by_clearly_other_answers() -> None:
    assert in_int8(LOGITS).passed and in_int8(LOGITS * 1.3).passed
    other = LOGITS.copy()
    other[1, 0] = 4.5  # 3.5 behind in the model's own logits, of 8
    assert in_int8(other).others == 0.5 and not in_int8(other).passed
    assert (found := in_int8(other, count_others=False)).others is None and found.cosine < 0.95 and not found.passed
    near = LOGITS.copy()
    near[0, 0] = 3.1  # 2 behind, which is no more than a quarter of 8
    assert (found := in_int8(near)).others == 0 and found.agreement == 0.5 and found.cosine > 0.95 and found.passed
    assert "clearly other answers 0.00% (at most 10%)" in found.summary() and found.to_dict()["others"] == 0
    assert "others" not in against(LOGITS).to_dict() and "least_cosine" not in against(LOGITS).to_dict()
    assert not in_int8(-LOGITS).passed
    for factor in (10, 0.01, 1.5):  # the cosine is 1, and answers are the same
        found = in_int8(LOGITS * factor)
        assert found.cosine == pytest.approx(1) and found.others == 0 and not found.passed and "(tolerance 3.20e+00)" in found.summary()
    for value in (np.nan, np.inf, -np.inf):
        other = LOGITS.copy()
        other[1, 1] = value
        assert not in_int8(other).passed and not in_int8(other, count_others=False).passed


class InInt8:
    """A session that answers in int8, and with another class where ``wrong`` says so."""

    precision = weights_precision = "int8"
    input_shape = (None, 3, 8, 8)
    architecture = None

    def __init__(self, statistics: str, wrong: Callable[[Any], bool]) -> None:
        self.preprocessing = cd.Preprocessing.of((8, 8), 10, statistics)
        self._wrong = wrong

    def run(self, batch: Any) -> Any:
        return np.tile(np.array([[1.0, 2.0]] if self._wrong(batch) else [[2.0, -1.0]], np.float32), (len(batch), 1))


class Blacks:
    """Images of black, and what they were prepared as."""

    def batches(self, preprocessing: cd.Preprocessing) -> Any:
        yield preprocessing.apply(np.zeros((4, 3, 8, 8), np.uint8)), None


def test_int8_is_judged_on_images_where_there_are_any_and_on_noise_else() -> None:
    """What was calibrated on dark images need not answer noise as its model does."""
    noisy, clean = InInt8("cifar10", lambda batch: batch.std() > 0.5), InInt8("cifar10", lambda _: False)
    (alone,) = compare_all(noisy, clean)  # type: ignore[arg-type]
    assert not alone.passed and "only_shown" not in alone.to_dict()
    random, real = compare_all(noisy, clean, Blacks())  # type: ignore[arg-type]
    assert random.passed and random.to_dict()["only_shown"] and "(only shown: images decide)" in random.summary()
    assert real.passed and real.others == 0
    random, real = compare_all(noisy, clean, Blacks(), tolerance=0.1)  # type: ignore[arg-type]
    assert not random.passed and real.passed  # the rule of other precisions
    dark = InInt8("cifar10", lambda batch: batch.std() < 0.5)
    assert [one.passed for one in compare_all(dark, clean, Blacks())] == [True, False]  # type: ignore[arg-type]
    unfinished = InInt8("cifar10", lambda _: False)
    unfinished.run = lambda batch: np.full((len(batch), 2), np.nan, np.float32)  # type: ignore[method-assign]
    assert not compare_all(unfinished, clean, Blacks())[0].passed  # type: ignore[arg-type]


def test_int8_reads_images_as_the_artifact_says() -> None:
    """Its first layer computes bytes back with the artifact's own statistics."""
    artifact, model = InInt8("imagenet", lambda _: False), InInt8("cifar10", lambda _: False)

    def bytes_of_its_own(batch: Any) -> bool:
        mean, std = (np.array(part, np.float32).reshape(3, 1, 1) for part in (artifact.preprocessing.mean, artifact.preprocessing.std))
        pixels = (batch * std + mean) * 255
        return bool(np.abs(pixels - np.rint(pixels).clip(0, 255)).max() > 0.01)

    artifact._wrong = bytes_of_its_own
    assert all(one.passed for one in compare_all(artifact, model, Blacks()))  # type: ignore[arg-type]
    assert compare_all(artifact, model)[0].passed  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_value_that_is_not_finite_passes(value: float) -> None:
    other = LOGITS.copy()
    other[1, 1] = value
    assert not against(other, tolerance=1e9).passed
    swapped = compare(lambda _: LOGITS, lambda _: other, [(LOGITS, None)], inputs="x", tolerance=1e9)
    assert not swapped.passed


def test_zeros_everywhere() -> None:
    zeros = np.zeros_like(LOGITS)
    found = compare(lambda _: zeros, lambda _: zeros, [(zeros, None)], inputs="x", tolerance=1e-4)
    assert found.passed and found.cosine == 1
    assert compare(lambda _: zeros, lambda _: LOGITS, [(zeros, None)], inputs="x", tolerance=1e-4).cosine == 0


def test_other_classes_are_another_network() -> None:
    with pytest.raises(InputRefused, match="4 classes and the model 3"):
        against(np.zeros((2, 4)))


@long
def test_every_run_draws_fresh_inputs(onnx_path: Path, checkpoint_path: Path) -> None:
    names = {cd.verify(onnx_path, checkpoint_path)[0].inputs for _ in range(3)}
    assert len(names) == 3


@pytest.mark.parametrize(("count", "accuracy"), few([(50, 0.92), (500, 0.9)]))
def test_the_example_against_each_of_its_forms(
    count: int, accuracy: float, onnx_path: Path, checkpoint_path: Path, first_images: Callable[[int], Path], converted: DenselyConnected,
    tmp_path: Path,
) -> None:  # fmt: skip
    cd.save(converted, tmp_path / "m.safetensors")
    cd.save(converted, tmp_path / "m.pth.tar")
    for model in (checkpoint_path, tmp_path / "m.safetensors", tmp_path / "m.pth.tar", onnx_path):
        random, real = cd.verify(onnx_path, model, images=first_images(count))
        assert random.passed and real.passed
        assert real.images == count and real.agreement == 1 and real.top1 == real.reference_top1 == pytest.approx(accuracy)


def test_training_form_against_itself(checkpoint_path: Path) -> None:
    assert cd.verify(checkpoint_path, checkpoint_path)[0].max_error == 0


def test_another_checkpoint_does_not_pass(onnx_path: Path, tmp_path: Path) -> None:
    other = training_model(cd.Architecture((4, 4, 4), (8, 16, 32), classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=1.0))
    path = save_checkpoint(tmp_path / "other.pth.tar", state_dict(other))
    assert not cd.verify(onnx_path, path)[0].passed


def test_what_tensors_do_not_tell_is_taken_from_the_artifact(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY)))
    overrides = {"input_size": (40, 36), "stem_stride": 2}
    artifact = cd.export(path, "onnx", tmp_path / "m.onnx", classifier_keep=0.7, overrides=overrides).path
    assert cd.verify(artifact, path)[0].passed
    with pytest.raises(InputRefused, match="reads images of 40x36 pixels, fixed in its graph; expected no other input size"):
        cd.verify(artifact, path, input_size=(32, 32))


def test_how_an_artifact_reads_images_counts_more_than_the_model_s_metadata(tmp_path: Path) -> None:
    """An export may read images of another size than the file that it is made of says."""
    cd.save(build_random(TINY), tmp_path / "m.safetensors")
    artifact = cd.export(tmp_path / "m.safetensors", "onnx", tmp_path / "m.onnx", input_size=(48, 40), final_pool="original").path
    assert cd.verify(artifact, tmp_path / "m.safetensors")[0].passed


@long
def test_probabilities_are_compared_with_the_softmax_of_logits(
    onnx_path: Path, checkpoint_path: Path, few_images: Path, tmp_path: Path
) -> None:
    ended = ending_in_softmax(onnx_path, tmp_path / "s.onnx")
    for found in cd.verify(ended, checkpoint_path, images=few_images):
        assert found.passed and found.scale <= 1 and found.max_error < 1e-5 and found.agreement == 1
        assert "on probabilities up to" in found.summary()
        assert found.summary().endswith(
            "; the artifact answers with probabilities, the model with logits: compared after a softmax of the logits"
        )
        assert "probabilities" in found.to_dict()["note"]
    assert "the model answers with probabilities" in cd.verify(onnx_path, ended)[0].summary()
    both = cd.verify(ended, ended)[0]
    assert both.max_error == 0 and both.summary().endswith("both answer with probabilities")
    assert "note" not in cd.verify(onnx_path, checkpoint_path)[0].to_dict()


def test_other_probabilities_do_not_pass() -> None:
    shares = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    assert against(shares).passed and not against(shares[:, ::-1]).passed
    assert not against(LOGITS + 1).passed  # which has the same softmax: logits are compared as logits
    assert against(shares.astype(np.float16), tolerance=1e-2).note


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.5, 0.5], [0, 1]], True), ([[0.4996, 0.5], [1, 0]], True), ([[0.49, 0.5]], False), ([[1.5, -0.5]], False), ([[0, 0]], False),
        ([[np.nan, 1]], False), ([[np.inf, 0]], False), ([[0.5, 0.5], [3, 4]], False), ([[1.0]], False),
    ],
)  # fmt: skip
def test_which_rows_are_probabilities(rows: list[list[float]], expected: bool) -> None:
    assert are_probabilities(np.asarray(rows, np.float64)) is expected


@long
def test_what_was_compared_is_said(checkpoint_path: Path, tmp_path: Path) -> None:
    """The artifact of a training checkpoint has half of its classifier, and so does what it is compared with."""
    model = cd.convert(cd.load(checkpoint_path))
    cd.save(model, tmp_path / "m.safetensors")
    whole = cd.convert(cd.load(checkpoint_path), classifier_keep=1.0)
    cd.save(whole, tmp_path / "whole.safetensors")
    half = "keeping 120 of 240 inputs of its classifier"
    for file, kept in (("m.safetensors", half), ("whole.safetensors", "with its whole classifier")):
        done = CliRunner().invoke(main, ["verify", str(tmp_path / file), str(checkpoint_path)])
        assert done.exit_code == 0 and f"does once it is converted to group-conv form, {kept}\n" in done.output
        (found,) = cd.verify(tmp_path / file, checkpoint_path)
        assert found.to_dict()["converted"] == found.converted == f"converted to group-conv form, {kept}"
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "m.safetensors"), str(tmp_path / "m.safetensors")])
    assert done.exit_code == 0 and done.output.endswith("m.safetensors does\n")
    assert "converted" not in cd.verify(tmp_path / "m.safetensors", tmp_path / "m.safetensors")[0].to_dict()


@long
def test_other_classes_and_other_preparation_are_named(
    checkpoint_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    """The logits are the same, but not what an image is answered with."""
    model = cd.convert(cd.load(checkpoint_path))
    own, names = cd.Preprocessing.of((32, 32), 10, "cifar10"), tuple("abcdefghij")
    files = {
        "model": (own, names),
        "same": (replace(own, statistics="custom", resize=32), names),
        "guessed": (replace(own, mean=(0.5, 0.5, 0.5), guessed=("statistics",)), ()),
        "mean": (replace(own, mean=(0.5, 0.5, 0.5)), names),
        "resized": (replace(own, resize=40), names),
        "renamed": (own, names[::-1]),
    }
    for name, (model.preprocessing, model.class_names) in files.items():
        cd.save(model, tmp_path / f"{name}.safetensors")
    for name, words in (("same", ""), ("guessed", ""), ("mean", "mean 0.5"), ("resized", "resized to 40"), ("renamed", "10 classes")):
        caplog.clear()
        assert cd.verify(tmp_path / f"{name}.safetensors", tmp_path / "model.safetensors")[0].passed
        assert (words in caplog.text and "answers to an image differ" in caplog.text) if words else not caplog.records, name
