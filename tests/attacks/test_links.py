"""Links at the names of outputs: a link is replaced, never written through, whatever it points to. Only CI's summary page is appended to
through one, as CI itself hands it out.

A folder may be a link: who gives it says where to write.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.cases import few, long
from tests.forks import IN_PLACE, Forks

from .fixtures import Models
from .helpers import one_line
from .outputs import CONVERT, NATIVE, ONNX, PLOT, QUICK, SHAPE, Command, whole_results, whole_run

PRECIOUS = b"precious"
WRITERS = [CONVERT, ONNX, NATIVE, PLOT]
NAMES = [(command, name) for command in WRITERS for name in command.names]  # of a manifest too, which nobody asked for by name


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file elsewhere that nothing may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_bytes(PRECIOUS)
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    return folder


def untouched(outside: Path) -> None:
    assert {entry.name: entry.read_bytes() for entry in outside.iterdir()} == {"file": PRECIOUS}


@pytest.mark.parametrize("to", ["file", "nothing"])
@pytest.mark.parametrize(("command", "name"), NAMES, ids=str)
def test_a_link_is_replaced(command: Command, name: str, to: str, models: Models, forks: Forks, place: Path, outside: Path) -> None:
    """Also one that dangles: what it points to is not made."""
    (place / name).symlink_to(outside / to)
    done = forks.run(*command.line(models, True, place))
    assert done.code == 0, done
    untouched(outside)
    assert not (place / name).is_symlink() and command.check(models, place) == "new"


def test_a_writer_in_place_is_caught(models: Models, forks: Forks, place: Path, outside: Path) -> None:
    (place / "m.onnx").symlink_to(outside / "file")
    forks.run(*ONNX.line(models, True, place), setup=IN_PLACE)
    with pytest.raises(AssertionError):
        untouched(outside)


@pytest.mark.parametrize("to", ["directory", "itself", "device"])
@pytest.mark.parametrize(("command", "name"), NAMES, ids=str)
def test_a_link_that_can_not_be_replaced(
    command: Command, name: str, to: str, models: Models, forks: Forks, place: Path, outside: Path
) -> None:
    """To a directory or a device: refused before anything is done. To itself: the link is all that is lost, or it is refused too."""
    (place / name).symlink_to({"directory": outside, "itself": place / name, "device": Path("/dev/null")}[to])
    done = forks.run(*command.line(models, True, place))
    untouched(outside)
    if to == "itself" and done.code == 0:
        assert command.check(models, place) == "new"
        return
    assert done.code == 4, done
    assert name in one_line(done.stderr)
    assert [entry.name for entry in place.iterdir()] == [name] and (place / name).is_symlink()


@pytest.mark.parametrize("kind", ["link", "hard link"])
@pytest.mark.parametrize("command", WRITERS, ids=str)
def test_the_input_by_another_name(command: Command, kind: str, models: Models, forks: Forks, place: Path) -> None:
    line = command.line(models, True, place)
    source, output = next(word for word in line if word in models), place / command.names[0]
    assert isinstance(source, Path)
    before = source.read_bytes()
    if kind == "link":
        output.symlink_to(source)
    else:
        os.link(source, output)
    done = forks.run(*line)
    assert done.code == 4 and "is the input itself" in one_line(done.stderr), done
    assert source.read_bytes() == before and output.samefile(source)


RUN_FILES = ["log.jsonl", "curves.svg", "save_models/latest.txt", "save_models/model_best.pth.tar"]


@long
@pytest.mark.parametrize("to", few(["file", "nothing"]))
def test_the_files_of_a_training_run(to: str, forks: Forks, place: Path, outside: Path, small_dataset: Path) -> None:
    """A checkpoint's name too, where a run goes on that had not come so far."""
    line = ("train", small_dataset, *SHAPE, "--savedir", place)
    (place / "save_models").mkdir()
    for name in RUN_FILES:
        (place / name).symlink_to(outside / to)
    assert (done := forks.run(*line)).code == 0, done
    untouched(outside)
    assert whole_run(place) == 2 and not any((place / name).is_symlink() for name in RUN_FILES)
    last = place / "save_models" / "checkpoint_001.pth.tar"
    last.unlink()
    last.symlink_to(outside / to)
    (place / "save_models" / "latest.txt").write_text(str(last))
    assert (done := forks.run(*line, "--resume")).code == 0, done
    untouched(outside)
    assert whole_run(place) == 2 and not last.is_symlink()


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("to", ["directory", "device"])
@long
def test_a_training_run_is_refused_before_its_first_epoch(
    name: str, to: str, forks: Forks, place: Path, outside: Path, small_dataset: Path
) -> None:
    (place / "save_models").mkdir()
    (place / name).symlink_to(outside if to == "directory" else "/dev/null")
    done = forks.run("train", small_dataset, *SHAPE, "--savedir", place)
    assert done.code == 4 and Path(name).name in one_line(done.stderr), done
    untouched(outside)
    assert not list((place / "save_models").glob("checkpoint*"))


def test_a_folder_of_checkpoints_may_be_a_link(forks: Forks, place: Path, tmp_path: Path, small_dataset: Path) -> None:
    (tmp_path / "large").mkdir()
    (place / "save_models").symlink_to(tmp_path / "large")
    assert forks.run("train", small_dataset, *SHAPE, "--savedir", place).code == 0
    assert whole_run(place) == 2 and (tmp_path / "large" / "checkpoint_001.pth.tar").is_file()
    (place / "dangling").mkdir()
    (place / "dangling" / "save_models").symlink_to(tmp_path / "nothing")
    done = forks.run("train", small_dataset, *SHAPE, "--savedir", place / "dangling")
    assert done.code == 4 and "save_models: can't be made" in one_line(done.stderr) and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", few(["r.json", "r.part.json"]))
@pytest.mark.parametrize("to", few(["file", "nothing"]))
def test_results(name: str, to: str, models: Models, forks: Forks, place: Path, outside: Path, tmp_path: Path) -> None:
    assert forks.run(*ONNX.line(models, True, tmp_path)).code == 0
    line = ("bench", tmp_path / "m.onnx", "--json", place / "r.json", *QUICK)
    if name == "r.part.json":
        assert forks.run(*line).code == 0  # a run that is done, so that the next one grows beside it
    (place / name).symlink_to(outside / to)
    assert (done := forks.run(*line)).code == 0, done
    untouched(outside)
    assert whole_results(place) == "done" and not (place / "r.json").is_symlink() and not (place / "r.part.json").exists()


def test_a_summary_page_is_appended_to_through_a_link(models: Models, forks: Forks, place: Path, outside: Path, tmp_path: Path) -> None:
    (place / "page.md").symlink_to(outside / "file")
    (place / "v.json").symlink_to(outside / "nothing")
    places = ("--summary", place / "page.md", "--json", place / "v.json")
    done = forks.run("gate", models.new_converted, "--baseline", tmp_path / "none.json", *places)
    assert done.code == 5
    assert re.match(b"precious### Latency gate: not measured", (outside / "file").read_bytes())
    assert (
        [entry.name for entry in outside.iterdir()] == ["file"] and (place / "page.md").is_symlink() and not (place / "v.json").is_symlink()
    )


GUESSED = """
import secrets
secrets.token_hex = lambda size: "0" * 2 * size
"""


@pytest.mark.parametrize("to", ["file", "nothing"])
@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.json"])
def test_a_temporary_is_never_opened_if_it_is_there(
    name: str, to: str, models: Models, forks: Forks, place: Path, outside: Path
) -> None:  # fmt: skip
    """Even who guesses its name gains nothing: it is made anew, or the command is refused."""
    stem, suffix = name.rsplit(".", 1)
    trap = place / f".{stem}.00000000.tmp.{suffix}"
    trap.symlink_to(outside / to)
    done = forks.run(*ONNX.line(models, True, place), setup=GUESSED)
    assert done.code == 4 and "File exists" in one_line(done.stderr), done
    untouched(outside)
    assert not (place / "m.onnx").exists() and not (place / "m.onnx.json").exists()
