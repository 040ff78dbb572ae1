"""One model in several runtimes and precisions: what is measured, what is said of it, and the file that is read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy.benchmarks.compare.results import comparison_from, read_comparison, write_comparison
from cnet_deploy.benchmarks.compare.run import _overlaps, compare, precision_of, variants_of
from cnet_deploy.benchmarks.compare.show import notes, page, words_of
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.images.preprocessing import Overrides
from cnet_deploy.models.build import build_random
from cnet_deploy.sessions import backends, names
from tests.benchmarks.helpers import QUICK
from tests.builders import TINY
from tests.cases import long
from tests.release.pages import ROOT

DATA = ROOT / "examples" / "cifar10-test-500.bin"


def test_a_checkpoint_in_two_precisions_and_one_that_can_not_be_made(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("CXX", "/no/such/compiler")
    lines: list[str] = []
    shares: list[float] = []
    done = cd.compare(
        checkpoint_path, data=DATA, limit=50, backends=["onnxruntime", "native"], precisions=["fp32", "fp16"], threads=1, settings=QUICK,
        notify=lines.append, progress=lambda _, share: shares.append(share),
    )  # fmt: skip
    assert any("3 variants, 2 rounds, 50 images: this takes about" in line for line in lines)
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    plain, half, native = done.variants
    assert [v.backend for v in done.variants] == ["onnxruntime", "onnxruntime.fp16", "native"]
    assert [v.precision for v in done.variants] == ["fp32", "fp16", "fp32"]
    assert native.result.error is not None and "/no/such/compiler" in native.result.error and native.accuracy is None
    assert plain.bytes is not None and half.bytes is not None and half.bytes < plain.bytes
    assert plain.accuracy is not None and half.accuracy is not None
    assert done.images is not None and (done.images.used, done.images.total) == (50, 500)
    assert done.reference is plain and plain.accuracy.agreement == 1 and (plain.accuracy.lost, plain.accuracy.won) == (0, 0)
    alone = cd.evaluate(checkpoint_path, DATA, limit=50).files[0]
    assert abs(alone.right1 - plain.accuracy.right1) <= 2  # the training form has the whole classifier
    assert half.accuracy.agreement is not None and half.accuracy.agreement > 0.9
    assert done.times_as_slow(done.measured[0]) == 1  # of others, with two rounds, chance decides
    assert [name for name, _ in done.failed.items()] == [native.result.error]

    sentence = done.sentence()
    assert f"{done.measured[0].backend} is the fastest: " in sentence and "On 50 images onnxruntime has a top-1 error of " in sentence
    assert words_of(done, native)[2] == "failed" and words_of(done, plain)[5:7] == ["", "reference"]
    text = page(done)
    assert text.index('<p class="result">') < text.index("<table>") < text.index("Not measured") < text.index("Environment")
    assert "/no/such/compiler" in text

    write_comparison(tmp_path / "c.json", done)
    again = read_comparison(tmp_path / "c.json")
    assert (
        json.loads(json.dumps(again.to_dict())) == json.loads((tmp_path / "c.json").read_text()) == json.loads(json.dumps(done.to_dict()))
    )
    assert str(tmp_path) not in sentence and "cnet-deploy-compare-" not in json.dumps(done.to_dict())


def test_a_network_has_no_answers() -> None:
    with pytest.raises(InputRefused, match="whose weights are random; expected a trained model, or no --data"):
        compare("condensenet-50", data=DATA)
    done = compare("condensenet-50", backends=["onnxruntime"], precisions=["fp32"], threads=1, settings=QUICK)
    (variant,) = done.variants
    assert variant.seconds and variant.accuracy is None and done.images is None and variant.bytes
    assert "top-1" not in done.sentence()


def test_an_artifact_is_run_as_it_is(onnx_path: Path) -> None:
    done = compare(onnx_path, data=DATA, limit=20, backends=["torch", "onnxruntime", "native"], threads=1, settings=QUICK)
    assert [v.backend for v in done.variants] == ["onnxruntime"]
    (variant,) = done.variants
    assert variant.bytes == onnx_path.stat().st_size and variant.accuracy is not None and variant.accuracy.images == 20
    with pytest.raises(InputRefused, match="expected no --classifier-keep"):
        compare(onnx_path, backends=["onnxruntime"], classifier_keep=1.0)
    with pytest.raises(InputRefused, match="whose architecture is fixed; expected no groups"):
        compare(onnx_path, backends=["onnxruntime"], groups=4)


@long
def test_weights_in_less_than_fp32_are_named(onnx_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What computes in fp32 with them gives answers, but not those of the model in fp32."""
    pytest.importorskip("openvino", reason="needs the extra: cnet-deploy[openvino]")
    artifact = cd.export(build_random(TINY), "onnx", tmp_path / "half.onnx", precision="fp16").path
    for path, expected in ((artifact, True), (onnx_path, False)):
        caplog.clear()
        done = compare(path, backends=["openvino"], precisions=["fp32"], threads=1, settings=QUICK)
        assert done.variants[0].precision == "fp32"
        assert (f"{path}: has its weights in fp16; what is called fp32 here computes" in caplog.text) is expected


def test_every_precision_that_the_declarations_have() -> None:
    for device in ("cpu", "cuda"):
        found = variants_of(device)
        assert {name.partition(".")[0] for name in found} == {name for name in names() if device in backends()[name].devices}
        assert not any(precision_of(name) == "tf32" for name in found) or device == "cuda"
        assert len(set(found)) == len(found)
    assert variants_of("cpu", ["onnxruntime.fp16", "native"], ["fp16", "bf16"]) == ("onnxruntime.fp16", "native.bf16")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precisions": ["fp8"]}, "no precision is called 'fp8'; expected some of fp32"),
        ({"backends": ["tflite"]}, "no backend is called 'tflite'"),
        ({"backends": ["native"], "precisions": ["fp16"]}, "native: not in fp16; expected another --precision or --backend"),
        ({"device": "tpu"}, "no device is called 'tpu'"),
        ({"limit": 0}, "the limit is 0 images"),
    ],
)
def test_what_can_not_be_compared_is_refused_first(asked: dict[str, object], message: str) -> None:
    with pytest.raises(InputRefused, match=message):
        compare("condensenet-50", **asked)  # type: ignore[arg-type]


def test_data_that_is_none_is_refused_before_anything_is_exported(checkpoint_path: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.raises(InputRefused, match="no such folder"):
        compare(checkpoint_path, data=tmp_path / "none", backends=["native"], notify=lines.append)
    assert not any("variants" in line for line in lines)


def test_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(Unavailable, match="condensenet-50: no variant could be measured: "):
        compare("condensenet-50", backends=["native"], settings=QUICK)


@long
def test_int8_is_calibrated_with_the_data(checkpoint_path: Path, small_dataset: Path, compiled: None) -> None:
    done = compare(
        checkpoint_path, data=DATA, limit=100, backends=["native"], precisions=["fp32", "int8"], threads=1, settings=QUICK,
        preprocessing=Overrides(statistics="cifar10"),
    )  # fmt: skip
    plain, bytes_ = done.variants
    assert [v.precision for v in done.variants] == ["fp32", "int8"] and plain.bytes and bytes_.bytes and bytes_.bytes < plain.bytes
    assert bytes_.accuracy is not None and bytes_.accuracy.agreement is not None and bytes_.accuracy.agreement >= 0.9
    assert words_of(done, bytes_)[:2] == ["native", "int8"] and "int8" in done.sentence()
    (note,) = done.report.notes
    assert note == f"int8 was calibrated with up to 256 images of {DATA}. Some of these images are among those that it answers."
    assert note in notes(done)
    assert comparison_from(json.loads(json.dumps(done.to_dict()))).report.notes == [note]


def test_whether_calibration_images_are_judged(small_dataset: Path, tmp_path: Path) -> None:
    assert _overlaps(DATA, DATA, "val") and _overlaps(small_dataset, small_dataset, "train")
    assert not _overlaps(small_dataset, small_dataset, "val")  # the training images are taken
    (tmp_path / "classes" / "val" / "cat").mkdir(parents=True)
    only_val, plain = tmp_path / "classes", tmp_path / "classes" / "val"
    assert _overlaps(only_val, only_val, "val") and _overlaps(plain, plain, "val")  # there are no others
    (tmp_path / "test_batch.bin").touch()
    assert _overlaps(tmp_path, tmp_path, "val") and not _overlaps(tmp_path, tmp_path, "train")
    assert not _overlaps(tmp_path, DATA, "val") and not _overlaps(None, None, "val") and not _overlaps(None, DATA, "train")
