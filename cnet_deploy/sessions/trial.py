"""A stranger's graph is opened first, and run once, in a process of its own and within a time limit: it may never end, or crash.

A graph whose work is bounded, as that of every network that `export` writes (see files/onnx_outline.py), needs no such trial. One that has
passed is not tried again by the same user with the same runtime.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.metadata
import json
import logging
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnet_deploy import subprocesses
from cnet_deploy.artifacts.pair import Pair
from cnet_deploy.errors import CnetDeployError, InputRefused, Unavailable, printable
from cnet_deploy.files import cache, digest
from cnet_deploy.files.onnx_outline import NotPlain, outline, require_plain
from cnet_deploy.version import __version__

log = logging.getLogger(__name__)

SECONDS = 60.0
MOST_MEMORY = 8 << 30  # bytes of the process, on a CPU: many times what the largest network of the paper's table takes for one image
_LIMIT = contextvars.ContextVar("time limit", default=SECONDS)
_PASSED: set[str] = set()  # by this process, where nothing can be kept
_KILLED = "it ran out of memory, or somebody ended it"
_TOO_LARGE = 77  # the exit code of a process that needed more
_OF_MEMORY = ("bad_alloc", "bad allocation", "allocate", "memory")  # in what runtimes say then


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Within the block, what ``open_session`` opens first in a process of its own may take so long, unless it is told otherwise."""
    token = _LIMIT.set(seconds)
    try:
        yield
    finally:
        _LIMIT.reset(token)


def require(pair: Pair, backend: str, packages: tuple[str, ...], device: str, threads: int | None, options: Mapping[str, Any],
            seconds: float | None = None) -> None:  # fmt: skip
    """Try a graph in a process of its own, unless it is plain or has passed before. ``seconds`` None: as ``time_limit`` has it.

    Raises InputRefused for one that crashes or takes longer. Another failure is left to whoever opens it next.
    """
    try:
        return require_plain(pair.data)
    except NotPlain as reason:
        why = str(reason)
    asked = {"backend": backend, "device": device, "threads": threads, **options}
    key = digest(json.dumps([digest(pair.data), __version__, *map(_version, packages), asked], sort_keys=True, default=str).encode())
    kept = cache.folder("tried")
    if key in _PASSED or (kept is not None and cache.read(kept, key)):
        return None
    log.info("%s: opened first in a process of its own: %s", pair.path, why)
    if _passes(pair, asked, _LIMIT.get() if seconds is None else seconds):
        _PASSED.add(key)
        if kept is not None:
            cache.write(kept, key, b"passed\n")
    return None


def _passes(pair: Pair, asked: dict[str, Any], seconds: float) -> bool:
    what = json.dumps({"path": str(pair.path.absolute()), "sha256": digest(pair.data), "memory": _most_memory(), **asked})
    try:
        done = subprocesses.run(subprocesses.python(__name__, what), seconds=seconds)
    except subprocesses.TooLong:
        raise InputRefused(
            f"{pair.path}: {asked['backend']} did not open it and run it once within {seconds:g} s{_remarks(pair.data)}; if you trust "
            "where it comes from give it more time with --timeout (in Python timeout=)"
        ) from None
    except OSError as error:
        raise Unavailable(f"{pair.path}: no process can be started to try it in: {error.strerror}; close something") from None
    if done.code < 0:
        how = _KILLED if done.code == -9 else f"it crashed {asked['backend']} (signal {-done.code})"
        raise InputRefused(f"{pair.path}: {how}, in a process of its own{_remarks(pair.data)}; export the model again")
    if done.code == _TOO_LARGE:
        raise InputRefused(
            f"{pair.path}: needs more than {_most_memory() / 2**30:.0f} GiB of memory for an image{_remarks(pair.data)}; expected an image "
            "classifier: export the model again"
        )
    return done.code == 0


def _most_memory() -> int:
    """Bytes: the limit above, or three quarters of the machine's memory if that is less."""
    return min(MOST_MEMORY, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4)


def _remarks(data: bytes) -> str:
    with contextlib.suppress(NotPlain):
        if found := outline(data).remarks():
            return f"; it has {printable(', '.join(found), 300)}"
    return ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _open_and_run(path: str, sha256: str, **asked: Any) -> None:
    """The work of the process."""
    import numpy as np

    from cnet_deploy.sessions import open_session

    with open_session(Path(path), sha256=sha256, timeout=None, **asked) as session:
        size, *shape = session.input_shape
        session.run(np.random.default_rng(0).standard_normal((size or 1, *shape), np.float32))


def _main(asked: dict[str, Any]) -> None:
    memory = asked.pop("memory")
    if asked["device"] == "cpu":  # a driver's addresses are no memory of this process
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        _open_and_run(**asked)
    except MemoryError:
        sys.exit(_TOO_LARGE)
    except CnetDeployError as error:
        sys.exit(_TOO_LARGE if any(word in str(error).lower() for word in _OF_MEMORY) else str(error))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
