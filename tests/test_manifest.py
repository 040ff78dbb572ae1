"""Manifests: round trip, and pairs that do not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy import manifest
from cnet_deploy.errors import InputRefused
from cnet_deploy.manifest import Manifest, manifest_path


def test_round_trip(onnx_path: Path) -> None:
    found = manifest.read(onnx_path)
    assert found is not None
    assert Manifest.from_json(found.to_json()) == found
    assert found.target == "onnx" and found.precision == "fp32"


def test_no_manifest(onnx_path: Path, tmp_path: Path) -> None:
    shutil.copy(onnx_path, tmp_path / "m.onnx")
    assert manifest.read(tmp_path / "m.onnx") is None


def test_a_swapped_artifact_is_refused(onnx_path: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "m.onnx"
    artifact.write_bytes(onnx_path.read_bytes() + b"\0")
    shutil.copy(manifest_path(onnx_path), manifest_path(artifact))
    with pytest.raises(InputRefused, match=r"with SHA-256 .* expects .*export the model again"):
        manifest.read(artifact)


WORDS = ("target", "sha256", "precision", "source_sha256")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in WORDS for value in (None, 3.5, [1], ...)),
        *((key, value) for key in ("bytes", "details") for value in (None, 3.5, "x", [1], ...)),
        *(("architecture", value) for value in (3.5, "x", [1], {}, ...)),
        *(("preprocessing", value) for value in (3.5, "x", [1], {}, ...)),
    ],
)
def test_entries_of_another_kind(onnx_path: Path, key: str, value: Any) -> None:
    values = json.loads(manifest_path(onnx_path).read_text())
    values[key] = value
    if value is ...:
        del values[key]
    with pytest.raises(InputRefused):
        Manifest.from_json(json.dumps(values))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"cnet_deploy_manifest": 2}', "[" * 100_000])
def test_texts_that_are_no_manifest(text: str) -> None:
    with pytest.raises(InputRefused):
        Manifest.from_json(text)


def test_a_huge_manifest_is_not_read(onnx_path: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "m.onnx"
    shutil.copy(onnx_path, artifact)
    manifest_path(artifact).write_text(" " * (manifest.MAX_BYTES + 1))
    with pytest.raises(InputRefused, match="expected at most 1048576"):
        manifest.read(artifact)


def test_unknown_entries_are_refused(onnx_path: Path) -> None:
    values = json.loads(manifest_path(onnx_path).read_text())
    with pytest.raises(InputRefused):
        Manifest.from_json(json.dumps({**values, "signature": "x"}))
