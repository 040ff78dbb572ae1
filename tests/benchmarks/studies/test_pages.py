"""The tables and the picture of the pages are those of the recorded runs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.benchmarks.compare.results import Accuracy, Images, ModelComparison, Variant
from cnet_deploy.benchmarks.studies.pages import Recorded, main, renewed
from cnet_deploy.benchmarks.sweep.results import Report
from cnet_deploy.errors import InputRefused
from tests.benchmarks.helpers import report
from tests.release.pages import OTHERS, RECORDED, ROOT, RUNS

OLDER = RUNS / "amd-epyc-2-cores"  # of before there was int8


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded.read(RECORDED, OTHERS)


@pytest.fixture(scope="module")
def older() -> Recorded:
    return Recorded.read(OLDER)


@pytest.mark.parametrize("page", ["README.md", "docs/measuring.md", "docs/int8.md", "docs/v2.md", "docs/serving.md"])
def test_tables_are_the_recorded_runs(page: str, recorded: Recorded) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "<!-- recorded: " in text and renewed(text, recorded) == text


def with_int8(recorded: Recorded) -> Recorded:
    """The same with int8, which takes a third of native's time."""
    table = replace(recorded.table, rows=[replace(row, results=list(row.results)) for row in recorded.table.rows])
    for row in table.rows:
        for result in [result for result in row.results if result.cell.backend == "native"]:
            rounds = [[sample / 3 for sample in part] for part in result.rounds]
            row.results.append(replace(result, cell=replace(result.cell, backend="native.int8"), rounds=rounds))
    study: list[dict[str, Any]] = list(recorded.study)
    for name in ("condensenet-74-g4", "condensenet-74-g8"):
        times = {"native": 0.003, "native int8": 0.001, "openvino int8, as it is": 0.009, "onnxruntime int8, as it is": 0.007}
        times["openvino int8 by NNCF, dense 1x1"] = 0.006
        cells = [{"cell": {"label": label}, "p10_seconds_an_image": time} for label, time in times.items()]
        facts = {"network": name, "precision": "int8", "threads": 2, "batch": 1}
        best = {"best_peer": "openvino int8 by NNCF, dense 1x1", "times_as_fast": 6.0}
        study.append({"what": "int8", **facts, **best, "cells": cells})
        study.append({"what": "process", "network": name, "precision": "int8", "seconds": [0.005], "peak_kilobytes": [10240]})
    return Recorded(table, study, recorded.example)


def test_what_int8_adds(older: Recorded) -> None:
    names = ("first", "peers", "speed", "others", "accuracy")
    page = "".join(f"<!-- recorded: {name} -->\n<!-- end -->\n" for name in names)
    before, after = renewed(page, older), renewed(page, with_int8(older))
    assert "int8" not in before and "native library, int8 |\n" in after
    assert re.search(r"\| 34.70 ms \| 9.15 ms \| 2.61 ms \| 0.8\d\d ms \|", after)
    assert "| G=C=4, int8 | 1.00 ms | 6.00 ms | 6.0 times as fast | 0.33 | |" in after
    assert "| 6.0 (1.00 ms); 3.0 times as fast as the native library in fp32 |" in after
    assert "| the same in int8 | 5.0 ms, 10 MiB | 5.0 ms, 10 MiB |" in after
    assert after.endswith("<!-- recorded: accuracy -->\n<!-- end -->\n")  # nothing of that was recorded
    with pytest.raises(InputRefused, match="no recorded table is called nothing; expected one of first, peers"):
        renewed("<!-- recorded: nothing -->\n<!-- end -->\n", older)


def test_the_example_in_all_precisions(recorded: Recorded) -> None:
    made = report()
    results = [
        replace(r, cell=replace(r.cell, backend=name)) for r, name in zip(made.rows[0].results, ("native", "native.int8"), strict=False)
    ]
    row = replace(made.rows[0], results=results)
    counts = {"native": Accuracy(1000, 900, 990, 0, 1000, 0, 0), "native.int8": Accuracy(1000, 897, 990, 0, 985, 9, 6)}
    variants = tuple(Variant(n, "int8" if "int8" in n else "fp32", 4096, r, counts[n]) for n, r in zip(counts, results, strict=True))
    example = ModelComparison(Report([row], made.settings, after=made.after), variants, Images("d", "val", 1000, 1000, 10))
    page = renewed("<!-- recorded: accuracy -->\n<!-- end -->\n", Recorded(recorded.table, recorded.study, example))
    assert "| native | int8 | " in page and "| 10.3 (8.6 to 12.3) | +0.3 (" in page and "98.5% | 4 |" in page


def test_condensenet_v2(older: Recorded) -> None:
    page = "<!-- recorded: v2 -->\n<!-- end -->\n<!-- recorded: v2_files -->\n<!-- end -->\n"
    assert renewed(page, older) == page  # nothing of it was recorded
    times = {"native": 0.006, "onnxruntime, gather": 0.020, "onnxruntime, dense": 0.019, "openvino, gather": 0.018, "openvino, dense": None}
    cells = [{"cell": {"label": label}, "p10_seconds_an_image": time} for label, time in times.items()]
    theirs = {"cell": {"label": "authors' form in onnxruntime"}, "p10_seconds_an_image": 0.060}
    facts = {"network": "condensenet-v2-c", "precision": "fp32", "batch": 1}
    sizes = {"native": 25_000_000, "onnx": 26_000_000}
    study: list[dict[str, Any]] = [
        *older.study,
        {**facts, "threads": 1, "cells": [*cells, theirs], "bars": [{"measured": 3.0}, {"measured": 10.0}], "bytes": sizes},
        {**facts, "threads": 2, "cells": cells, "bars": [{"measured": 3.0}, {"measured": None}], "bytes": sizes},
    ]
    text = renewed(page, replace(older, study=study))
    assert "| V2-C (24.1 %) | 1 | 6.00 ms | 19.00 ms | 18.00 ms | 60.00 ms | 3.0 times as fast | 10.0 times as fast |\n" in text
    assert "| V2-C (24.1 %) | 2 | 6.00 ms | 19.00 ms | 18.00 ms | - | 3.0 times as fast | - |\n" in text
    assert "| CondenseNet V2-C | 25.0 MB | 26.0 MB | - |\n" in text


def test_serving_and_batches(older: Recorded) -> None:
    page = "".join(f"<!-- recorded: {name} -->\n<!-- end -->\n" for name in ("serving", "batches", "loadgen"))
    assert renewed(page, replace(older, served=(), batches=(), driven=())) == page
    served = {"what": "served", "network": "the example", "instances": 1, "threads": 2, "transport": "gRPC"}
    inside = {"what": "in process", "network": "the example", "threads": 2}
    turns = [{"images_per_second": 6000.0, "p50_seconds": 0.0012}]
    cells = [
        {"threads": 1, "batch": 32, "sharing": "auto", "images_per_second": 5000.0},
        {"threads": 2, "batch": 32, "sharing": "auto", "images_per_second": 9500.0},
        {"threads": 2, "batch": 32, "sharing": "layers", "images_per_second": None},
    ]
    memory = [{"threads": t, "sharing": s, "reserved_bytes": t << 20} for t, s in ((1, "auto"), (2, "auto"), (2, "layers"))]
    drives = {"network": "condensenet-74-g4", "backend": "native", "threads": 2}
    text = renewed(page, replace(
        older,
        served=[
            {**served, "concurrency": 1, "images_per_second": 3000.0, "rounds": turns},
            {**served, "concurrency": 8, "images_per_second": 6000.0, "rounds": turns},
            {**inside, "batch": 1, "images_per_second": 7000.0, "rounds": turns},
        ],
        batches=[{"network": "condensenet-86", "cells": cells, "memory": memory}],
        driven=[
            {**drives, "scenario": "SingleStream", "runs": [{"valid": True, "images_per_second": 1.0, "p90_seconds": 0.0025}]},
            {**drives, "scenario": "Offline", "runs": [{"valid": False, "images_per_second": 410.0}]},
        ],
    ))  # fmt: skip
    assert "| images/s; median of a request | 1 client | 8 clients |\n" in text
    assert "| the example: 1 instance of 2 threads, gRPC | 3,000; 1.20 ms | 6,000; 1.20 ms |\n" in text
    assert "| the example: in the process, 2 threads, a batch of as many | 7,000; 1.20 ms | - |\n" in text
    assert "| CondenseNet-86: 1 thread | 5,000 | 1.0 MiB |\n| CondenseNet-86: 2 threads | 9,500 | 2.0 MiB |\n" in text
    assert "| CondenseNet-86: 2 threads, layers shared | - | 2.0 MiB |\n" in text
    assert "| CondenseNet-74 (G=C=4), native library | 2 | 2.50 ms | 410 images/s, which LoadGen calls invalid |\n" in text


def test_the_study_of_condensenet_v2_is_read_where_it_was_recorded(tmp_path: Path) -> None:
    for name in ("table-2-threads.json", "native-and-peers.json"):
        shutil.copy(OLDER / name, tmp_path)
    (tmp_path / "v2-and-peers.json").write_text(json.dumps({"results": [{"network": "condensenet-v2-a"}]}))
    assert Recorded.read(tmp_path).find(network="condensenet-v2-a") == {"network": "condensenet-v2-a"}


def test_pages_are_written(recorded: Recorded, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/measuring.md", "docs/int8.md", "docs/v2.md"):
        text = (ROOT / name).read_text(encoding="utf-8").replace(" ms |", " s |")
        (tmp_path / name).write_text(text, encoding="utf-8")
    main(RECORDED, tmp_path)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()
    assert (tmp_path / "docs" / "latency.svg").read_text().startswith("<svg")
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(RECORDED / "table-2-threads.json", results)
    (results / "native-and-peers.json").write_text(json.dumps([]))
    with pytest.raises(InputRefused, match="has no results; measure again with `make bench`"):
        Recorded.read(results)
