"""The README's commands and those of the pages in docs/, run as they stand, in a folder that has the examples and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnet_deploy.benchmarks.report.terminal import picture
from cnet_deploy.benchmarks.sweep.results import read_report
from tests.pictures import assert_same

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = ("reading", "native", "gpu", "evaluating", "training", "measuring")  # those with commands to run
PAGES = (README, *((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in NAMES))
RECORDED = ROOT / "cnet_deploy" / "benchmarks" / "results" / "amd-epyc-2-cores" / "table-2-threads.json"
SHOWN = {"inspect", "convert", "verify", "run"}  # whose output can be compared, numbers that change apart


def blocks(language: str, page: str = README) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def steps() -> Iterator[tuple[str, str]]:
    """Every block of commands, and what stands below it as its output ("" where nothing does)."""
    for page in PAGES:
        yield from re.findall(r"```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)


def commands() -> list[str]:
    return [line for block, _ in steps() for line in block.splitlines() if line.startswith("cnet-deploy ")]


def hurried(line: str) -> str:
    """The command as it stands; where it measures, no longer than it takes to see that it does."""
    shorter = {
        "bench": "--rounds 1 --seconds 0 --warmup 0", "gate": "--seconds 0 --warmup 0 --max-rounds 8", "train": "--epochs 1",
    }  # fmt: skip
    if line == "cnet-deploy doctor":  # as test_diagnosis.py does; here in part
        return f"{line} native"
    if not line.startswith("cnet-deploy "):
        return line
    if line.startswith("cnet-deploy bench --"):  # the whole table is what `make demo` measures
        shorter["bench"] += " condensenet-50"
    if "--save-baseline" in line:
        shorter["bench"] = "--rounds 8 --seconds 0 --warmup 0"
    if "--baseline" in line:
        shorter["gate"] = "--max-rounds 8"
    return f"{line} {shorter.get(line.split()[1], '')}"


def surroundings() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def without_figures(text: str) -> list[str]:
    """Lines with a mark for each number that may differ from run to run: errors, scales and seeds."""
    return [re.sub(r"\(seed \d+\)|\d+(\.\d+)?(e[-+]\d+)?", "#", line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_dataset: Path) -> Path:
    made = tmp_path_factory.mktemp("readme")
    (made / "examples").symlink_to(ROOT / "examples")
    (made / "cifar-10-batches-bin").symlink_to(small_dataset)  # what it holds is seen, whatever it is called
    return made


def test_there_is_something_to_run() -> None:
    from cnet_deploy.cli import COMMANDS

    assert {line.split()[1] for line in commands()} == set(COMMANDS) - {"completion"}
    assert 'eval "$(cnet-deploy completion bash)"' in README
    assert len(blocks("python")) == 1
    assert "make demo" in README and "make test" in README
    assert {block.split()[1] for block, output in steps() if output} >= SHOWN


def test_links_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8")):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_picture_is_the_recorded_run() -> None:
    assert_same((ROOT / "docs" / "latency.svg").read_text(encoding="utf-8"), picture(read_report(RECORDED)))


@pytest.mark.slow
def test_commands_in_their_order(folder: Path) -> None:
    for block, output in steps():
        script = "\n".join(["set -e", *map(hurried, block.splitlines())])
        done = subprocess.run(["bash", "-c", script], cwd=folder, env=surroundings(), capture_output=True, text=True, check=False)
        codes = (0, 3) if " gate " in block else (0,)  # a busy machine may be too noisy to say
        assert done.returncode in codes, f"{block}\n{done.stdout}\n{done.stderr}"
        if block.split()[1] in SHOWN and output:
            expected = [line for line in without_figures(output) if line.strip() != "…"]
            assert [line for line in expected if line not in without_figures(done.stdout)] == [], f"{block}\n{done.stdout}"


@pytest.mark.slow
def test_python_block(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks("python")[0]], cwd=folder, env=surroundings(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cat", "cat", "ship", "truck"]
