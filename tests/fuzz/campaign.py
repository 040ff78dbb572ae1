"""A run of all targets, and what came of it: ``python -m tests.fuzz.campaign FOLDER --seconds 600``, which is ``make fuzz``.

FOLDER keeps the corpus, so that the next run goes on from there, and the inputs that were finds; ``results.json`` has the figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from tests.fuzz.targets import TARGETS

MAX_MEMORY = 500  # MB, of the fuzzer and what it tries
_HUNG = 60  # seconds of the clock; each input's 2 s of processor time are what counts

# A process counts the memory of whoever started it as its own peak: the tests' may be beyond the limit already.
_APART = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"


@dataclass(frozen=True)
class Outcome:
    """``edges`` and ``features`` are libFuzzer's measures of what code was reached and how; ``finds`` are files that made it fail."""

    target: str
    inputs: int
    seconds: int
    edges: int
    features: int
    corpus: int
    peak_mb: int
    finds: list[str]
    log: str


def run(target: str, folder: Path, *, limit: str, seed: int = 0) -> Outcome:
    """One target from its seeds in ``folder``; ``limit`` is libFuzzer's flag that ends it."""
    corpus, finds = folder / "corpus" / target, folder / "finds"
    for place in (corpus, finds):
        place.mkdir(parents=True, exist_ok=True)
    before = set(finds.iterdir())
    flags = (limit, f"-seed={seed}", "-max_len=65536", f"-timeout={_HUNG}", f"-rss_limit_mb={MAX_MEMORY}", "-print_final_stats=1")
    places = (f"-artifact_prefix={finds / target}-", str(corpus), str(folder / "seeds" / target))
    done = subprocess.run(
        [sys.executable, "-c", _APART, sys.executable, "-m", "tests.fuzz", target, *flags, *places],
        capture_output=True, text=True, errors="replace", check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    log = done.stdout + done.stderr
    found = sorted(path.name for path in set(finds.iterdir()) - before)
    if done.returncode and not found:
        found = [f"exit code {done.returncode}"]

    def last(pattern: str) -> int:
        numbers = re.findall(pattern, log)
        return int(numbers[-1]) if numbers else 0

    return Outcome(
        target, last(r"number_of_executed_units: (\d+)"), last(r"Done \d+ runs in (\d+) second"), last(r"cov: (\d+)"), last(r"ft: (\d+)"),
        last(r"corp: (\d+)/"), last(r"peak_rss_mb: +(\d+)"), found, log[-20_000:],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS))
    given = parser.parse_args()
    subprocess.run([sys.executable, "-m", "tests.fuzz.seeds", str(given.folder / "seeds")], check=True, cwd=Path(__file__).parents[2])
    outcomes = []
    for target in given.targets:
        outcome = run(target, given.folder, limit=f"-max_total_time={given.seconds}")
        outcomes.append(outcome)
        print(f"{target}: {outcome.inputs:,} inputs in {outcome.seconds} s, {outcome.edges} edges, {len(outcome.finds)} finds", flush=True)
        if outcome.finds:
            print(outcome.log[-3000:], *outcome.finds, sep="\n")
    made = {
        "python": platform.python_version(), "atheris": version("atheris"),
        "targets": [{key: value for key, value in asdict(outcome).items() if key != "log"} for outcome in outcomes],
    }  # fmt: skip
    (given.folder / "results.json").write_text(json.dumps(made, indent=2) + "\n")
    sys.exit(any(outcome.finds for outcome in outcomes))


if __name__ == "__main__":
    main()
