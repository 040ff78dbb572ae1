"""Commands run a hundred times at the price of one start: a process that has imported everything forks a child for each.

``Forks`` is the tests' side; ``python -m tests.forks NAME`` the other. Nothing may have started a thread before a fork, so the parent
imports and never computes, and its libraries are told to use one thread.

``Forks.command`` is a program to call in place of ``cnet-deploy``, from a shell too, and ``Forks.worker`` stands in for the script of the
processes that measure: where the start of Python is not what a test is about. Commands that are forked measure with it too.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from cnet_deploy.benchmarks.measure import cells, worker
from cnet_deploy.cli import COMMANDS

ROOT = Path(__file__).parents[1]
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


# Stands in for ``cnet-deploy``, or for a script: hands over arguments, folder, environment and streams, and ends as the child does.
CALLER = r"""#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect("\0{name}")
request = {{"script": {script!r}, "argv": sys.argv[1:], "cwd": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
pid = int(server.recv(64))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(server.recv(64))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Done(NamedTuple):
    """How a command ended: exit code or minus the signal, what it said, how long it took, and how often its folder changed.

    ``steps``: see ``Forks.run``; ``session`` is the process session that all its children are in. ``processor`` is its processor time in
    seconds, ``memory`` the most that it held in bytes, what it shares with its parent included.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    changes: int
    steps: int
    session: int
    processor: float
    memory: int


class Forks:
    """The process that forks, with these modules of ours. ``prefix`` starts it: ``unshare`` for mounts of its own."""

    def __init__(self, scratch: Path, prefix: Sequence[str] = (), modules: Sequence[str] = MODULES) -> None:
        self.scratch = scratch
        environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)}
        name = f"cnet-deploy-{secrets.token_hex(8)}"  # in no folder: a path may be too long for a socket
        self.command, self.worker = scratch / "bin" / "cnet-deploy", scratch / "worker.py"
        self.command.parent.mkdir()
        for place, script in ((self.command, ""), (self.worker, worker.__file__)):
            place.write_text(CALLER.format(python=sys.executable, name=name, script=script))
            place.chmod(0o755)
        command = [*prefix, sys.executable, "-m", "tests.forks", name, str(self.worker), *modules]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
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
    """Processes that are left of a command's session, or were started by it in one of their own; zombies are none."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            started = f"CNET_TEST_COMMAND={session}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if (int(fields[3]) == session or started) and fields[0] != "Z":
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

    def wait(self, meanwhile: Callable[[], None]) -> dict[str, Any]:
        """Kill it at its time, reap it, and tell."""
        after, upon = self.request.get("after"), self.request.get("upon", 0)
        due = None if after is None or upon else self.began + after
        while (ended := os.wait4(self.pid, os.WNOHANG))[0] == 0:
            meanwhile()
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
        used = ended[2]
        processor, memory = used.ru_utime + used.ru_stime, used.ru_maxrss << 10
        return Done(code, out, err, seconds, self.changes, int(steps or 0), self.pid, processor, memory)._asdict()

    def _list(self) -> list[str]:
        folder = self.request.get("folder")
        try:
            return sorted(os.listdir(folder)) if folder else []  # noqa: PTH208
        except OSError:
            return []


class _Call:
    """A command that ``CALLER`` asked for over a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        data, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
        gc.freeze()
        if not (pid := os.fork()):
            _be_the_called(json.loads(data), streams)
        for stream in streams:
            os.close(stream)
        self.pid, self.ends = pid, os.pidfd_open(pid)
        connection.send(str(pid).encode())

    def ended(self) -> None:
        """Reap it, and tell how it ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        with contextlib.suppress(OSError):  # nobody waits any more
            self.connection.send(str(code).encode())
        self.connection.close()
        os.close(self.ends)


class _Calls:
    """Those who ask by the socket of this name."""

    def __init__(self, name: str) -> None:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(f"\0{name}")
        self._listening.listen()
        self._running: list[_Call] = []

    def answer(self, *others: IO[str], seconds: float | None = None) -> list[IO[str]]:
        """Begin and end what there is to begin and end; whichever of the others can be read."""
        ends = [end for call in self._running for end in (call.ends, call.connection)]
        ready = select.select([self._listening, *ends, *others], [], [], seconds)[0]
        for call in [call for call in self._running if call.ends in ready or call.connection in ready]:
            if call.ends not in ready:  # whoever asked was killed
                os.kill(call.pid, signal.SIGKILL)
            self._running.remove(call)
            call.ended()
        if self._listening in ready:
            self._running.append(_Call(self._listening.accept()[0]))
        return [other for other in others if other in ready]


def serve(name: str, script: str, *modules: str) -> None:
    """Answer requests until there are no more."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    for module in modules:
        importlib.import_module(f"cnet_deploy.{module}")
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    if svg := sys.modules.get("cnet_deploy.svg"):
        svg.require_matplotlib()  # imported late; a command that runs as another user may not be let into this environment
    cells._SCRIPT = Path(script)
    children: dict[int, _Child] = {}
    calls = _Calls(name)
    while True:
        if calls.answer(requests):
            if not (line := requests.readline()):
                return
            answers.write(json.dumps(_answer(json.loads(line), children, calls)) + "\n")
            answers.flush()


def _answer(request: dict[str, Any], children: dict[int, _Child], calls: _Calls) -> dict[str, Any]:
    if request["do"] == "threads":
        return {"threads": len(os.listdir("/proc/self/task"))}  # noqa: PTH208
    if request["do"] == "shell":
        return {"status": subprocess.run(["sh", "-c", request["command"]], check=False).returncode}
    if request["do"] == "start":
        child = _Child(request)
        children[child.pid] = child
        return {"pid": child.pid}
    if request["do"] == "running":
        calls.answer(seconds=0)
        return {"running": os.waitid(os.P_PID, request["pid"], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None}
    return children.pop(request["pid"]).wait(lambda: calls.answer(seconds=0))


def _be_the_called(request: dict[str, Any], streams: list[int]) -> None:
    """The child of a call: its caller's streams, folder and environment, then the command line."""
    code = 70
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(3, 256)
        sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if request["script"]:
            sys.argv = [request["script"], *request["argv"]]
            runpy.run_path(request["script"], run_name="__main__")
            code = 0
        else:
            code = _run(request["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run(argv: list[str]) -> int:
    """The exit code of the command line, as Python ends with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tempfile.tempdir = None
    try:
        from cnet_deploy.cli import main

        main.main(argv)
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0
    except BaseException:
        traceback.print_exc()
        return 71
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()


def _be_the_command(request: dict[str, Any], report: Path) -> None:
    """The child: everything as a shell would have set it up, then the command line."""
    code, before = 70, set(sys.modules)
    try:
        os.setsid()
        os.environ.update(request.get("env", {}), CNET_TEST_COMMAND=str(os.getpid()))  # so that whatever it starts can be found
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
        code = _run(request["argv"])
    finally:
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
    serve(*sys.argv[1:])
