"""Whole files or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable
from cnet_deploy.files import atomic_output, atomic_outputs, digest, read_bytes, temporary_folder, temporary_text
from tests.processes import interruptible


def test_written_whole_and_renamed(tmp_path: Path) -> None:
    target = tmp_path / "model.onnx"
    with atomic_output(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".onnx" and temporary != target
        temporary.write_text("new")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert target.read_text() == "new"


def test_the_umask_decides_the_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_output(tmp_path / "m") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(old)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "m"
    target.write_text("old")
    with pytest.raises(error), atomic_output(target) as temporary:
        temporary.write_text("half")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m", "old")]


INTERRUPTED = """
import sys, time
from cnet_deploy.files import atomic_output
with atomic_output(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_leaves_what_was_there(tmp_path: Path, number: signal.Signals) -> None:
    target = tmp_path / "m"
    target.write_text("old")
    command = interruptible([sys.executable, "-c", INTERRUPTED, str(target)])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    assert target.read_text() == "old"
    if number == signal.SIGINT:
        assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("where", "message"),
    [("missing/m", "make it first"), ("file/m", "is no directory"), (".", "is a directory"), ("/proc/m", "can't be written")],
)
def test_places_that_can_not_be_written_to(tmp_path: Path, where: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    entered = False
    with pytest.raises(OutputRefused, match=message), atomic_output(tmp_path / where):
        entered = True
    assert not entered  # refused before any work is done


def test_the_source_is_not_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "m"
    source.write_text("source")
    (tmp_path / "link").symlink_to(source)
    for name in ("m", "link"):
        with pytest.raises(OutputRefused, match="is the input itself"), atomic_output(tmp_path / name, source=source):
            pass
    assert source.read_text() == "source"


@pytest.mark.parametrize("stem", ["n" * 240, "é" * 120, "\U0001f600" * 60])
def test_long_names_fit(tmp_path: Path, stem: str) -> None:
    target = tmp_path / f"{stem}.onnx"
    with atomic_output(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_read_bytes(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"abc")
    assert read_bytes(tmp_path / "m") == b"abc"
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    start = time.monotonic()
    for name, message in (("empty", "is empty"), (".", "is a directory"), ("none", "no such file"), ("pipe", "is a device or pipe")):
        with pytest.raises(InputRefused, match=message):
            read_bytes(tmp_path / name)
    with pytest.raises(InputRefused, match="is a device or pipe"):
        read_bytes("/dev/zero")
    assert time.monotonic() - start < 30  # a pipe that is waited for would never end


def test_more_than_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"abcd")
    assert read_bytes(tmp_path / "m", 4) == b"abcd"
    with pytest.raises(InputRefused, match="has 4 bytes; expected at most 3"):
        read_bytes(tmp_path / "m", 3)
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputRefused, match="expected at most"):
        read_bytes(tmp_path / "sparse")


def test_two_outputs_are_taken_together(tmp_path: Path) -> None:
    pair = (tmp_path / "a", tmp_path / "b")
    for path in pair:
        path.write_text("old")
    pair[0].chmod(0o600)
    with pytest.raises(ValueError, match="half way"), atomic_outputs(*pair) as temporaries:
        temporaries[0].write_text("new")
        raise ValueError("half way")
    assert [path.read_text() for path in pair] == ["old", "old"]
    with atomic_outputs(*pair) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        assert [path.read_text() for path in pair] == ["old", "old"]
    assert [path.read_text() for path in pair] == ["new", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert pair[0].stat().st_mode & 0o777 == 0o600  # what was private stays private


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputRefused, match="is a device or pipe"), atomic_output(tmp_path / "pipe"):
        pass
    assert (tmp_path / "pipe").is_fifo()


def test_digest() -> None:
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_temporary_folder_is_private_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder("test") as folder:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
        (folder / "more").mkdir()
        (folder / "more" / "file").write_text("text")
    assert not [*tmp_path.iterdir()]


def test_where_nothing_temporary_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match=r"folder can be made in .*file: Not a directory; .*TMPDIR"), temporary_folder("test"):
        pass
    with pytest.raises(Unavailable, match=r"file can be made in .*file: Not a directory; .*TMPDIR"):
        temporary_text()


def test_what_fails_in_a_temporary_folder_is_not_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FileNotFoundError), temporary_folder("test") as folder:
        (folder / "missing").read_bytes()
    assert not [*tmp_path.iterdir()]
