"""sessions/tensorrt.py, and the engines of exporters/tensorrt.py, on a device: whichever TensorRT builds for it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.artifacts.self_check import TOLERANCES
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.files import digest
from cnet_deploy.hardware import tensorrt as flavours
from cnet_deploy.hardware.cuda import Device, why_no_device
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.sessions.tensorrt import TensorrtSession
from tests.builders import logits, noise

Engine = Callable[[str], Path]


def close_to(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], precision: str) -> bool:
    return found.dtype == np.float32 and bool(np.abs(found - expected).max() <= TOLERANCES[precision] * np.abs(expected).max())


@pytest.fixture(scope="module")
def flavour() -> flavours.Flavour:
    """The TensorRT that builds for this device. Skips where none is installed or none knows it, with the reason."""
    assert why_no_device() is None
    try:
        found = flavours.find()
    except Unavailable as error:
        pytest.skip(str(error))
    with Device() as device:
        major, minor = device.compute_capability
        name = device.name
    if found.rtx and f"SM{major}{minor}" not in {known.name for known in found.capabilities()}:
        pytest.skip(f"{found.name} {found.version} does not build for {name} ({major}.{minor})")
    return found


@pytest.fixture(scope="module")
def engine(converted: DenselyConnected, flavour: flavours.Flavour, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Exports the real checkpoint in a precision, once, for 1 to 8 images."""
    assert flavour.why_not_build() is None
    folder = tmp_path_factory.mktemp("engines")

    def made(precision: str) -> Path:
        path = folder / f"{precision}.engine"
        if not path.exists():
            cd.export(converted, "tensorrt", path, precision=precision, batch=(1, 3, 8))
        return path

    return made


def opened(path: Path, **options: Any) -> TensorrtSession:
    return TensorrtSession(read_pair(path), device="cuda", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_a_built_engine_s_precision_is_read_back_and_verified(
    converted: DenselyConnected, flavour: flavours.Flavour, tmp_path: Path, precision: str
) -> None:
    if precision == "bf16" and 22 not in flavour.opsets:
        with pytest.raises(Unavailable, match="bf16 needs 22; use another precision"):
            cd.export(converted, "tensorrt", tmp_path / "m.engine", precision=precision)
        return
    done = cd.export(converted, "tensorrt", tmp_path / "m.engine", precision=precision)
    assert done.unverified is None and done.comparisons and all(comparison.passed for comparison in done.comparisons)
    assert done.manifest.details["precision_source"] == "engine"
    # 12 layers of a 1x1 and a 3x3, and the first convolution; 8.6 hides the classifier in a fused layer.
    counts = done.manifest.details["multiplying_layers"]
    assert list(counts) == ["fp32" if precision == "tf32" else precision] and sum(counts.values()) >= 25


@pytest.mark.gpu
def test_the_timing_cache_is_kept_and_a_damaged_one_refused(converted: DenselyConnected, flavour: flavours.Flavour, tmp_path: Path) -> None:
    if not flavour.has_timing_cache:
        pytest.skip(f"{flavour.name} keeps no timing cache")
    cache = tmp_path / "t.cache"
    cd.export(converted, "tensorrt", tmp_path / "m.engine", timing_cache=cache)
    assert cache.stat().st_size > 0
    cd.export(converted, "tensorrt", tmp_path / "m.engine", timing_cache=cache)
    cache.write_bytes(b"something else")
    with pytest.raises(InputRefused, match="is no timing cache"):
        cd.export(converted, "tensorrt", tmp_path / "m.engine", timing_cache=cache)
    assert cache.read_bytes() == b"something else"


@pytest.mark.gpu
@pytest.mark.parametrize("cudagraph", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_agrees_with_the_cpu(converted: DenselyConnected, engine: Engine, precision: str, cudagraph: bool) -> None:
    with opened(engine(precision), cudagraph=cudagraph) as session:
        assert (session.device, session.precision, session.largest_batch) == ("cuda", precision, 8)
        for size, seed in ((1, 0), (3, 1), (3, 2), (1, 3), (19, 4)):  # the last in three runs
            batch = noise(converted, size, seed)
            assert close_to(session.run(batch), logits(converted, batch), precision)


@pytest.mark.gpu
@pytest.mark.parametrize("cudagraph", [False, True])
def test_a_binding_step_by_step(converted: DenselyConnected, engine: Engine, cudagraph: bool) -> None:
    first, second = noise(converted, 2, 0), noise(converted, 2, 1)
    with opened(engine("fp32"), cudagraph=cudagraph) as session:
        binding: Any = session.bind(first)
        with pytest.raises(RuntimeError, match=r"result\(\) before enqueue\(\)"):
            binding.result()
        for batch in (first, second):  # what is replayed reads what was uploaded last
            binding.put(batch)
            binding.upload()
            for _ in range(2):
                binding.enqueue()
                binding.wait()
            binding.download()
            assert close_to(binding.result(), logits(converted, batch), "fp32")
        assert binding.device_seconds(3) > 0
        with pytest.raises(InputRefused, match="batch has 9 images; expected 1 to 8, the artifact's range"):
            session.bind(noise(converted, 9))
    for step in (binding.upload, binding.download, lambda: session.run(first)):
        with pytest.raises(InputRefused, match="was closed"):
            step()


@pytest.mark.gpu
def test_many_threads_on_one_session(converted: DenselyConnected, engine: Engine) -> None:
    batches = [noise(converted, 2, seed) for seed in range(8)]
    found: dict[int, Any] = {}
    with opened(engine("fp32")) as session:
        threads = [threading.Thread(target=lambda n=n: found.update({n: session.run(batches[n])})) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(close_to(found[n], logits(converted, batches[n]), "fp32") for n in range(8))


@pytest.mark.gpu
def test_memory_is_free_again_after_close_and_after_an_error(engine: Engine) -> None:
    script = """
import sys, ctypes, numpy as np
from cnet_deploy.hardware.cuda import Device
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.sessions.tensorrt import TensorrtSession
driver = ctypes.CDLL("libcuda.so.1")
batch = np.zeros((8, 3, 32, 32), np.float32)
with Device() as device:
    def free():
        device.synchronize()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        return free.value
    def once(fail, cudagraph):
        try:
            with TensorrtSession(read_pair(sys.argv[1]), device="cuda", cudagraph=cudagraph) as session:
                held.append(session.bind(batch))
                session.run(batch)
                if fail:
                    1 / 0
        except ZeroDivisionError:
            pass
    held = []
    for cudagraph in (False, True):
        once(False, cudagraph)  # what libraries keep for good
    before = free()
    for number in range(8):
        once(number % 2, number % 4 > 1)
    print(before - free())
"""
    done = subprocess.run([sys.executable, "-c", script, engine("fp32")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 8 << 20


@pytest.mark.gpu
def test_an_engine_that_is_none_is_refused_and_leaves_nothing_behind(converted: DenselyConnected, engine: Engine, tmp_path: Path) -> None:
    whole = engine("fp32")
    told = json.loads(manifest_path(whole).read_text())
    spoiled = tmp_path / "m.engine"
    for content in (whole.read_bytes()[:1000], whole.read_bytes()[:-1000], b"\0" * 4096):
        spoiled.write_bytes(content)
        manifest_path(spoiled).write_text(json.dumps({**told, "sha256": digest(content), "bytes": len(content)}))
        with pytest.raises(InputRefused, match="can't read it"):
            opened(spoiled)
    with opened(whole) as session:  # the device is alive and well
        assert close_to(session.run(noise(converted)), logits(converted, noise(converted)), "fp32")


@pytest.mark.gpu
def test_an_engine_for_another_gpu_is_refused_by_its_manifest(engine: Engine, tmp_path: Path) -> None:
    whole = engine("fp32")
    told = json.loads(manifest_path(whole).read_text())
    moved = tmp_path / "m.engine"
    moved.write_bytes(whole.read_bytes())
    told["details"] = {**told["details"], "compute_capability": "5.2", "compute_capabilities": []}
    manifest_path(moved).write_text(json.dumps(told))
    with pytest.raises(Unavailable, match=r"is built for compute capability 5.2, but .* has \d+\.\d; export the model again"):
        opened(moved)


@pytest.mark.gpu
@pytest.mark.parametrize("library", ["pycuda", "cuda-python"])
def test_both_libraries_for_device_memory(converted: DenselyConnected, engine: Engine, library: str, tmp_path: Path) -> None:
    pytest.importorskip({"pycuda": "pycuda.driver", "cuda-python": "cuda.bindings.driver"}[library])
    batch = noise(converted, 3)
    np.save(tmp_path / "batch.npy", batch)
    hidden = "sys.modules['pycuda'] = None; " if library == "cuda-python" else ""
    script = (
        f"import sys; {hidden}import numpy as np, cnet_deploy as cd\n"
        "for cudagraph in (False, True):\n"
        "    with cd.open_session(sys.argv[1], device='cuda', cudagraph=cudagraph) as session:\n"
        "        assert session.cuda.library == sys.argv[2]\n"
        "        np.save(sys.argv[3] + '/logits.npy', session.run(np.load(sys.argv[3] + '/batch.npy')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, engine("fp32"), library, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert close_to(np.load(tmp_path / "logits.npy"), logits(converted, batch), "fp32")


class Contexts:
    """An engine whose contexts behave as those of 8.6: the first one has the profile, and the others may have it if it is shared."""

    def __init__(self, *, shared: bool) -> None:
        self.shared, self.chosen = shared, [0]

    def create_execution_context(self) -> SimpleNamespace:
        number = len(self.chosen)
        self.chosen.append(0 if number == 1 else -1)

        def choose(profile: int, _: int) -> bool:
            self.chosen[number] = profile if self.shared else -1
            return self.shared

        return SimpleNamespace(active_optimization_profile=self.chosen[number], set_optimization_profile_async=choose)


def test_every_context_has_the_profile() -> None:
    session = object.__new__(TensorrtSession)
    session.cuda = SimpleNamespace(stream=1, synchronize=lambda: None)  # type: ignore[assignment]
    session._log = SimpleNamespace(errors=["profile 0 is in use"])
    session._engine = engine = Contexts(shared=True)
    for size in (1, 8, 32):
        session._context(size)
    assert engine.chosen == [0] * 4
    session._engine = Contexts(shared=False)
    session._context(1)
    with pytest.raises(Unavailable, match="runs one batch size at a time: profile 0 is in use; export the model again"):
        session._context(8)
