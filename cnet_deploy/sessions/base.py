"""What every session is: an artifact opened on a device, ready to run a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.architecture import Architecture, Form
from cnet_deploy.errors import InputRefused
from cnet_deploy.manifest import Manifest
from cnet_deploy.preprocessing import Preprocessing

Floats = npt.NDArray[np.float32]


class Binding(ABC):
    """One batch bound to a session's buffers, so that host, device and transfer time can be told apart.

    Call ``upload``, then ``enqueue`` and ``wait`` as often as wanted, then ``download`` and ``result``.
    """

    def upload(self) -> None:
        """Copy the batch to the device. Nothing to do on a CPU."""

    @abstractmethod
    def enqueue(self) -> None:
        """Start one inference; on a CPU, do it."""

    def wait(self) -> None:
        """Return when all that was enqueued is done. Nothing to do on a CPU."""

    def download(self) -> None:
        """Copy the logits to the host. Nothing to do on a CPU."""

    @abstractmethod
    def result(self) -> Floats:
        """The logits [N, classes] of the last inference."""

    def device_seconds(self, n: int) -> float | None:  # noqa: ARG002
        """Seconds that ``n`` inferences take on the device's own clock; None on a CPU."""
        return None


class Session(ABC):
    """An open artifact; a context manager.

    ``input_shape`` is (N, 3, H, W) with N None where the batch is free; ``threads`` None means the backend's own choice.
    ``architecture``, ``preprocessing`` and ``manifest`` are None for networks that are not of the family.
    """

    backend: str
    device: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    input_shape: tuple[int | None, int, int, int]
    classes: int
    form: Form = "group-conv"
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    manifest: Manifest | None = None
    closed: bool = False

    def run(self, batch: Floats) -> Floats:
        """float32 [N, 3, H, W] -> float32 logits [N, classes]. An artifact of fixed batch runs as often as N needs.

        Raises InputRefused for another shape or dtype.
        """
        batch = self.check(batch)
        size = self.input_shape[0]
        if size is None or size == len(batch):
            return self._once(batch)
        padded = np.concatenate([batch, np.zeros((-len(batch) % size, *batch.shape[1:]), np.float32)])
        return np.concatenate([self._once(part) for part in np.split(padded, len(padded) // size)])[: len(batch)]

    @abstractmethod
    def bind(self, batch: Floats) -> Binding:
        """Bind a batch whose N the artifact takes as it is."""

    def close(self) -> None:
        """Free what the session holds; called when the ``with`` block ends. May be called again."""
        self.closed = True

    def check(self, batch: Any, *, exact: bool = False) -> Floats:
        """The batch, contiguous. Raises InputRefused for a shape or dtype that the session does not take, or once it is closed.

        ``exact`` asks for the artifact's own N too, where that is fixed.
        """
        if self.closed:
            raise InputRefused("the session was closed; open it again to run another batch")
        size, *expected = self.input_shape
        if exact and size is not None and isinstance(batch, np.ndarray) and len(batch) != size:
            raise InputRefused(f"batch has {len(batch)} images; expected {size}, the artifact's fixed batch")
        if (
            not isinstance(batch, np.ndarray)
            or batch.dtype != np.float32
            or batch.ndim != 4
            or list(batch.shape[1:]) != expected
            or not len(batch)
        ):
            found = f"{batch.dtype} {list(batch.shape)}" if isinstance(batch, np.ndarray) else type(batch).__name__
            raise InputRefused(f"batch is {found}; expected float32 [N, {', '.join(map(str, expected))}]")
        return np.ascontiguousarray(batch)

    def _once(self, batch: Floats) -> Floats:
        binding = self.bind(batch)
        binding.upload()
        binding.enqueue()
        binding.wait()
        binding.download()
        return binding.result()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
