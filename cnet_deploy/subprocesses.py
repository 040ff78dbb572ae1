"""The one place that starts processes: ``run`` to the end, or ``started`` with pipes. Nothing of the current folder is run.

A child of this Python ignores Python's environment variables and finds modules where this process does, but not in the current folder.
Tools are called by their absolute paths. A child has no terminal and a session of its own, and ends with its parent, however that ends.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.machinery
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from cnet_deploy.errors import Unavailable

Process = subprocess.Popen[str]
PIPE = subprocess.PIPE
MOST_OUTPUT = 4 << 20  # bytes that are kept of an output; the rest is read and dropped
_NOWHERE = "/"  # where children run: no folder of the user's
_PACKAGE = Path(__file__).absolute().parent
try:
    _BEGAN_IN: str | None = os.getcwd()  # noqa: PTH109  (it may be deleted)
except OSError:
    _BEGAN_IN = None

# Modules are found where the parent finds them, in its order. ``doubtful`` entries stay only if this Python has them by itself. The package
# is the parent's own, wherever it lies.
_BOOTSTRAP = """
import importlib.util, json, os, runpy, sys
asked = json.loads(sys.argv[1])
own = list(sys.path)
sys.path[:] = [entry for entry in asked["path"] if entry in own or entry not in asked["doubtful"]]
sys.path += [entry for entry in own if entry not in sys.path]
spec = importlib.util.spec_from_file_location(
    "cnet_deploy", os.path.join(asked["package"], "__init__.py"), submodule_search_locations=[asked["package"]]
)
sys.modules["cnet_deploy"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
sys.argv[:] = [asked["what"], *asked["arguments"]]
if os.path.isabs(asked["what"]):
    runpy.run_path(asked["what"], run_name="__main__")
else:
    runpy.run_module(asked["what"], run_name="__main__", alter_sys=True)
"""
# Reads which groups of processes there are, and kills them when its parent has ended. A signal to the parent's group must not end it.
_REAPER = """
import contextlib, os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
groups = set()
for line in sys.stdin.buffer:
    (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
for group in groups:
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGKILL)
"""


class Done(NamedTuple):
    """How a process ended: its exit code, or minus the signal that killed it, and what it printed."""

    code: int
    stdout: str
    stderr: str


class TooLong(Exception):
    """A process did not end within its time, and was killed."""


class Several:
    """Processes that threads run for one purpose, so that all can be ended when it has failed."""

    def __init__(self) -> None:
        self._lock, self._running, self._over = threading.Lock(), set[Process](), False

    def end(self) -> None:
        """Kill them all, and those that are still to be started."""
        with self._lock:
            self._over = True
            for process in self._running:
                _kill(process)

    @contextlib.contextmanager
    def holding(self, process: Process) -> Iterator[None]:
        """A process is one of them."""
        with self._lock:
            self._running.add(process)
            if self._over:
                _kill(process)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)


def python(what: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package, or a script by its absolute path, with this Python, isolated.

    Raises Unavailable where the interpreter is not known, as in a program that embeds Python.
    """
    if not sys.executable:
        raise Unavailable("this Python does not know its own executable, so no process can be started with it; use an ordinary Python")
    path = [entry for entry in sys.path if isinstance(entry, str) and Path(entry).is_absolute()]
    doubtful = _doubtful()
    asked = {
        "path": path, "doubtful": [entry for entry in path if os.path.realpath(entry) in doubtful],
        "package": str(_PACKAGE), "what": what, "arguments": arguments,
    }  # fmt: skip
    flags = ["-B"] * sys.dont_write_bytecode + ["-X", "utf8"] * bool(sys.flags.utf8_mode)
    if sys.pycache_prefix:
        flags += ["-X", f"pycache_prefix={sys.pycache_prefix}"]
    return [sys.executable, "-I", *flags, "-c", _BOOTSTRAP, json.dumps(asked)]


def _doubtful() -> set[str]:
    """Folders that are searched for modules only because they are, or were, the current folder, or lie at a relative $PYTHONPATH."""
    folders = {_BEGAN_IN} if _BEGAN_IN else set()
    with contextlib.suppress(OSError):
        folders.add(os.getcwd())  # noqa: PTH109
    if "PYTHONPATH" in os.environ and _BEGAN_IN:
        relative = [part for part in os.environ["PYTHONPATH"].split(os.pathsep) if not Path(part).is_absolute()]
        folders.update(os.path.join(_BEGAN_IN, part) for part in relative)  # noqa: PTH118
    return {os.path.realpath(folder) for folder in folders}


def tool(name: str) -> str | None:
    """The absolute path of a program on $PATH, whose empty and relative entries are left out; None where there is none."""
    return shutil.which(name, path=_search_path())


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, which is not imported. The current folder is not searched. None where there is none."""
    doubtful = _doubtful()
    path = [entry for entry in sys.path if Path(entry).is_absolute() and os.path.realpath(entry) not in doubtful]
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


@contextlib.contextmanager
def careful_libraries() -> Iterator[None]:
    """What libraries start by themselves in the block is not looked for in the current folder either. It changes this process's $PATH."""
    ours = {"PATH": _search_path(), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _search_path() -> str:
    entries = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(entry for entry in entries if Path(entry).is_absolute()) or os.defpath


def _environment(more: Mapping[str, str], foreign: bool) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if foreign or not key.startswith("PYTHON")}
    return {**kept, "PATH": _search_path(), **more}


def run(
    command: Sequence[str], *, seconds: float, folder: Path | str = _NOWHERE, environment: Mapping[str, str] | None = None,
    foreign: bool = False, among: Several | None = None,
) -> Done:  # fmt: skip
    """Run a command to its end in ``folder``, with ``environment`` added; as one of ``among``. Arguments as for ``started``.

    Raises OSError if it can't be started, TooLong if it takes more than ``seconds``.
    """
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(started(command, folder=folder, environment=environment, foreign=foreign))
        if among is not None:
            stack.enter_context(among.holding(process))
        out, err = _outputs(process, end)
        while not _has_ended(process):
            if time.monotonic() > end:
                raise TooLong
            time.sleep(0.001)
        _kill(process)  # what it may have left running
        return Done(process.wait(), out, err)


@contextlib.contextmanager
def started(
    command: Sequence[str], *, folder: Path | str = _NOWHERE, environment: Mapping[str, str] | None = None, foreign: bool = False,
    stdin: int = subprocess.DEVNULL, stderr: int | IO[str] = subprocess.PIPE,
) -> Iterator[Process]:  # fmt: skip
    """A running process, which is killed with all of its children when the block ends.

    ``foreign``: it is another Python, which the user chose, and gets Python's environment variables. ``stdin`` ``PIPE`` opens one. Raises
    OSError if it can't be started.
    """
    _tell_reaper()  # before the child, which then is never without it
    process = subprocess.Popen(
        list(command), cwd=folder, env=_environment(environment or {}, foreign), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr,
        text=True, encoding="utf-8", errors="replace", start_new_session=True,
    )  # fmt: skip
    try:
        _tell_reaper(f"+{process.pid}\n")
        yield process
    finally:
        _kill(process)
        process.wait()
        _tell_reaper(f"-{process.pid}\n")
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def read_line(process: Process, seconds: float) -> str:
    """The next line that a process prints; "" at its end. Raises TooLong if there is none within ``seconds``."""
    assert process.stdout is not None
    answer: list[str] = []
    reader = threading.Thread(target=lambda: answer.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(seconds)
    if reader.is_alive():
        _kill(process)
        reader.join()
        raise TooLong
    return answer[0] if answer else ""


def _outputs(process: Process, end: float) -> tuple[str, str]:
    """What the process prints until it closes both streams or ends."""
    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            if time.monotonic() > end:
                raise TooLong
            ready = selector.select(0.05)
            if not ready and _has_ended(process):  # a child that it left behind may hold the streams
                break
            for key, _ in ready:
                if not (data := os.read(key.fd, 1 << 16)):
                    selector.unregister(key.fileobj)
                held = kept[key.fileobj]  # type: ignore[index]
                held += data[: MOST_OUTPUT - len(held)]
    out, err = (bytes(held).decode("utf-8", "replace") for held in kept.values())
    return out, err


def _has_ended(process: Process) -> bool:
    """Whether it has ended; its number is kept, so that no other process can have it."""
    return process.returncode is not None or os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


_LOCK = threading.RLock()
_reaper: subprocess.Popen[bytes] | None = None


def _tell_reaper(line: str = "") -> None:
    """Start the process that kills the others should this one be killed, if there is none, and tell it of a group."""
    global _reaper  # noqa: PLW0603
    with _LOCK:
        if _reaper is None:
            with contextlib.suppress(OSError):
                _reaper = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _REAPER], cwd=_NOWHERE, env=_environment({}, False), stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, bufsize=0,
                )  # fmt: skip
        if _reaper is not None and _reaper.stdin is not None and line:
            with contextlib.suppress(OSError, ValueError):
                _reaper.stdin.write(line.encode())


def _end_reaper() -> None:
    global _reaper  # noqa: PLW0603
    if _reaper is not None and _reaper.stdin is not None:
        _reaper.stdin.close()
        _reaper.wait()
    _reaper = None


def _forget() -> None:
    """In the child of a fork: nothing of this is its own."""
    global _reaper, _LOCK  # noqa: PLW0603
    _LOCK = threading.RLock()
    if _reaper is not None and _reaper.stdin is not None:
        _reaper.stdin.close()
        _reaper.returncode = 0  # another's child: not to be waited for
    _reaper = None


atexit.register(_end_reaper)
os.register_at_fork(after_in_child=_forget)
