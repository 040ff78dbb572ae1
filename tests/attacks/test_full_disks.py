"""Full disks, read-only ones, and folders that belong to somebody else: a line that says so, and everything as it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cases import few, long
from tests.forks import IN_PLACE, Done, Forks
from tests.old_outputs import old_output

from .disks import Disk
from .fixtures import Models
from .helpers import one_line
from .outputs import CONVERT, NATIVE, ONNX, PLOT, QUICK, SHAPE, TEMPORARY, TRITON, Command, whole_run

PAGE = 4096
NOBODY = 65534
FULL = "No space left on device"


def whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def refused(done: Done, *says: str) -> str:
    """Exit code 4 and one line, which says this; what else may be on stderr stands before it."""
    assert done.code == 4, done
    line = one_line(done.stderr.splitlines(keepends=True)[-1])
    assert all(words in line for words in says), line
    return line


Fill = Callable[[Disk, list[int]], None]
# How full: what is done to the disk, given the sizes of the files to come, the largest first.
FULLNESS: dict[str, Fill] = {
    "nothing left": lambda disk, sizes: disk.leave(0),
    "room for half": lambda disk, sizes: disk.leave(whole_pages(sizes[0]) // 2),
    "room for the largest": lambda disk, sizes: disk.leave(whole_pages(sizes[0])),
    "no inodes": lambda disk, sizes: disk.no_inodes(),
}
SEVERAL = [ONNX, NATIVE, TRITON]  # that write more than one file


# The largest file fits, and is all there is of commands that write one.
FULL_DISKS = [
    (command, fullness)
    for command in (ONNX, CONVERT, NATIVE, TRITON, PLOT)
    for fullness in FULLNESS
    if fullness != "room for the largest" or command in SEVERAL
]


@pytest.mark.parametrize(("command", "fullness"), few(FULL_DISKS, len(FULLNESS)), ids=str)
def test_a_full_disk(command: Command, fullness: str, models: Models, disk: Disk) -> None:
    filled(disk, command, models, FULLNESS[fullness])
    before = disk.content()
    done = disk.forks.run(*command.line(models, True, disk.place))
    refused(done, str(disk.place), FULL)
    assert disk.content() == before and command.check(models, disk.seen) == "old"
    disk.mount("8m")
    assert disk.forks.run(*command.line(models, True, disk.place)).code == 0  # it was the disk, and nothing else


def filled(disk: Disk, command: Command, models: Models, fill: Fill) -> None:
    """A disk with the old output and as little room as wanted for the new one."""
    disk.mount("8m")
    done = disk.forks.run(*command.line(models, False, disk.place))
    assert done.code == 0, done
    fill(disk, sorted((len(content) for content in disk.content().values()), reverse=True))


def test_a_writer_in_place_is_caught(models: Models, disk: Disk) -> None:
    filled(disk, ONNX, models, FULLNESS["room for half"])
    before = disk.content()
    disk.forks.run(*ONNX.line(models, True, disk.place), setup=IN_PLACE)
    assert disk.content() != before


def no_temporary(disk: Disk) -> None:
    assert not [path for path in disk.seen.rglob("*") if TEMPORARY.fullmatch(path.name)]


@pytest.mark.parametrize("room", few([PAGE, 0, 10 * PAGE]))
@long
def test_training_on_a_full_disk(room: int, disk: Disk, small_dataset: Path) -> None:
    """Its log alone fits, or its log and no checkpoint; what is there is whole, and --resume goes on when there is room."""
    line = ("train", small_dataset, *SHAPE, "--savedir", disk.place / "run")
    disk.mount("8m")
    disk.leave(room)
    refused(disk.forks.run(*line), str(disk.place), FULL)
    no_temporary(disk)
    whole_run(disk.seen / "run")
    log = disk.seen / "run" / "log.jsonl"
    assert not log.exists() or log.read_text()[-1:] in ("", "\n"), "half a line"
    (disk.seen / ".filling").unlink()
    assert disk.forks.run(*line, "--resume").code == 0 and whole_run(disk.seen / "run") == 2


@pytest.mark.parametrize(
    ("option", "name"), few([("--json", "r.json"), ("--html", "r.html"), ("--csv", "r.csv"), ("--save-baseline", "r.json")])
)
def test_what_was_measured_is_shown_all_the_same(option: str, name: str, models: Models, disk: Disk, tmp_path: Path) -> None:
    assert disk.forks.run(*ONNX.line(models, True, tmp_path)).code == 0
    disk.mount("8m")
    old = old_output(disk.seen / name)
    disk.leave(0)
    rounds = QUICK if option != "--save-baseline" else ("--rounds", "8", *QUICK[2:])
    done = disk.forks.run("bench", tmp_path / "m.onnx", option, disk.place / name, *rounds)
    refused(done, str(disk.place / name), FULL)
    shown = " ".join(done.stdout.split())  # where lines end depends on the length of the path
    assert "interleaved rounds" in shown and "m.onnx" in shown
    assert disk.content() == {name: old}


@pytest.mark.parametrize(("option", "name"), [("--json", "v.json"), ("--summary", "v.md")])
def test_a_verdict_is_told_all_the_same(option: str, name: str, models: Models, disk: Disk, tmp_path: Path) -> None:
    """Of a gate that finds no baseline, since that is quick; a summary that others wrote to is not left with half of ours."""
    assert disk.forks.run(*ONNX.line(models, True, tmp_path)).code == 0
    disk.mount("8m")
    old = (b'{"cnet_deploy_gate": 1}' if option == "--json" else b"# Before\n").ljust(PAGE - 9)  # so that a few bytes more would fit
    (disk.seen / name).write_bytes(old)
    disk.leave(0)
    done = disk.forks.run("gate", tmp_path / "m.onnx", "--baseline", tmp_path / "none.json", option, disk.place / name)
    refused(done, str(disk.place / name), FULL)
    assert "not measured: " in done.stdout
    assert disk.content() == {name: old}


@pytest.mark.parametrize("command", [NATIVE, TRITON], ids=str)
@pytest.mark.parametrize("room", few([PAGE, 3 * PAGE]))
def test_scratch_space_that_is_full(command: Command, room: int, models: Models, disk: Disk, tmp_path: Path) -> None:
    """The line names where there is no room, which is not where the output was to go."""
    place = tmp_path / "place"
    place.mkdir()
    disk.mount("8m")
    disk.leave(room)
    done = disk.forks.run(*command.line(models, True, place), env={"TMPDIR": str(disk.place)})
    assert done.code in (4, 5)
    line = one_line(done.stderr.splitlines(keepends=True)[-1])
    assert str(disk.place) in line and FULL in line, line
    assert not list(place.iterdir()) and not disk.content() and {entry.name for entry in disk.seen.iterdir()} == {".filling"}


WRITERS = few([ONNX, CONVERT, NATIVE, TRITON, PLOT], 2)


@pytest.mark.parametrize("command", WRITERS, ids=str)
def test_a_read_only_file_system(command: Command, models: Models, disk: Disk) -> None:
    disk.mount("8m")
    assert disk.forks.run(*command.line(models, False, disk.place)).code == 0
    before = disk.content()
    disk.read_only()
    refused(disk.forks.run(*command.line(models, True, disk.place)), str(disk.place), "Read-only file system")
    assert disk.content() == before


@long
def test_a_training_run_s_read_only_file_system(disk: Disk, small_dataset: Path) -> None:
    disk.mount("8m")
    disk.read_only()
    done = disk.forks.run("train", small_dataset, *SHAPE, "--savedir", disk.place / "run")
    refused(done, str(disk.place), "Read-only file system")


@pytest.mark.parametrize("command", WRITERS, ids=str)
def test_somebody_else_s_folder(command: Command, models: Models, forks: Forks, tmp_path: Path) -> None:
    """Root may write anywhere, so that the command runs as nobody where this is root."""
    place = tmp_path / "place"
    place.mkdir()
    done = forks.run(*command.line(models, False, place))
    assert done.code == 0
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    open_to_all(tmp_path)
    open_to_all(models.new.parent)
    for path in folders:
        path.chmod(0o555)
    try:
        done = forks.run(*command.line(models, True, place), **({"uid": NOBODY} if os.geteuid() == 0 else {}))
        refused(done, str(place), "Permission denied")
    finally:
        for path in folders:
            path.chmod(0o755)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def open_to_all(path: Path) -> None:
    """Let others pass through the folders that pytest keeps for itself."""
    for folder in [path, *path.parents]:
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith(("pytest-", "popen-", "test_", "models")):
            folder.chmod(0o755)


# Of the folders for temporary files, the last of which is the current one, none takes a file.
NO_TEMPORARY = """
import os, tempfile
def full(*_): raise OSError(28, "No space left on device")
os.memfd_create, tempfile.tempdir, tempfile._candidate_tempdir_list = full, None, lambda: ["/proc/1", "/dev/null"]
"""


@pytest.mark.parametrize("command", ["run", "bench", "compare", "gate", "doctor", "export --native", "export --triton"])
def test_no_temporary_folder(command: str, models: Models, forks: Forks, tmp_path: Path) -> None:
    model, artifact, gauge = models.new_converted, tmp_path / "m.so", ("--seconds", "0", "--warmup", "0")
    if command == "run":
        assert forks.run("export", model, "--native", "--target", "host", "-o", artifact).code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    lines: dict[str, tuple[object, ...]] = {
        "run": ("run", artifact, "examples/images/cat.png"),
        "bench": ("bench", model, "--backend", "onnxruntime", "--rounds", "1", *gauge),
        "compare": ("compare", model, "--backend", "onnxruntime", "--rounds", "1", *gauge),
        "gate": ("gate", model, model, "--backend", "onnxruntime", *gauge),
        "doctor": ("doctor", "onnxruntime"),
        "export --native": ("export", model, "--native", "-o", artifact),
        "export --triton": ("export", model, "--onnx", "--triton", tmp_path / "repository"),
    }
    done = forks.run(*lines[command], setup=NO_TEMPORARY)
    assert done.code == 5, done
    line = one_line(done.stderr.splitlines(keepends=True)[-1])
    assert "no temporary folder can be made" in line and "TMPDIR" in line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
