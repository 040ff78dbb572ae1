"""Outputs and what lies in their place: files of another kind stay, special bits go, and nobody's lock holds an output up."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import cnet_deploy as cd
from cnet_deploy import files
from cnet_deploy.artifacts.manifest import manifest_path
from cnet_deploy.cli import main
from cnet_deploy.errors import OutputRefused
from cnet_deploy.files import atomic_output, check_output, write_text
from cnet_deploy.files.replacing import key_of, replacing_anything, sort_of
from cnet_deploy.models.build import build_random
from tests.builders import TINY, save_checkpoint, state_dict, training_model

SVG = "<?xml version='1.0' encoding='utf-8'?>\n<!DOCTYPE svg PUBLIC '-//W3C//DTD SVG 1.1//EN'>\n<svg xmlns='x'></svg>\n"
# Contents of which none may replace another.
KINDS: dict[str, bytes] = {
    "onnx": b"\x08\x08:\0", "library": b"\x7fELF" + bytes(13), "engine": b"ftrt1", "checkpoint": b"\x10\0\0\0\0\0\0\0{}" + bytes(20),
    "svg": SVG.encode(), "html": b"<!doctype html><p>", "xml": b"<?xml version='1.0'?><project/>", "text": b"notes of mine\n",
    "JSON": b'{"name": "package"}', "manifest": b'{\n  "bytes": 5,\n  "cnet_deploy_manifest": 1\n}', "results": b'{"cnet_deploy_bench": 2}',
    "verdict": b'{"cnet_deploy_gate": 1}', "choice": b'{"cnet_deploy_lowering": 1}', "image": b"\x89PNG\r\n\x1a\n",
    "unknown": b"\x01\x02\x03\x04",
}  # fmt: skip


@pytest.mark.parametrize("there", KINDS)
def test_a_file_of_another_kind_stays(tmp_path: Path, there: str) -> None:
    target = tmp_path / "output"
    for kind, content in KINDS.items():
        target.write_bytes(KINDS[there])
        if kind == there:
            with atomic_output(target) as temporary:
                temporary.write_bytes(content + b" ")
            assert target.read_bytes() == content + b" "
            continue
        message = r"output: is .*, which would be replaced by .*; give another name, or --force"
        with pytest.raises(OutputRefused, match=message), atomic_output(target) as temporary:
            temporary.write_bytes(content)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("output", KINDS[there])]
        with replacing_anything(), atomic_output(target) as temporary:
            temporary.write_bytes(content)
        assert target.read_bytes() == content


def test_what_may_be_replaced(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    target.write_bytes(KINDS["checkpoint"])
    link.symlink_to(target)
    write_text(link, SVG)
    assert not link.is_symlink() and link.read_text() == SVG and target.read_bytes() == KINDS["checkpoint"]
    (tmp_path / "empty").write_bytes(b"")
    write_text(tmp_path / "empty", SVG)
    write_text(tmp_path / "new", SVG)


def test_tables_of_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("name,salary\nx,1\n")
    with pytest.raises(OutputRefused, match="is a table of other columns"):
        write_text(path, "model,backend\n")
    with pytest.raises(OutputRefused, match="is a table of other columns"):
        check_output(path, like=key_of("csv", "model"))
    path.write_text("model,older columns\n")
    check_output(path, like=key_of("csv", "model"))
    write_text(path, "model,backend\n")


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("onnx", KINDS["onnx"]), ("library", KINDS["library"]), ("engine", KINDS["engine"]), ("checkpoint", KINDS["checkpoint"]),
        ("svg", KINDS["svg"]), ("html", KINDS["html"]), ("markdown", b"# a\n"), ("cnet_deploy_bench", KINDS["results"]),
        ("cnet_deploy_gate", KINDS["verdict"]), ("cnet_deploy_lowering", KINDS["choice"]), ("cnet_deploy_manifest", KINDS["manifest"]),
    ],
)  # fmt: skip
def test_refused_before_any_work(tmp_path: Path, format: str, content: bytes) -> None:
    path = tmp_path / "output"
    check_output(path, like=key_of(format))
    path.write_bytes(content)
    check_output(path, like=key_of(format))
    for other in KINDS.values():
        path.write_bytes(other)
        there = sort_of(path)
        assert there is not None
        if there.key != key_of(format):
            with pytest.raises(OutputRefused, match="which would be replaced by"):
                check_output(path, like=key_of(format))


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return done.exit_code, done.stderr


def test_every_command_that_writes(tmp_path: Path) -> None:
    """A plot over a model, a model over a plot, results over a manifest, a manifest over somebody's package.json."""
    model = save_checkpoint(tmp_path / "m.pth.tar", {"state_dict": state_dict(training_model(TINY))})
    other = tmp_path / "other.safetensors"
    cd.save(build_random(TINY), other)
    onnx, package = tmp_path / "named.onnx", tmp_path / "package.json"
    onnx.write_bytes(other.read_bytes())
    for path in (package, tmp_path / "mine.onnx.json"):
        path.write_text('{"name": "mine"}')
    results = tmp_path / "results.json"
    results.write_text('{"cnet_deploy_manifest": 1}')
    table = tmp_path / "table.csv"
    table.write_text("name,salary\n")
    drawing = tmp_path / "drawing.svg"
    drawing.write_text("<?xml version='1.0'?><project/>")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    quick = ("--rounds", 1, "--seconds", 0, "--warmup", 0, "--threads", 1)
    for line in (
        ("inspect", model, "--plot", other),
        ("convert", model, "-o", drawing.rename(tmp_path / "drawing.safetensors")),
        ("export", other, "--onnx", "-o", onnx),
        ("export", other, "--onnx", "-o", tmp_path / "mine.onnx"),
        ("bench", other, "--json", results, *quick),
        ("bench", other, "--json", package, *quick),
        ("bench", other, "--csv", table, *quick),
        ("gate", other, other, "--json", results),
    ):
        code, said = run(*line)
        assert code == 4 and "which would be replaced by" in said and "--force" in said, said
    (tmp_path / "drawing.safetensors").rename(drawing)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run("inspect", model, "--plot", other, "--force")[0] == 0 and b"<svg" in other.read_bytes()
    assert run("convert", model, "-o", tmp_path / "package.json", "--force")[0] == 4  # of another suffix, which no force changes
    assert run("export", model, "--onnx", "-o", tmp_path / "mine.onnx", "--force")[0] == 0
    assert b"cnet_deploy_manifest" in manifest_path(tmp_path / "mine.onnx").read_bytes()


def test_no_output_is_what_is_read(tmp_path: Path) -> None:
    """Not with --force either: labels, images, data, a baseline."""
    model = save_checkpoint(tmp_path / "m.pth.tar", {"state_dict": state_dict(training_model(TINY))})
    read = tmp_path / "read.onnx"
    read.write_text("".join(f"{number}\n" for number in range(10)))
    (tmp_path / "read.safetensors").hardlink_to(read)
    for option, line in {
        "--labels": ("convert", model, "--labels", read, "-o", tmp_path / "read.safetensors"),
        "--images": ("export", model, "--onnx", "--images", read, "-o", read),
        "--baseline": ("gate", model, "--baseline", read, "--summary", read),
        "--data": ("compare", model, "--data", read, "--html", read),
    }.items():
        code, said = run(*line, "--force")
        assert code == 4 and f"is the file of {option}; expected another name for the output" in said, said
    for line in (("bench", read, "--json", read), ("gate", model, read, "--json", read), ("inspect", read, "--plot", read)):
        code, said = run(*line, "--force")
        assert code == 4 and "is the input itself; expected another name for the output" in said, said
    with replacing_anything(), pytest.raises(OutputRefused, match="is the input itself"):
        cd.export(model, "onnx", read, labels=read)
    assert len(read.read_text().split()) == 10


def test_force_ends_with_its_command(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "m.pth.tar", {"state_dict": state_dict(training_model(TINY))})
    for force in (["--force"], [], ["--force"]):
        (tmp_path / "x.svg").write_bytes(KINDS["onnx"])
        assert run("inspect", model, "--plot", tmp_path / "x.svg", *force)[0] == (0 if force else 4)


# ---- modes and locks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "kept"), [(0o4755, 0o755), (0o7777, 0o777), (0o640, 0o640), (0o1600, 0o600)])
def test_special_bits_are_not_copied(tmp_path: Path, mode: int, kept: int) -> None:
    path = tmp_path / "m"
    path.write_text("old")
    path.chmod(mode)
    write_text(path, "new")
    assert path.stat().st_mode & 0o7777 == kept


def test_a_link_s_target_decides_no_mode(tmp_path: Path) -> None:
    program, link = tmp_path / "program", tmp_path / "link"
    program.write_text("old")
    program.chmod(0o6777)
    link.symlink_to(program)
    before = os.umask(0o027)
    try:
        write_text(link, "new")
    finally:
        os.umask(before)
    assert link.lstat().st_mode & 0o7777 == 0o640 and program.stat().st_mode & 0o7777 == 0o6777


@pytest.fixture
def somebody_s_lock(tmp_path: Path) -> Iterator[int]:
    held = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    yield held
    os.close(held)
    files._locked_by_others.clear()


def test_somebody_s_lock_is_waited_for_once(
    tmp_path: Path, somebody_s_lock: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    now = iter(range(1_000_000))
    monkeypatch.setattr(time, "monotonic", lambda: next(now) / 100)
    monkeypatch.setattr(time, "sleep", slept.append)
    for number in range(5):
        write_text(tmp_path / "m", f"{number}")
    assert (tmp_path / "m").read_text() == "4"
    assert sum(slept) <= files.LOCK_SECONDS and slept
    assert [record.message for record in caplog.records].count(
        f"{tmp_path}: another process holds a lock on this folder; it is written to without one"
    ) == 1
    fcntl.flock(somebody_s_lock, fcntl.LOCK_UN)
    write_text(tmp_path / "m", "free")
    assert not files._locked_by_others
