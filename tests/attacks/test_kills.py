"""SIGKILL at any moment: every output is the old one or the new one, and what was begun can be gone on with.

``CNET_KILLS`` is how often each command is killed in each way; ``make attack`` does it a hundred times.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from cnet_deploy.artifacts import manifest
from cnet_deploy.artifacts import self_check as proof
from cnet_deploy.checkpoints.load import load
from cnet_deploy.errors import InputRefused
from cnet_deploy.files import digest
from cnet_deploy.sessions.torch import from_module
from cnet_deploy.training import checkpoints
from tests.cases import few, long
from tests.forks import IN_PLACE, Done, Forks

from .fixtures import Models
from .outputs import (
    CONVERT,
    NATIVE,
    ONNX,
    PLOT,
    QUICK,
    SHAPE,
    TRITON,
    TRITON_NATIVE,
    Command,
    emptied,
    nobody_left,
    told,
    whole_results,
    whole_run,
)

KILLED = -signal.SIGKILL
WAYS = ["at any moment", "as names change"]
COMMANDS = [ONNX, CONVERT, NATIVE, TRITON, PLOT]


class Moments:
    """When to kill: at moments spread over an undisturbed run, or just as names in the folder change, which is where commits are."""

    def __init__(self, way: str, *undisturbed: Done) -> None:
        self._random, self._way = random.Random(0), way
        self._undisturbed = min(undisturbed, key=lambda done: done.seconds)  # a first one may have imported modules yet

    def next(self) -> dict[str, float]:
        if self._way == WAYS[0]:
            return {"after": self._random.uniform(0, self._undisturbed.seconds)}
        return {"upon": self._random.randint(1, max(1, self._undisturbed.changes)), "after": self._random.choice([0, 0, 0.0005, 0.003])}


@pytest.fixture(scope="module", autouse=True)
def warm_cache(quick_compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels of native libraries are compiled once; scratch folders of killed commands go where they are thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENVIRONMENT, "CXX", str(quick_compiler))
        patch.setitem(ENVIRONMENT, "TMPDIR", str(tmp_path_factory.mktemp("scratch")))
        patch.setitem(ENVIRONMENT, "XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


ENVIRONMENT: dict[str, str] = {}


def old_outputs(command: Command, models: Models, forks: Forks, folder: Path) -> Path:
    """A folder with what the command writes of the old model."""
    folder.mkdir()
    done = forks.run(*command.line(models, False, folder), env=ENVIRONMENT)
    assert done.code == 0, done.stderr
    assert command.check(models, folder) == "old"
    return folder


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", few(COMMANDS), ids=str)
def test_what_was_killed_left_the_old_or_the_new(
    command: Command, way: str, models: Models, forks: Forks, tmp_path: Path, kills: int
) -> None:
    old, place = old_outputs(command, models, forks, tmp_path / "old"), tmp_path / "place"
    line = command.line(models, True, emptied(place, old))
    watched = place / command.commits_in
    runs = [forks.run(*line, folder=(emptied(place, old), watched)[1], env=ENVIRONMENT) for _ in range(2)]
    assert command.check(models, place) == "new"
    moments = Moments(way, *runs)
    found: Counter[str] = Counter()
    for number in range(kills):
        there = old if number % 2 else None
        emptied(place, there)
        done = forks.run(*line, folder=watched, env=ENVIRONMENT, **moments.next())
        assert done.code in (0, KILLED), done
        nobody_left(done.session)
        state = command.check(models, place)
        assert state is not None or there is None
        assert state == "new" or done.code == KILLED
        found.update([state or "absent", "killed"] if done.code == KILLED else [state or "absent"])
    told(f"{command}, {way}", **found)
    assert forks.run(*line, env=ENVIRONMENT).code == 0 and command.check(models, place) == "new"  # whatever lies there


def killed_at_each_step(
    command: Command, models: Models, forks: Forks, tmp_path: Path, kills: int = 100, setup: str = ""
) -> Counter[str]:  # fmt: skip
    """Kill a command at every step of what it does to files, where the old output is and where none is; at some, for few ``kills``."""
    old, place = old_outputs(command, models, forks, tmp_path / "old"), tmp_path / "place"
    line = command.line(models, True, emptied(place, old))
    found: Counter[str] = Counter()
    for there in (old, None):
        emptied(place, there)
        steps = forks.run(*line, folder=place, step=0, env=ENVIRONMENT, setup=setup).steps
        assert steps
        last = steps - (11 if command is ONNX else 5)  # where the commit is
        chosen = range(1, steps + 1) if kills >= 100 else [n for n in range(1, steps + 1) if n >= last or n % 6 == 2]
        for step in chosen:
            emptied(place, there)
            done = forks.run(*line, folder=place, step=step, env=ENVIRONMENT, setup=setup)
            assert done.code == KILLED, done
            state = command.check(models, place)
            assert state is not None or there is None, f"step {step}: the old output is gone"
            found[state or "absent"] += 1
    return found


@long
@pytest.mark.parametrize("command", few([CONVERT, ONNX, TRITON, PLOT, NATIVE, TRITON_NATIVE]), ids=str)
def test_every_step_of_a_commit(command: Command, models: Models, forks: Forks, tmp_path: Path, kills: int) -> None:
    found = killed_at_each_step(command, models, forks, tmp_path, kills)
    told(f"{command}, at each step", **found)
    assert found["old"] and found["new"] and found["absent"]


@pytest.mark.parametrize("command", few([CONVERT, ONNX, PLOT]), ids=str)
def test_a_writer_in_place_is_caught(command: Command, models: Models, forks: Forks, tmp_path: Path) -> None:
    with pytest.raises(
        (AssertionError, InputRefused, ElementTree.ParseError), match="no manifest|no whole|no complete|is empty|no element|belong"
    ):
        killed_at_each_step(command, models, forks, tmp_path, setup=IN_PLACE)


@long
def test_the_manifest_of_a_first_opening(models: Models, forks: Forks, tmp_path: Path) -> None:
    """What was not verified where it was made is verified by its first opening, which writes that down."""
    place = emptied(tmp_path / "place")
    assert forks.run(*ONNX.line(models, True, place)).code == 0
    beside = manifest.manifest_path(place / "m.onnx")
    values = manifest.Manifest.from_json(beside.read_text())
    with from_module(load(models.new_converted)) as session:
        evidence = proof.make(session.run, session.input_shape[1:], 1e-4)
    text = manifest.Manifest(
        **{**vars(values), "proof": evidence, "verification": (), "details": {**values.details, "verified": False, "reason": "a test"}}
    ).to_json()
    line = ("verify", place / "m.onnx", models.new_converted)
    beside.write_text(text)
    steps = forks.run(*line, folder=place, step=0).steps
    found: Counter[bool] = Counter()
    for step in range(1, steps + 1):
        beside.write_text(text)
        assert forks.run(*line, folder=place, step=step).code == KILLED
        found[beside.read_text() == text] += 1  # before it is opened here, which verifies it too
        assert ONNX.check(models, place) == "new"
    assert len(found) == 2 and forks.run(*line).code == 0


@pytest.mark.parametrize("way", few(WAYS))
@long
def test_training_goes_on(way: str, models: Models, forks: Forks, small_dataset: Path, tmp_path: Path, kills: int) -> None:
    """Each attempt resumes what the one before it left; a run that came to its end is the one that nothing disturbed, bit for bit."""

    def line(folder: Path) -> tuple[object, ...]:
        return ("train", small_dataset, *SHAPE, "--savedir", folder, "--resume")

    place = tmp_path / "place"
    whole = [tmp_path / "whole", tmp_path / "again"]
    runs = [forks.run(*line(folder), folder=folder / "save_models") for folder in whole]
    assert [(done.code, whole_run(folder)) for done, folder in zip(runs, whole, strict=True)] == [(0, 2)] * 2, runs
    moments = Moments(way, *runs)
    found: Counter[str] = Counter()
    emptied(place)
    for _ in range(kills):
        done = forks.run(*line(place), folder=place / "save_models", env=ENVIRONMENT, **moments.next())
        assert done.code in (0, KILLED), done
        epochs = whole_run(place)
        found[f"with {epochs} epochs"] += 1
        found["killed"] += done.code == KILLED
        if done.code == 0:
            require_the_same(place, tmp_path / "whole")
            emptied(place)
    told(f"train, {way}", **found)
    assert forks.run(*line(place)).code == 0
    require_the_same(place, tmp_path / "whole")


def require_the_same(one: Path, other: Path) -> None:
    states = [checkpoints.read(folder / "save_models" / "checkpoint_001.pth.tar") for folder in (one, other)]
    assert all(torch.equal(tensor, states[1].tensors[name]) for name, tensor in states[0].tensors.items())


@pytest.mark.parametrize("way", few(WAYS))
@long
def test_measuring_goes_on(way: str, models: Models, forks: Forks, tmp_path: Path, kills: int) -> None:
    """Results are old, absent or readable, a killed run can be resumed, and no process that measured is left behind."""
    assert forks.run(*ONNX.line(models, True, tmp_path)).code == 0
    place, old = tmp_path / "place", emptied(tmp_path / "old")
    line = ("bench", tmp_path / "m.onnx", "--json", place / "r.json", *QUICK)
    assert forks.run("bench", tmp_path / "m.onnx", "--json", old / "r.json", *QUICK).code == 0
    digest_of_old = digest((old / "r.json").read_bytes())
    moments = Moments(way, *(forks.run(*line, folder=emptied(place)) for _ in range(2)))
    found: Counter[str] = Counter()
    for number in range(kills):
        resumed = number % 3 == 2
        if not resumed:
            emptied(place, old if number % 3 else None)
        done = forks.run(*line, *(["--resume"] if resumed else []), folder=place, env=ENVIRONMENT, **moments.next())
        assert done.code in (0, KILLED), done
        nobody_left(done.session)
        state = whole_results(place)
        is_old = (place / "r.json").exists() and digest((place / "r.json").read_bytes()) == digest_of_old
        found.update(["old" if is_old else state or "absent", *(["killed"] if done.code == KILLED else [])])
    told(f"bench --json, {way}", **found)
    emptied(place)
    assert forks.run(*line, folder=place, upon=1, after=0).code == KILLED
    done = forks.run(*line, "--resume")
    assert done.code == 0 and whole_results(place) == "done", done
