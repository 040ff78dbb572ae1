"""MLPerf's LoadGen drives sessions, in its scenarios SingleStream and Offline, with shorter runs than MLPerf's rules ask for.

``python -m cnet_deploy.benchmarks.studies.loadgen RESULTS.json`` (``pip install 'cnet-deploy[loadgen]'``). Weights and images are random.
LoadGen itself decides how many queries there are and whether a run is valid. In SingleStream a query is one image, and the next comes when
it was answered; in Offline all images come at once, and are run in batches of BATCH. Every run is repeated ROUNDS times, by turns.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.benchmarks.measure.cells import SETTLE_SECONDS
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.studies.overhead import EXAMPLE
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.errors import Unavailable
from cnet_deploy.files import check_output, read_bytes, write_text
from cnet_deploy.models.architecture import NAMED
from cnet_deploy.models.build import build_random
from cnet_deploy.sessions import open_session
from cnet_deploy.sessions.base import Floats, Session
from cnet_deploy.workflows.export import export

FORMAT_VERSION = 1
NETWORKS = {"the example": EXAMPLE, "condensenet-74-g4": NAMED["condensenet-74-g4"]}
TARGETS = {"native": "native", "onnxruntime": "onnx"}
THREADS = (1, 2)
SCENARIOS = ("SingleStream", "Offline")
SECONDS, ROUNDS = 2.5, 3  # of a run; of MLPerf's rules: 600 s
BATCH, IMAGES = 32, 64
FEWEST = 64  # queries that LoadGen needs for a 90th percentile
_LINE = re.compile(r"^ *([^:\n]+?) *: *(\S+) *$", re.MULTILINE)


class Driver:
    """A session as LoadGen's system under test, and ``images`` [N, C, H, W] as its samples.

    The logits of the images that were run last are in ``logits``, their places in ``images`` in ``indices``.
    """

    def __init__(self, session: Session, images: Floats) -> None:
        try:
            import mlperf_loadgen
        except ImportError as error:
            raise Unavailable(f"LoadGen can't be imported ({error}); pip install 'cnet-deploy[loadgen]'") from None
        self._loadgen, self._session, self._images = mlperf_loadgen, session, images
        self._error: Exception | None = None
        self.indices: list[int] = []
        self.logits: Floats = np.empty((0, session.classes), np.float32)

    def run(self, scenario: str, seconds: float) -> dict[str, Any]:
        """Run a scenario for ``seconds`` at least. Whether LoadGen calls it valid, and its figures: seconds and images per second.

        Raises what the session raised.
        """
        lg, count = self._loadgen, len(self._images)
        settings = lg.TestSettings()
        settings.scenario, settings.mode = getattr(lg.TestScenario, scenario), lg.TestMode.PerformanceOnly
        settings.min_duration_ms = round(seconds * 1e3)
        if scenario == "Offline":
            settings.min_query_count = 1
            settings.offline_expected_qps = 1.5 / self._seconds_an_image(BATCH)  # more than it can be, so that the images last
        else:
            settings.min_query_count = FEWEST
            settings.single_stream_expected_latency_ns = round(self._seconds_an_image(1) * 1e9)
        logs = lg.LogSettings()
        logs.enable_trace = False
        with tempfile.TemporaryDirectory(prefix="cnet-deploy-loadgen-") as folder:
            logs.log_output.outdir, logs.log_output.copy_summary_to_stdout = folder, False
            system = lg.ConstructSUT(self._issue, lambda: None)
            samples = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)
            try:
                lg.StartTestWithLogSettings(system, samples, settings, logs, str(Path(folder) / "audit.config"))
            finally:
                lg.DestroyQSL(samples)
                lg.DestroySUT(system)
            if self._error is not None:
                raise self._error
            return figures(read_bytes(Path(folder) / "mlperf_log_summary.txt").decode())

    def _seconds_an_image(self, batch: int) -> float:
        """The best of three runs."""
        images, times = self._images[np.arange(batch) % len(self._images)], []
        for _ in range(3):
            start = time.perf_counter()
            self._session.run(images)
            times.append((time.perf_counter() - start) / batch)
        return max(min(times), 1e-6)

    def _issue(self, queries: Sequence[Any]) -> None:
        """Answer queries, in batches. LoadGen calls it in a thread of its own, where an exception would end the process."""
        for first in range(0, len(queries), BATCH):
            part = queries[first : first + BATCH]
            if self._error is None:
                try:
                    self.indices = [query.index for query in part]
                    self.logits = self._session.run(self._images[self.indices])
                except Exception as error:
                    self._error = error
            size = self.logits.strides[0]
            addresses = range(self.logits.ctypes.data, self.logits.ctypes.data + size * len(part), size)
            answers = [self._loadgen.QuerySampleResponse(query.id, at, size) for query, at in zip(part, addresses, strict=True)]
            self._loadgen.QuerySamplesComplete(answers)


def figures(summary: str) -> dict[str, Any]:
    """The figures of LoadGen's summary: ``valid``; ``images_per_second``; in SingleStream the percentiles of a query in seconds.

    >>> figures("Scenario : SingleStream\\nResult is : VALID\\n50.00 percentile latency (ns) : 2000\\n"
    ...         "90.00 percentile latency (ns) : 3000\\nQPS w/ loadgen overhead : 9.5")
    {'valid': True, 'images_per_second': 9.5, 'p50_seconds': 2e-06, 'p90_seconds': 3e-06}
    """
    values = dict(_LINE.findall(summary))
    valid = values.get("Result is") == "VALID"
    if values.get("Scenario") == "Offline":
        return {"valid": valid, "images_per_second": float(values["Samples per second"])}
    percentiles = {f"p{p}_seconds": float(values[f"{p}.00 percentile latency (ns)"]) / 1e9 for p in (50, 90)}
    return {"valid": valid, "images_per_second": float(values["QPS w/ loadgen overhead"]), **percentiles}


def in_words(result: dict[str, Any]) -> str:
    """A result in a line: medians of its runs."""
    runs = result["runs"]
    middle = {key: statistics.median(one[key] for one in runs) for key in runs[0] if key != "valid"}
    verdict = "VALID" if all(one["valid"] for one in runs) else "INVALID"
    times = "".join(f", p{p} {middle[f'p{p}_seconds'] * 1e3:.3f} ms" for p in (50, 90) if f"p{p}_seconds" in middle)
    what = f"{result['network']} on {result['backend']}, {result['threads']} thread(s), {result['scenario']}"
    return f"{what}: {verdict}{times}, {middle['images_per_second']:.0f} images/s"


def main(output: Path, notify: Callable[[str], None] = print, seconds: float = SECONDS, rounds: int = ROUNDS) -> None:
    """Run it, which takes about four minutes."""
    check_output(output)
    results: list[dict[str, Any]] = []
    before = environment()
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-loadgen-") as folder:
        for number, (name, architecture) in enumerate(NETWORKS.items()):
            images = np.random.default_rng(0).standard_normal((IMAGES, *architecture.image_shape), np.float32)
            paths = {backend: Path(folder) / f"{number}{'.so' if backend == 'native' else '.onnx'}" for backend in TARGETS}
            for backend, path in paths.items():
                export(build_random(architecture), TARGETS[backend], path)
            cells: list[dict[str, Any]] = [
                {"network": name, "backend": backend, "threads": threads, "scenario": scenario, "runs": []}
                for scenario in SCENARIOS
                for backend in TARGETS
                for threads in THREADS
            ]
            for turn in range(rounds):
                for cell in cells if turn % 2 else reversed(cells):
                    with open_session(paths[cell["backend"]], backend=cell["backend"], threads=cell["threads"], timeout=None) as session:
                        time.sleep(SETTLE_SECONDS)
                        cell["runs"].append(Driver(session, images).run(cell["scenario"], seconds))
            for cell in cells:
                notify(in_words(cell))
            results += cells
    report = {
        "cnet_deploy_loadgen": FORMAT_VERSION, "environment": before, "environment_after": environment(),
        "settings": {"seconds": seconds, "rounds": rounds, "batch": BATCH}, "results": results,
    }  # fmt: skip
    write_text(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.loadgen RESULTS.json")
