"""sessions/openvino.py: the peer agrees with the others, where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.models.condensenet import DenselyConnected
from tests.cases import long

pytest.importorskip("openvino", reason="needs the extra: cnet-deploy[openvino]")


def test_agrees_with_onnxruntime(onnx_path: Path) -> None:
    batch = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    with cd.open_session(onnx_path) as expected, cd.open_session(onnx_path, backend="openvino", threads=1) as session:
        assert session.backend == "openvino" and session.input_shape == expected.input_shape and session.classes == 10
        reference = expected.run(batch)
        assert np.abs(session.run(batch) - reference).max() <= 1e-5 * np.abs(reference).max()
        with pytest.raises(InputRefused, match="batch is"):
            session.run(batch[0])
    with pytest.raises(InputRefused, match="closed"):
        session.run(batch)


def test_refusals(onnx_path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(onnx_path.read_bytes()[:1000])
    with pytest.raises(InputRefused, match="is no readable ONNX model"):
        cd.open_session(tmp_path / "bad.onnx", backend="openvino")
    with pytest.raises(Unavailable, match="expected device 'cpu'"):
        cd.open_session(onnx_path, backend="openvino", device="cuda")


@long
def test_a_file_in_int8(converted: DenselyConnected, tmp_path: Path) -> None:
    """What is quantised stands in the graph; the option is for the rest."""
    images = Path(__file__).parents[2] / "examples" / "cifar10-test-500.bin"
    path = cd.export(converted, "onnx", tmp_path / "m.onnx", precision="int8", calibrate=images).path
    batch = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    with cd.open_session(path) as expected:
        assert expected.precision == "int8"
        reference = expected.run(batch)
    for options in ({}, {"precision": "bf16"}):
        with cd.open_session(path, backend="openvino", threads=1, **options) as session:
            assert session.precision == session.weights_precision == "int8"
            rows = session.run(batch)
        assert (rows * reference).sum() / np.linalg.norm(rows) / np.linalg.norm(reference) > 0.99
