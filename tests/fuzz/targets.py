"""What is fuzzed, and what must hold of any input: a whole result, or InputRefused in one printable line, in 2 s of processor time.

No torch here but for the records of `bench`, so that an input takes little time.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.artifacts import manifest, pair, self_check
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.checkpoints.recognise import architecture_of, expected_shapes, infer_form
from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, Unavailable
from cnet_deploy.files.strict_json import to_json
from cnet_deploy.images.decode import read_images
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.workflows.inspect import inspect

MAX_SECONDS, MAX_LINE = 2.0, 1000
ARTIFACT = b"\x7fELF"
GIVEN = {"input_size": (8, 8), "stem_stride": 1}  # what a network of one stage doesn't tell
NETWORK = "condensenet-74-g8"  # that a baseline is compared with
MACHINE: dict[str, Any] = {
    "time": "2026-01-01T00:00:00+00:00", "cpu": "A Processor", "cores": 2, "affinity": [0, 1], "machine_cores": 2, "governor": None,
    "turbo": None, "virtual": True, "clock_mhz": [2400.0], "memory_bytes": 1 << 33, "memory_gib": 8, "load_average": [0.5, 0.5, 0.5],
    "processor_ticks": dict.fromkeys(("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"), 5),
    "system": "Linux 6.1 x86_64", "python": "3.12.1", "packages": {"numpy": "2.0", "torch": "2.8"},
    "gpu": None, "driver": None, "gpu_state": None,
}  # fmt: skip
_STEPS = [
    Preprocessing("x", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), None, (32, 32)),
    Preprocessing("x", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 40, (36, 30)),
]


def checkpoint(path: Path) -> None:
    """Weights in any container, their architecture, and all that is told of them."""
    read = read_tensors(path)
    for name, array in read.tensors.items():
        assert isinstance(name, str) and type(array) is np.ndarray and array.flags.c_contiguous and array.flags.writeable, name
        assert array.dtype == np.float32 or array.dtype.kind in "iub", (name, array.dtype)
    found = inspect(path, **GIVEN)
    arch = architecture_of(read, **GIVEN) if found.problem is None else None
    if arch is not None:
        assert found.architecture == arch
        for name, shape in expected_shapes(arch, infer_form(read.tensors)).items():
            assert read.tensors[name].shape == shape and np.isfinite(read.tensors[name]).all(), name
    _told(found.summary(), found.to_dict())


def description(path: Path) -> None:
    """A manifest by itself, and beside the artifact that it describes."""
    artifact = path.with_name("model.so")
    if not artifact.exists():
        artifact.write_bytes(ARTIFACT)
    manifest.manifest_path(artifact).write_bytes(path.read_bytes())
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        text = ""
    if text:
        found = manifest.Manifest.from_json(text)
        assert manifest.Manifest.from_json(found.to_json()) == found
        if found.proof is not None:
            _checked(artifact, found, found.proof)
    looked_at = inspect(artifact)
    _told(looked_at.summary(), looked_at.to_dict())


def _checked(artifact: Path, found: manifest.Manifest, proof: Mapping[str, Any]) -> None:
    """A proof decides nothing but whether an artifact opens; what is kept of it can be read again."""

    def run(batch: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        assert batch.shape[1:] == (3, 8, 8) and len(batch) <= 4
        return np.tile(np.arange(10, dtype=np.float32), (len(batch), 1))

    try:
        entry = self_check.check(run, (3, 8, 8), proof, classes=10)
    except CheckFailed as error:
        _line(str(error))
        return
    assert entry["passed"] and entry["tolerance"] <= 1e-4
    if pair.read_manifest(artifact) == found:
        after = replace(found, verification=(*found.verification, entry), proof=None)
        try:
            pair.update_manifest(artifact, found, after)
        except OutputRefused as error:
            _line(str(error))
        else:
            assert pair.read_manifest(artifact) == after


def results(path: Path) -> None:
    """What `bench --json` wrote: it is read, told of, and written so that it is read again."""
    from cnet_deploy.benchmarks.report.advice import warnings_of
    from cnet_deploy.benchmarks.report.text import comma_separated, markdown
    from cnet_deploy.benchmarks.sweep.results import read_report

    read = read_report(path)
    again = path.with_name("again.json")
    again.write_text(to_json(read.to_dict(), indent=1))
    assert read_report(again).to_dict() == read.to_dict()  # which has a cell's label for where its model lay
    for line in (*markdown(read).split("\n"), *warnings_of(read)):
        assert line.isprintable(), line[:300]
    comma_separated(read).encode("utf-8", "surrogatepass")


def baseline(path: Path) -> None:
    """What `bench --save-baseline` wrote, to the point where a gate would begin to measure."""
    from cnet_deploy.benchmarks.gate import baseline as stored
    from cnet_deploy.benchmarks.gate.run import MAX_ROUNDS, SETTINGS
    from cnet_deploy.benchmarks.measure.rule import decide, self_test
    from cnet_deploy.benchmarks.sweep.figures import Figures, changes

    stored.environment = lambda: MACHINE  # type: ignore[assignment]
    for new in (False, True):
        try:
            found = stored.find_baseline(path, Path(NETWORK), backend=None, threads=None, new_artifact=new)
        except Unavailable as error:
            _line(str(error))
            continue
        turn = replace(SETTINGS, warmup=found.warmup, seconds=found.seconds, least=found.least)
        longest = max(map(max, found.rounds))
        assert (turn.warmup + max(turn.seconds, turn.least * longest)) * MAX_ROUNDS < 1 << 50 and found.threads < 1 << 16 > found.batch
        quiet = self_test(found.medians, found.medians, 0.05, paired=False)
        decision = decide(found.medians, [0.01] * 8, 0.05, paired=False)
        assert all(map(math.isfinite, (quiet.half_width, decision.estimate, decision.lower, decision.upper)))
        if found.figures is not None:
            for change in changes(found.figures, Figures(".onnx", 5, 6, 7, "fp32", {"Conv": 3})):
                assert found.figures.format == ".onnx"
                _line(str(change))


def choice(path: Path) -> None:
    """What `export --form auto` keeps of its measurement."""
    from cnet_deploy.benchmarks.tuning.choice import Choice, read

    found = read(path)
    assert Choice.from_json(found.to_json()) == found
    _line(found.summary())


def image(path: Path) -> None:
    """An image of any format, and CIFAR's records."""
    for steps in _STEPS:
        try:
            read = read_images(path, steps, 10)
        except InputRefused as error:
            _line(str(error))
            continue
        assert read.pixels.shape == (1, 3, *steps.crop) and read.pixels.dtype == np.uint8 and read.labels is None
    records = path.with_suffix(".bin")
    records.write_bytes(path.read_bytes())
    read = read_images(records, _STEPS[0], 10)
    assert (
        read.labels is not None and read.pixels.shape == (len(read.labels), 3, 32, 32) and 0 <= read.labels.min() <= read.labels.max() < 10
    )


TARGETS: dict[str, Callable[[Path], None]] = {
    "checkpoint": checkpoint, "manifest": description, "image": image, "results": results, "baseline": baseline, "choice": choice,
}  # fmt: skip
NAMES = {"checkpoint": "checkpoint.pt", "image": "image.png", **dict.fromkeys(("manifest", "results", "baseline", "choice"), "any.json")}


def prepare(target: str) -> None:
    """Import what a target imports only when it runs, so that the fuzzer sees that code too."""
    if target in ("results", "baseline", "choice"):
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(InputRefused):
            (path := Path(folder) / NAMES[target]).write_text("{}")
            TARGETS[target](path)


def try_one(target: str, path: Path, data: bytes) -> bool:
    """Whether this input was read whole; False where it was refused as it should be. Anything else raises."""
    path.write_bytes(data)
    start = time.process_time()
    try:
        TARGETS[target](path)
        accepted = True
    except InputRefused as error:
        _line(str(error))
        accepted = False
    used = time.process_time() - start
    assert used < MAX_SECONDS, f"{used:.1f} s of processor time"
    return accepted


def _told(summary: str, values: dict[str, object]) -> None:
    for line in summary.split("\n"):
        _line(line)
    json.dumps(values, allow_nan=False)


def _line(text: str) -> None:
    assert text.isprintable() and len(text) <= MAX_LINE, text[:300]
