"""Names and manifests made to leave the repository's folder or to write its configuration."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.workflows.publish import publish

from .helpers import engine, parsed


@pytest.mark.parametrize(
    ("name", "made"),
    [("../x", "_x"), ('a"b\n', "a_b_"), ("ü", "_"), ("..", "model"), ("", "model"), ("/etc/x", "_etc_x"), (".hidden", "hidden"),
     ("v1.2-a_b", "v1.2-a_b")],
)  # fmt: skip
def test_hostile_names_stay_in_the_folder(onnx_path: Path, tmp_path: Path, name: str, made: str) -> None:
    done = publish(tmp_path / "r", onnx_path, name=name)
    assert done.name == made and done.config.parent == tmp_path / "r" / made and parsed(done.config).name == made
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_the_name_of_a_hostile_file(onnx_path: Path, tmp_path: Path) -> None:
    path = tmp_path / 'a"b }\nevil: 1.onnx'
    shutil.copy(onnx_path, path)
    shutil.copy(manifest_path(onnx_path), manifest_path(path))
    assert parsed(publish(tmp_path / "r", path).config).name == "a_b___evil__1"


@pytest.mark.parametrize("text", ['"', "\\", '\\"', "a\nname: 'evil'", "\x00\x1b[31m", "ü€😀", "\ud800", "", "'} ]"])
def test_what_a_manifest_says_is_text(tmp_path: Path, described: Manifest, text: str) -> None:
    said = {"version": text, "gpu": text, "compute_capability": [text]}
    path = engine(tmp_path, described, **said)
    made = replace(Manifest.from_json(manifest_path(path).read_text()), source_sha256=text, precision=text)
    manifest_path(path).write_text(made.to_json())
    found = parsed(publish(tmp_path / "r", path).config)
    expected = text.replace("\ud800", "\\ud800")
    assert found.name == "net" and found.parameters["source_sha256"].string_value == found.parameters["precision"].string_value == expected
