"""pycuda's driver module, as far as hardware/cuda_bindings.py uses it, with pycuda's own rules.

An event does not give its handle. Each thread has a stack of contexts: what is made or freed needs its context on top of it. A thread's
stack that is not empty at the end aborts the process.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
from typing import Any

import numpy as np

_stacks: dict[int, list[Context]] = {}


class Error(Exception):
    """pycuda.driver.Error."""


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _call(name: str, *arguments: Any) -> None:
    if status := getattr(_driver(), name)(*arguments):
        words = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(words))
        raise Error(f"{name} failed: {(words.value or b'').decode()}")


def _stack() -> list[Context]:
    return _stacks.setdefault(threading.get_ident(), [])


def _current() -> Context:
    if not _stack():
        raise Error("explicit_context_dependent failed: invalid device context - no currently active context?")
    return _stack()[-1]


def _end() -> None:
    if any(_stacks.values()):
        os.write(2, b"PyCUDA ERROR: The context stack was not empty upon module cleanup.\n")
        os.abort()


atexit.register(_end)


def init() -> None:
    _call("cuInit", 0)


class Device:
    def __init__(self, ordinal: int) -> None:
        self._number = ctypes.c_int()
        _call("cuDeviceGet", ctypes.byref(self._number), ordinal)

    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        _call("cuDeviceGetName", text, 256, self._number)
        return text.value.decode()

    def compute_capability(self) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        _call("cuDeviceComputeCapability", ctypes.byref(major), ctypes.byref(minor), self._number)
        return major.value, minor.value

    def retain_primary_context(self) -> Context:
        return Context(self._number)


class Context:
    def __init__(self, device: ctypes.c_int) -> None:
        self._device, self._handle, self._valid, self._thread = device, ctypes.c_void_p(), True, threading.get_ident()
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._handle), device)

    @property
    def handle(self) -> int:
        return self._handle.value or 0

    def push(self) -> None:
        _call("cuCtxPushCurrent_v2", self._handle)
        _stack().append(self)

    @staticmethod
    def pop() -> None:
        _current()
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        _stack().pop()

    def detach(self) -> None:
        self._valid, active = False, _stack()[-1:] == [self]
        if not active and self._thread != threading.get_ident():
            return  # it is never released
        if not active:
            _call("cuCtxPushCurrent_v2", self._handle)
        _call("cuDevicePrimaryCtxRelease_v2", self._device)
        if active:
            _stack().pop()

    def __del__(self) -> None:
        if self._valid:
            os.write(2, b"PyCUDA WARNING: a clean-up operation failed (dead context maybe?)\n")


class _Owned:
    """What belongs to the context that is current where it is made, and is freed with that one current."""

    def __init__(self, free: str) -> None:
        self._context, self._free = _current(), free
        self._number = ctypes.c_void_p()

    def free(self) -> None:
        if self._free:
            if _current() is not self._context:
                raise Error("cannot activate out-of-thread context")
            free, self._free = self._free, ""
            _call(free, self._number)

    def __int__(self) -> int:
        return self._number.value or 0


class Stream(_Owned):
    def __init__(self, flags: int) -> None:
        super().__init__("cuStreamDestroy_v2")
        _call("cuStreamCreate", ctypes.byref(self._number), flags)

    @property
    def handle(self) -> int:
        return int(self)

    def synchronize(self) -> None:
        _call("cuStreamSynchronize", self._number)

    def __del__(self) -> None:
        if _stack():
            self.free()


class Event(_Owned):
    def __init__(self) -> None:
        super().__init__("cuEventDestroy_v2")
        _call("cuEventCreate", ctypes.byref(self._number), 0)

    def record(self, stream: Stream) -> None:
        _call("cuEventRecord", self._number, ctypes.c_void_p(int(stream)))

    def time_since(self, earlier: Event) -> float:
        found = ctypes.c_float()
        _call("cuEventElapsedTime", ctypes.byref(found), earlier._number, self._number)
        return found.value

    def __del__(self) -> None:
        if _stack():
            self.free()


class DeviceAllocation(_Owned):
    def __init__(self, size: int) -> None:
        super().__init__("cuMemFree_v2")
        _call("cuMemAlloc_v2", ctypes.byref(self._number), ctypes.c_size_t(size))


class _Pinned(_Owned):
    def __init__(self, size: int) -> None:
        super().__init__("cuMemFreeHost")
        _call("cuMemHostAlloc", ctypes.byref(self._number), ctypes.c_size_t(size), 0)
        vars(self)["__array_interface__"] = {"shape": (size,), "typestr": "|u1", "data": (int(self), False), "version": 3}


def mem_alloc(size: int) -> DeviceAllocation:
    return DeviceAllocation(size)


def pagelocked_empty(size: int, dtype: type) -> np.ndarray[Any, Any]:
    return np.asarray(_Pinned(size), dtype)


def memcpy_htod_async(to: int, source: np.ndarray[Any, Any], stream: Stream) -> None:
    _current()
    address, size = ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(source.nbytes)
    _call("cuMemcpyHtoDAsync_v2", ctypes.c_ulonglong(to), address, size, ctypes.c_void_p(int(stream)))


def memcpy_dtoh_async(to: np.ndarray[Any, Any], source: int, stream: Stream) -> None:
    _current()
    address, size = ctypes.c_void_p(to.ctypes.data), ctypes.c_size_t(to.nbytes)
    _call("cuMemcpyDtoHAsync_v2", address, ctypes.c_ulonglong(source), size, ctypes.c_void_p(int(stream)))
