"""sessions/onnxruntime.py: what precision an artifact has, and CUDA where it is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.artifacts.self_check import TOLERANCES
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.hardware.cuda import Device
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.sessions import onnxruntime
from cnet_deploy.sessions.onnxruntime import OnnxruntimeSession
from tests.builders import logits, noise

needs_the_cpu_build = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime was built with CUDA"
)


def close_to(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], precision: str) -> bool:
    return found.dtype == np.float32 and bool(np.abs(found - expected).max() <= TOLERANCES[precision] * np.abs(expected).max())


def test_precision_is_the_file_s_own(converted: DenselyConnected, onnx_path: Path, tmp_path: Path) -> None:
    path = cd.export(converted, "onnx", tmp_path / "half.onnx", precision="fp16").path
    batch = noise(converted, 3)
    with cd.open_session(path) as session:
        assert (session.precision, session.device) == ("fp16", "cpu")
        assert close_to(session.run(batch), logits(converted, batch), "fp16")
    with cd.open_session(onnx_path) as session:
        assert session.precision == "fp32"
    told = path.with_name("half.onnx.json")
    told.write_text(json.dumps({**json.loads(told.read_text()), "precision": "something"}))
    with cd.open_session(path) as session:
        assert session.precision == "fp16"
    told.unlink()
    with cd.open_session(path) as session:
        assert session.precision == "fp16"


@pytest.mark.parametrize("device", ["tpu", "cpu:", "cpu:0", "cuda:", "cuda:x", "cuda:-1", ""])
def test_words_that_are_no_device(onnx_path: Path, device: str) -> None:
    with pytest.raises(Unavailable, match="is not supported; expected cpu, cuda or cuda:N"):
        OnnxruntimeSession(read_pair(onnx_path), device=device, threads=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "cuda"}, "provider 'cuda' on cpu; expected cuda or tensorrt, on cuda"),
        ({"provider": "tensorrt"}, "provider 'tensorrt' on cpu"),
        ({"provider": "rocm", "device": "cuda"}, "provider 'rocm' on cuda; expected cuda or tensorrt"),
        ({"tf32": True}, "TF32 on a CPU; expected device 'cuda'"),
    ],
)
def test_options_that_do_not_fit_the_device(onnx_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputRefused) as caught:
        cd.open_session(onnx_path, **options)
    assert message in str(caught.value)


@needs_the_cpu_build
@pytest.mark.parametrize(("provider", "missing"), [(None, "CUDA"), ("cuda", "CUDA"), ("tensorrt", "Tensorrt")])
def test_a_build_without_the_provider_is_explained(onnx_path: Path, provider: str | None, missing: str) -> None:
    with pytest.raises(Unavailable) as caught:
        cd.open_session(onnx_path, device="cuda", provider=provider)
    assert caught.value.exit_code == 5
    assert f"has no {missing}ExecutionProvider: it was built without it; pip uninstall -y onnxruntime" in str(caught.value)
    assert str(caught.value).endswith("then pip install onnxruntime-gpu alone")


@needs_the_cpu_build
def test_two_builds_over_each_other_are_found(onnx_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnxruntime", "onnxruntime_gpu"):
        (tmp_path / f"{name}-1.30.0.dist-info").mkdir()
        (tmp_path / f"{name}-1.30.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.30.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        Unavailable, match="are both installed and overwrite each other's files; pip uninstall -y onnxruntime onnxruntime-gpu"
    ):
        cd.open_session(onnx_path, device="cuda")
    assert "both installed" in onnxruntime._advice()


def test_the_device_s_errors_in_words(tmp_path: Path) -> None:
    for words in (
        "CUDA failure 2: out of memory",
        "Failed to allocate memory for requested buffer of size 12",
        "CUDNN_STATUS_ALLOC_FAILED",
    ):
        found = onnxruntime._explained(tmp_path, "run", RuntimeError(words))
        assert found.exit_code == 5 and "use a smaller batch" in str(found)
    missing = "EP Error: Please install TensorRT libraries as mentioned in the GPU requirements page, make sure they're in the PATH"
    found = onnxruntime._explained(tmp_path, "load", RuntimeError(missing))
    assert found.exit_code == 5 and "TensorRT provider can't load TensorRT's libraries; install the TensorRT that this" in str(found)
    found = onnxruntime._explained(tmp_path, "run", RuntimeError("CUDA failure 700: illegal address\nmore"))
    assert "can't run it on the device: CUDA failure 700: illegal address; try device 'cpu'" in str(found)


# ---- on a device -----------------------------------------------------------------------------------------------------


def opened(path: Path, **options: Any) -> OnnxruntimeSession:
    """On CUDA. Skips where this onnxruntime can't, with its own words; a session that can't be opened for another reason fails."""
    wanted = "TensorrtExecutionProvider" if options.get("provider") == "tensorrt" else "CUDAExecutionProvider"
    if wanted not in ort.get_available_providers():
        pytest.skip(f"needs an onnxruntime with {wanted}: cnet-deploy[gpu]")
    try:
        return OnnxruntimeSession(read_pair(path), device="cuda", threads=None, **options)
    except Unavailable as error:
        if "TensorRT provider can't load TensorRT's libraries" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"tf32": True}, {"provider": "cuda"}, {"provider": "tensorrt"}], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_agrees_with_the_cpu(converted: DenselyConnected, tmp_path: Path, precision: str, options: dict[str, Any]) -> None:
    path = cd.export(converted, "onnx", tmp_path / "m.onnx", precision=precision).path
    with opened(path, **options) as session:
        wanted = "TensorrtExecutionProvider" if options.get("provider") == "tensorrt" else "CUDAExecutionProvider"
        assert session._session.get_providers()[0] == wanted
        if precision == "fp16" or options in ({}, {"tf32": True}):
            assert session.precision == (precision if precision == "fp16" else "tf32" if options else "fp32")
        for size, seed in ((1, 0), (3, 1), (3, 2), (1, 3)):
            batch = noise(converted, size, seed)
            assert close_to(session.run(batch), logits(converted, batch), session.precision)


@pytest.mark.gpu
def test_a_binding_step_by_step(converted: DenselyConnected, onnx_path: Path) -> None:
    first, second = noise(converted, 2, 0), noise(converted, 2, 1)
    with opened(onnx_path) as session:
        binding: Any = session.bind(first)
        with pytest.raises(RuntimeError, match=r"result\(\) before enqueue\(\)"):
            binding.result()
        for batch in (first, second):
            binding.put(batch)
            binding.upload()
            binding.enqueue()
            binding.wait()
            binding.download()
            assert close_to(binding.result(), logits(converted, batch), "fp32")
        found = binding.result()
        kept = found.copy()
        binding.put(first)
        binding.upload()
        binding.enqueue()
        binding.download()
        assert np.array_equal(found, kept) and not np.array_equal(binding.result(), kept)
        assert binding.device_seconds(3) > 0
    for step in (binding.upload, binding.enqueue, binding.result):
        with pytest.raises(InputRefused, match="closed"):
            step()


@pytest.mark.gpu
def test_memory_is_free_again_after_close_and_after_an_error(converted: DenselyConnected, onnx_path: Path) -> None:
    with opened(onnx_path):
        pass
    script = """
import sys, ctypes, numpy as np
from pathlib import Path
from cnet_deploy.hardware.cuda import Device
from cnet_deploy.errors import Unavailable
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.sessions.onnxruntime import OnnxruntimeSession
driver = ctypes.CDLL("libcuda.so.1")
batch = np.zeros((64, 3, 32, 32), np.float32)
with Device() as device:
    def free():
        device.synchronize()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        return free.value
    def once(fail):
        try:
            with OnnxruntimeSession(read_pair(sys.argv[1]), device="cuda", threads=None) as session:
                held.append(session.bind(batch))
                session.run(batch)
                if fail:
                    1 / 0
        except ZeroDivisionError:
            pass
    held = []
    once(False)  # what libraries keep for good
    before = free()
    for number in range(6):
        once(number % 2)
    print(before - free())
"""
    done = subprocess.run([sys.executable, "-c", script, onnx_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 8 << 20  # six arenas and batches would be more


@pytest.mark.gpu
def test_a_file_that_is_none_leaves_nothing_behind(tmp_path: Path, onnx_path: Path) -> None:
    with opened(onnx_path):
        pass
    (tmp_path / "m.onnx").write_bytes(onnx_path.read_bytes()[:1000])
    with pytest.raises(InputRefused, match="can't load it"):
        OnnxruntimeSession(read_pair(tmp_path / "m.onnx"), device="cuda", threads=None)
    with Device() as device:  # the context is alive and well
        device.synchronize()
