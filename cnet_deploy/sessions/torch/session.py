"""A session on a torch module, on a CPU or a CUDA device."""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import os
import shutil
import weakref
from typing import Any

import torch
from torch import nn

from cnet_deploy import subprocesses
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.files import cache, private_folder
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.demands import images_at_once
from cnet_deploy.sessions.base import Binding, Floats, Session
from cnet_deploy.sessions.torch.cuda import CudaBinding, explained_errors, require_device

_OWN_CHOICE = torch.get_num_threads()
_COMPUTED: set[int] = set()  # processes that have run a session: this one, or its parents
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_KEPT = 4  # number of batch sizes whose buffers and graphs `run` keeps


class TorchSession(Session):
    """A module that is run eagerly, or ``compiled`` and frozen (weights as constants), without gradients.

    ``precision`` is that of weights and layers ("tf32": float32 with products in TF32, on CUDA), ``channels_last`` their memory format;
    images and logits stay float32. ``cudagraph`` records each binding's inference once and replays it. The caller's module is not changed.
    ``threads`` is set for the whole process, since torch has one thread pool.
    """

    backend = "torch"

    def __init__(
        self, model: nn.Module, input_size: tuple[int, int], classes: int, *, device: str = "cpu", threads: int | None = None,
        compiled: bool = False, cudagraph: bool = False, channels_last: bool = False, precision: str = "fp32",
    ) -> None:  # fmt: skip
        if precision not in _DTYPES:
            raise InputRefused(f"precision {precision!r}; expected one of {', '.join(_DTYPES)}")
        require_device(device)
        if _COMPUTED and os.getpid() not in _COMPUTED and (threads or torch.get_num_threads()) > 1:
            raise Unavailable(
                "torch computed in this process's parent before a fork, and its threads are not here; use one thread (threads=1), or start "
                "processes by spawn (multiprocessing.set_start_method)"
            )
        if device == "cpu" and (cudagraph or precision == "tf32"):
            raise InputRefused(f"{'CUDA graphs' if cudagraph else 'TF32'} on a CPU; expected device 'cuda' for that")
        if isinstance(model, DenselyConnected):
            self.architecture, self.preprocessing, self.form = model.architecture, model.preprocessing, model.form
            self.largest_batch = images_at_once(model.architecture)
        format = torch.channels_last if channels_last else torch.preserve_format
        if compiled or device != "cpu" or channels_last or precision != "fp32":
            if precision == "fp16":
                _require_fp16(model)
            with explained_errors(device):
                model = copy.deepcopy(model).to(device=device, dtype=_DTYPES[precision], memory_format=format)  # type: ignore[call-overload]
                if device != "cpu":
                    torch.cuda.synchronize(device)  # the bindings' stream doesn't wait for the current one
        self.model: nn.Module = _compiled(model.eval(), device) if compiled else model.eval()
        self.input_shape = (None, 3 if self.architecture is None else self.architecture.image_channels, *input_size)
        self.classes = classes
        self._class_names = model.class_names if isinstance(model, DenselyConnected) else ()
        self.threads, self.device, self.precision = threads, device, precision
        self.compiled, self.cudagraph, self.dtype, self.format = compiled, cudagraph, _DTYPES[precision], format
        self.bindings: weakref.WeakSet[CudaBinding] = weakref.WeakSet()
        self._spare: dict[int, Binding] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        for binding in list(self.bindings):
            binding.release()
        self._spare, self.model = {}, nn.Identity()
        with contextlib.suppress(RuntimeError):  # after an error of the device every call fails
            if self.device != "cpu":
                torch.cuda.empty_cache()

    def bind(self, batch: Floats) -> Binding:
        checked = self.check(batch)
        if self.device == "cpu":
            return _TorchBinding(self.model, checked, self.threads, self.dtype, self.format)
        with explained_errors(self.device):
            return CudaBinding(self, checked)

    def _once(self, batch: Floats) -> Floats:
        if self.device == "cpu":
            return super()._once(batch)
        binding: Any = self._spare.pop(len(batch), None) or self.bind(batch)  # taken out, so that no other thread uses it meanwhile
        binding.put(batch)
        binding.upload()
        binding.enqueue()
        binding.download()
        logits: Floats = binding.result()
        self._spare = {**dict(list(self._spare.items())[1 - _KEPT :]), len(batch): binding}
        return logits


class _TorchBinding(Binding):
    def __init__(self, model: nn.Module, batch: Floats, threads: int | None, dtype: torch.dtype, format: torch.memory_format) -> None:
        # torch warns about read-only arrays, although it does not write to the batch.
        images = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
        self._batch = images.to(dtype=dtype, memory_format=format)
        self._model, self._threads = model, threads or _OWN_CHOICE
        self._logits: torch.Tensor | None = None

    def enqueue(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        _COMPUTED.add(os.getpid())
        with torch.inference_mode():
            self._logits = self._model(self._batch)

    def result(self) -> Floats:
        if self._logits is None:
            raise RuntimeError("result() before enqueue()")
        logits: Floats = self._logits.float().numpy()
        return logits


def _require_fp16(model: nn.Module) -> None:
    """Raise InputRefused for weights that become infinite in fp16."""
    for name, values in model.state_dict().items():
        if values.is_floating_point() and values.numel() and (largest := float(values.abs().max())) > torch.finfo(torch.float16).max:
            raise InputRefused(f"{name} holds {largest:.3g}, which is beyond fp16; expected bf16 or fp32 for this network")


def _compiled(model: nn.Module, device: str) -> nn.Module:
    """The module through ``torch.compile``, with its weights frozen into the code."""
    import torch._inductor.config as inductor
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    inductor.freezing = True
    # torch looks for a compiler in all of $PATH, and asks a Python in the current folder what its code can do. It would also load code
    # that was compiled before from a folder in /tmp, whoever made that.
    cxx = os.environ.get("CXX", "g++")
    inductor.cpp.cxx = (None, cxx if "/" in cxx else subprocesses.tool(cxx) or f"/usr/bin/{cxx}")
    if device == "cpu":
        inductor.cpp.vec_isa_ok = True
        os.environ.setdefault("TORCH_WARM_POOL", "0")  # processes that Triton would compile in
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, default_cache_dir()):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache.folder("torch") or _private_folder())
    model.compile()
    return model


@functools.cache
def _private_folder() -> str:
    """A folder for compiled code, until this process ends."""
    folder = str(private_folder("torch"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
