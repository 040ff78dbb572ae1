"""Model -> verified artifact, and what is left when the check fails or somebody interrupts."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused
from cnet_deploy.exporters import exporter, targets
from cnet_deploy.exporters.base import Written
from cnet_deploy.files import digest
from cnet_deploy.images.decode import cifar_records
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.calibration import calibrate, digest_of
from cnet_deploy.program.lower import lower
from cnet_deploy.workflows import export as deployment
from tests.builders import TINY, TINY_V2, save_checkpoint, state_dict, training_model
from tests.cases import few, long
from tests.old_outputs import old_output
from tests.once import Once


@pytest.mark.parametrize(("count", "accuracy"), few([(100, 0.91), (500, 0.9)]))
def test_export_writes_a_verified_artifact_and_its_manifest(
    count: int, accuracy: float, checkpoint_path: Path, first_images: Callable[[int], Path], tmp_path: Path
) -> None:
    lines: list[str] = []
    done = cd.export(checkpoint_path, "onnx", tmp_path / "m.onnx", images=first_images(count), notify=lines.append)
    assert lines == ["the model is in training form: converting it first, keeping 0.5 of the classifier's inputs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]
    manifest = Manifest.from_json(manifest_path(done.path).read_text())
    data = done.path.read_bytes()
    assert manifest == done.manifest
    assert (manifest.sha256, manifest.bytes) == (digest(data), len(data))
    assert manifest.source_sha256 == digest(checkpoint_path.read_bytes())
    assert manifest.details == {"opset": 17, "ir_version": 8, "batch": "dynamic"}
    random, real = manifest.verification
    assert random["passed"] and real["passed"]
    assert (random["images"], real["images"]) == (4, count)
    assert real["top1"] == real["reference_top1"] == pytest.approx(accuracy)


def test_notify_has_an_older_name(checkpoint_path: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    cd.export(checkpoint_path, "onnx", tmp_path / "m.onnx", say=lines.append)
    assert len(lines) == 1


def test_the_same_checkpoint_gives_the_same_bytes_and_no_path(checkpoint_path: Path, tmp_path: Path) -> None:
    first = cd.export(checkpoint_path, "onnx", tmp_path / "a.onnx").path.read_bytes()
    assert cd.export(checkpoint_path, "onnx", tmp_path / "b.onnx").path.read_bytes() == first
    assert str(tmp_path).encode() not in first
    assert str(checkpoint_path.parent).encode() not in first
    assert str(tmp_path) not in manifest_path(tmp_path / "a.onnx").read_text()


def test_options_reach_the_exporter(converted: DenselyConnected, tmp_path: Path) -> None:
    path = cd.export(converted, "onnx", tmp_path / "m.onnx", opset=21, batch=2).path
    model = onnx.load(path)
    assert model.opset_import[0].version == 21
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_whole_classifier_on_request(checkpoint_path: Path, tmp_path: Path) -> None:
    assert cd.export(checkpoint_path, "onnx", tmp_path / "m.onnx", classifier_keep=1.0).manifest.architecture.classifier_keep == 1  # type: ignore[union-attr]
    cd.save(cd.convert(cd.load(checkpoint_path)), tmp_path / "m.safetensors")
    with pytest.raises(InputRefused, match="needs the training checkpoint"):
        cd.export(tmp_path / "m.safetensors", "onnx", tmp_path / "n.onnx", classifier_keep=1.0)


def wrong(program: Any, path: Path, **options: Any) -> Written:
    """An exporter with a defect: one weight of the file is not the model's."""
    from cnet_deploy.exporters.onnx import write

    written = write(program, path, **options)
    model = onnx.load(path)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classifier.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[3] += 1
    bias.raw_data = values.tobytes()
    path.write_bytes(model.SerializeToString())
    return written


@pytest.fixture
def standing(tmp_path: Path) -> Path:
    """An older artifact and manifest, which must survive whatever fails."""
    for name in ("m.onnx", "m.onnx.json"):
        old_output(tmp_path / name)
    return tmp_path / "m.onnx"


def still_standing(artifact: Path) -> bool:
    names = sorted(path.name for path in artifact.parent.iterdir())
    return names == ["m.onnx", "m.onnx.json"] and all(b"old" in path.read_bytes() for path in (artifact, manifest_path(artifact)))


def test_a_wrong_artifact_never_takes_its_name(converted: DenselyConnected, standing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "exporter", lambda target: wrong)
    with pytest.raises(CheckFailed, match=r"differ from the model's beyond the tolerance; nothing was written.*max error 1\.00e\+00"):
        cd.export(converted, "onnx", standing)
    assert still_standing(standing)
    assert cd.export(converted, "onnx", standing, tolerance=10.0).path == standing  # the tolerance is the user's to set


def test_a_tolerance_of_zero_is_too_strict(converted: DenselyConnected, standing: Path) -> None:
    with pytest.raises(CheckFailed):
        cd.export(converted, "onnx", standing, tolerance=0.0)
    assert still_standing(standing)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
def test_whatever_happens_half_way_loses_nothing(
    converted: DenselyConnected, standing: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException]
) -> None:
    def write(program: Any, path: Path, **options: Any) -> Written:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(deployment, "exporter", lambda target: write)
    with pytest.raises(OutputRefused if isinstance(error, OSError) else error):  # type: ignore[arg-type]
        cd.export(converted, "onnx", standing)
    assert still_standing(standing)


@pytest.mark.parametrize(
    ("out", "message"), [("m.engine", r"expected \.onnx"), ("none/m.onnx", "make it first"), ("folder.onnx", "is a directory")]
)
def test_bad_outputs_are_found_before_any_work(checkpoint_path: Path, tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises((InputRefused, OutputRefused), match=message):
        cd.export(checkpoint_path, "onnx", tmp_path / out)


@pytest.mark.parametrize("training", [True, False])
def test_the_callers_model_keeps_its_mode(trained: DenselyConnected, tmp_path: Path, training: bool) -> None:
    model = cd.convert(trained).train(training)
    cd.export(model, "onnx", tmp_path / "m.onnx")
    assert model.training is training


def test_what_is_no_model_of_the_family(tmp_path: Path, converted: DenselyConnected) -> None:
    import copy

    import torch

    with pytest.raises(InputRefused, match="can't export a Linear"):
        cd.export(torch.nn.Linear(2, 2), "onnx", tmp_path / "m.onnx")
    with pytest.raises(InputRefused, match=r"call model\.float\(\) first"):
        cd.export(copy.deepcopy(converted).half(), "onnx", tmp_path / "m.onnx")
    with pytest.raises(InputRefused, match="can't convert a Linear"):
        cd.convert(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_unknown_target(converted: DenselyConnected, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="expected one of onnx"):
        cd.export(converted, "tflite", tmp_path / "m.tflite")
    with pytest.raises(InputRefused, match="a model in memory has no default path"):
        cd.export(converted, "onnx")


def test_odd_input_sizes_convert_and_export(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "c.pth.tar", state_dict(training_model(TINY)))
    done = cd.export(path, "onnx", overrides={"input_size": (33, 47), "stem_stride": 2})
    assert done.path == tmp_path / "c.onnx"
    with cd.open_session(done.path) as session:
        assert session.run(np.zeros((1, 3, 33, 47), np.float32)).shape == (1, 10)


def test_options_are_named_in_the_signature(checkpoint_path: Path, tmp_path: Path) -> None:
    """Those of a target, and what a file does not say, which `load` and the other functions take in the same way."""
    taken = inspect.signature(cd.export).parameters
    targets_own = {option.name for target in targets().values() for option in target.options}
    loading = set(inspect.signature(cd.load).parameters) - {"path", "sha256", "data", "like"}
    assert targets_own | loading <= set(taken)
    assert all(taken[name].annotation not in (inspect.Parameter.empty, "Any") for name in targets_own | loading)
    one = cd.export(checkpoint_path, "onnx", tmp_path / "a.onnx", batch=2, opset=19, input_size=(40, 40))
    other = cd.export(checkpoint_path, "onnx", tmp_path / "b.onnx", batch=2, opset=19, overrides={"input_size": (40, 40)})
    assert one.path.read_bytes() == other.path.read_bytes()
    assert one.manifest.architecture is not None and one.manifest.architecture.input_size == (40, 40)
    with pytest.raises(InputRefused, match="native has no option opset"):
        cd.export(checkpoint_path, "native", tmp_path / "a.so", opset=19)


@pytest.mark.parametrize(("target", "precision", "words"), [
    ("native", "fp16", "native has no precision fp16; expected one of fp32, bf16"),
    ("onnx", "tf32", "ONNX has no precision tf32; expected one of fp32, fp16, bf16, int8"),
])  # fmt: skip
def test_a_precision_that_a_target_lacks_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, precision: str, words: str
) -> None:
    """Before the model is read."""
    monkeypatch.setattr("cnet_deploy.workflows.export.open_model", lambda *_: pytest.fail("the model was read"))
    with pytest.raises(InputRefused, match=words):
        cd.export(tmp_path / "m.safetensors", target, precision=precision)


def test_a_bf16_onnx_file_on_a_cpu_names_what_runs_there(checkpoint_path: Path, tmp_path: Path) -> None:
    cd.export(checkpoint_path, "onnx", tmp_path / "m.onnx", precision="bf16")
    with pytest.raises(InputRefused, match="in bf16, for which onnxruntime lacks operators on CPUs .*; for a CPU export with --native"):
        cd.open_session(tmp_path / "m.onnx")


@pytest.fixture(scope="module")
def in_int8(once: Once, compiled: None, converted: DenselyConnected, few_images: Path) -> Path:
    """The real checkpoint as a library in int8, calibrated on a hundred images."""

    def make(place: Path) -> None:
        cd.export(converted, "native", place / "m.int8.so", precision="int8", calibrate=few_images, accuracy_budget=5.0, cpu="host")

    return once("int8", make) / "m.int8.so"


def test_int8_is_exact_and_its_manifest_tells_how_it_was_made(in_int8: Path, few_images: Path) -> None:
    manifest = Manifest.from_json(manifest_path(in_int8).read_text())
    own = manifest.details["quantization"]
    assert manifest.precision == "int8" and (own["method"], own["images"], own["kept"]) == ("minmax", 100, {})
    images = cd.Preprocessing.of((32, 32), 10).apply(cifar_records(few_images, 10)[0])
    assert own["digest"] == digest(images.tobytes())
    accuracy = own["accuracy"]
    assert accuracy["images"] == 100 and accuracy["budget"] == 5 and accuracy["fp32"] == 0.91 and accuracy["agreement"] >= 0.95
    exactly, random, real = manifest.verification
    assert exactly["max_error"] == 0 == exactly["tolerance"] and exactly["inputs"].endswith("to the bit") and exactly["images"] == 4
    assert random["least_cosine"] == 0.95 and "others" not in random and random["cosine"] > 0.99 and random["only_shown"]
    assert real["inputs"] == "labelled images" and real["others"] == 0 and real["top1"] == accuracy["int8"] and real["passed"]


def test_int8_is_shown_and_judged_by_its_answers(in_int8: Path, checkpoint_path: Path, few_images: Path) -> None:
    text = cd.inspect(in_int8).summary()
    assert (
        "images 100, method minmax" in text and "accuracy: top-1 9" in text and "verified in int8 on labelled images: cosine 0.99" in text
    )
    random, real = cd.verify(in_int8, checkpoint_path, images=few_images)
    assert random.passed and real.passed and random.max_error > 1e-3 and "cosine 0.99" in real.summary() and "(in int8" in real.summary()
    assert not cd.verify(in_int8, checkpoint_path, tolerance=1e-4)[0].passed  # the tolerance is the user's to set
    done = cd.evaluate([checkpoint_path, in_int8], few_images)
    assert [file.precision for file in done.files] == ["fp32", "int8"] and done.files[1].top1_error == pytest.approx(9, abs=3)


def test_another_network_in_int8_does_not_pass(in_int8: Path, tmp_path: Path) -> None:
    other = training_model(cd.Architecture((4, 4, 4), (8, 16, 32), classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=1.0))
    path = save_checkpoint(tmp_path / "other.pth.tar", state_dict(other))
    assert not cd.verify(in_int8, path)[0].passed


def test_a_library_that_is_not_exact_is_not_written(
    converted: DenselyConnected, compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight that is off by so little that no answer changes."""
    write = exporter("native")

    def nearly(program: Any, path: Path, **options: Any) -> Written:
        exact = write(program, path, cpu="host", **options).exact
        bias = program.head.bias.copy()
        bias[3] += 1e-3
        changed = replace(program, head=replace(program.head, bias=bias))
        known = options["quantization"]
        options["quantization"] = replace(known, calibration=replace(known.calibration, network=digest_of(changed)))
        return replace(write(changed, path, cpu="host", **options), exact=exact)

    monkeypatch.setattr(deployment, "exporter", lambda target: nearly)
    for name in ("m.so", "m.so.json"):
        (tmp_path / name).write_bytes(old_output(tmp_path / name.replace("so.", "onnx.")))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    images = cd.Preprocessing.of((32, 32), 10).apply(np.random.default_rng(0).integers(0, 256, (32, 3, 32, 32), np.uint8))
    with pytest.raises(CheckFailed, match=r"nothing was written. random images \(seed \d+\), to the bit: max error 1\.00e-03"):
        cd.export(converted, "native", tmp_path / "m.so", precision="int8", calibrate=images)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_can_not_be_run_here_carries_exact_logits(
    converted: DenselyConnected, compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a library for another processor: whoever opens it first compares it with the integers that it must compute."""
    monkeypatch.setattr("cnet_deploy.exporters.native._why_not_here", lambda _: "built for another processor")
    images = cd.Preprocessing.of((32, 32), 10).apply(np.random.default_rng(0).integers(0, 256, (32, 3, 32, 32), np.uint8))
    done = cd.export(converted, "native", tmp_path / "m.so", precision="int8", calibrate=images, cpu="host")
    assert done.unverified == "built for another processor" and done.comparisons == []
    values = json.loads(manifest_path(done.path).read_text())
    assert values["proof"]["tolerance"] == 1e-6
    with caplog.at_level("WARNING"):
        cd.export(converted, "native", tmp_path / "n.so", precision="int8", calibrate=images, cpu="host", tolerance=0.3)
    assert "the self-check of an artifact allows at most 1e-06 for int8: that is used, not 0.3" in caplog.text
    cd.export(converted, "native", tmp_path / "n.so", precision="int8", calibrate=images, cpu="host", tolerance=1e-7)
    assert json.loads(manifest_path(tmp_path / "n.so").read_text())["proof"]["tolerance"] == 1e-7
    values["proof"]["logits"][1][3] += 1e-3
    manifest_path(done.path).write_text(json.dumps(values))
    with pytest.raises(CheckFailed, match="something else than its model"):
        cd.open_session(done.path)
    values["proof"]["logits"][1][3] -= 1e-3
    manifest_path(done.path).write_text(json.dumps(values))
    with cd.open_session(done.path) as session:
        assert session.manifest is not None and session.manifest.unverified is None and session.precision == "int8"


@pytest.mark.parametrize(("options", "message"), [
    ({"precision": "int8"}, "precision int8 takes the ranges of its values from images, and none were given"),
    ({"calibrate": "x"}, "calibrate was given for precision fp32; expected it with precision int8 alone"),
    ({"precision": "bf16", "accuracy_budget": 0.5}, "accuracy_budget was given for precision bf16"),
    ({"calibration": "entropy"}, "calibration was given for precision fp32"),
    ({"precision": "int8", "calibrate": "x", "calibration": "mean"}, "no calibration is called 'mean'; expected one of minmax"),
    ({"precision": "int8", "calibrate": "x", "form": lambda _: "gather"}, "forms are not measured in int8"),
    ({"precision": "int8", "calibrate": "x", "calibration_images": 0}, "calibration_images is 0; expected 1 to 10,000"),
    ({"precision": "int8", "calibrate": "x", "calibration_images": "256"}, "calibration_images is .*; expected a whole number from 1"),
    ({"precision": "int8", "calibrate": "x", "calibration_images": True}, "calibration_images is .*; expected a whole number from 1"),
    ({"precision": "int8", "calibrate": "x", "calibration_images": 256.5}, "calibration_images is .*; expected a whole number from 1"),
    ({"calibration_images": 300}, "calibration_images was given for precision fp32; expected it with precision int8 alone"),
    ({"precision": "int8", "calibrate": "x", "accuracy_budget": "0.5%"}, "the accuracy budget is .*; expected a number: points"),
    ({"precision": "int8", "calibrate": "x", "accuracy_budget": True}, "the accuracy budget is .*; expected a number: points"),
    ({"quantization": 1}, "native has no option quantization; expected some of"),
    ({"precision": "int8", "calibrate": "x", "quantization": 1}, "native has no option quantization; expected some of"),
    ({"precision": "int8", "calibrate": "x", "accuracy_budget": -1.0}, "the accuracy budget is -1; expected points"),
    ({"precision": "int8", "calibrate": "x", "accuracy_budget": float("nan")}, "the accuracy budget is nan; expected points"),
])  # fmt: skip
def test_options_of_int8_that_do_not_go_together(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before the model is read."""
    monkeypatch.setattr("cnet_deploy.workflows.export.open_model", lambda *_: pytest.fail("the model was read"))
    with pytest.raises(InputRefused, match=message):
        cd.export(tmp_path / "m.safetensors", "native", **options)


@pytest.mark.parametrize("target", ["onnx", "native", "tensorrt"])
def test_condensenet_v2_has_no_integers(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by every target, and before any image is read: neither file is there."""
    monkeypatch.setattr(deployment, "input_of", lambda *_: pytest.fail("images were read"))
    cd.save(build_random(TINY_V2), tmp_path / "m.safetensors")
    images = {"calibrate": tmp_path / "images.bin", "images": tmp_path / "others.bin"}
    with pytest.raises(InputRefused, match=r"m\.safetensors: a CondenseNet V2 has no form in integers yet"):
        cd.export(tmp_path / "m.safetensors", target, precision="int8", **images)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@long
def test_a_calibration_is_used_again(converted: DenselyConnected, compiled: None, few_images: Path, tmp_path: Path) -> None:
    """And nobody computes it a second time."""
    calibration = calibrate(lower(converted), cd.Preprocessing.of((32, 32), 10).apply(cifar_records(few_images, 10)[0][:8]))
    done = cd.export(converted, "native", tmp_path / "m.so", precision="int8", calibration=calibration, cpu="host")
    assert done.calibration is calibration and done.manifest.details["quantization"]["images"] == 8
    assert [one.inputs.partition(" (")[0] for one in done.comparisons] == ["random images", "random images"]
    other = build_random(TINY)
    with pytest.raises(InputRefused, match="the calibration is of another network"):
        cd.export(other, "native", tmp_path / "n.so", precision="int8", calibration=calibration)
