"""Several artifacts in one `export`, and their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.tuning import tune
from cnet_deploy.cli import main
from cnet_deploy.cli import options as parameters
from cnet_deploy.cli.options import Artifact
from cnet_deploy.models.build import build_random
from cnet_deploy.workflows import quantization
from tests.builders import TINY
from tests.cases import long


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from cnet_deploy.checkpoints.save import save

    save(build_random(TINY), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def written(folder: Path) -> dict[str, str]:
    """The artifacts in a folder with their precisions."""
    made = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".onnx", ".so"):
            manifest = read_manifest(path)
            assert manifest is not None
            made[path.name] = manifest.precision
    return made


def test_every_target_that_was_asked_for_is_written(model: Path, compiled: None, tmp_path: Path) -> None:
    done = export(model, "--onnx", "--native", "--target", "host")
    assert done.exit_code == 0, done.output
    assert written(tmp_path) == {"m.onnx": "fp32", "m.so": "fp32"}
    assert f"wrote {tmp_path / 'm.onnx'} (" in done.stdout and f" and {tmp_path / 'm.so.json'}" in done.stdout


def test_a_smaller_precision_has_a_name_of_its_own(model: Path, tmp_path: Path) -> None:
    done = export(model, "--onnx", "--precision", "FP32,fp16")
    assert done.exit_code == 0, done.output
    assert written(tmp_path) == {"m.onnx": "fp32", "m.fp16.onnx": "fp16"} and "replaced" not in done.stdout
    again = export(model, "--onnx", "--precision", "fp16", "-o", tmp_path / "m.onnx")
    assert "m.onnx.json; replaced m.onnx (fp32)" in again.stdout and written(tmp_path)["m.onnx"] == "fp16"
    (tmp_path / "m.onnx.json").unlink()
    assert "; replaced m.onnx\n" in export(model, "--onnx").stdout


def test_a_folder_for_several(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = export(model, "--onnx", "--precision", "fp32,fp16", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert written(tmp_path / "out") == {"m.onnx": "fp32", "m.fp16.onnx": "fp16"} and written(tmp_path) == {}


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (["--onnx", "--precision", "fp32,fp16", "-o", "x.onnx"], 2, "-o x.onnx names one file, and 2 artifacts were asked for"),
        (["--onnx", "--native", "--precision", "fp16"], 2, "--native has no --precision fp16; expected one of fp32, bf16"),
        (["--onnx", "--precision", "fp32,int3"], 2, "'int3' is not one of 'fp32'"),
        (["--onnx", "--target", "host"], 2, "--target is no option of --onnx"),
        (["--onnx", "--precision", "fp16,fp32", "--triton", "models"], 2, "--triton takes one artifact, and 2 were asked for"),
        (["--native", "--form", "dense"], 2, "--form is no option of --native"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    asked: list[str], code: int, message: str, model: Path, tmp_path: Path
) -> None:  # fmt: skip
    done = export(model, *asked)
    assert done.exit_code == code and message in " ".join(done.stderr.split()), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("name", ["m.fp16.onnx", "m.fp16.onnx.json"])
def test_what_can_not_be_replaced_is_known_before_the_first_is_written(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    done = export(model, "--onnx", "--precision", "fp32,fp16")
    assert done.exit_code == 4 and f"{tmp_path / name}: is a text file" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", name} and (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(
    ("asked", "code", "message"),
    [
        (["--native", "--precision", "int8"], 2, "give some as the network is used with: --calibrate DATA"),
        (["--native", "--precision", "fp32,int8"], 2, "--precision int8 takes the ranges of its values from images"),
        (["--native", "--calibrate", "IMAGES"], 2, "--calibrate is an option of --precision int8 alone"),
        (["--onnx", "--precision", "fp16", "--accuracy-budget", "1%"], 2, "--accuracy-budget is an option of --precision int8 alone"),
        (["--native", "--precision", "int8", "--calibrate", "IMAGES", "--calibration", "mean"], 2, "'mean' is not one of 'minmax'"),
        (["--native", "--precision", "int8", "--calibrate", "IMAGES", "--accuracy-budget", "0.5"], 2, "with a percent sign, as 0.5%"),
        (["--native", "--precision", "int8", "--calibrate", "IMAGES", "--accuracy-budget", "nan%"], 2, "'nan%' is no accuracy budget"),
        (["--native", "--precision", "int8", "--calibrate", "IMAGES", "--accuracy-budget", "100%"], 2, "'100%' is no accuracy budget"),
        (["--native", "--precision", "int8", "--calibrate", "IMAGES", "--calibration-images", "0"], 2, "1<=x<=10000"),
        (["--native", "--precision", "int8", "--calibrate", ""], 2, "the name is empty"),
        (["--native", "--precision", "int8", "--calibrate", "nothing"], 4, "nothing: no such file or folder; expected images"),
    ],
)
def test_options_of_int8(asked: list[str], code: int, message: str, model: Path, images_path: Path, tmp_path: Path) -> None:
    done = export(model, *(images_path if word == "IMAGES" else word for word in asked))
    assert done.exit_code == code and message in " ".join(done.stderr.split()), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


@long
def test_several_in_int8_are_calibrated_once(
    model: Path, few_images: Path, compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the network in one form; in another it computes its planes in another order."""
    times = []
    calibrated = quantization.calibrated
    monkeypatch.setattr(quantization, "calibrated", lambda *given, **more: times.append(1) or calibrated(*given, **more))
    options = {"precision": "int8", "cpu": "host"}
    artifacts = [Artifact("native", None, options), Artifact("native", None, options), Artifact("native", "gather", options)]
    monkeypatch.setattr(parameters, "artifacts_of", lambda *_: artifacts)
    (tmp_path / "out").mkdir()
    done = export(model, "--native", "--calibrate", few_images, "--calibration-images", "40", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(times) == 2 and written(tmp_path / "out") == {"m.int8.so": "int8"}
    assert done.stderr.count("calibrating on 40 images of 10 classes") == 1


@long
def test_the_form_is_chosen_by_measuring(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "SETTINGS", Settings(rounds=1, seconds=0.001))
    done = export(model, "--onnx", "--form", "auto")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "m.onnx.forms.json").exists() and written(tmp_path) == {"m.onnx": "fp32"}


@long
def test_a_budget_on_the_command_line(model: Path, few_images: Path, compiled: None, tmp_path: Path) -> None:
    """Random weights: the answers in int8 are as right as any."""
    asked = ["--native", "--target", "host", "--precision", "int8", "--calibrate", few_images, "--accuracy-budget", "50%"]
    done = export(model, *asked, "--calibration", "entropy", "--calibration-images", "16")
    assert done.exit_code == 0, done.output
    assert written(tmp_path) == {"m.int8.so": "int8"}
    assert "of answers the same: the budget of 50 points holds" in done.stdout
    manifest = read_manifest(tmp_path / "m.int8.so")
    assert manifest is not None and manifest.details["quantization"]["method"] == "entropy"
    again = CliRunner().invoke(main, ["verify", str(tmp_path / "m.int8.so"), str(model)])
    assert again.exit_code == 0 and "m.int8.so answers in int8 as" in again.stdout


def test_the_calibration_data_are_not_replaced(model: Path, few_images: Path, tmp_path: Path) -> None:
    (data := tmp_path / "d.so").write_bytes(few_images.read_bytes())
    done = export(model, "--native", "--precision", "int8", "--calibrate", data, "-o", data)
    assert done.exit_code == 4 and "is the file of --calibrate; expected another name for the output" in done.stderr
    assert data.read_bytes() == few_images.read_bytes()
