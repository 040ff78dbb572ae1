"""A short run of every target: hundreds of inputs, or thousands, none of which gives anything but a whole result or a refusal."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
from pathlib import Path

import pytest

from cnet_deploy.errors import InputRefused
from tests.cases import few
from tests.fuzz import mutators, seeds
from tests.fuzz.targets import NAMES, TARGETS, try_one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz")
    seeds.write(path / "seeds")
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_read_and_their_changes_are_files(folder: Path, tmp_path: Path, target: str) -> None:
    """What the fuzzer begins with is whole, at least in part, and what its changes make still reaches what lies inside."""
    files = [path.read_bytes() for path in sorted((folder / "seeds" / target).iterdir())]
    path = tmp_path / NAMES[target]
    read = [try_one(target, path, data) for data in files]
    assert any(read)

    chance = random.Random(0)

    def change(data: bytes, limit: int) -> bytes:
        place = chance.randrange(len(data)) if data else 0
        return (data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :])[:limit]

    made = [mutators.mutate(target, data, 1 << 16, number, change) for data in files for number in range(8)]
    assert len(set(made)) > len(made) // 4
    for data in made:
        if data:
            try_one(target, path, data)


@pytest.mark.parametrize("inputs", few([100, 10_000]))
@pytest.mark.parametrize("target", few(TARGETS))
def test_inputs_that_a_fuzzer_makes(folder: Path, target: str, inputs: int) -> None:
    if importlib.util.find_spec("atheris") is None:
        message = "needs atheris, which has no wheel for this Python or machine"
        if os.environ.get("CNET_REQUIRE_ALL"):
            pytest.fail(message)
        pytest.skip(message)
    from tests.fuzz.campaign import run

    outcome = run(target, folder, limit=f"-runs={inputs}", seed=1)
    print(f"\n{target}: {outcome.inputs:,} inputs, {outcome.edges} edges, {outcome.peak_mb} MB")
    assert not outcome.finds, outcome.log[-3000:]
    assert outcome.inputs >= inputs


@pytest.mark.parametrize("raised", [ValueError("x"), MemoryError(), RecursionError(), InputRefused("x" * 10), AssertionError()], ids=repr)
def test_what_is_a_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    def target(path: Path) -> None:
        raise raised

    monkeypatch.setitem(TARGETS, "image", target)
    with contextlib.nullcontext() if isinstance(raised, InputRefused) else pytest.raises(type(raised)):
        assert not try_one("image", tmp_path / "a.png", b"x")


def test_the_changes_know_their_formats() -> None:
    """A changed manifest is JSON nearly always, or the fuzzer would only see it refused at once."""
    data = seeds.manifests()[1]
    made = [mutators.json_text(data, 1 << 16, random.Random(number), lambda data, limit: b"{") for number in range(200)]
    assert sum(isinstance(json.loads(text), dict) for text in made if text[:1] == b"{" and len(text) > 1) > 150
