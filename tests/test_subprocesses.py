"""subprocesses.py: what a child is kept from, how it ends, and that nothing else starts processes."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import cnet_deploy
from cnet_deploy import subprocesses
from cnet_deploy.errors import Unavailable
from cnet_deploy.subprocesses import TooLong, run, started

PACKAGE = Path(cnet_deploy.__file__).parent
STARTS = {"subprocess", "multiprocessing", "pty", "popen2", "_posixsubprocess"}
FUNCTIONS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "ProcessPoolExecutor", "create_subprocess_exec",
             "create_subprocess_shell"}  # fmt: skip
ALONE = {"subprocesses.py", "benchmarks/studies/timed.py"}  # the second is a script that measures how a program starts


def test_nothing_else_starts_processes() -> None:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names} & STARTS
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names |= {(node.module or "").partition(".")[0]} & STARTS | {alias.name for alias in node.names} & FUNCTIONS
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "asyncio", "futures"):
                names |= {node.attr} & FUNCTIONS | {node.attr for start in ("exec", "spawn") if node.attr.startswith(start)}
        if names:
            found[path.relative_to(PACKAGE).as_posix()] = names
    assert set(found) == ALONE, found


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_child_finds_what_its_parent_finds_but_for_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$PYTHONPATH that the user set counts; what is relative in it, or empty, does not."""
    (given := tmp_path / "given").mkdir()
    (given / "given_module.py").write_text("")
    (here := tmp_path / "here").mkdir()
    (here / "json.py").write_text("raise SystemExit('the current folder')")
    (here / "here_module.py").write_text("")
    shown = script(tmp_path, "import importlib.util as u\nprint(u.find_spec('here_module'), u.find_spec('given_module') is not None)\n")
    outer = (
        "import os, sys\nsys.path[:] = [entry for entry in sys.path if entry not in ('', os.getcwd())]\n"
        "from cnet_deploy.subprocesses import python, run\nsys.path.insert(0, os.getcwd())\n"
        f"print(run(python({shown!r}), seconds=60))"
    )
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join([str(given), "", str(PACKAGE.parent)]), "PYTHONSTARTUP": "x"}
    done = subprocess.run([sys.executable, "-c", outer], cwd=here, env=surroundings, capture_output=True, text=True, check=False)
    assert done.stdout == "Done(code=0, stdout='None True\\n', stderr='')\n", done


def test_the_package_is_the_parents_own(tmp_path: Path) -> None:
    found = run(subprocesses.python(script(tmp_path, "import cnet_deploy\nprint(cnet_deploy.__file__)")), seconds=60)
    assert Path(found.stdout.strip()) == PACKAGE / "__init__.py"


def test_variables_of_python_are_for_an_interpreter_that_the_user_chose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONCANARY", "sings")
    monkeypatch.setenv("PATH", os.pathsep.join(["", ".", "bin", str(tmp_path)]))
    shown = script(tmp_path, "import os\nprint(os.environ.get('PYTHONCANARY'), os.environ['PATH'], os.getcwd(), os.read(0, 1))")
    assert run(subprocesses.python(shown), seconds=60).stdout == f"None {tmp_path} / b''\n"
    assert run([sys.executable, shown], seconds=60, foreign=True).stdout.startswith("sings ")


def test_a_tool_is_not_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g++").write_text("#!/bin/sh\n")
    (tmp_path / "g++").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for path in ("", ".", ":.:"):
        monkeypatch.setenv("PATH", path)
        assert subprocesses.tool("g++") in (None, "/usr/bin/g++", "/bin/g++")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert subprocesses.tool("g++") == str(tmp_path / "g++")


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(pid: int) -> bool:
    end = time.monotonic() + 60
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


FAMILY = "sleep 1000 & echo $!; wait"


def test_what_takes_too_long_is_killed_with_its_children() -> None:
    pids = []
    with pytest.raises(TooLong), started(["/bin/sh", "-c", FAMILY]) as process:
        pids = [process.pid, int(subprocesses.read_line(process, 60))]
        subprocesses.read_line(process, 0.05)
    assert all(map(gone, pids))
    with pytest.raises(TooLong):
        run(["/bin/sh", "-c", "sleep 1000"], seconds=0.1)


def test_a_process_that_leaves_a_child_behind_has_ended() -> None:
    done = run(["/bin/sh", "-c", "sleep 1000 & echo $!"], seconds=60)
    assert done.code == 0 and gone(int(done.stdout))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent(number: signal.Signals, tmp_path: Path) -> None:
    parent = script(
        tmp_path,
        f"from cnet_deploy.subprocesses import *\nwith started(['/bin/sh', '-c', {FAMILY!r}]) as process:\n"
        "    print(process.pid, read_line(process, 60).strip(), flush=True)\n    process.wait()\n",
    )
    with subprocess.Popen([sys.executable, parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        process.send_signal(number)
    assert all(map(gone, pids))


def test_several_end_together() -> None:
    several, codes = subprocesses.Several(), list[int]()
    work = [threading.Thread(target=lambda: codes.append(run(["/bin/sleep", "1000"], seconds=900, among=several).code)) for _ in range(2)]
    for thread in work:
        thread.start()
    time.sleep(0.1)
    several.end()
    for thread in work:
        thread.join(60)
    assert codes == [-9, -9]
    assert run(["/bin/sleep", "1000"], seconds=900, among=several).code == -9  # one that came too late


def test_output_is_text_whatever_its_bytes_and_not_all_of_it(tmp_path: Path) -> None:
    done = run(["/bin/sh", "-c", r"printf '\377a'; head -c 9000000 /dev/zero >&2; exit 3"], seconds=60)
    assert (done.code, done.stdout, len(done.stderr)) == (3, "\ufffda", subprocesses.MOST_OUTPUT)


def test_a_python_without_an_executable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(Unavailable, match="does not know its own executable"):
        subprocesses.python("cnet_deploy")
