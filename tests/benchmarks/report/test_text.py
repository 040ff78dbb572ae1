"""Markdown and comma-separated values hold the report's own figures, and what is in file names stays text."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
from rich.console import Console

from cnet_deploy.benchmarks.report.page import page
from cnet_deploy.benchmarks.report.terminal import render
from cnet_deploy.benchmarks.report.text import CSV_COLUMNS, comma_separated, group_title, markdown
from cnet_deploy.benchmarks.sweep.results import Report, Row
from tests.benchmarks.helpers import on_cuda, report, result


def test_comma_separated() -> None:
    made = report()
    lines = list(csv.DictReader(io.StringIO(comma_separated(made))))
    results = list(made.results)
    assert len(lines) == len(results) and tuple(lines[0]) == CSV_COLUMNS
    for line, found in zip(lines, results, strict=True):
        assert (line["backend"], int(line["batch"])) == (found.cell.backend, found.cell.batch)
        if found.error:
            assert line["error"] == found.error and line["median_ms"] == ""
            continue
        assert found.median is not None and float(line["median_ms"]) == pytest.approx(found.median * 1e3)
        assert float(line["ratio"]) == pytest.approx(made.ratio(found))
        assert line["p99_ms"] == "" and float(line["p90_ms"]) > 0  # 40 samples support the one and not the other
        assert float(line["cold_start_ms"]) == 500 and float(line["open_ms"]) == 200


def test_markdown() -> None:
    made = report()
    text = markdown(made)
    assert text.count("### Inference time") == len(made.groups) == 2
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in tables if "onnxruntime" not in line}) <= 2
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|.onnx" in text  # a bar would have split the cell
    assert "condensenet" in text.lower() and "failed" in text and "no compiler" in text
    assert "| MobileNet 1.0-224 | 569 | 1.00 |" in text


def with_v2(*, alone: bool) -> Report:
    """Two networks of CondenseNet V2, beside MobileNet or by themselves, on two backends."""
    rows = [] if alone else [Row("mobilenet-1.0-224", 569_000_000, 4_230_000, None, 29.4, [])]
    rows += [
        Row("condensenet-v2-a", 45_874_000, 2_038_000, None, 35.6, []),
        Row("condensenet-v2-c", 309_741_000, 6_178_000, None, 24.1, []),
    ]
    for number, row in enumerate(rows, 1):
        row.results = [result([0.01 * number] * 20, [0.01 * number] * 20, label=row.label, backend=name) for name in ("torch", "native")]
    return report(rows=rows)


def test_condensenet_v2_has_published_errors_and_no_published_times() -> None:
    terminal = {}
    for alone in (False, True):
        out = io.StringIO()
        Console(file=out, width=180).print(render(with_v2(alone=alone), 180))
        terminal[alone] = out.getvalue()
        assert "CondenseNet V2-C" in terminal[alone] and "24.1 %" in terminal[alone] and "310 " in terminal[alone]
        assert "FLOPs of CondenseNet V2-A, CondenseNet V2-C: CondenseNet V2's own count" in terminal[alone]
        drawn = page(with_v2(alone=alone))
        assert ("Paper: ARM" in drawn) is not alone and "35.6 %" in drawn and "CondenseNet V2-A on native" in drawn
    assert "beside the paper's table" in terminal[False] and "ARM s" in terminal[False]
    assert "beside the published errors" in terminal[True] and "ARM s" not in terminal[True]
    assert "| Model | M FLOPs | Paper: ratio | torch, ms |" in markdown(with_v2(alone=False))
    assert "| CondenseNet V2-A | 46 |  | 20.00 | 2.00 |" in markdown(with_v2(alone=False))
    assert "| Model | M FLOPs | torch, ms |" in markdown(with_v2(alone=True))
    on_device = with_v2(alone=True)
    for found in on_device.results:
        found.cell = replace(found.cell, device="cuda")
    on_device.environment |= {"gpu": "a GPU", "driver": "1"}
    assert "| Model | M FLOPs | M params | Paper: top-1 err. | backend |" in markdown(on_device)


def test_a_devices_figures() -> None:
    made = on_cuda()
    lines = list(csv.DictReader(io.StringIO(comma_separated(made))))
    assert {line["device"] for line in lines} == {"cuda"}
    assert [float(lines[3][name]) for name in ("median_ms", "device_ms", "transfer_ms", "end_to_end_ms")] == pytest.approx(
        [2, 1.5, 0.8, 2.8]
    )
    assert lines[8]["device_ms"] == lines[8]["end_to_end_ms"] == "" and lines[8]["error"]
    cpu = next(csv.DictReader(io.StringIO(comma_separated(report()))))
    assert cpu["device"] == "cpu" and cpu["device_ms"] == cpu["transfer_ms"] == cpu["end_to_end_ms"] == ""

    text = markdown(made)
    assert "### Inference time, batch 1, cuda\n" in text and "### Inference time, batch 8, cuda\n" in text
    assert "| CondenseNet-74 (G=C=8) | 274 | 2.94 | 29.0 % | 0.51 | torch | 2.00 (2.00) | 1.50 | 2.10 | 1.00 |" in text
    assert "|  |  |  |  |  | tensorrt.tf32 | 0.667 (0.667) | 0.500 | 0.767 | 1.00 |" in text
    assert "| a.onnx |  |  |  |  | torch | 2,000.0 | 4.00 | 3.00 | 4.80 | 2.00 |" in text
    assert "TF32 is on for tensorrt.tf32 alone." in text and "NVIDIA H200, driver 580.159.03." in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 2  # one for each of the two tables


def test_where_tf32_is_on() -> None:
    made = on_cuda()
    for row in made.rows:
        row.results = [found for found in row.results if found.cell.backend == "torch"]
    assert "TF32 is off everywhere." in markdown(made)
    made.rows[0].results.append(result([0.1], backend="onnxruntime.tensorrt", device="cuda"))
    assert "TF32 is on for onnxruntime.tensorrt alone." in markdown(made)


def test_threads_stand_where_they_tell_groups_apart() -> None:
    made = on_cuda()
    assert [group_title(made, group) for group in made.groups] == ["batch 1, cuda", "batch 8, cuda"]
    made.rows[0].results.append(result([0.1], threads=2, device="cuda"))
    assert [group_title(made, group) for group in made.groups[-2:]] == ["batch 8, cuda, 1 thread", "batch 1, cuda, 2 threads"]
    assert group_title(report(), (2, 4)) == "batch 4, 2 threads"


def test_notes_stand_in_every_report() -> None:
    made = report(notes=["int8 was calibrated with images of a<b>."])
    assert "int8 was calibrated with images of a&lt;b&gt;." in markdown(made) and "images of a&lt;b&gt;." in page(made)
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(render(made))
    assert "int8 was calibrated with images of a<b>." in console.export_text()
    assert "int8" not in markdown(report())
