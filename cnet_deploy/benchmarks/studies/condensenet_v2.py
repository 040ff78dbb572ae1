"""Compare CondenseNet V2 in the native library with other runtimes, and with what its authors' converter makes of it.

``python -m cnet_deploy.benchmarks.studies.condensenet_v2 RESULTS.json [AUTHORS]``: AUTHORS is a folder with condensenet-v2-a.onnx, -b and
-c, the authors' converted networks exported as they are; without it there is nothing of theirs in the results. Weights are random.

Each network with each number of threads is one interleaved run, as in runtimes.py. onnxruntime and OpenVINO run our graph in all forms
(program/forms.py), and the faster of all counts. The limits are those of LEAST.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Settings
from cnet_deploy.benchmarks.studies.runtimes import FORMAT_VERSION, OURS, Notify, Suite, bar
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.benchmarks.sweep.paper import V2
from cnet_deploy.errors import CnetDeployError, InputRefused
from cnet_deploy.files import check_output, write_text
from cnet_deploy.models.architecture import NAMED
from cnet_deploy.models.build import build_random
from cnet_deploy.sessions.native import MAX_THREADS
from cnet_deploy.workflows.export import export

SETTINGS = Settings(rounds=20, seconds=0.2)
AUTHORS = "authors' form in onnxruntime"
LEAST = {"condensenet-v2-c": (3.0, 8.0)}  # times as fast as the faster of the other runtimes on our graph, as onnxruntime on theirs
FORMS = {"onnx": "gather", "onnx-dense": "dense", "onnx-absorbed": "absorbed"}  # of our graph


class Networks(Suite):
    """The artifacts of CondenseNet V2, and the results so far. ``authors`` is the folder of their networks."""

    authors: Path | None = None

    def v2(self, name: str, threads: int) -> None:
        """One network with so many threads: what could not be made is missing, and why is told."""
        paths = self._made(name)
        cells = [Cell(OURS, paths["native"], "native", threads)] if "native" in paths else []
        for backend in ("onnxruntime", "openvino"):
            cells += [Cell(f"{backend}, {form}", paths[key], backend, threads) for key, form in FORMS.items() if key in paths]
        if "authors" in paths:
            cells.append(Cell(AUTHORS, paths["authors"], "onnxruntime", threads))
        sizes = {key: Path(path).stat().st_size for key, path in paths.items()}
        facts: dict[str, Any] = {"network": name, "threads": threads, "precision": "fp32", "batch": 1, "bytes": sizes}
        entry = self.run(f"{name}, fp32, {threads} thread(s)", cells, **facts)
        times = {cell["cell"]["label"]: cell["p10_seconds_an_image"] for cell in entry["cells"] if cell["p10_seconds_an_image"]}
        own, theirs = times.get(OURS), times.get(AUTHORS)
        ours = min((time for label, time in times.items() if label not in (OURS, AUTHORS)), default=None)
        faster, than_theirs = LEAST.get(name, (None, None))
        entry["bars"] = [
            bar("times as fast as the faster of onnxruntime and OpenVINO on our graph", own and ours and ours / own, least=faster),
            bar("times as fast as onnxruntime on the authors' converted form", own and theirs and theirs / own, least=than_theirs),
        ]
        self.tell(entry["bars"])

    def _made(self, name: str) -> dict[str, str]:
        """Paths by the names of what they are; without what can't be made here."""
        paths: dict[str, str] = {}
        for key in ("native", *FORMS):
            path = self.folder / f"{name}-{key}{'.onnx' if key in FORMS else '.so'}"
            try:
                if not path.exists():
                    export(build_random(NAMED[name]), "onnx" if key in FORMS else "native", path, form=FORMS.get(key, "gather"))
                paths[key] = str(path)
            except CnetDeployError as error:
                self.notify(f"{name}, {key}: {error}")
        if self.authors is not None:
            paths["authors"] = str((self.authors / f"{name}.onnx").absolute())
        return paths


def main(output: Path, authors: Path | None = None, notify: Notify = print, settings: Settings = SETTINGS) -> None:
    """Run it, which takes about five minutes. Raises InputRefused where a file of ``authors`` is missing."""
    check_output(output)
    names = [row.model for row in V2]
    if authors is not None and (missing := [name for name in names if not (authors / f"{name}.onnx").is_file()]):
        raise InputRefused(f"{authors}: has no {missing[0]}.onnx; expected the authors' converted networks, exported as ONNX files")
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-v2-") as folder:
        suite = Networks(Path(folder), notify, settings)
        suite.authors = authors
        for name in names:
            for threads in sorted({1, min(len(os.sched_getaffinity(0)), MAX_THREADS)}):
                suite.v2(name, threads)
    report = {"cnet_deploy_peers": FORMAT_VERSION, "environment": environment(), "settings": asdict(settings), "results": suite.results}
    write_text(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.condensenet_v2 RESULTS.json [AUTHORS]")
