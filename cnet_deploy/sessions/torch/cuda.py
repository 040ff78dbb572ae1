"""CUDA for torch sessions: a check that the device exists, and bindings in its memory."""

from __future__ import annotations

import contextlib
import functools
import re
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.hardware.cuda import why_no_device
from cnet_deploy.sessions.base import Binding, Floats
from cnet_deploy.sessions.torch.tf32 import set_tf32, tf32, tf32_settings

if TYPE_CHECKING:
    from cnet_deploy.sessions.torch.session import TorchSession

_WARM_UP = 3  # inferences before one is recorded, since libraries choose their kernels in the first


def require_device(device: str) -> None:
    """Raise Unavailable for a missing device; the message says what to install."""
    if device == "cpu":
        return
    if not (asked := re.fullmatch(r"cuda(?::(0|[1-9][0-9]*))?", device)):
        raise Unavailable(f"torch on {device!r} is not supported; expected cpu, cuda or cuda:N")
    if torch.version.cuda is None:
        raise Unavailable(f"this torch ({torch.__version__}) was built without CUDA; install a build with it (pytorch.org/get-started)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an old driver, which is reported below
        available = torch.cuda.is_available()
        set_tf32(*tf32_settings())  # some versions warn once about the old names
    if not available:
        raise Unavailable(f"torch {torch.__version__} finds no CUDA device: {why_no_device() or 'its CUDA is newer than the driver'}")
    if int(asked[1] or 0) >= torch.cuda.device_count():
        raise Unavailable(f"there is no {device}; expected cuda:0 to cuda:{torch.cuda.device_count() - 1}")


@contextlib.contextmanager
def explained_errors(device: str) -> Iterator[None]:
    """Turn torch's various out-of-memory errors into Unavailable, after the memory that they hold was freed."""
    try:
        yield
    except RuntimeError as error:
        if device == "cpu" or not re.search("out of memory|ALLOC_FAILED", str(error)):
            raise
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()
        raise Unavailable(f"torch ran out of memory on {device}; use a smaller batch, or free the device's memory") from None


class CudaBinding(Binding):
    """A batch in page-locked host memory and fixed device memory. Inferences read what was uploaded last."""

    def __init__(self, session: TorchSession, batch: Floats) -> None:
        self._session, self._ran = session, False
        self._host = torch.empty(batch.shape, dtype=torch.float32, pin_memory=True)
        self._output = torch.empty((len(batch), session.classes), dtype=torch.float32, pin_memory=True)
        self.put(batch)
        self._stream = _stream(session.device)
        with self._on_the_stream():
            self._images = torch.empty_like(self._host, device=session.device)
        self._logits: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        if session.compiled or session.cudagraph:
            self.upload()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # TF32 is off on purpose
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
        """Replace the batch by another of the same size, for the next upload."""
        self._host.numpy()[...] = batch

    def upload(self) -> None:
        with self._on_the_stream():
            self._images.copy_(self._host, non_blocking=True)

    def enqueue(self) -> None:
        with self._on_the_stream():
            if self._graph is not None:
                self._graph.replay()
            else:
                with explained_errors(self._session.device):
                    self._logits = self._run()
        self._ran = True

    def wait(self) -> None:
        self._stream.synchronize()

    def download(self) -> None:
        if self._logits is not None:
            with self._on_the_stream():
                self._output.copy_(self._logits, non_blocking=True)

    def result(self) -> Floats:
        if not self._ran:
            raise RuntimeError("result() before enqueue()")
        self._stream.synchronize()
        logits: Floats = self._output.numpy().copy()
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
        """Free the memory on the device. A graph must not outlive the session's weights."""
        with contextlib.suppress(RuntimeError):
            self._stream.synchronize()
        self._graph = self._logits = None
        self._images = torch.empty(0)

    def _run(self) -> torch.Tensor:
        session = self._session
        with torch.inference_mode(), tf32(session.precision == "tf32"):
            logits: torch.Tensor = session.model(self._images.to(dtype=session.dtype, memory_format=session.format))
            return logits.float()

    def _on_the_stream(self) -> contextlib.AbstractContextManager[Any]:
        if self._session.closed:
            raise InputRefused("the session was closed; open it again to run another batch")
        return torch.cuda.stream(self._stream)


@functools.cache
def _stream(device: str) -> torch.cuda.Stream:
    """One stream for all bindings, since the libraries keep working memory for each stream until the process ends."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
