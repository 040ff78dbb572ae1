"""Run native libraries through their C interface (exporters/native/cpp/cnet.h), with ctypes."""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import json
import logging
import os
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.artifacts.pair import Pair
from cnet_deploy.errors import CnetDeployError, InputRefused, Unavailable, in_words, printable
from cnet_deploy.files import temporary_folder
from cnet_deploy.hardware.cpu import host_machine
from cnet_deploy.images.class_names import checked_labels
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.sessions.base import Backend, Binding, Floats, Part, Probe, Session

log = logging.getLogger(__name__)

BACKEND = Backend(
    suffixes=(".so",),
    opens=("library",),
    runs_code=True,
    devices=("cpu",),
    remedy="apt-get install g++, or pip install 'cnet-deploy[compiler]'",
    parts={"bf16": Part(export={"precision": "bf16"}), "int8": Part(export={"precision": "int8"})},
    table={"cpu": ("",)},
    probes=(Probe("native"), Probe("native, int8", export={"precision": "int8"})),
)

# Numbers, statuses and signatures of cnet.h; tests/sessions/test_native.py compares all of them with it.
API_VERSION = 3
MAX_THREADS = 32
SHARINGS = ("auto", "layers", "images")  # in the order of their numbers
_UNSUPPORTED_CPU, _UNKNOWN_ISA, _NO_MEMORY, _NO_THREAD, _FORKED = 6, 7, 8, 9, 10
# What a status raises. One that is not listed can only come from a mistake in this file.
_FAILURES: dict[int, tuple[type[CnetDeployError], str]] = {
    _UNSUPPORTED_CPU: (
        Unavailable,
        "this processor lacks the instructions that the library was built for; export it again without --target",
    ),
    _UNKNOWN_ISA: (InputRefused, "the library carries no code of that name"),
    _NO_MEMORY: (Unavailable, "out of memory; close something, or export for smaller images"),
    _NO_THREAD: (Unavailable, "the system refused to start a thread; ask for fewer"),
    _FORKED: (Unavailable, "the session was opened before a fork, and its threads are not in this process; open it here again"),
}
_SIZE, _POINTER = ctypes.c_size_t, ctypes.c_void_p
_OLDEST = 1  # the version of libraries that 0.1.0 wrote; later ones only add calls
_SHARES = 3  # the first with cnet_share, cnet_threads and cnet_memory
_INTERFACE: dict[str, list[Any]] = {
    "cnet_version": [_POINTER],
    "cnet_describe": [_POINTER],
    "cnet_create": [ctypes.c_int, _POINTER],
    "cnet_create_for": [ctypes.c_char_p, ctypes.c_int, _POINTER],
    "cnet_isa": [_POINTER, _POINTER],
    "cnet_run": [_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _SIZE],
    "cnet_destroy": [_POINTER],
}
# What versions 2 and 3 added. A session works without: images are prepared in Python, and older libraries share layers.
_ADDED: dict[str, list[Any]] = {
    "cnet_shape": [_POINTER, _POINTER, _POINTER, _POINTER],
    "cnet_class_name": [_SIZE, _POINTER],
    "cnet_prepare": [_POINTER, _SIZE, _SIZE, _SIZE, _SIZE, _POINTER, _SIZE],
    "cnet_share": [_POINTER, ctypes.c_int],
    "cnet_threads": [_POINTER, _POINTER],
    "cnet_memory": [_POINTER, _POINTER],
}


class NativeSession(Session):
    """A loaded library with one handle. Runs release the interpreter's lock; if several threads run it, they take turns.

    Opening a library executes its code. Its manifest must therefore be present and have its SHA-256, and exactly the bytes whose digest
    was checked are loaded. ``threads`` None takes one for each processor, and no more than these run. ``isa`` selects one of the library's
    instruction sets, for tests and measurements, and then all ``threads`` run; None takes the best. ``sharing`` is how threads share a
    batch: "layers" of one image after the other, "images", of which each thread takes its own, or "auto" (see cnet.h). The logits are the
    same to the bit.
    """

    backend = "native"

    def __init__(self, pair: Pair, *, device: str, threads: int | None, isa: str | None = None, sharing: str = "auto") -> None:
        if device != "cpu":
            raise Unavailable(f"native on {device!r}: native libraries run on the CPU; expected device 'cpu'")
        if threads is not None and threads > MAX_THREADS:
            raise InputRefused(f"threads is {threads}; expected at most {MAX_THREADS}")
        if sharing not in SHARINGS:
            raise InputRefused(f"sharing is {printable(repr(sharing), 100)}; expected one of {', '.join(SHARINGS)}")
        path, manifest = pair.path, pair.require_manifest("a library")
        machine = manifest.details.get("machine")
        if manifest.target != "native" or not isinstance(machine, str):
            raise InputRefused(f"{path}: its manifest describes no native library; export the model again")
        if machine != host_machine():
            raise Unavailable(
                f"{path}: is built for {printable(machine)}, but this machine is {host_machine()}; run it there, or export for this machine"
            )
        self.manifest, self._path, self._pinned = manifest, path, pair.pinned
        try:
            self._open(pair.data, threads or 0, isa, sharing)
        except CnetDeployError as error:
            raise type(error)(f"{path}: {error}") from None

    def _open(self, data: bytes, threads: int, isa: str | None, sharing: str) -> None:
        library = _Library(data)
        handle = _POINTER()
        self._close = weakref.finalize(self, library.close, handle)
        self._close.atexit = False  # a daemon thread may still be running it, and the end of the process frees everything
        self._process = os.getpid()
        self._calls, self._handle, self._turn = library.calls, handle, threading.Lock()
        try:
            self._describe()
            if isa is None:
                _check(self._calls.cnet_create(threads, ctypes.byref(handle)))
            else:
                _check(self._calls.cnet_create_for(isa.encode(), threads, ctypes.byref(handle)))
            chosen = ctypes.c_char_p()
            _check(self._calls.cnet_isa(handle, ctypes.byref(chosen)))
            self.threads = self._share(sharing) or threads or None
        except BaseException:
            self._close()
            raise
        self.isa = (chosen.value or b"").decode()

    def _share(self, sharing: str) -> int | None:
        """Choose how threads share a batch. The number of threads, which libraries of older versions don't tell."""
        if self._version < _SHARES:
            if sharing == "images":
                raise InputRefused("its threads share layers only, as in all libraries of older versions; export the model again")
            return None
        _declare(self._calls, {name: _ADDED[name] for name in ("cnet_share", "cnet_threads", "cnet_memory")})
        _check(self._calls.cnet_share(self._handle, SHARINGS.index(sharing)))
        count = ctypes.c_int()
        _check(self._calls.cnet_threads(self._handle, ctypes.byref(count)))
        return count.value

    @property
    def reserved(self) -> int | None:
        """Bytes of memory that the handle has reserved for activations. It grows once, when threads first take images of their own. None
        for libraries of older versions. Raises InputRefused if the session is closed."""
        if self._version < _SHARES:
            return None
        size = ctypes.c_size_t()
        self._call(lambda: self._calls.cnet_memory(self._handle, ctypes.byref(size)))
        return size.value

    def _describe(self) -> None:
        version, text = ctypes.c_uint32(), ctypes.c_char_p()
        _check(self._calls.cnet_version(ctypes.byref(version)))
        self._version = version.value
        if not _OLDEST <= version.value <= API_VERSION:
            raise InputRefused(f"has version {version.value} of the interface; expected {_OLDEST} to {API_VERSION}: export the model again")
        _check(self._calls.cnet_describe(ctypes.byref(text)))
        try:
            metadata = json.loads(text.value or b"")
            self.architecture = Architecture.from_dict(metadata["architecture"])
            self.preprocessing = Preprocessing.from_dict(metadata["preprocessing"])
            self.precision = str(metadata["precision"])
            self.preprocessing.require_channels(self.architecture.image_channels)
            names = metadata.get("class_names")
            self._class_names = () if names is None else checked_labels(names, self.architecture.classes)
        except (ValueError, KeyError, TypeError) as error:
            raise InputRefused(
                f"its description is not that of a library of this tool ({in_words(error)}); export the model again"
            ) from None
        own = self.manifest
        if own is None or (own.architecture, own.precision) != (self.architecture, self.precision):
            raise InputRefused("its manifest describes another network than the library itself; export the model again")
        if own.preprocessing != self.preprocessing:
            raise InputRefused("its manifest prepares images in another way than the library itself; export the model again")
        if self._class_names and own.class_names != self._class_names:
            raise InputRefused("its manifest names other classes than the library itself; export the model again")
        if not self._class_names and not self._pinned:  # written by version 0.1.0, which kept the names in the manifest alone
            self._class_names = own.class_names
        elif not self._class_names and own.class_names:
            log.warning(
                "%s: its class names stand in its manifest alone, which the pinned digest does not cover, and are not used; "
                "export the model again",
                self._path,
            )
        self.input_shape = (None, *self.architecture.image_shape)
        self.classes = self.architecture.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._class_names

    def bind(self, batch: Floats) -> Binding:
        return _NativeBinding(self, self.check(batch))

    def infer(self, arguments: tuple[int, ...]) -> None:
        """Run a checked batch; ``arguments`` are those of cnet_run. Raises InputRefused if the session is closed."""
        self._call(lambda: self._calls.cnet_run(self._handle, *arguments))

    def _call(self, call: Callable[[], int]) -> None:
        if self._process != os.getpid():  # before the lock, which another thread may have held during the fork
            _check(_FORKED)
        with self._turn:
            if self.closed:
                raise InputRefused("the session was closed; open it again to run another batch")
            status = call()
        _check(status)

    def close(self) -> None:
        if self._process != os.getpid():
            super().close()
            return
        with self._turn:  # not during a run in another thread
            super().close()
            self._close()


class _NativeBinding(Binding):
    def __init__(self, session: NativeSession, batch: Floats) -> None:
        self._session, self._batch = session, batch
        self._logits = np.empty((len(batch), session.classes), np.float32)
        self._arguments = (batch.ctypes.data, batch.size, len(batch), self._logits.ctypes.data, self._logits.size)

    def enqueue(self) -> None:
        self._session.infer(self._arguments)

    def result(self) -> Floats:
        return self._logits


def open_file(pair: Pair, *, device: str, threads: int | None, isa: str | None = None, sharing: str = "auto") -> NativeSession:
    """Open a session on a library of `export --native`."""
    return NativeSession(pair, device=device, threads=threads, isa=isa, sharing=sharing)


class _Library:
    """A library loaded from its checked bytes, through a private file that nobody else can replace.

    The file stays open as long as the library, since the loader identifies libraries by the path that they are loaded from.
    """

    def __init__(self, data: bytes) -> None:
        self._stack, self.calls = _loaded(data)
        try:
            _declare(self.calls, _INTERFACE)
        except InputRefused:
            self._stack.close()
            raise

    def close(self, handle: Any) -> None:
        """Destroy the handle, if there is one, and unload the library."""
        if handle:
            self.calls.cnet_destroy(handle)
        self._stack.close()


def _declare(calls: Any, interface: dict[str, list[Any]]) -> None:
    """Give functions of a library their types. Raises InputRefused for one that it does not have."""
    for function, arguments in interface.items():
        try:
            getattr(calls, function).argtypes = arguments
        except AttributeError:
            raise InputRefused(f"is no library of this tool (it has no function {function}); export the model again") from None


def _loaded(data: bytes) -> tuple[contextlib.ExitStack, Any]:
    """The library and a stack that unloads it. Loaded from memory, or from a private folder if the system forbids that."""
    reason = ""
    for copy in (_in_memory, _in_a_folder):
        with contextlib.ExitStack() as stack:
            try:
                name = copy(data, stack)
            except (AttributeError, OSError) as error:
                if copy is _in_a_folder:
                    raise Unavailable(
                        f"can't be copied to {tempfile.gettempdir()}, from where it is loaded: {in_words(error)}; set TMPDIR to "
                        "another folder"
                    ) from None
                continue
            try:
                library = ctypes.CDLL(name)
            except OSError as error:
                reason = str(error).replace(name, "it")
                continue
            stack.callback(_ctypes.dlclose, library._handle)
            return stack.pop_all(), library
    raise InputRefused(f"can't be loaded as a library: {printable(reason)}; export the model again, on this machine")


def _in_memory(data: bytes, stack: contextlib.ExitStack) -> str:
    file = stack.enter_context(open(os.memfd_create("cnet-deploy", os.MFD_CLOEXEC), "wb"))  # noqa: SIM115
    file.write(data)
    file.flush()
    path = f"/proc/self/fd/{file.fileno()}"
    Path(path).stat()
    return path


def _in_a_folder(data: bytes, stack: contextlib.ExitStack) -> str:
    path = stack.enter_context(temporary_folder("library")) / "library.so"
    path.write_bytes(data)
    return str(path)


def _check(status: int) -> None:
    if status:
        kind, text = _FAILURES.get(status, (InputRefused, f"the library answered with status {status} (see cnet.h)"))
        raise kind(text)
