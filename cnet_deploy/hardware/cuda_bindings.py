"""The CUDA driver calls that cuda.py needs, through pycuda or cuda-python."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy.errors import Unavailable, raise_if_interrupted

Array = npt.NDArray[Any]
_NON_BLOCKING = 1
_RELAXED = 2  # capture mode: libraries may allocate while they are recorded
_HOW = "install one: pip install pycuda, or pip install cuda-python"


def _refused(call: str, words: str) -> Unavailable:
    remedy = "use a smaller batch, or free the device's memory" if "out of memory" in words.lower() else "look at nvidia-smi"
    return Unavailable(f"CUDA refused {call}: {words}; {remedy}")


class _Pycuda:
    """pycuda. Its objects own their handles, so they are kept here by number. Graphs, which it lacks, use the driver directly.

    With both libraries addresses and handles of streams and events are numbers, and sizes are in bytes.
    """

    name = "pycuda"

    def __init__(self, ordinal: int) -> None:
        import pycuda
        from pycuda import driver

        self.version, self._driver, self.process = str(pycuda.VERSION_TEXT), driver, os.getpid()
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._objects: dict[int, Any] = {}
        with self._raising("cuInit"):
            driver.init()
            self._device = driver.Device(ordinal)
            self._context = self._device.retain_primary_context()
        # One that is left at the end of the process would be released by its destructor, in a way that is not for primary contexts.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._context))
        self.enter()

    @contextlib.contextmanager
    def _raising(self, call: str) -> Iterator[None]:
        try:
            yield
        except self._driver.Error as error:
            raise _refused(call, str(error)) from None

    @contextlib.contextmanager
    def _calling(self, call: str) -> Iterator[None]:
        """While pycuda is called its own stack, one for each thread, has the context. A stack that is left with one ends the process."""
        with self._raising(call):
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()

    def _raw(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._cuda, name)(*arguments):
            words = ctypes.c_char_p()
            self._cuda.cuGetErrorString(status, ctypes.byref(words))
            raise _refused(name, (words.value or b"unknown").decode())

    def _keep(self, what: Any, number: int) -> int:
        self._objects[number] = what
        return number

    def describe(self) -> tuple[str, tuple[int, int]]:
        return str(self._device.name()), self._device.compute_capability()

    def enter(self) -> None:
        self._raw("cuCtxSetCurrent", ctypes.c_void_p(int(self._context.handle)))

    def leave(self) -> None:
        with self._raising("cuDevicePrimaryCtxRelease"):
            self._context.push()
            self._context.detach()  # leaves pycuda's stack, but not the driver's
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(self._context))
        self._raw("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def allocate(self, size: int) -> int:
        with self._calling("cuMemAlloc"):
            memory = self._driver.mem_alloc(size)
        return self._keep(memory, int(memory))

    def release(self, pointer: int) -> None:
        with self._calling("cuMemFree"):
            self._objects.pop(pointer).free()

    def pin(self, size: int) -> int:
        with self._calling("cuMemHostAlloc"):
            array = self._driver.pagelocked_empty(size, np.uint8)
        return self._keep(array, array.ctypes.data)

    def unpin(self, address: int) -> None:
        with self._calling("cuMemFreeHost"):
            self._objects.pop(address).base.free()

    def copy_in(self, pointer: int, address: int, size: int, stream: int) -> None:
        with self._calling("cuMemcpyHtoDAsync"):
            self._driver.memcpy_htod_async(pointer, _bytes_at(address, size), self._objects[stream])

    def copy_out(self, address: int, pointer: int, size: int, stream: int) -> None:
        with self._calling("cuMemcpyDtoHAsync"):
            self._driver.memcpy_dtoh_async(_bytes_at(address, size), pointer, self._objects[stream])

    def stream(self) -> int:
        with self._calling("cuStreamCreate"):
            stream = self._driver.Stream(_NON_BLOCKING)
        return self._keep(stream, int(stream.handle))

    def stream_destroy(self, stream: int) -> None:
        with self._calling("cuStreamDestroy"):
            del self._objects[stream]  # the destructor destroys it

    def synchronize(self, stream: int) -> None:
        with self._calling("cuStreamSynchronize"):
            self._objects[stream].synchronize()

    def event(self) -> int:
        with self._calling("cuEventCreate"):
            event = self._driver.Event()
        return self._keep(event, id(event))  # pycuda does not give its handle

    def event_destroy(self, event: int) -> None:
        with self._calling("cuEventDestroy"):
            del self._objects[event]

    def record(self, event: int, stream: int) -> None:
        with self._calling("cuEventRecord"):
            self._objects[event].record(self._objects[stream])

    def elapsed_ms(self, begin: int, end: int) -> float:
        with self._calling("cuEventElapsedTime"):
            return float(self._objects[end].time_since(self._objects[begin]))

    def capture_begin(self, stream: int) -> None:
        self._raw("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _RELAXED)

    def capture_end(self, stream: int) -> Any:
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._raw("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._raw("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            self._raw("cuGraphDestroy", graph)
        return ready

    def graph_launch(self, graph: Any, stream: int) -> None:
        self._raw("cuGraphLaunch", graph, ctypes.c_void_p(stream))

    def graph_destroy(self, graph: Any) -> None:
        self._raw("cuGraphExecDestroy", graph)


def _bytes_at(address: int, size: int) -> Array:
    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))


class _CudaPython:
    """cuda-python, whose functions return (status, value …)."""

    name = "cuda-python"

    def __init__(self, ordinal: int) -> None:
        try:
            from cuda.bindings import driver
        except ImportError:
            from cuda import cuda as driver  # its name before 12.6
        self.version = str(getattr(driver, "__version__", None) or _version("cuda-bindings") or _version("cuda-python") or "unknown")
        self._driver, self.process = driver, os.getpid()
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self.enter()

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *values = getattr(self._driver, name)(*arguments)
        if int(status):
            words = self._driver.cuGetErrorString(status)[1]
            raise _refused(name, words.decode() if isinstance(words, bytes) else str(status))
        return values[0] if values else None

    def describe(self) -> tuple[str, tuple[int, int]]:
        words = self._call("cuDeviceGetName", 256, self._device)
        known = self._driver.CUdevice_attribute
        major, minor = (
            int(self._call("cuDeviceGetAttribute", getattr(known, f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{part}"), self._device))
            for part in ("MAJOR", "MINOR")
        )
        return bytes(words).partition(b"\0")[0].decode("utf-8", "replace"), (major, minor)

    def enter(self) -> None:
        self._call("cuCtxSetCurrent", self._context)

    def leave(self) -> None:
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def allocate(self, size: int) -> int:
        return int(self._call("cuMemAlloc", size))

    def release(self, pointer: int) -> None:
        self._call("cuMemFree", pointer)

    def pin(self, size: int) -> int:
        return int(self._call("cuMemHostAlloc", size, 0))

    def unpin(self, address: int) -> None:
        self._call("cuMemFreeHost", address)

    def copy_in(self, pointer: int, address: int, size: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", pointer, address, size, stream)

    def copy_out(self, address: int, pointer: int, size: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", address, pointer, size, stream)

    def stream(self) -> int:
        return int(self._call("cuStreamCreate", _NON_BLOCKING))

    def stream_destroy(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def event(self) -> int:
        return int(self._call("cuEventCreate", 0))

    def event_destroy(self, event: int) -> None:
        self._call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def elapsed_ms(self, begin: int, end: int) -> float:
        return float(self._call("cuEventElapsedTime", begin, end))

    def capture_begin(self, stream: int) -> None:
        self._call("cuStreamBeginCapture", stream, self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)

    def capture_end(self, stream: int) -> Any:
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def graph_launch(self, graph: Any, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def graph_destroy(self, graph: Any) -> None:
        self._call("cuGraphExecDestroy", graph)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


Calls = _Pycuda | _CudaPython


def library(ordinal: int) -> Calls:
    """pycuda if it can be imported, else cuda-python, for the device with this number. Raises Unavailable if neither is installed."""
    reasons = []
    known: tuple[type[Calls], ...] = (_Pycuda, _CudaPython)
    for calls in known:
        try:
            return calls(ordinal)
        except ImportError as error:
            raise_if_interrupted(error)
            reasons.append(f"{calls.name}: {error}")
    raise Unavailable(f"no library for device memory can be imported ({'; '.join(reasons)}); {_HOW}")
