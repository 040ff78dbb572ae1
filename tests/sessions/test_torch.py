"""sessions/torch.py: precisions, memory formats, and CUDA where it is."""

from __future__ import annotations

import copy
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cnet_deploy as cd
from cnet_deploy.artifacts.self_check import TOLERANCES
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.layers import IndexedLinear
from cnet_deploy.sessions.torch import from_module, open_named
from cnet_deploy.sessions.torch.session import TorchSession
from cnet_deploy.sessions.torch.tf32 import set_tf32, tf32, tf32_settings
from tests.builders import TINY, logits, noise
from tests.cases import long

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@pytest.fixture
def tiny() -> DenselyConnected:
    return build_random(TINY, seed=3).eval()


def session(model: DenselyConnected, **options: Any) -> TorchSession:
    return TorchSession(model, model.architecture.input_size, model.architecture.classes, **options)


def close_to(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], precision: str) -> bool:
    return found.dtype == np.float32 and bool(np.abs(found - expected).max() <= TOLERANCES[precision] * np.abs(expected).max())


# ---- on the CPU ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_precisions_and_formats_agree(converted: DenselyConnected, precision: str, channels_last: bool) -> None:
    batch = noise(converted, 3)
    with session(converted, precision=precision, channels_last=channels_last) as opened:
        assert (opened.precision, opened.device) == (precision, "cpu")
        found = opened.run(batch)
        weights = next(value for value in opened.model.parameters() if value.dim() == 4)
        assert weights.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        assert weights.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    expected = logits(converted, batch)
    assert close_to(found, expected, precision)
    assert precision == "fp32" or not close_to(found, expected, "fp32")  # it really is computed in less


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": True}, {"compiled": True}], ids=str)
def test_the_caller_s_module_stays_as_it_was(tiny: DenselyConnected, options: dict[str, Any]) -> None:
    before = copy.deepcopy(tiny.state_dict())
    strides = [value.stride() for value in tiny.parameters()]
    with session(tiny, **options) as opened:
        assert opened.model is not tiny
    after = tiny.state_dict()
    assert all(value.dtype == after[name].dtype and torch.equal(value, after[name]) for name, value in before.items())
    assert [value.stride() for value in tiny.parameters()] == strides
    assert tiny._compiled_call_impl is None


def test_a_compiled_module_computes_the_same() -> None:
    """A small one: what takes long is the compiler. `make test-all` has networks."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 10)).eval()
    batch = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    with TorchSession(module, (8, 8), 10, compiled=True) as opened, TorchSession(module, (8, 8), 10) as plain:
        assert close_to(opened.run(batch), plain.run(batch), "fp32") and opened.compiled


def test_plain_sessions_copy_nothing(tiny: DenselyConnected) -> None:
    assert from_module(tiny).model is tiny


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision 'int8'; expected one of fp32, tf32, fp16, bf16"),
        ({"precision": "tf32"}, "TF32 on a CPU; expected device 'cuda'"),
        ({"cudagraph": True}, "CUDA graphs on a CPU; expected device 'cuda'"),
    ],
)
def test_options_that_a_cpu_has_not(tiny: DenselyConnected, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputRefused) as caught:
        session(tiny, **options)
    assert message in str(caught.value)


def test_weights_beyond_fp16_are_refused(tiny: DenselyConnected) -> None:
    classifier = tiny.classifier
    (classifier.linear if isinstance(classifier, IndexedLinear) else classifier).bias.data[0] = -70000.0
    with pytest.raises(InputRefused, match=r"bias holds 7e\+04, which is beyond fp16; expected bf16 or fp32"):
        session(tiny, precision="fp16")
    with session(tiny, precision="bf16") as opened:
        assert np.isfinite(opened.run(noise(tiny))).all()


@pytest.mark.parametrize("device", ["tpu", "cpu:0", "cuda:", "cuda:x", "cuda:-1", "cuda:01", "CUDA", ""])
def test_words_that_are_no_device(tiny: DenselyConnected, device: str) -> None:
    with pytest.raises(Unavailable, match=r"is not supported; expected cpu, cuda or cuda:N"):
        session(tiny, device=device)


@needs_no_cuda
def test_an_absent_device_is_explained(converted: DenselyConnected, tmp_path: Path) -> None:
    cd.save(converted, tmp_path / "m.safetensors")
    expected = (
        rf"this torch \({torch.__version__}\) was built without CUDA; install a build with it".replace("+", r"\+")
        if torch.version.cuda is None
        else "finds no CUDA device: .*(driver|GPU)"
    )
    for device in ("cuda", "cuda:1"):
        with pytest.raises(Unavailable, match=expected) as caught:
            cd.open_session(tmp_path / "m.safetensors", device=device, cudagraph=True, precision="fp16")
        assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
        with pytest.raises(Unavailable, match=expected):
            open_named("condensenet-50", device=device, threads=None)


def test_options_reach_named_networks(converted: DenselyConnected) -> None:
    with open_named("condensenet-50", threads=1, precision="bf16", channels_last=True) as opened:
        assert opened.input_shape == (None, 3, 32, 32) and opened.precision == "bf16"
        assert np.isfinite(opened.run(noise(converted, 1))).all()


def test_tf32_is_as_asked_and_the_process_gets_its_own_back() -> None:
    def told() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    first = tf32_settings()
    try:
        for settings in [("none", "tf32", "tf32"), ("tf32", "ieee", "ieee"), ("ieee", "tf32", "ieee")]:
            set_tf32(*settings)
            for on in (False, True):
                with tf32(on):
                    assert told() == (on, on) and tf32_settings() == ("tf32" if on else "ieee",) * 3
                assert tf32_settings() == settings
            with pytest.raises(ZeroDivisionError), tf32(True):
                raise ZeroDivisionError
            assert tf32_settings() == settings
    finally:
        set_tf32(*first)


@long
def test_tf32_where_the_process_set_it_by_the_new_names() -> None:
    """The old names raise then, and switching by them alone would leave TF32 on in convolutions."""
    script = (
        "import torch\nfrom cnet_deploy.sessions.torch.tf32 import tf32, tf32_settings\n"
        "torch.backends.fp32_precision = 'tf32'\n"
        "with tf32(False): print(*tf32_settings(), torch.backends.cudnn.allow_tf32)\n"
        "print(*tf32_settings())\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["ieee ieee ieee False", "tf32 tf32 tf32"], done.stderr


# ---- on a device -----------------------------------------------------------------------------------------------------

GPU_OPTIONS: list[dict[str, Any]] = [
    {},
    {"precision": "tf32"},
    {"precision": "fp16"},
    {"precision": "bf16"},
    {"channels_last": True},
    {"channels_last": True, "precision": "fp16"},
    {"cudagraph": True},
    {"cudagraph": True, "precision": "fp16", "channels_last": True},
    {"compiled": True},
    {"compiled": True, "precision": "fp16"},
    {"compiled": True, "cudagraph": True},
]


@pytest.mark.gpu
@pytest.mark.parametrize("options", GPU_OPTIONS, ids=str)
def test_agrees_with_the_cpu(converted: DenselyConnected, options: dict[str, Any]) -> None:
    with session(converted, device="cuda", **options) as opened:
        assert (opened.device, opened.precision) == ("cuda", options.get("precision", "fp32"))
        for size, seed in ((1, 0), (3, 1), (3, 2), (1, 3)):
            batch = noise(converted, size, seed)
            assert close_to(opened.run(batch), logits(converted, batch), opened.precision)
    assert all(value.device.type == "cpu" for value in converted.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"cudagraph": True}], ids=str)
def test_a_binding_step_by_step(converted: DenselyConnected, options: dict[str, Any]) -> None:
    first, second = noise(converted, 2, 0), noise(converted, 2, 1)
    with session(converted, device="cuda:0", **options) as opened:
        binding: Any = opened.bind(first)
        with pytest.raises(RuntimeError, match=r"result\(\) before enqueue\(\)"):
            binding.result()
        for batch in (first, second):  # what is replayed reads what was uploaded last
            binding.put(batch)
            binding.upload()
            for _ in range(2):
                binding.enqueue()
                binding.wait()
            binding.download()
            found = binding.result()
            assert close_to(found, logits(converted, batch), "fp32")
        kept = found.copy()
        binding.put(first)
        binding.upload()
        binding.enqueue()
        binding.download()
        binding.wait()
        assert np.array_equal(found, kept) and not np.array_equal(binding.result(), kept)
        assert binding.device_seconds(3) > 0
    for step in (binding.upload, binding.enqueue, lambda: binding.device_seconds(1)):
        with pytest.raises(InputRefused, match="the session was closed"):
            step()


@pytest.mark.gpu
def test_the_process_keeps_its_tf32(converted: DenselyConnected) -> None:
    before = tf32_settings()
    with session(converted, device="cuda", precision="tf32") as opened:
        opened.run(noise(converted))
    assert tf32_settings() == before


@pytest.mark.gpu
def test_many_threads_on_one_session(converted: DenselyConnected) -> None:
    batches = [noise(converted, 2, seed) for seed in range(8)]
    found: dict[int, Any] = {}
    with session(converted, device="cuda") as opened:
        threads = [threading.Thread(target=lambda n=n: found.update({n: opened.run(batches[n])})) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(close_to(found[n], logits(converted, batches[n]), "fp32") for n in range(8))


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"cudagraph": True}], ids=str)
def test_memory_is_free_again_after_close(converted: DenselyConnected, options: dict[str, Any]) -> None:
    def taken() -> int:
        gc.collect()
        return torch.cuda.memory_allocated()

    with session(converted, device="cuda", **options) as opened:  # what libraries keep for good
        opened.run(noise(converted))
    before = taken()
    for _ in range(3):
        with session(converted, device="cuda", **options) as opened:
            binding = opened.bind(noise(converted, 8))  # held on to
            opened.run(noise(converted, 8))
            assert taken() > before
    assert taken() == before
    assert binding is not None
    with pytest.raises(ZeroDivisionError), session(converted, device="cuda", **options) as opened:
        opened.run(noise(converted, 8))
        raise ZeroDivisionError
    del opened
    assert taken() == before


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"cudagraph": True}], ids=str)
def test_out_of_memory_is_explained(converted: DenselyConnected, options: dict[str, Any]) -> None:
    with session(converted, device="cuda", **options) as opened:
        small = noise(converted, 2)
        expected = opened.run(small)
        held, total = torch.cuda.memory_allocated(), torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
        try:
            with pytest.raises(Unavailable, match="torch ran out of memory on cuda; use a smaller batch"):
                opened.run(noise(converted, 20000))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        gc.collect()
        assert torch.cuda.memory_allocated() <= held
        assert np.allclose(opened.run(small), expected, atol=1e-4)


@pytest.mark.gpu
def test_a_device_that_is_not_here(tiny: DenselyConnected) -> None:
    with pytest.raises(Unavailable, match="there is no cuda:99; expected cuda:0 to cuda:"):
        session(tiny, device="cuda:99")


def test_compiled_code_is_kept_where_nobody_else_writes_and_no_compiler_of_the_current_folder_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    from cnet_deploy.files import cache
    from cnet_deploy.sessions.torch import session as own

    (tmp_path / "g++").touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f":.:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_WARM_POOL", "0")
    for place in (tmp_path / "cnet-deploy" / "torch", None):
        if place is None:
            monkeypatch.setattr(cache, "folder", lambda _: None)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
        own._compiled(torch.nn.Identity(), "cpu")
        used = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert used == place or (place is None and used.stat().st_mode & 0o777 == 0o700 and used.stat().st_uid == os.geteuid())
    assert Path(config.cpp.cxx[1]).is_absolute() and config.cpp.cxx[1] != str(tmp_path / "g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "chosen"))
    own._compiled(torch.nn.Identity(), "cpu")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "chosen")
