"""ONNX files of the table's other networks, which go through torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build_named
from cnet_deploy.sessions import open_session
from tests.builders import logits
from tests.cases import few, long


@pytest.mark.parametrize("name", few(["mobilenet-1.0-224", "resnet-18"]))
@long
def test_baselines_are_one_clean_file(name: str, tmp_path: Path) -> None:
    model = build_named(name)
    done = cd.export(model, "onnx", tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json"]  # no external data
    assert done.manifest.architecture is None and done.comparisons[0].passed
    text = onnx.load(done.path)
    assert not text.metadata_props and not any(node.metadata_props or node.doc_string for node in text.graph.node)
    assert b".py" not in b"".join(node.SerializeToString() for node in text.graph.node)
    batch = np.random.default_rng(1).standard_normal((3, 3, 224, 224), np.float32)
    with open_session(done.path) as session:
        assert session.input_shape == (None, 3, 224, 224)
        expected = logits(model, batch)
        assert np.abs(session.run(batch) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_real_images_need_preprocessing(tmp_path: Path, images_path: Path) -> None:
    with pytest.raises(InputRefused, match="leave --images out"):
        cd.export(build_named("mobilenet-1.0-224"), "onnx", tmp_path / "m.onnx", images=images_path)
    assert list(tmp_path.iterdir()) == []


def test_opsets_below_torchs_own(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="expected 18 to 22"):
        cd.export(build_named("mobilenet-1.0-224"), "onnx", tmp_path / "m.onnx", opset=17)
