"""Several processes that write one output at once: a reader sees a whole one or none, and one of the writers' stays."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy.artifacts.pair import read_manifest
from cnet_deploy.benchmarks.sweep.results import read_report
from cnet_deploy.errors import InputRefused
from cnet_deploy.files import digest
from tests.cases import few, long
from tests.forks import IN_PLACE, Forks

from .fixtures import Models
from .outputs import CONVERT, ONNX, QUICK, SHAPE, TRITON, Command, which, whole_run

MANY = few([2, 8])


def seen(command: Command, models: Models, place: Path) -> str | None:
    """What a reader gets that opens the output at any moment; it fails for what is not whole."""
    if command is CONVERT:
        path = place / "m.safetensors"
        if not path.exists():
            return None
        source = cd.load(path).source
        assert source is not None
        return which(models, source.digest)
    path = place / "m.onnx"
    if not path.exists():
        return None
    with cd.open_session(path, threads=1) as session:
        assert session.manifest is not None, "an artifact without its manifest"
        found = session.manifest
    # Its own digest and its model's must be of one export: the files of the two models are as long as each other.
    name = which(models, found.source_sha256)
    assert found.sha256 == DIGESTS[name]
    return name


DIGESTS: dict[str, str] = {}  # of the artifacts of both models


@pytest.mark.parametrize("writers", MANY)
@pytest.mark.parametrize("command", [CONVERT, ONNX], ids=str)
def test_a_reader_sees_whole_files(command: Command, writers: int, models: Models, forks: Forks, tmp_path: Path) -> None:
    found = raced(command, writers, models, forks, tmp_path)
    assert set(found) <= {"old", "new", "nothing"} and found["old"] + found["new"]


def test_writers_in_place_are_caught(models: Models, forks: Forks, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, InputRefused)):
        for number in range(10):
            raced(ONNX, 8, models, forks, tmp_path, number, setup=IN_PLACE)


def raced(
    command: Command, writers: int, models: Models, forks: Forks, tmp_path: Path, number: int = 0, setup: str = ""
) -> Counter[str]:  # fmt: skip
    """Writers of both models into one folder, and what a reader saw meanwhile."""
    for name in ("old", "new") if command is ONNX else ():
        if name not in DIGESTS:
            folder = tmp_path / name
            folder.mkdir()
            assert forks.run(*ONNX.line(models, name == "new", folder)).code == 0
            DIGESTS[name] = digest((folder / "m.onnx").read_bytes())
    place = tmp_path / f"place{number}"
    place.mkdir()
    running = [forks.start(*command.line(models, bool(writer % 2), place), setup=setup) for writer in range(writers)]
    found: Counter[str] = Counter()
    while any(forks.running(pid) for pid in running):
        found[seen(command, models, place) or "nothing"] += 1
    ends = [forks.wait(pid) for pid in running]
    assert not [done for done in ends if done.code], [done.stderr for done in ends]
    assert command.check(models, place) in ("old", "new")
    assert {entry.name for entry in place.iterdir()} == set(command.names), "something else is left"
    found[seen(command, models, place) or "nothing"] += 1
    return found


@pytest.mark.parametrize("writers", MANY)
def test_one_repository(writers: int, models: Models, forks: Forks, tmp_path: Path) -> None:
    """Each gets a version of its own, and none is lost; the same bytes as the latest are no new version."""
    place = tmp_path / "place"
    place.mkdir()
    running = [forks.start(*TRITON.line(models, bool(writer % 2), place)) for writer in range(writers)]
    ends = [forks.wait(pid) for pid in running]
    assert not [done for done in ends if done.code], [done.stderr for done in ends]
    versions = sorted(int(entry.name) for entry in (place / "repository" / "m").iterdir() if entry.name.isdigit())
    assert versions == list(range(1, len(versions) + 1)) and 2 <= len(versions) <= writers
    found = [read_manifest(place / "repository" / "m" / str(version) / "model.onnx") for version in versions]
    sources = [which(models, one.source_sha256) for one in found if one is not None]
    assert len(sources) == len(versions) and all(a != b for a, b in itertools.pairwise(sources))
    assert {entry.name for entry in (place / "repository" / "m").iterdir()} == {*map(str, versions), "config.pbtxt"}
    assert found[-1] is not None and found[-1].sha256 in (place / "repository" / "m" / "config.pbtxt").read_text()


@pytest.mark.parametrize("writers", MANY)
@long
def test_results_of_two_sweeps(writers: int, models: Models, forks: Forks, tmp_path: Path) -> None:
    assert forks.run(*ONNX.line(models, True, tmp_path)).code == 0
    place = tmp_path / "place"
    place.mkdir()
    line = ("bench", tmp_path / "m.onnx", "--json", place / "r.json", *QUICK)
    running = [forks.start(*line) for _ in range(writers)]
    while any(forks.running(pid) for pid in running):
        for path in place.glob("r*.json"):
            try:
                read_report(path)
            except InputRefused as error:
                assert "no such file" in str(error)  # a part is gone when its run is whole
        time.sleep(0.01)
    ends = [forks.wait(pid) for pid in running]
    assert not [done for done in ends if done.code], [done.stderr for done in ends]
    assert read_report(place / "r.json").after is not None
    assert {entry.name for entry in place.iterdir()} == {"r.json"}


@pytest.mark.parametrize("writers", MANY)
def test_one_of_two_training_runs_is_refused(writers: int, forks: Forks, small_dataset: Path, tmp_path: Path) -> None:
    """Their epochs would mix. Who comes second is told so, whether it begins or resumes; afterwards the folder is free again."""
    line = ("train", small_dataset, *SHAPE, "--savedir", tmp_path / "run")
    running = [forks.start(*line, *(["--resume"] if number % 2 else [])) for number in range(writers)]
    ends = [forks.wait(pid) for pid in running]
    won = [done for done in ends if done.code == 0]
    assert won and whole_run(tmp_path / "run") == 2
    lost = [done for done in ends if done.code]
    assert all(done.code == 4 for done in lost), lost
    # One that came when the first had ended found its checkpoints, or had nothing left to do.
    assert all("another run is training there" in done.stderr or "has checkpoints of another run" in done.stderr for done in lost)
    assert sum("nothing is left to do" not in done.stderr for done in won) == 1
    assert forks.run(*line, "--resume").code == 0
