"""The tables of README.md and of pages in docs/, and the picture docs/latency.svg, from recorded runs.

``python -m cnet_deploy.benchmarks.studies.pages RESULTS ROOT``: RESULTS is a folder as ``make bench`` fills it; in ROOT are README.md and
docs/. A table stands between the comments ``<!-- recorded: NAME -->`` and ``<!-- end -->``. What a run does not have is
left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cnet_deploy.benchmarks.compare.results import ModelComparison, read_comparison
from cnet_deploy.benchmarks.compare.show import headings, words_of
from cnet_deploy.benchmarks.measure.samples import milliseconds
from cnet_deploy.benchmarks.report.page import picture
from cnet_deploy.benchmarks.studies.script import run
from cnet_deploy.benchmarks.sweep.paper import V2, paper_row, ratio_text
from cnet_deploy.benchmarks.sweep.results import Report, Row, read_report
from cnet_deploy.errors import InputRefused
from cnet_deploy.files import exists, read_bytes, write_text
from cnet_deploy.files.strict_json import parse_json

NETWORKS = {"condensenet-74-g4": "G=C=4", "condensenet-74-g8": "G=C=8"}
TITLES = {"torch": "torch", "onnxruntime": "onnxruntime", "native": "native library", "native.int8": "native library, int8"}
TITLES_SERVED = {"the example": "the example", "condensenet-86": "CondenseNet-86", "condensenet-74-g4": "CondenseNet-74 (G=C=4)"}
_NUMBERS = ("no", "one", "two", "three", "four")
_PLACE = re.compile(r"(<!-- recorded: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Table = list[list[str]]


@dataclass(frozen=True)
class Recorded:
    """Recorded runs: the paper's table with two threads, the study of runtimes with that of CondenseNet V2, the example in all precisions,
    and the results of serving.py, batches.py and loadgen.py; empty, or None, for what was not recorded."""

    table: Report
    study: list[dict[str, Any]]
    example: ModelComparison | None = None
    served: Sequence[dict[str, Any]] = ()
    batches: Sequence[dict[str, Any]] = ()
    driven: Sequence[dict[str, Any]] = ()

    @classmethod
    def read(cls, folder: Path, *others: Path) -> Recorded:
        """Each file from the first folder that has it. Raises InputRefused where the first two lack."""

        def place(name: str) -> Path:
            return next((path for where in (folder, *others) if exists(path := where / name)), folder / name)

        study = _results(place("native-and-peers.json"))
        if exists(path := place("v2-and-peers.json")):
            study = study + _results(path)
        example = place("compare-example.json")
        table = read_report(place("table-2-threads.json"))
        more = [_results(path) if exists(path := place(f"{name}.json")) else [] for name in ("serving", "batches", "loadgen")]
        return cls(table, study, read_comparison(example) if exists(example) else None, *more)

    def row(self, name: str) -> Row:
        """A network's row of the paper's table. Raises InputRefused where it was not measured."""
        if (row := next((row for row in self.table.rows if row.label == name), None)) is None:
            raise InputRefused(f"the recorded table has no {name}; measure it again with `make bench`")
        return row

    def find(self, **facts: Any) -> dict[str, Any] | None:
        """The study's entry with these facts; None without one."""
        return _find(self.study, **facts)


def _find(entries: Iterable[dict[str, Any]], **facts: Any) -> dict[str, Any] | None:
    return next((entry for entry in entries if facts.items() <= entry.items()), None)


def _results(path: Path) -> list[dict[str, Any]]:
    """The results of a study. Raises InputRefused for a file that has none."""
    study = parse_json(read_bytes(path))
    if not isinstance(study, dict) or not isinstance(study.get("results"), list):
        raise InputRefused(f"{path}: has no results; measure again with `make bench`")
    results: list[dict[str, Any]] = study["results"]
    return results


def first(recorded: Recorded) -> Table:
    """Milliseconds of an image in each runtime."""
    group = recorded.table.groups[0]
    backends = [name for name in TITLES if name in recorded.table.backends]
    lines = [[f"one image, CondenseNet-74, {machine_of(recorded.table.environment)}", *(TITLES[name] for name in backends)]]
    for number, (name, title) in enumerate(NETWORKS.items()):
        row = recorded.row(name)
        error = f"{row.top1_error} %" + ("" if number else " top-1 error on ImageNet")
        cells = [row.find(backend, group) for backend in backends]
        lines.append([f"{title} ({error})", *(f"{milliseconds(cell.median)} ms" if cell and cell.median else "-" for cell in cells)])
    return lines


def peers(recorded: Recorded) -> Table:
    """The native library beside the faster of the other runtimes, in fp32 and in int8."""
    lines = [["", "native library", "faster of onnxruntime and OpenVINO", "native is", "time relative to MobileNet",
              "the same in the paper, on ARM"]]  # fmt: skip
    for precision, ours, backend in (("fp32", "native", "native"), ("int8", "native int8", "native.int8")):
        for name, title in NETWORKS.items():
            entry = recorded.find(network=name, precision=precision, threads=2, batch=1)
            if entry is None:
                continue
            times, row, paper = _times(entry), recorded.row(name), paper_row(name)
            cell = row.find(backend, recorded.table.groups[0])
            relative = recorded.table.ratio(cell) if cell else None
            lines.append([
                title if precision == "fp32" else f"{title}, {precision}", f"{milliseconds(times[ours])} ms",
                f"{milliseconds(times[entry['best_peer']])} ms", f"{entry['times_as_fast']:.1f} times as fast",
                "-" if relative is None else f"{relative:.2f}", ratio_text(paper) if precision == "fp32" else "",
            ])  # fmt: skip
    return lines


def speed(recorded: Recorded) -> Table:
    """How many times as fast the native library is, with two threads and with one, and in the other precisions."""
    columns: list[tuple[str, Callable[[str], str | None]]] = [
        ("2 threads", lambda name: _fast(recorded.find(network=name, precision="fp32", threads=2, batch=1), "native")),
        ("1 thread", lambda name: _fast(recorded.find(network=name, precision="fp32", threads=1, batch=1), "native")),
        ("bf16, 2 threads, against OpenVINO's bf16", lambda name: _bf16(recorded.find(network=name, precision="bf16", threads=2))),
        ("int8, 2 threads, against OpenVINO's int8", lambda name: _int8(recorded.find(network=name, precision="int8", threads=2))),
    ]
    known = [(title, cells) for title, of in columns if any(cells := [of(name) for name in NETWORKS])]
    lines = [["224x224, batch 1", *(title for title, _ in known)]]
    for number, name in enumerate(NETWORKS):
        lines.append([f"CondenseNet-74 ({NETWORKS[name]})", *(cells[number] or "-" for _, cells in known)])
    return lines


def others(recorded: Recorded) -> Table:
    """What else the study has, a line each."""
    share = "share of the multiply-adds that these cores can do with AVX-512, best run"
    program = "a C program that opens the library, classifies one image and ends"
    busy = "99th percentile over the median, while another process keeps one of the two cores busy"
    found = [
        ("batch 8, 2 threads: times as fast", [recorded.find(network=name, batch=8) for name in NETWORKS], _ratio),
        (share, [recorded.find(what="utilisation", network=name, isa="avx512") for name in NETWORKS], _share),
        (program, [_process(recorded, name, "fp32") for name in NETWORKS], _cold),
        ("the same in int8", [_process(recorded, name, "int8") for name in NETWORKS], _cold),
        (busy, [recorded.find(what="busy core", network=name) for name in NETWORKS], _tail),
    ]
    lines = [["what", *NETWORKS.values()]]
    lines += [[what, *(write(entry) if entry else "-" for entry in entries)] for what, entries, write in found if any(entries)]
    return lines


def accuracy(recorded: Recorded) -> Table:
    """The example in every runtime and precision; nothing if that was not recorded."""
    if recorded.example is None:
        return []
    return [headings(recorded.example), *(words_of(recorded.example, v) for v in recorded.example.variants if v.result.error is None)]


def v2(recorded: Recorded) -> Table:
    """CondenseNet V2: the native library, the other runtimes on our graph, and onnxruntime on the authors' converted form."""
    lines = [["", "threads", "native library", "onnxruntime", "OpenVINO", "authors' form in onnxruntime", "native against the faster",
              "native against the authors' form"]]  # fmt: skip
    for row in V2:
        for threads in (1, 2):
            entry = recorded.find(network=row.model, precision="fp32", threads=threads, batch=1)
            if entry is None:
                continue
            times = _times(entry)
            best = [
                min((t for label, t in times.items() if label.startswith(name)), default=None) for name in ("onnxruntime,", "openvino,")
            ]
            shown = [times.get("native"), *best, times.get("authors' form in onnxruntime")]
            ratios = [bar["measured"] for bar in entry["bars"]]
            lines.append([
                f"{row.title.removeprefix('CondenseNet ')} ({row.top1_error} %)", str(threads),
                *("-" if time is None else f"{milliseconds(time)} ms" for time in shown),
                *("-" if value is None else f"{value:.1f} times as fast" for value in ratios),
            ])  # fmt: skip
    return lines if len(lines) > 1 else []


def v2_files(recorded: Recorded) -> Table:
    """Sizes of CondenseNet V2's files."""
    titles = {"native": "native library", "onnx": "our ONNX file", "authors": "authors' form as an ONNX file"}
    lines = [["size of", *titles.values()]]
    for row in V2:
        entry = recorded.find(network=row.model, precision="fp32", threads=1, batch=1)
        if entry is not None and (sizes := entry.get("bytes")):
            lines.append([row.title, *(f"{sizes[key] / 1e6:.1f} MB" if key in sizes else "-" for key in titles)])
    return lines if len(lines) > 1 else []


def serving(recorded: Recorded) -> Table:
    """Images per second through a Triton server, by the number of clients, and in the process itself, by the size of the batch."""
    clients = sorted({entry["concurrency"] for entry in recorded.served if entry["what"] == "served"})
    lines = [["images/s; median of a request", *(_count(count, "client") for count in clients)]]
    for network in dict.fromkeys(entry["network"] for entry in recorded.served):
        own = [entry for entry in recorded.served if entry["network"] == network]
        title = TITLES_SERVED.get(network, network)
        for ways in dict.fromkeys((one["instances"], one["threads"], one["transport"]) for one in own if one["what"] == "served"):
            instances, threads, transport = ways
            cells = [_find(own, instances=instances, threads=threads, transport=transport, concurrency=count) for count in clients]
            name = f"{title}: {_count(instances, 'instance')} of {_count(threads, 'thread')}, {transport}"
            lines.append([name, *(_rate(cell) if cell else "-" for cell in cells)])
        for threads in sorted({entry["threads"] for entry in own if entry["what"] == "in process"}):
            cells = [_find(own, what="in process", threads=threads, batch=count) for count in clients]
            name = f"{title}: in the process, {_count(threads, 'thread')}, a batch of as many"
            lines.append([name, *(_rate(cell) if cell else "-" for cell in cells)])
    return lines if len(lines) > 1 else []


def batches(recorded: Recorded) -> Table:
    """Images per second of the native library by the size of the batch and the number of threads, and the memory of a handle."""
    sizes = sorted({cell["batch"] for entry in recorded.batches for cell in entry["cells"]})
    lines = [["images/s", *(f"batch {size}" for size in sizes), "memory of a handle"]]
    for entry in recorded.batches:
        title = TITLES_SERVED.get(entry["network"], entry["network"])
        for one in entry["memory"]:
            threads, sharing = one["threads"], one["sharing"]
            cells = [_find(entry["cells"], threads=threads, sharing=sharing, batch=size) for size in sizes]
            how = ", layers shared" if sharing == "layers" else ""
            rates = ["-" if cell is None or not cell["images_per_second"] else f"{cell['images_per_second']:,.0f}" for cell in cells]
            name = f"{title}: {_count(threads, 'thread')}{how}"
            lines.append([name, *rates, f"{one['reserved_bytes'] / 2**20:.1f} MiB"])
    return lines if len(lines) > 1 else []


def loadgen(recorded: Recorded) -> Table:
    """What MLPerf's LoadGen measures with sessions: SingleStream's 90th percentile, and Offline's images per second."""
    lines = [["", "threads", "SingleStream, 90th percentile", "Offline"]]
    for entry in recorded.driven:
        if entry["scenario"] == "SingleStream":
            facts = {key: entry[key] for key in ("network", "backend", "threads")}
            offline = _find(recorded.driven, **facts, scenario="Offline")
            single = milliseconds(_middle(entry, "p90_seconds"))
            rate = f"{_middle(offline, 'images_per_second'):,.0f} images/s{_verdict(offline)}" if offline else "-"
            title = TITLES_SERVED.get(entry["network"], entry["network"])
            lines.append([f"{title}, {TITLES[entry['backend']]}", str(entry["threads"]), f"{single} ms{_verdict(entry)}", rate])
    return lines if len(lines) > 1 else []


TABLES: dict[str, Callable[[Recorded], Table]] = {
    "first": first, "peers": peers, "speed": speed, "others": others, "accuracy": accuracy, "v2": v2, "v2_files": v2_files,
    "serving": serving, "batches": batches, "loadgen": loadgen,
}  # fmt: skip


def renewed(page: str, recorded: Recorded) -> str:
    """A page with its tables written anew. Raises InputRefused for a comment that names no table."""

    def table(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise InputRefused(f"no recorded table is called {match[2]}; expected one of {', '.join(TABLES)}")
        return match[1] + "".join(_markdown(match[2], TABLES[match[2]](recorded))) + match[3]

    return _PLACE.sub(table, page)


def machine_of(environment: Mapping[str, Any]) -> str:
    """The machine in words.

    >>> machine_of({"cpu": "Intel(R) Xeon(R) Processor @ 2.50GHz", "cores": 2})
    'two cores of an Intel Xeon'
    """
    name = re.sub(r"\((R|TM)\)| (Processor|CPU)\b|@.*", "", environment["cpu"]).strip()
    cores = environment["cores"]
    count = _NUMBERS[cores] if cores < len(_NUMBERS) else str(cores)
    return f"{count} core{'s' * (cores != 1)} of {'an' if name[:1] in 'AEIOU' else 'a'} {' '.join(name.split())}"


def _markdown(name: str, lines: Table) -> Iterator[str]:
    for number, words in enumerate(lines):
        yield f"| {' | '.join(words)} |\n".replace("|  |", "| |").replace("|  |", "| |")
        if not number:
            right = name == "accuracy"
            yield "|" + "|".join("---:" if right and column > 1 else "---" for column in range(len(words))) + "|\n"


def _times(entry: Mapping[str, Any]) -> dict[str, float]:
    return {cell["cell"]["label"]: cell["p10_seconds_an_image"] for cell in entry["cells"] if cell["p10_seconds_an_image"]}


def _fast(entry: Mapping[str, Any] | None, ours: str) -> str | None:
    return None if entry is None else f"{entry['times_as_fast']:.1f} ({milliseconds(_times(entry)[ours])} ms)"


def _bf16(entry: Mapping[str, Any] | None) -> str | None:
    if entry is None:
        return None
    times = _times(entry)
    return f"{_fast(entry, 'native bf16')}; {times['openvino bf16, as it is'] / times['native bf16']:.1f} with the graph as it is"


def _int8(entry: Mapping[str, Any] | None) -> str | None:
    if entry is None:
        return None
    times = _times(entry)
    openvino = min(time for label, time in times.items() if label.startswith("openvino"))
    own = times["native int8"]
    return f"{openvino / own:.1f} ({milliseconds(own)} ms); {times['native'] / own:.1f} times as fast as the native library in fp32"


def _process(recorded: Recorded, name: str, precision: str) -> dict[str, Any] | None:
    entry = recorded.find(what="process", network=name, precision=precision)
    older = recorded.find(what="process", network=name)  # of before there was int8
    return entry if entry is not None or precision != "fp32" or older is None or "precision" in older else older


def _ratio(entry: Mapping[str, Any]) -> str:
    return f"{entry['times_as_fast']:.1f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _rate(entry: Mapping[str, Any]) -> str:
    median = np.median([one["p50_seconds"] for one in entry["rounds"]])
    return f"{entry['images_per_second']:,.0f}; {milliseconds(float(median))} ms"


def _middle(entry: Mapping[str, Any], key: str) -> float:
    return float(np.median([one[key] for one in entry["runs"]]))


def _verdict(entry: Mapping[str, Any]) -> str:
    return "" if all(one["valid"] for one in entry["runs"]) else ", which LoadGen calls invalid"


def _share(entry: Mapping[str, Any]) -> str:
    return f"{100 * entry['share_of_peak']:.0f} %"


def _cold(entry: Mapping[str, Any]) -> str:
    return f"{np.median(entry['seconds']) * 1e3:.1f} ms, {max(entry['peak_kilobytes']) / 1024:.0f} MiB"


def _tail(entry: Mapping[str, Any]) -> str:
    return f"{entry['p99'] / entry['median']:.1f}"


PAGES = ("README.md", "docs/measuring.md", "docs/int8.md", "docs/v2.md", "docs/serving.md")


def main(results: Path, other: Path, root: Path | None = None) -> None:
    """Write the picture, and those of PAGES that are in ROOT. What ``results`` does not have is taken from a second folder, if one is given
    before ROOT."""
    others, root = ((), other) if root is None else ((other,), root)
    recorded = Recorded.read(results, *others)
    for name in filter(lambda page: exists(root / page), PAGES):
        write_text(root / name, renewed(read_bytes(root / name).decode(), recorded))
    write_text(root / "docs" / "latency.svg", picture(recorded.table))


if __name__ == "__main__":
    run(main, "cnet_deploy.benchmarks.studies.pages RESULTS [OTHERS] ROOT")
