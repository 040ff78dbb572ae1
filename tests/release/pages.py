"""The README and the pages in docs/: their blocks, and how their commands are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "cnet_deploy" / "benchmarks" / "results"
RECORDED = RUNS / "intel-xeon-2-cores"  # what the pages have figures of,
OTHERS = RUNS / "amd-epyc-2-cores"  # and where that has none
NAMES = ("reading", "native", "c-api", "gpu", "evaluating", "training", "measuring", "serving")  # those with commands to run
PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMES))
}
README = PAGES["README.md"]
ROAD = {"convert", "export", "verify"}  # the commands of the README that other pages need the files of


def blocks(language: str, page: str = README) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def steps(page: str) -> list[tuple[str, str]]:
    """Every block of commands, and what stands below it as its output ("" where nothing does)."""
    return re.findall(r"```sh\n(.*?)```(?:\n\n```text\n(.*?)```)?", page, re.DOTALL)


def commands() -> list[str]:
    """Every line of every page that begins with our name."""
    return [line for page in PAGES.values() for block, _ in steps(page) for line in block.splitlines() if line.startswith("cnet-deploy ")]


def of_the_road(block: str) -> bool:
    """Whether all that it does is to make files that other blocks need, or to verify them."""
    return all(line.split()[:1] == ["cnet-deploy"] and line.split()[1] in ROAD for line in block.splitlines())


def hurried(line: str) -> str:
    """The command as it stands; where it measures, no longer than it takes to see that it does."""
    shorter = {
        "bench": "--rounds 1 --seconds 0 --warmup 0", "gate": "--seconds 0 --warmup 0 --max-rounds 8", "train": "--epochs 1",
        "compare": "--rounds 1 --seconds 0 --warmup 0 --images 40 --precision fp32",
    }  # fmt: skip
    if line == "cnet-deploy doctor":  # as tests/workflows/test_doctor.py does; here in part
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


def surroundings(command: Path) -> dict[str, str]:
    """The environment in which ``cnet-deploy`` is this program, and ``python`` this Python."""
    return {**os.environ, "PATH": f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def shell(script: str, folder: Path, command: Path) -> subprocess.CompletedProcess[str]:
    """A block as a shell runs it, to its first failure."""
    words = ["bash", "-ec", script]
    return subprocess.run(words, cwd=folder, env=surroundings(command), capture_output=True, text=True, check=False)
