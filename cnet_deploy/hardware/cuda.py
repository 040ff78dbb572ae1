"""Device memory, streams, events and CUDA graphs, for all GPU sessions except torch's.

Uses pycuda if it is installed, else cuda-python. Both use the driver API and the device's primary context, which TensorRT and
onnxruntime share.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.hardware.cuda_bindings import Calls, library

Array = npt.NDArray[Any]


def why_no_device() -> str | None:
    """Why no CUDA device can be used here, in one line; None if one can.

    Calls the driver's library directly, needs no package and never crashes. Call it before TensorRT's runtime, which may crash.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no CUDA driver here (libcuda.so.1 can't be loaded): install the NVIDIA driver, or use a machine with a GPU"
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return f"the CUDA driver finds no device to use (error {status}): look at nvidia-smi"
    return None if count.value else "the CUDA driver sees no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES"


class Graph:
    """Recorded work of a stream that can be launched again as a whole."""

    def __init__(self, calls: Calls, handle: Any, stream: int) -> None:
        self._calls, self._stream = calls, stream
        self._handle: Any = handle

    def launch(self) -> None:
        """Enqueue it on the stream; returns at once."""
        self._calls.graph_launch(self._handle, self._stream)

    def close(self) -> None:
        """Free it. May be called again."""
        if self._handle is not None:
            self._calls.graph_destroy(self._handle)
            self._handle = None


class Device:
    """A CUDA device with its own stream; a context manager. Closing frees everything that was allocated, in any state.

    Raises Unavailable without a device or without either library, and for every call that CUDA refuses.
    """

    def __init__(self, ordinal: int = 0) -> None:
        if reason := why_no_device():
            raise Unavailable(reason)
        self._calls = calls = library(ordinal)
        self.library, self.library_version = calls.name, calls.version
        self.name, self.compute_capability = calls.describe()
        self._taken: list[tuple[Callable[[Any], None], Any]] = []
        self._graphs: weakref.WeakSet[Graph] = weakref.WeakSet()
        self._free = weakref.finalize(self, _free, calls, self._taken, self._graphs)
        self._free.atexit = False  # the end of the process frees everything, and the driver may already be unloaded
        try:
            self.stream: int = calls.stream()
            self._taken.append((calls.stream_destroy, self.stream))
            self._events = []
            for _ in range(2):
                self._events.append(calls.event())
                self._taken.append((calls.event_destroy, self._events[-1]))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free everything. May be called again."""
        self._free()

    def allocate(self, size: int) -> int:
        """Allocate ``size`` bytes of device memory; returns the address."""
        self._alive()
        pointer = self._calls.allocate(size)
        self._taken.append((self._calls.release, pointer))
        return pointer

    def release(self, pointer: int) -> None:
        """Free the memory at an address from ``allocate``."""
        self._give_back(self._calls.release, pointer)

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """A page-locked array on the host, valid until the device is closed."""
        self._alive()
        size = prod(shape) * np.dtype(dtype).itemsize
        address = self._calls.pin(size)
        self._taken.append((self._calls.unpin, address))
        array = np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))
        return array.view(dtype).reshape(shape)

    def unpin(self, host: Array) -> None:
        """Free an array from ``pinned``, which must not be used any more."""
        self._give_back(self._calls.unpin, host.ctypes.data)

    def upload(self, pointer: int, host: Array) -> None:
        """Copy to the device on the stream. Returns at once if ``host`` is pinned."""
        self._alive()
        self._calls.copy_in(pointer, host.ctypes.data, host.nbytes, self.stream)

    def download(self, host: Array, pointer: int) -> None:
        """Copy to the host on the stream. The array is complete after ``synchronize``."""
        self._alive()
        self._calls.copy_out(host.ctypes.data, pointer, host.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait until all work on the stream is done."""
        self._alive()
        self._calls.synchronize(self.stream)

    def seconds(self, work: Callable[[], None], n: int) -> float:
        """Seconds by the device's clock for the work that ``n`` calls of ``work`` enqueue on the stream."""
        self._alive()
        begin, end = self._events
        self._calls.record(begin, self.stream)
        for _ in range(n):
            work()
        self._calls.record(end, self.stream)
        self._calls.synchronize(self.stream)
        return self._calls.elapsed_ms(begin, end) / 1e3

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues on the stream as a Graph, without running it."""
        self._alive()
        self._calls.capture_begin(self.stream)
        try:
            work()
        except BaseException:
            with contextlib.suppress(Unavailable):
                self._calls.graph_destroy(self._calls.capture_end(self.stream))
            raise
        graph = Graph(self._calls, self._calls.capture_end(self.stream), self.stream)
        self._graphs.add(graph)
        return graph

    def _give_back(self, free: Callable[[int], None], number: int) -> None:
        if self._free.alive:  # otherwise it was freed with the device
            self._calls.enter()
            self._taken.remove((free, number))
            free(number)

    def _alive(self) -> None:
        if not self._free.alive:
            raise InputRefused("the device was closed; open it again")
        self._calls.enter()


def _free(calls: Calls, taken: list[tuple[Callable[[Any], None], Any]], graphs: weakref.WeakSet[Graph]) -> None:
    if calls.process != os.getpid():
        return  # a copy after a fork: the memory belongs to the parent
    with contextlib.suppress(Unavailable):
        calls.enter()
    for graph in list(graphs):
        with contextlib.suppress(Unavailable):
            graph.close()
    while taken:
        free, handle = taken.pop()
        with contextlib.suppress(Unavailable):  # after an error of the device every call fails
            free(handle)
    calls.leave()
