"""Models in torch itself: checkpoints in either form, and the paper's networks by name."""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import threading
import traceback
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from cnet_deploy.checkpoint import load
from cnet_deploy.device_memory import why_no_device
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.manifest import Pair
from cnet_deploy.models import DenselyConnected, build_named
from cnet_deploy.models.baselines import CLASSES, INPUT_SIZE
from cnet_deploy.sessions.base import Binding, Floats, Session, Variants

SUFFIXES = (".safetensors", ".tar", ".pth", ".pt")
PLACE = 5
DESCRIBED = False
VARIANTS: Variants = {
    "compile": ({"compiled": True}, {}),
    "cudagraph": ({"cudagraph": True}, {}),
    "channels_last": ({"channels_last": True}, {}),
    "tf32": ({"precision": "tf32"}, {}),
    "fp16": ({"precision": "fp16"}, {}),
    "bf16": ({"precision": "bf16"}, {}),
}

_OWN_CHOICE = torch.get_num_threads()
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_WARM_UP = 3  # inferences before one is recorded: libraries choose their kernels in the first
_KEPT = 4  # batch sizes whose buffers and graphs `run` keeps
_OF_LOADING = ("groups", "condense_factor", "input_size", "stem_stride")
_SETTINGS = threading.RLock()  # TF32 is the process's setting: one thread at a time has it its way


class TorchSession(Session):
    """A module run eagerly, or ``compiled`` and frozen (weights as constants), without gradients.

    ``precision`` is that of weights and layers ("tf32": float32 whose products may be TF32, on CUDA), ``channels_last`` their memory
    format; images and logits stay float32. ``cudagraph`` records each binding's inference once and replays it. The caller's module is
    not changed. ``threads`` is set for the whole process: torch has one pool.
    """

    backend = "torch"

    def __init__(
        self, model: nn.Module, input_size: tuple[int, int], classes: int, *, device: str = "cpu", threads: int | None = None,
        compiled: bool = False, cudagraph: bool = False, channels_last: bool = False, precision: str = "fp32",
    ) -> None:  # fmt: skip
        if precision not in _DTYPES:
            raise InputRefused(f"precision {precision!r}; expected one of {', '.join(_DTYPES)}")
        _require_device(device)
        if device == "cpu" and (cudagraph or precision == "tf32"):
            raise InputRefused(f"{'CUDA graphs' if cudagraph else 'TF32'} on a CPU; expected device 'cuda' for that")
        if isinstance(model, DenselyConnected):
            self.architecture, self.preprocessing, self.form = model.architecture, model.preprocessing, model.form
        format = torch.channels_last if channels_last else torch.preserve_format
        if compiled or device != "cpu" or channels_last or precision != "fp32":
            if precision == "fp16":
                _require_fp16(model)
            with _telling(device):
                model = copy.deepcopy(model).to(device=device, dtype=_DTYPES[precision], memory_format=format)  # type: ignore[call-overload]
                if device != "cpu":
                    torch.cuda.synchronize(device)  # the bindings' stream doesn't wait for this one
        self.model: nn.Module = _compiled(model.eval()) if compiled else model.eval()
        self.input_shape = (None, 3, *input_size)
        self.classes = classes
        self._class_names = model.class_names if isinstance(model, DenselyConnected) else ()
        self.threads, self.device, self.precision = threads, device, precision
        self.compiled, self.cudagraph, self.dtype, self.format = compiled, cudagraph, _DTYPES[precision], format
        self.bindings: weakref.WeakSet[_CudaBinding] = weakref.WeakSet()
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
        with _telling(self.device):
            return _CudaBinding(self, checked)

    def _once(self, batch: Floats) -> Floats:
        if self.device == "cpu":
            return super()._once(batch)
        binding: Any = self._spare.pop(len(batch), None) or self.bind(batch)  # not to be found by another thread meanwhile
        binding.put(batch)
        binding.upload()
        binding.enqueue()
        binding.download()
        logits: Floats = binding.result()
        self._spare = {**dict(list(self._spare.items())[1 - _KEPT :]), len(batch): binding}
        return logits


class _TorchBinding(Binding):
    def __init__(self, model: nn.Module, batch: Floats, threads: int | None, dtype: torch.dtype, format: torch.memory_format) -> None:
        # torch can't know that it will not write to the batch, and warns of arrays that must not be written to.
        images = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
        self._batch = images.to(dtype=dtype, memory_format=format)
        self._model, self._threads = model, threads or _OWN_CHOICE
        self._logits: torch.Tensor | None = None

    def enqueue(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            self._logits = self._model(self._batch)

    def result(self) -> Floats:
        if self._logits is None:
            raise RuntimeError("result() before enqueue()")
        logits: Floats = self._logits.float().numpy()
        return logits


class _CudaBinding(Binding):
    """Page-locked host memory and fixed device memory: what is enqueued reads what was uploaded last."""

    def __init__(self, session: TorchSession, batch: Floats) -> None:
        self._session, self._ran = session, False
        self._host = torch.empty(batch.shape, dtype=torch.float32, pin_memory=True)
        self._answer = torch.empty((len(batch), session.classes), dtype=torch.float32, pin_memory=True)
        self.put(batch)
        self._stream = _stream(session.device)
        with self._on_the_stream():
            self._images = torch.empty_like(self._host, device=session.device)
        self._logits: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        if session.compiled or session.cudagraph:
            self.upload()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # they are off on purpose
                for _ in range(_WARM_UP):
                    self.enqueue()
            self._stream.synchronize()
            self._ran = False
        if session.cudagraph:
            graph = torch.cuda.CUDAGraph()
            with self._on_the_stream(), torch.cuda.graph(graph, stream=self._stream):
                recorded = self._run()
            self._graph, self._logits = graph, recorded
        session.bindings.add(self)

    def put(self, batch: Floats) -> None:
        """Another batch of the same size, for the next upload."""
        self._host.numpy()[...] = batch

    def upload(self) -> None:
        with self._on_the_stream():
            self._images.copy_(self._host, non_blocking=True)

    def enqueue(self) -> None:
        with self._on_the_stream():
            if self._graph is not None:
                self._graph.replay()
            else:
                with _telling(self._session.device):
                    self._logits = self._run()
        self._ran = True

    def wait(self) -> None:
        self._stream.synchronize()

    def download(self) -> None:
        if self._logits is not None:
            with self._on_the_stream():
                self._answer.copy_(self._logits, non_blocking=True)

    def result(self) -> Floats:
        if not self._ran:
            raise RuntimeError("result() before enqueue()")
        self._stream.synchronize()
        logits: Floats = self._answer.numpy().copy()
        return logits

    def device_seconds(self, n: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(self._stream)
        for _ in range(n):
            self.enqueue()
        end.record(self._stream)
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def release(self) -> None:
        """Free what lies on the device: a graph reads the session's weights, which are gone once it is closed."""
        with contextlib.suppress(RuntimeError):
            self._stream.synchronize()
        self._graph = self._logits = None
        self._images = torch.empty(0)

    def _run(self) -> torch.Tensor:
        session = self._session
        with torch.inference_mode(), _tf32(session.precision == "tf32"):
            logits: torch.Tensor = session.model(self._images.to(dtype=session.dtype, memory_format=session.format))
            return logits.float()

    def _on_the_stream(self) -> contextlib.AbstractContextManager[Any]:
        if self._session.closed:
            raise InputRefused("the session was closed; open it again to run another batch")
        return torch.cuda.stream(self._stream)


@functools.cache
def _stream(device: str) -> torch.cuda.Stream:
    """One for all bindings: the libraries keep working memory for each stream, for good."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Float32 products in TF32 or not, whatever the process has: torch's convolutions use it unless they are told not to."""
    with _SETTINGS:
        before = _tf32_settings()
        _set_tf32(*["tf32" if on else "ieee"] * 3)
        try:
            yield
        finally:
            _set_tf32(*before)


def _tf32_settings() -> tuple[str, ...]:
    """Of matrix products, convolutions and recurrent layers, by the new names: the old ones raise where the two disagree."""
    known: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    return tuple(one.fp32_precision for one in known)


def _set_tf32(matmul: str, conv: str, rnn: str) -> None:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # By both names, as torch.compile reads the old ones too; by the new ones last, which tell the two kinds of layers apart.
    cuda.allow_tf32, cudnn.allow_tf32 = matmul == "tf32", conv == "tf32"
    cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = matmul, conv, rnn  # type: ignore[attr-defined]


def _require_device(device: str) -> None:
    """Raise Unavailable for a device that is not here, with what to install."""
    if device == "cpu":
        return
    if not (asked := re.fullmatch(r"cuda(?::(0|[1-9][0-9]*))?", device)):
        raise Unavailable(f"torch on {device!r} is not supported; expected cpu, cuda or cuda:N")
    if torch.version.cuda is None:
        raise Unavailable(f"this torch ({torch.__version__}) was built without CUDA; install a build with it (pytorch.org/get-started)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old driver: it is told below
        found = torch.cuda.is_available()
        _set_tf32(*_tf32_settings())  # some versions warn once of the old names
    if not found:
        raise Unavailable(f"torch {torch.__version__} finds no CUDA device: {why_no_device() or 'its CUDA is newer than the driver'}")
    if int(asked[1] or 0) >= torch.cuda.device_count():
        raise Unavailable(f"{device} is not here; expected cuda:0 to cuda:{torch.cuda.device_count() - 1}")


def _require_fp16(model: nn.Module) -> None:
    """Raise InputRefused for weights that become infinite in fp16."""
    for name, values in model.state_dict().items():
        if values.is_floating_point() and values.numel() and (largest := float(values.abs().max())) > torch.finfo(torch.float16).max:
            raise InputRefused(f"{name} holds {largest:.3g}, which is beyond fp16; expected bf16 or fp32 for this network")


@contextlib.contextmanager
def _telling(device: str) -> Iterator[None]:
    """Raise Unavailable in place of torch's several errors for want of memory, when what they hold is free again."""
    try:
        yield
    except RuntimeError as error:
        if device == "cpu" or not re.search("out of memory|ALLOC_FAILED", str(error)):
            raise
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        raise Unavailable(f"torch ran out of memory on {device}; use a smaller batch, or free the device's memory") from None


def from_module(model: DenselyConnected, *, threads: int | None = None) -> TorchSession:
    """A session over a model of the family that is in memory."""
    return TorchSession(model, model.architecture.input_size, model.architecture.classes, threads=threads)


def _compiled(model: nn.Module) -> nn.Module:
    """The module through ``torch.compile``, with its weights frozen into the code."""
    import torch._inductor.config as inductor

    inductor.freezing = True
    model.compile()
    return model


def open_named(name: str, *, threads: int | None, device: str = "cpu", **options: Any) -> TorchSession:
    """A session over a network of the paper, with random weights. Raises InputRefused for an unknown name."""
    network = build_named(name)
    size, classes = INPUT_SIZE, CLASSES
    if isinstance(network, DenselyConnected):
        size, classes = network.architecture.input_size, network.architecture.classes
    return TorchSession(network, size, classes, device=device, threads=threads, **options)


def open_file(pair: Pair, *, device: str, threads: int | None, **options: Any) -> Session:
    """A session over a checkpoint of the family, in the form in which it is stored; ``options`` are ``load``'s and TorchSession's."""
    model = load(pair.path, **{name: options.pop(name) for name in _OF_LOADING if name in options})
    arch = model.architecture
    return TorchSession(model, arch.input_size, arch.classes, device=device, threads=threads, **options)
