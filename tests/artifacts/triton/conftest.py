"""What the tests of Triton's repositories share."""

from __future__ import annotations

from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import Manifest, manifest_path
from cnet_deploy.models.condensenet import DenselyConnected


@pytest.fixture
def described(onnx_path: Path) -> Manifest:
    return Manifest.from_json(manifest_path(onnx_path).read_text())


@pytest.fixture
def other(converted: DenselyConnected, tmp_path: Path) -> Path:
    """The same network in other bytes, called ``m``."""
    (tmp_path / "other").mkdir()
    return cd.export(converted, "onnx", tmp_path / "other" / "m.onnx", opset=19).path
