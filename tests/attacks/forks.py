"""Commands run and killed a hundred times at the price of one start: a process that has imported everything forks a child for each.

``Forks`` is the tests' side; ``python -m tests.attacks.forks`` the other. Nothing may have started a thread before a fork, so the parent
imports and never computes, and its libraries are told to use one thread.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cnet_deploy.cli import COMMANDS

ROOT = Path(__file__).parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
MODULES = (
    "artifacts.triton", "benchmarks.gate.verdict", "benchmarks.report.terminal", "cli.progress", "exporters.native", "exporters.onnx.graph",
    "sessions.native", "sessions.onnxruntime", "sessions.torch", "training.run", "workflows.export", "workflows.inspect",
    "workflows.plot_groups", *(f"cli.{name}" for name in COMMANDS),
)  # fmt: skip
ENDS = ("out", "err", "steps", "modules")  # of a command's reports
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "fcntl.flock"}
LONGEST = 120.0  # seconds of a command before it counts as hung
# The writer that all these tests are there to catch, as source for ``setup``: it writes in place.
IN_PLACE = """
import contextlib, sys
from pathlib import Path
@contextlib.contextmanager
def several(*paths, **_): yield [Path(path) for path in paths]
@contextlib.contextmanager
def single(path, **_): yield Path(path)
for name, module in list(sys.modules.items()):
    if name.startswith("cnet_deploy"):
        for function, broken in (("atomic_outputs", several), ("atomic_output", single)):
            if hasattr(module, function): setattr(module, function, broken)
"""


class Done(NamedTuple):
    """How a command ended: exit code or minus the signal, what it said, how long it took, and how often its folder changed.

    ``steps``: see ``Forks.run``; ``session`` is the process session that all its children are in.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    changes: int
    steps: int
    session: int


class Forks:
    """The process that forks. ``prefix`` is a command to start it by: ``unshare`` for mounts of its own."""

    def __init__(self, scratch: Path, prefix: Sequence[str] = ()) -> None:
        self.scratch = scratch
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.attacks.forks"], cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None and self._process.stdin is not None
        self._answers, self._requests = self._process.stdout, self._process.stdin
        self.threads = self._ask({"do": "threads"})["threads"]

    def run(self, *argv: object, **request: Any) -> Done:
        """A command line from start to end.

        ``after``: seconds until ``signal`` (SIGKILL) is sent, counted from the start, or from the ``upon``-th change of ``folder``'s list
        of names. ``step``: kill it before its step of this number; a step is anything done to a file in ``folder``, and what comes after
        a rename, an opening or an fsync; 0 counts them. ``setup`` is Python to run first; ``uid`` whose rights it has, ``cwd`` where it
        runs, ``env`` more environment, ``stdin``, ``stdout`` and ``stderr`` paths, or "closed".
        """
        return self.wait(self.start(*argv, **request))

    def start(self, *argv: object, **request: Any) -> int:
        """Begin a command, and do not wait for it."""
        request = {key: str(value) if isinstance(value, Path) else value for key, value in request.items()}
        pid: int = self._ask({"do": "start", "argv": [str(word) for word in argv], "scratch": str(self.scratch), **request})["pid"]
        return pid

    def shell(self, command: str) -> None:
        """A command of the shell, where this process' mounts are seen."""
        assert self._ask({"do": "shell", "command": command})["status"] == 0, command

    def running(self, pid: int) -> bool:
        """Whether it has not ended yet."""
        return bool(self._ask({"do": "running", "pid": pid})["running"])

    def wait(self, pid: int) -> Done:
        """The end of what was begun."""
        return Done(**self._ask({"do": "wait", "pid": pid}))

    def close(self) -> None:
        """End the process."""
        self._requests.close()
        self._answers.close()
        self._process.wait(60)

    def inside(self, path: Path) -> Path:
        """A path as that process sees it, whose mounts may be its own."""
        return Path(f"/proc/{self._process.pid}/root") / path.relative_to("/")

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        line = self._answers.readline()
        assert line, "the forking process has ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


def session_members(session: int) -> list[int]:
    """Processes that are left of a session; zombies are none."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found


class _Child:
    """The other side from here on: a forked command and when to kill it."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request, self.changes = request, 0
        self.report = Path(request["scratch"]) / f"report-{time.monotonic_ns()}"
        for place in (self.report.with_suffix(f".{end}") for end in ENDS):
            place.touch()
        self._names = self._list()
        self.began = time.monotonic()
        gc.freeze()  # a collection in the child would copy what it shares with this process
        if not (pid := os.fork()):
            _be_the_command(request, self.report)
        self.pid = pid

    def wait(self) -> dict[str, Any]:
        """Kill it at its time, reap it, and tell."""
        after, upon = self.request.get("after"), self.request.get("upon", 0)
        due = None if after is None or upon else self.began + after
        while (ended := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            now = time.monotonic()
            if self.request.get("folder") and (names := self._list()) != self._names:
                self._names, self.changes = names, self.changes + 1
                if after is not None and self.changes == upon:
                    due = now + after
            if now - self.began > LONGEST:
                os.kill(self.pid, signal.SIGKILL)
            elif due is not None and now >= due:
                os.kill(self.pid, self.request.get("signal", signal.SIGKILL))
                due = None
            elif due is None or due - now > 0.002:
                time.sleep(0 if upon else 0.001)
        seconds = time.monotonic() - self.began
        places = [self.report.with_suffix(f".{end}") for end in ENDS]
        out, err, steps, modules = (place.read_text(encoding="utf-8", errors="replace") for place in places)
        for place in places:
            place.unlink()
        for name in modules.split():  # so that the next child has them already
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        code = os.waitstatus_to_exitcode(ended[1])
        return Done(code, out, err, seconds, self.changes, int(steps or 0), self.pid)._asdict()

    def _list(self) -> list[str]:
        folder = self.request.get("folder")
        try:
            return sorted(os.listdir(folder)) if folder else []  # noqa: PTH208
        except OSError:
            return []


def serve() -> None:
    """Answer requests until there are no more."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    for name in MODULES:
        importlib.import_module(f"cnet_deploy.{name}")
    importlib.import_module("torch").set_num_threads(1)
    children: dict[int, _Child] = {}
    for line in requests:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "threads":
            answer = {"threads": len(os.listdir("/proc/self/task"))}  # noqa: PTH208
        elif request["do"] == "shell":
            answer = {"status": subprocess.run(["sh", "-c", request["command"]], check=False).returncode}
        elif request["do"] == "start":
            child = _Child(request)
            children[child.pid] = child
            answer = {"pid": child.pid}
        elif request["do"] == "running":
            answer = {"running": os.waitid(os.P_PID, request["pid"], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None}
        else:
            answer = children.pop(request["pid"]).wait()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _be_the_command(request: dict[str, Any], report: Path) -> None:
    """The child: everything as a shell would have set it up, then the command line."""
    code, before = 70, set(sys.modules)
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(request.get("env", {}))
        tempfile.tempdir = None
        for number, end, default in ((0, "stdin", os.devnull), (1, "stdout", f"{report}.out"), (2, "stderr", f"{report}.err")):
            if (place := request.get(end, default)) == "closed":
                os.close(number)
            else:
                os.dup2(os.open(place, os.O_RDWR), number)
        os.closerange(3, 64)
        learned = os.open(f"{report}.modules", os.O_WRONLY)
        os.chdir(request.get("cwd", request["scratch"]))
        if uid := request.get("uid"):
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        if request.get("step") is not None:
            _watch(request["folder"], request["step"], f"{report}.steps")
        exec(request.get("setup", ""), {})
        from cnet_deploy.cli import main

        main.main(request["argv"])
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0
    except BaseException:
        code = 71
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(Exception):
            os.write(learned, "\n".join(set(sys.modules) - before).encode())
        os._exit(code)


def _watch(folder: str, wanted: int, report: str) -> None:
    """Count what is done to files in ``folder``, and die before the step of number ``wanted``; 0 never."""
    count = 0
    fd = os.open(report, os.O_WRONLY)

    def step() -> None:
        nonlocal count
        count += 1
        os.pwrite(fd, str(count).encode(), 0)
        if count == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    def concerns(value: object) -> bool:
        if isinstance(value, int):
            with contextlib.suppress(OSError):
                return os.readlink(f"/proc/self/fd/{value}").startswith(folder)
            return False
        return isinstance(value, (str, os.PathLike)) and str(value).startswith(folder)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and any(concerns(value) for value in arguments[:2]):
            step()

    def followed(function: Any, *, before: bool) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            mine = concerns(arguments[0])
            if mine and before:
                step()
            result = function(*arguments, **options)
            if mine:
                step()
            return result

        return call

    os.replace, os.rename = followed(os.replace, before=False), followed(os.rename, before=False)
    os.fsync = followed(os.fsync, before=True)
    builtins.open = io.open = followed(io.open, before=False)
    sys.addaudithook(heard)


if __name__ == "__main__":
    serve()
