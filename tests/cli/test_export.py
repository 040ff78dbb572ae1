"""Several artifacts in one `export`, and their names."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.cli import main
from cnet_deploy.models.build import build_random
from tests.builders import TINY


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
