"""The cost of the harness: its loop and a bare loop over the same session, in one process and in turns.

``python -m cnet_deploy.benchmarks.studies.overhead RESULTS.json``. The limit is 2 % of the measured time, on the fastest cell.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.worker import OpenCell
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.files import check_output, write_text
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build_random
from cnet_deploy.workflows.export import export

FORMAT_VERSION = 1
EXAMPLE = Architecture((4, 4, 4), (8, 16, 32), classes=10, stem_stride=1, input_size=(32, 32), classifier_keep=0.5)  # of examples/
NETWORKS = {"the example": EXAMPLE, **{name: NAMED[name] for name in ("condensenet-50", "condensenet-74-g8")}}
TARGETS = {"native": ".so", "onnxruntime": ".onnx"}
ROUNDS = 41
TURN_SECONDS = 0.1


def overhead(cell: OpenCell, count: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Seconds of ``count`` inferences with a bare loop and with the harness, round by round, and the median of their ratios."""
    bare: list[float] = []
    harness: list[float] = []
    sides: tuple[tuple[list[float], Callable[[OpenCell, int], None]], ...] = ((bare, _bare), (harness, _harness))
    for number in range(rounds + 1):
        for times, loop in sides if number % 2 else reversed(sides):
            start = time.perf_counter()
            loop(cell, count)
            if number:  # the first round warms up
                times.append(time.perf_counter() - start)
    ratio = statistics.median(a / b for a, b in zip(harness, bare, strict=True))
    return {"inferences": count, "bare_seconds": bare, "harness_seconds": harness, "ratio": ratio}


def _bare(cell: OpenCell, count: int) -> None:
    binding = cell.binding
    for _ in range(count):
        binding.enqueue()
        binding.wait()


def _harness(cell: OpenCell, count: int) -> None:
    cell.measure(warmup=0.0, seconds=0.0, least=count)


def main(output: Path, notify: Callable[[str], None] = print) -> None:
    """Measure every network on every runtime, with one thread."""
    check_output(output)
    results = []
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-overhead-") as folder:
        for number, (name, architecture) in enumerate(NETWORKS.items()):
            for backend, suffix in TARGETS.items():
                path = str(Path(folder) / f"{number}{suffix}")
                export(build_random(architecture), "native" if backend == "native" else "onnx", path)
                cell = OpenCell(path, backend, 1, 1, {})
                count = max(3, round(TURN_SECONDS / statistics.median(cell.measure(0.2, 0.1, 3)["samples"])))
                times = overhead(cell, count)
                cell.session.close()
                results.append({"network": name, "backend": backend, **times})
                notify(f"{name} on {backend}, {count} inferences per turn: the harness takes {times['ratio'] - 1:+.2%}")
    report = {"cnet_deploy_overhead": FORMAT_VERSION, "environment": environment(), "results": results}
    write_text(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.overhead RESULTS.json")
