"""How images are prepared, from the options of convert and export into every file, and what is said where it was guessed."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import Manifest
from cnet_deploy.artifacts.onnx_metadata import read_metadata
from cnet_deploy.cli import main
from cnet_deploy.errors import InputRefused
from cnet_deploy.files.onnx_file import parse_onnx
from cnet_deploy.images.decode import read_image
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.workflows.convert import convert_file
from cnet_deploy.workflows.export import export_repository
from tests.cases import long

OWN = cd.Overrides(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), resize=40, interpolation="bicubic")
WORDS = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3", "--resize", "40", "--interpolation", "bicubic")
STATED = cd.Preprocessing("custom", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 40, (32, 32), "bicubic")


def command(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def manifest_of(path: Path) -> Manifest:
    return Manifest.from_json(Path(f"{path}.json").read_text())


@pytest.fixture(scope="module")
def stated(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real network, converted by a command that states how images are prepared, with an artifact of each kind made from it."""
    folder = tmp_path_factory.mktemp("stated")
    command("convert", checkpoint_path, "-o", folder / "m.safetensors", *WORDS)
    command("export", folder / "m.safetensors", "--onnx", "-o", folder / "m.onnx")
    command("export", folder / "m.safetensors", "--native", "--target", "host", "-o", folder / "m.so")
    return folder


@pytest.mark.parametrize(
    ("file", "backend"), [("m.safetensors", "torch"), ("m.onnx", "onnxruntime"), ("m.onnx", "openvino"), ("m.so", "native")]
)
def test_what_was_stated_is_in_every_file_and_every_backend_reads_it(file: str, backend: str, stated: Path) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs the extra: cnet-deploy[openvino]")
    with cd.open_session(stated / file, backend) as session:
        assert session.preprocessing == STATED
    result = cd.inspect(stated / file)
    assert result.details["preprocessing"] == STATED.to_dict() and "guessed" not in json.dumps(result.to_dict())
    line = "preprocessing: custom: mean 0.5, 0.4, 0.3, std 0.2, 0.25, 0.3, resized to 40 (bicubic), cropped to 32x32"
    assert line in result.summary().splitlines()
    if file != "m.safetensors":  # what engines have alone
        assert manifest_of(stated / file).preprocessing == STATED


def test_a_triton_repository_has_it_too(stated: Path, tmp_path: Path) -> None:
    _, repository = export_repository(stated / "m.safetensors", "onnx", tmp_path / "models")
    assert manifest_of(repository.model).preprocessing == STATED


def test_export_states_it_for_checkpoints_and_overrides_what_a_file_states(checkpoint_path: Path, stated: Path, tmp_path: Path) -> None:
    command("export", checkpoint_path, "--onnx", "-o", tmp_path / "a.onnx", *WORDS)
    model = parse_onnx((tmp_path / "a.onnx").read_bytes())
    assert read_metadata({entry.key: entry.value for entry in model.metadata_props}).preprocessing == STATED
    done = cd.export(stated / "m.safetensors", "onnx", tmp_path / "b.onnx", preprocessing=cd.Overrides(statistics="imagenet"))
    assert done.manifest.preprocessing is not None and done.manifest.preprocessing.statistics == "imagenet"
    assert (done.manifest.preprocessing.resize, done.manifest.preprocessing.interpolation) == (40, "bicubic")


def test_a_model_in_memory(converted: DenselyConnected, tmp_path: Path) -> None:
    done = cd.export(converted, "onnx", tmp_path / "a.onnx", preprocessing=OWN)
    assert done.manifest.preprocessing == STATED
    assert converted.preprocessing == cd.Preprocessing.of((32, 32), 10)  # the caller's is as it was
    assert converted.preprocessing.guessed == ("statistics",)


def test_images_are_resized_as_stated() -> None:
    path = Path(__file__).parents[2] / "docs" / "latency.svg"
    with pytest.raises(InputRefused, match="is no readable image"):
        read_image(path, STATED)
    image = Path(__file__).parents[2] / "examples" / "images" / "cat.png"
    smooth, sharp = (read_image(image, replace(STATED, interpolation=how)) for how in ("bilinear", "bicubic"))  # type: ignore[arg-type]
    assert smooth.shape == sharp.shape == (3, 32, 32) and (smooth != sharp).mean() > 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (cd.Overrides(statistics="mine"), "no statistics are called 'mine'"),
        (cd.Overrides(interpolation="nearest"), "interpolation 'nearest'; expected bilinear or bicubic"),  # type: ignore[arg-type]
        (cd.Overrides(mean=(0.5,)), "mean has 1 number; expected 3, as the network reads RGB images"),
        (cd.Overrides(std=(0.0, 1.0, 1.0)), "over 0"),
        (cd.Overrides(resize=16), "resize is 16; expected 32"),
    ],
)
def test_refusals(wrong: Any, message: str, checkpoint_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=f"^{checkpoint_path}: .*{message}"):
        convert_file(checkpoint_path, tmp_path / "m.safetensors", preprocessing=wrong)
    with pytest.raises(InputRefused, match=message):
        cd.export(checkpoint_path, "onnx", tmp_path / "m.onnx", preprocessing=wrong)
    assert not list(tmp_path.iterdir())


def test_other_networks_of_the_table_hold_none(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="can't hold how images are prepared"):
        cd.export("mobilenet-1.0-224", "onnx", tmp_path / "m.onnx", preprocessing=OWN)


@long
def test_the_reference_s_format_holds_none_and_that_is_said(
    checkpoint_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert_file(checkpoint_path, tmp_path / "m.pth.tar", preprocessing=OWN)
    assert "the reference's format does not hold how images are prepared; give the options again to export" in caplog.text


# ---- what was guessed --------------------------------------------------------------------------------------------------------------


def test_inspect_marks_guesses(checkpoint_path: Path, onnx_path: Path) -> None:
    said = "(mean and std guessed from the input size and number of classes: give --statistics to convert or export)"
    for path in (checkpoint_path, onnx_path):
        result = cd.inspect(path)
        assert result.details["preprocessing"] == cd.Preprocessing.of((32, 32), 10).to_dict()
        assert result.details["preprocessing"]["guessed"] == ["statistics"]
        (line,) = (line for line in result.summary().splitlines() if line.startswith("preprocessing: "))
        assert line.startswith("preprocessing: cifar10: mean 0.4914") and line.endswith(said)


def notes(caplog: pytest.LogCaptureFixture) -> list[str]:
    result = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    caplog.clear()
    return result


@long
def test_run_and_evaluate_say_once_what_was_guessed_and_how_to_state_it(
    checkpoint_path: Path, onnx_path: Path, few_images: Path, stated: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = "mean and std guessed from the input size and number of classes: give --statistics here, or to convert or export"
    assert len(list(cd.classify(onnx_path, few_images))) == 100
    (note,) = notes(caplog)
    assert note.startswith(f"{onnx_path}: {said}")
    cd.evaluate([checkpoint_path, onnx_path, stated / "m.so"], few_images)
    (note,) = notes(caplog)
    assert note.startswith(f"{checkpoint_path}, {onnx_path}: {said}")
    given = cd.Overrides(statistics="cifar10")
    list(cd.classify(onnx_path, few_images, preprocessing=given))
    cd.evaluate([onnx_path], few_images, preprocessing=given)
    list(cd.classify(stated / "m.so", few_images))
    assert notes(caplog) == []
    cd.evaluate([onnx_path], few_images, preprocessing=cd.Overrides(resize=32))  # says nothing of mean and std
    assert len(notes(caplog)) == 1


@long
def test_export_does_not_warn_of_itself(checkpoint_path: Path, few_images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cd.export(checkpoint_path, "onnx", tmp_path / "m.onnx", images=few_images)
    cd.verify(tmp_path / "m.onnx", checkpoint_path, images=few_images)
    assert notes(caplog) == []


@long
def test_a_file_that_was_guessed_differently_is_decoded_once(stated: Path, checkpoint_path: Path, tmp_path: Path, few_images: Path) -> None:
    """The same steps, guessed in one file and stated in the other: the answers are the same."""
    command("convert", checkpoint_path, "-o", tmp_path / "a.safetensors")
    command("convert", checkpoint_path, "-o", tmp_path / "b.safetensors", "--statistics", "cifar10")
    guessed, known = cd.evaluate([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], few_images).files
    assert guessed.preprocessing.guessed == ("statistics",) and known.preprocessing.guessed == ()
    assert (guessed.answers == known.answers).all()
    assert cd.load(tmp_path / "a.safetensors").preprocessing.guessed == ("statistics",)  # it is still a guess when it is read again


def test_a_manifest_s_own_notes_cannot_stop_inspect(stated: Path, tmp_path: Path) -> None:
    (tmp_path / "m.so").write_bytes((stated / "m.so").read_bytes())
    values = json.loads(Path(f"{stated / 'm.so'}.json").read_text())
    values["details"]["preprocessing"], values["preprocessing"] = "as one likes", None
    (tmp_path / "m.so.json").write_text(json.dumps(values))
    assert "preprocessing: as one likes" in cd.inspect(tmp_path / "m.so").summary()
