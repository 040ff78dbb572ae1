"""The README's commands and those of the pages in docs/, run as they stand, in a folder that has the examples and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.report.terminal import picture
from cnet_deploy.benchmarks.sweep.results import read_report
from cnet_deploy.cli import COMMANDS
from tests.cases import few
from tests.conftest import Road
from tests.forks import Forks
from tests.pictures import assert_same
from tests.release.pages import PAGES, README, RECORDED, ROAD, ROOT, blocks, commands, hurried, of_the_road, shell, steps, surroundings

LONG = [
    "README.md",
    "docs/native.md",
    "docs/evaluating.md",
    "docs/measuring.md",
    "docs/serving.md",
]  # `make test-all` runs these pages' commands
SHOWN = {"inspect", "convert", "verify", "run"}  # whose output can be compared, numbers that change apart


def without_figures(text: str) -> list[str]:
    """Lines with a mark for each number that may differ from run to run: errors, scales and seeds."""
    return [re.sub(r"\(seed \d+\)|\d+(\.\d+)?(e[-+]\d+)?", "#", line) for line in text.splitlines()]


@pytest.fixture
def folder(road: Road, small_dataset: Path, tmp_path: Path) -> Path:
    """A copy of the road's files, in which nobody else writes."""
    made = tmp_path / "page"
    shutil.copytree(road.folder, made, symlinks=True)
    (made / "cifar-10-batches-bin").symlink_to(small_dataset)  # what it holds is seen, whatever it is called
    return made


def test_there_is_something_to_run() -> None:
    assert {line.split()[1] for line in commands()} == set(COMMANDS) - {"completion"}
    assert 'eval "$(cnet-deploy completion bash)"' in README
    assert len(blocks("python")) == 1
    assert "make demo" in README and "make test" in README
    assert {block.split()[1] for page in PAGES.values() for block, output in steps(page) if output} >= SHOWN


def test_the_picture_is_the_recorded_run() -> None:
    assert_same((ROOT / "docs" / "latency.svg").read_text(encoding="utf-8"), picture(read_report(RECORDED / "table-2-threads.json")))


@pytest.mark.parametrize("page", few([page for page in PAGES if page not in LONG] + LONG, len(PAGES) - len(LONG)))
def test_commands_in_their_order(page: str, folder: Path, road: Road, forks: Forks) -> None:
    """A page's commands, after those of the README that make the files which all pages speak of."""
    for block, output in steps(PAGES[page]):
        done = road.ran[block] if block in road.ran else shell("\n".join(map(hurried, block.splitlines())), folder, forks.command)
        codes = (0, 3) if " gate " in block else (0,)  # a busy machine may be too noisy to say
        assert done.returncode in codes, f"{block}\n{done.stdout}\n{done.stderr}"
        if block.split()[1] in SHOWN and output:
            expected = [line for line in without_figures(output) if line.strip() != "…"]
            assert [line for line in expected if line not in without_figures(done.stdout)] == [], f"{block}\n{done.stdout}"


def test_what_the_pages_need_is_made_once() -> None:
    made = [line for block, _ in steps(README) if of_the_road(block) for line in block.splitlines()]
    assert {line.split()[1] for line in made} == ROAD and len(set(made)) == len(made)


def test_python_block(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=folder, env=surroundings(Path(sys.executable)), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cat", "cat", "ship", "truck"]
