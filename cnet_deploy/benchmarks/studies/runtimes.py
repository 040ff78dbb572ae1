"""Compare the native library with other runtimes, and with the peak performance of the processor.

``python -m cnet_deploy.benchmarks.studies.runtimes RESULTS.json CLASSIFY.C``: the second file is examples/native/classify.c,
for the time of a whole process.

Every group of cells is one interleaved run. Ratios are of 10th percentiles, the speed of a runtime on an undisturbed machine. onnxruntime
and OpenVINO run the network as it is and with dense 1x1 convolutions (program/forms.py), and the faster of the two counts. In int8 they run
our own graph, and OpenVINO also what NNCF, its own quantiser, makes of the network in fp32 (``pip install nncf``).
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cnet_deploy import subprocesses
from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.environment import environment
from cnet_deploy.benchmarks.measure.rounds import Result, Settings, measure
from cnet_deploy.benchmarks.measure.worker import NAMED as NAMED_CELL
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.benchmarks.sweep.ranges import random_images
from cnet_deploy.errors import CnetDeployError, Unavailable
from cnet_deploy.exporters.native import INCLUDE
from cnet_deploy.exporters.native.toolchain import find_compiler
from cnet_deploy.exporters.onnx.graph import build_graph
from cnet_deploy.files import check_output, write_text
from cnet_deploy.hardware.cpu import host_isas, host_machine
from cnet_deploy.images.decode import read_images
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build_random
from cnet_deploy.program.forms import dense_pointwise
from cnet_deploy.program.lower import lower
from cnet_deploy.sessions.native import MAX_THREADS
from cnet_deploy.workflows.export import export

FORMAT_VERSION = 2
IMAGENET = ("condensenet-74-g4", "condensenet-74-g8")
SETTINGS = Settings(rounds=20, seconds=0.2)
OURS = "native"
INT8 = "native int8"
# How many times as fast as OpenVINO on its faster graph.
FASTER_THAN_OPENVINO = {
    "bf16": {"condensenet-74-g4": 4.0, "condensenet-74-g8": 5.0},
    "int8": {"condensenet-74-g4": 4.0, "condensenet-74-g8": 6.0},
}
FASTER_THAN_FP32 = 1.8  # times, in int8
PROCESSES = 20

Notify = Callable[[str], None]  # gets lines of text


class Suite:
    """The artifacts of all networks in a folder, and the results so far."""

    def __init__(self, folder: Path, notify: Notify, settings: Settings = SETTINGS) -> None:
        self.folder, self.notify, self.settings = folder, notify, settings
        self.results: list[dict[str, Any]] = []
        self._quantised: dict[str, dict[str, str | None]] = {}

    def artifacts(self, name: str) -> dict[str, str]:
        """Paths of a network's artifacts in fp32 and bf16: native, native-bf16, onnx, onnx-dense."""
        paths = {key: str(self.folder / f"{name}-{key}{suffix}") for key, suffix in _FORMS.items()}
        if not Path(paths["onnx"]).exists():
            model = build_random(NAMED[name])
            export(model, "native", paths["native"])
            export(model, "native", paths["native-bf16"], precision="bf16")
            program = lower(model)
            for key, source in (("onnx", program), ("onnx-dense", dense_pointwise(program))):
                Path(paths[key]).write_bytes(build_graph(source).SerializeToString())
        return paths

    def quantised(self, name: str) -> dict[str, str | None]:
        """The same in int8: native-int8, onnx-int8, onnx-dense-int8, and NNCF's nncf, nncf-dense; None for what can't be made here.

        The weights are random, and so are the images that ranges are taken from.
        """
        if name in self._quantised:
            return self._quantised[name]
        forms, paths = self.artifacts(name), dict[str, str | None]()
        for key, suffix in _INT8_FORMS.items():
            path = self.folder / f"{name}-{key}{suffix}"
            paths[key] = str(path)
            try:
                if key.startswith("nncf"):
                    _by_nncf(forms["onnx-dense" if key.endswith("dense") else "onnx"], path, self._images(name))
                else:
                    target, form = "native" if suffix == ".so" else "onnx", "dense" if "dense" in key else "gather"
                    export(build_random(NAMED[name]), target, path, precision="int8", calibrate=self._images(name), form=form)
            except CnetDeployError as error:
                self.notify(f"{name}, {key}: {error}")
                paths[key] = None
        self._quantised[name] = paths
        return paths

    def _images(self, name: str) -> npt.NDArray[np.float32]:
        """Random images [N, 3, H, W], prepared as the network says."""
        arch = NAMED[name]
        steps = Preprocessing.of(arch.input_size, arch.classes)
        return steps.apply(read_images(random_images(self.folder, arch.image_shape), steps, arch.classes).pixels)

    def run(self, what: str, cells: Sequence[Cell], *, ours: str = OURS, **facts: Any) -> dict[str, Any]:
        """Measure cells together; record and report how many times as fast ``ours`` is as the best of the others."""
        results = {result.cell.label: result for result in measure(cells, self.settings)}
        entry: dict[str, Any] = {"what": what, **facts, "cells": [_entry(result) for result in results.values()]}
        lines = [
            f"{label}: {p10 * 1e3:.3f} ms" if (p10 := _p10(result)) else f"{label}: {result.error}" for label, result in results.items()
        ]
        rivals = {label: p10 for label, result in results.items() if not label.startswith((OURS, "torch")) and (p10 := _p10(result))}
        if ours in results and (own := _p10(results[ours])) and rivals:
            best = min(rivals, key=lambda label: rivals[label])
            entry |= {"best_peer": best, "times_as_fast": rivals[best] / own}
            lines.append(f"native is {rivals[best] / own:.2f} times as fast as {best}")
        self.results.append(entry)
        self.notify(f"{what}\n  " + "\n  ".join(lines))
        return entry

    # ---- latency ---------------------------------------------------------------------------------------------------

    def fp32(self, name: str, threads: int, *, compiled: bool, batch: int = 1) -> None:
        """Native fp32 and the other runtimes."""
        forms = self.artifacts(name)
        cells = [Cell(OURS, forms["native"], "native", threads, batch)]
        for backend in ("onnxruntime", "openvino"):
            cells += [
                Cell(f"{backend}, {text}", forms[key], backend, threads, batch)
                for key, text in (("onnx", "as it is"), ("onnx-dense", "dense 1x1"))
            ]
        if compiled:
            cells.append(Cell("torch.compile, frozen", NAMED_CELL + name, "torch", threads, batch, {"compiled": True}))
        self.run(f"{name}, fp32, batch {batch}, {threads} thread(s)", cells, network=name, threads=threads, precision="fp32", batch=batch)

    def bf16(self, name: str, threads: int) -> None:
        """Native bf16 and OpenVINO's; and whether the bar was reached."""
        forms = self.artifacts(name)
        cells = [Cell("native bf16", forms["native-bf16"], "native", threads)]
        cells += [
            Cell(f"openvino bf16, {text}", forms[key], "openvino", threads, 1, {"precision": "bf16"})
            for key, text in (("onnx", "as it is"), ("onnx-dense", "dense 1x1"))
        ]
        facts = {"network": name, "threads": threads, "precision": "bf16", "batch": 1}
        entry = self.run(f"{name}, bf16, {threads} thread(s)", cells, ours="native bf16", **facts)
        least = FASTER_THAN_OPENVINO["bf16"].get(name)
        entry["bars"] = [bar("times as fast as OpenVINO's bf16", entry.get("times_as_fast"), least=least)]
        self.tell(entry["bars"])

    def int8(self, name: str, threads: int) -> None:
        """Native int8, native fp32, and int8 in OpenVINO and onnxruntime; and whether the bars were reached.

        The bars are FASTER_THAN_OPENVINO, of its fastest graph, and FASTER_THAN_FP32.
        """
        paths = self.quantised(name)
        cells = [Cell(OURS, self.artifacts(name)["native"], "native", threads)]
        for label, backend, key in (
            (INT8, "native", "native-int8"),
            ("openvino int8, as it is", "openvino", "onnx-int8"),
            ("openvino int8, dense 1x1", "openvino", "onnx-dense-int8"),
            ("openvino int8 by NNCF, as it is", "openvino", "nncf"),
            ("openvino int8 by NNCF, dense 1x1", "openvino", "nncf-dense"),
            ("onnxruntime int8, as it is", "onnxruntime", "onnx-int8"),
            ("onnxruntime int8, dense 1x1", "onnxruntime", "onnx-dense-int8"),
        ):
            if path := paths[key]:
                cells.append(Cell(label, path, backend, threads))
        facts = {"network": name, "threads": threads, "precision": "int8", "batch": 1, "missing": [key for key in paths if not paths[key]]}
        entry = self.run(f"{name}, int8, {threads} thread(s)", cells, ours=INT8, **facts)
        times = {cell["cell"]["label"]: cell["p10_seconds_an_image"] for cell in entry["cells"]}
        openvino = min((time for label, time in times.items() if label.startswith("openvino") and time), default=None)
        if own := times.get(INT8):
            entry["bars"] = [
                bar("times as fast as OpenVINO's int8", openvino and openvino / own, least=FASTER_THAN_OPENVINO["int8"].get(name)),
                bar("times as fast as native fp32", times[OURS] and times[OURS] / own, least=FASTER_THAN_FP32),
            ]
            self.tell(entry["bars"])

    def tell(self, bars: Sequence[Mapping[str, Any]]) -> None:
        """Report figures beside their limits."""
        for each in bars:
            self.notify(f"  {bar_in_words(each)}")

    # ---- against the processor -------------------------------------------------------------------------------------

    def utilisation(self, name: str, isa: str, threads: int) -> None:
        """The best run's share of the processor's peak multiply-adds with these instructions, measured before and after."""
        path = self.artifacts(name)["native"]
        peak = _peak(isa, self.folder)
        before = max(peak(threads, 0.2) for _ in range(3))
        (result,) = measure([Cell(isa, path, "native", threads, 1, {"isa": isa})], self.settings)
        most = max(before, *(peak(threads, 0.2) for _ in range(3)))
        if not result.samples:
            self.results.append({"what": "utilisation", "network": name, "isa": isa, "threads": threads, "cells": [_entry(result)]})
            self.notify(f"{name}, {isa}, {threads} thread(s): {result.error}")
            return
        best = min(result.samples)
        share = NAMED[name].macs / best / 1e9 / most
        facts = {"network": name, "isa": isa, "threads": threads, "peak_gmacs": most, "best_seconds": best, "share_of_peak": share}
        self.results.append({"what": "utilisation", **facts, "cells": [_entry(result)]})
        self.notify(f"{name}, {isa}, {threads} thread(s): best {best * 1e3:.3f} ms, {share:.1%} of {most:.0f} GMAC/s")

    def busy_core(self, name: str) -> None:
        """All threads while another process keeps the last core busy: the median and the 99th percentile."""
        cores = sorted(os.sched_getaffinity(0))
        cell = Cell(OURS, self.artifacts(name)["native"], "native", min(len(cores), MAX_THREADS))
        with subprocesses.started(subprocesses.python(str(_BUSY), str(cores[-1]))):
            (result,) = measure([cell], replace(self.settings, seconds=1.0, rounds=10))
        if not result.samples:
            self.results.append({"what": "busy core", "network": name, "cells": [_entry(result)]})
            self.notify(f"{name}, one core busy: {result.error}")
            return
        median, p99 = (float(np.percentile(result.samples, q)) for q in (50, 99))
        self.results.append({"what": "busy core", "network": name, "median": median, "p99": p99, "cells": [_entry(result)]})
        self.notify(
            f"{name}, one of {len(cores)} cores busy: median {median * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, {p99 / median:.1f} times"
        )

    def process(self, name: str, program: Path) -> None:
        """Time and peak memory of a whole C process (examples/native), twenty times, with the library in fp32 and in int8 by turns.

        int8 must need neither more time to its first answer nor more memory.
        """
        libraries = {"fp32": self.artifacts(name)["native"], "int8": self.quantised(name)["native-int8"]}
        image = self.folder / "image.ppm"
        _write_image(image, NAMED[name])
        compiler = subprocesses.tool("cc")
        if compiler is None:
            raise Unavailable("no C compiler called cc was found; install one (Debian: apt-get install gcc)")
        binaries = {}
        for precision, library in libraries.items():
            if library is not None:
                binaries[precision] = self.folder / f"classify-{name}-{precision}"
                linked = [library, "-Wl,-rpath,$ORIGIN"]
                command = [compiler, "-O2", "-I", str(INCLUDE), str(program.absolute()), *linked, "-o", str(binaries[precision])]
                _finished(command)
        seconds: dict[str, list[float]] = {precision: [] for precision in binaries}
        kilobytes: dict[str, list[int]] = {precision: [] for precision in binaries}
        for _ in range(PROCESSES):
            for precision, binary in binaries.items():
                words = _finished(subprocesses.python(str(_TIMED), str(binary), str(image))).split()
                seconds[precision].append(float(words[0]))
                kilobytes[precision].append(int(words[1]))
        entries = {}
        for precision in binaries:
            entries[precision] = {
                "what": "process", "network": name, "precision": precision, "seconds": seconds[precision],
                "peak_kilobytes": kilobytes[precision],
            }  # fmt: skip
            self.results.append(entries[precision])
            self.notify(
                f"{name}, {precision}, a whole process in C: median {np.median(seconds[precision]) * 1e3:.1f} ms, "
                f"peak memory {max(kilobytes[precision]) / 1024:.1f} MiB"
            )
        if "int8" in entries:
            ratios = [float(np.median(values["int8"]) / np.median(values["fp32"])) for values in (seconds, kilobytes)]
            bars = [bar(f"{what} of int8 by that of fp32", value, most=1.0) for what, value in zip(_OF_A_PROCESS, ratios, strict=True)]
            entries["int8"]["bars"] = bars
            self.tell(bars)


_FORMS = {"native": ".so", "native-bf16": ".so", "onnx": ".onnx", "onnx-dense": ".onnx"}
_INT8_FORMS = {"native-int8": ".so", "onnx-int8": ".onnx", "onnx-dense-int8": ".onnx", "nncf": ".onnx", "nncf-dense": ".onnx"}
_OF_A_PROCESS = ("time to the first answer", "peak memory")
_BUSY, _TIMED = (Path(__file__).with_name(name) for name in ("busy.py", "timed.py"))


def _by_nncf(source: str, path: Path, images: npt.NDArray[np.float32]) -> None:
    """Quantise an ONNX graph in fp32 with NNCF, as OpenVINO's documentation has it. Raises Unavailable without NNCF."""
    try:
        import nncf
    except ImportError as error:
        raise Unavailable(f"NNCF can't be imported ({error}); pip install nncf") from None
    import onnx

    logging.getLogger("nncf").setLevel(logging.WARNING)
    graph = onnx.load(source)
    dataset = nncf.Dataset([image[None] for image in images], lambda image: {graph.graph.input[0].name: image})
    made = nncf.quantize(graph, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(images))
    path.write_bytes(made.SerializeToString())


def bar(what: str, measured: float | None, *, least: float | None = None, most: float | None = None) -> dict[str, Any]:
    """A figure with the limit that was set for it; ``passed`` is None where there is none, or nothing was measured."""
    made = {"what": what, "measured": measured, **({} if least is None else {"least": least}), **({} if most is None else {"most": most})}
    if measured is None or (least is None and most is None):
        return {**made, "passed": None}
    return {**made, "passed": (least is None or measured >= least) and (most is None or measured <= most)}


def bar_in_words(made: Mapping[str, Any]) -> str:
    """A figure beside its limit.

    >>> bar_in_words(bar("times as fast", 1.9, least=1.8)), bar_in_words(bar("share", None))
    ('times as fast: 1.90 (least 1.8, reached)', 'share: not measured (no bar)')
    """
    limit = next((f"{word} {made[word]:g}" for word in ("least", "most") if made.get(word)), "no bar")
    result = "not measured" if made["measured"] is None else f"{made['measured']:.2f}"
    state = "" if made["passed"] is None else ", reached" if made["passed"] else ", MISSED"
    return f"{made['what']}: {result} ({limit}{state})"


def _finished(command: Sequence[str]) -> str:
    """What a command prints. Raises Unavailable if it fails."""
    try:
        done = subprocesses.run(command, seconds=600)
    except (OSError, subprocesses.TooLong) as error:
        raise Unavailable(f"{command[0]}: can't be run to its end: {error or 'it took more than 10 minutes'}") from None
    if done.code:
        raise Unavailable(f"{command[0]}: ended with status {done.code}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _p10(result: Result) -> float | None:
    return float(np.percentile(result.samples, 10)) / result.batch if result.samples else None


def _entry(result: Result) -> dict[str, Any]:
    values = asdict(replace(result, cell=replace(result.cell, model=Path(result.cell.model).name)))
    return {**values, "p10_seconds_an_image": _p10(result), "median_seconds": result.median}


def _write_image(path: Path, arch: Architecture) -> None:
    height, width = arch.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    path.write_bytes(f"P6\n{width} {height}\n255\n".encode() + pixels.tobytes())


def _peak(isa: str, folder: Path) -> Callable[[int, float], float]:
    """A function ``peak(threads, seconds)``: billions of multiply-adds per second with an instruction set's vectors."""
    compiler, out = find_compiler(host_machine()), folder / f"peak-{isa}.so"
    source = Path(__file__).with_name("peak.cpp")
    _finished([*compiler.command, *compiler.flags(isa), "-O2", "-ffp-contract=fast", "-shared", "-fPIC", str(source), "-o", str(out)])
    peak = ctypes.CDLL(str(out)).peak
    peak.argtypes, peak.restype = [ctypes.c_int, ctypes.c_double], ctypes.c_double
    return lambda threads, seconds: float(peak(threads, seconds))


def main(output: Path, program: Path, notify: Notify = print) -> None:
    """Run the whole suite, which takes about half an hour. ``program`` is examples/native/classify.c."""
    check_output(output)
    cores = min(len(os.sched_getaffinity(0)), MAX_THREADS)
    fast = [isa for isa in host_isas() if isa in ("avx512", "avx2", "neon")]
    with tempfile.TemporaryDirectory(prefix="cnet-deploy-peers-") as folder:
        suite = Suite(Path(folder), notify)
        for name in IMAGENET:
            for threads in sorted({1, cores}):
                suite.fp32(name, threads, compiled=True)
            if "avx512_bf16" in host_isas():
                suite.bf16(name, cores)
            suite.int8(name, cores)
            for isa in fast:
                suite.utilisation(name, isa, cores)
            suite.busy_core(name)
            suite.process(name, program)
            suite.fp32(name, cores, compiled=False, batch=8)
        for name, arch in NAMED.items():
            if name not in IMAGENET and not arch.updates:  # CondenseNet V2: condensenet_v2.py
                suite.fp32(name, cores, compiled=False)
    report = {"cnet_deploy_peers": FORMAT_VERSION, "environment": environment(), "settings": asdict(SETTINGS), "results": suite.results}
    write_text(output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.runtimes RESULTS.json examples/native/classify.c")
