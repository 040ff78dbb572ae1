"""What every session promises, whatever runs it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.sessions import backend_of, names
from tests.builders import logits, noise
from tests.cases import few, long


@pytest.fixture(params=["onnx", "safetensors", "pth.tar"])
def artifact(request: pytest.FixtureRequest, converted: DenselyConnected, onnx_path: Path, tmp_path: Path) -> Path:
    """The same network for each backend."""
    if request.param == "onnx":
        return onnx_path
    cd.save(converted, tmp_path / f"m.{request.param}")
    return tmp_path / f"m.{request.param}"


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_run(artifact: Path, converted: DenselyConnected, threads: int | None) -> None:
    with cd.open_session(artifact, threads=threads) as session:
        for size in (1, 3, 7):
            batch = noise(converted, size)
            expected = logits(converted, batch)
            found = session.run(batch)
            assert found.dtype == np.float32 and found.shape == (size, 10)
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_what_a_session_tells(artifact: Path, converted: DenselyConnected) -> None:
    with cd.open_session(artifact, threads=2) as session:
        assert session.backend == backend_of(artifact)
        assert (session.device, session.precision, session.threads) == ("cpu", "fp32", 2)
        assert (session.input_shape, session.classes, session.form) == ((None, 3, 32, 32), 10, "group-conv")
        assert session.architecture == converted.architecture
        assert session.preprocessing == converted.preprocessing
        assert (session.manifest is not None) == (artifact.suffix == ".onnx")


def test_a_binding_step_by_step(artifact: Path, converted: DenselyConnected) -> None:
    batch = noise(converted, 2)
    with cd.open_session(artifact) as session:
        binding = session.bind(batch)
        with pytest.raises(RuntimeError, match="before enqueue"):
            binding.result()
        binding.upload()
        for _ in range(3):
            binding.enqueue()
            binding.wait()
        binding.download()
        assert np.allclose(binding.result(), session.run(batch))
        assert binding.device_seconds(3) is None  # a CPU has no clock of its own


def test_a_closed_session_runs_nothing(artifact: Path, converted: DenselyConnected) -> None:
    with cd.open_session(artifact) as session:
        session.close()
    with pytest.raises(InputRefused, match="was closed; open it again"):
        session.run(noise(converted))


def test_read_only_batches(artifact: Path, converted: DenselyConnected) -> None:
    batch = noise(converted)
    batch.flags.writeable = False
    with cd.open_session(artifact) as session:
        assert session.run(batch).shape == (2, 10)


def test_threads_of_one_session_are_not_another_s(converted: DenselyConnected, tmp_path: Path) -> None:
    import torch

    cd.save(converted, tmp_path / "m.safetensors")
    with cd.open_session(tmp_path / "m.safetensors") as own:
        own.run(noise(converted))
        choice = torch.get_num_threads()
        with cd.open_session(tmp_path / "m.safetensors", threads=choice + 1) as other:
            other.run(noise(converted))
            assert torch.get_num_threads() == choice + 1
        own.run(noise(converted))
        assert torch.get_num_threads() == choice


def test_views_that_are_not_contiguous(artifact: Path, converted: DenselyConnected) -> None:
    batch = noise(converted, 4)
    flipped = batch[::-1, :, :, ::-1]
    with cd.open_session(artifact) as session:
        assert np.allclose(session.run(flipped), session.run(flipped.copy()))


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 3, 32, 32)),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((1, 1, 32, 32), np.float32),
        np.zeros((1, 3, 33, 32), np.float32),
        np.zeros((0, 3, 32, 32), np.float32),
        [[1.0]],
        None,
    ],
    ids=lambda batch: str(getattr(batch, "shape", batch)),
)
def test_batches_that_do_not_fit(artifact: Path, batch: Any) -> None:
    with cd.open_session(artifact) as session, pytest.raises(InputRefused, match=r"expected float32 \[N, 3, 32, 32\]"):
        session.run(batch)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8])
def test_a_fixed_batch_runs_as_often_as_needed(converted: DenselyConnected, tmp_path: Path, size: int) -> None:
    path = cd.export(converted, "onnx", tmp_path / "m.onnx", batch=4).path
    batch = noise(converted, size)
    with cd.open_session(path) as session:
        assert session.input_shape[0] == 4
        assert np.abs(session.run(batch) - logits(converted, batch)).max() < 1e-4
        if size != 4:
            with pytest.raises(InputRefused, match=f"has {size} images; expected 4"):
                session.bind(batch)


@pytest.mark.parametrize(("count", "accuracy"), few([(100, 0.91), (500, 0.9)]))
def test_accuracy_is_the_same_in_torch_and_onnxruntime(
    count: int, accuracy: float, converted: DenselyConnected, onnx_path: Path, first_images: Callable[[int], Path], tmp_path: Path
) -> None:
    from cnet_deploy.images.decode import read_images

    cd.save(converted, tmp_path / "m.safetensors")
    images = read_images(first_images(count), converted.preprocessing, 10)
    right = []
    for path in (onnx_path, tmp_path / "m.safetensors"):
        with cd.open_session(path) as session:
            right.append([session.run(batch).argmax(1) == labels for batch, labels in images.batches(converted.preprocessing)])
    assert np.array_equal(np.concatenate(right[0]), np.concatenate(right[1]))
    assert np.concatenate(right[0]).mean() == pytest.approx(accuracy)


# ---- what can't be opened --------------------------------------------------------------------------------------------


def test_unknown_backends_and_devices(onnx_path: Path) -> None:
    with pytest.raises(Unavailable, match="expected one of native, tensorrt, onnxruntime, openvino, torch"):
        cd.open_session(onnx_path, backend="tflite")
    for backend in names():
        with pytest.raises((Unavailable, InputRefused)):
            cd.open_session(onnx_path, backend=backend, device="tpu")
    with pytest.raises(InputRefused, match="is an ONNX file, which torch does not open; expected a checkpoint"):
        cd.open_session(onnx_path, backend="torch")
    with pytest.raises(InputRefused, match="at least 1"):
        cd.open_session(onnx_path, threads=0)


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content in (("m", b"\0"), ("m.pb", b"x"), ("m.onnx", b"\0"), ("text.onnx", b"x"), ("empty.onnx", b"")):
        (tmp_path / name).write_bytes(content)
    for name, message in (
        ("none.onnx", "no such file"),
        (".", "is a directory"),
        ("m", "m: is of no kind that is known here; expected a library of `export`, a TensorRT engine, an ONNX file, a checkpoint"),
        ("m.pb", "is a text file; expected a library"),
        ("m.onnx", "can't load it"),
        ("text.onnx", "is a text file; expected an ONNX file: give the model's own file"),
        ("empty.onnx", "is empty"),
    ):
        with pytest.raises(InputRefused, match=message):
            cd.open_session(tmp_path / name)


def test_onnxruntime_that_fell_back_is_refused(onnx_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["OtherExecutionProvider"])
    with pytest.raises(Unavailable, match="fell back to OtherExecutionProvider from CPUExecutionProvider"):
        cd.open_session(onnx_path)


@long
def test_missing_onnxruntime_is_explained(onnx_path: Path) -> None:
    script = "import sys; sys.modules['onnxruntime'] = None\nfrom cnet_deploy.cli import main\nmain()"
    opened = subprocess.run(
        [sys.executable, "-c", script, "verify", str(onnx_path), str(onnx_path)], capture_output=True, text=True, check=False
    )
    assert opened.returncode == 5
    assert "onnxruntime can't be imported" in opened.stderr and "cnet-deploy[cpu]" in opened.stderr
