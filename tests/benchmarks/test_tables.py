"""Markdown and comma-separated values hold the report's own figures, and what is in file names stays text."""

from __future__ import annotations

import csv
import io

import pytest

from cnet_deploy.benchmarks.tables import CSV_COLUMNS, comma_separated, markdown

from .helpers import report


def test_comma_separated() -> None:
    made = report()
    lines = list(csv.DictReader(io.StringIO(comma_separated(made))))
    results = list(made.results)
    assert len(lines) == len(results) and tuple(lines[0]) == CSV_COLUMNS
    for line, result in zip(lines, results, strict=True):
        assert (line["backend"], int(line["batch"])) == (result.cell.backend, result.cell.batch)
        if result.error:
            assert line["error"] == result.error and line["median_ms"] == ""
            continue
        assert result.median is not None and float(line["median_ms"]) == pytest.approx(result.median * 1e3)
        assert float(line["ratio"]) == pytest.approx(made.ratio(result))
        assert line["p99_ms"] == "" and float(line["p90_ms"]) > 0  # 40 samples support the one and not the other
        assert float(line["cold_start_ms"]) == 500 and float(line["open_ms"]) == 200


def test_markdown() -> None:
    made = report()
    text = markdown(made)
    assert text.count("### Inference time") == len(made.groups) == 2
    tables = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in tables if "onnxruntime" not in line}) <= 2
    assert "<script>alert(1)</script>\\|.onnx" in text  # GitHub drops scripts; a bar would have split the cell
    assert "condensenet" in text.lower() and "failed" in text and "no compiler" in text
    assert "| MobileNet 1.0-224 | 569 | 1.00 |" in text
