"""The paper's rows, and reports of files."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from cnet_deploy.architecture import NAMED
from cnet_deploy.benchmarks.measure import Settings
from cnet_deploy.benchmarks.paper import BASE, PAPER, bench, counted, paper_ratio
from cnet_deploy.benchmarks.report import render
from cnet_deploy.errors import InputRefused

QUICK = Settings(rounds=2, seconds=0.0, least=2, warmup=0.0, rewarm=0.0)


@pytest.mark.parametrize("row", PAPER, ids=lambda row: row.model)
def test_what_is_counted_here_rounds_to_what_the_paper_prints(row) -> None:  # type: ignore[no-untyped-def]
    flops, _ = counted(row.model)
    digits = 1e8 if row.mflops % 100 == 0 else 1e6  # 15300 is given to the hundred
    assert round(flops / digits) * digits == row.mflops * 1e6


def test_the_papers_own_ratios() -> None:
    found = {row.model: round(paper_ratio(row), 2) for row in PAPER}
    assert found == {"vgg-16": 180.61, "resnet-18": 4.15, BASE: 1.0, "condensenet-74-g4": 0.96, "condensenet-74-g8": 0.51}


def test_files_and_named_networks_together(onnx_path: Path, checkpoint_path: Path) -> None:
    heard: list[str] = []
    totals: list[int] = []
    report = bench(
        [str(onnx_path), str(checkpoint_path), "condensenet-50"], threads=1, settings=QUICK, progress=heard.append, total=totals.append
    )
    assert totals == [len(heard)]
    artifact, training, named = report.rows
    assert (artifact.flops, artifact.params) == (11_496_634, 80_362)
    assert training.flops == 21_721_450
    assert (named.flops, named.params) == (NAMED["condensenet-50"].flops, NAMED["condensenet-50"].params)
    assert [set(row.results) for row in report.rows] == [{"onnxruntime"}, {"torch"}, {"torch", "onnxruntime", "native"}]
    assert report.base is artifact and report.ratio(artifact, "onnxruntime") == 1
    assert all(result.error is None and result.median for row in report.rows for result in row.results.values())

    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["settings"] == {"rounds": 2, "seconds": 0.0, "least": 2, "warmup": 0.0, "rewarm": 0.0, "threads": 1}
    assert stored["rows"][0]["cells"][0]["rounds"] == artifact.results["onnxruntime"].rounds
    assert stored["environment"]["cpu"]
    assert [cell["cell"]["model"] for cell in stored["rows"][2]["cells"]] == ["condensenet-50"] * 3  # no temporary path

    median = artifact.results["onnxruntime"].median
    assert median is not None
    for width in (180, 80):
        out = StringIO()
        Console(file=out, width=width).print(render(report, width))
        assert f"{median * 1e3:.2f}" in out.getvalue() and "condensenet-50" in out.getvalue()
        assert "…" not in out.getvalue()  # nothing is cut off


@pytest.mark.parametrize(
    ("models", "backends", "message"),
    [(["none.onnx"], [], "no network of that name"), ([], ["tflite"], "no backend is called"), (["README.md"], [], "no backend opens")],
)
def test_what_can_not_be_measured_is_told_first(models: list[str], backends: list[str], message: str) -> None:
    heard: list[str] = []
    with pytest.raises(InputRefused, match=message):
        bench(models, backends=backends, settings=QUICK, progress=heard.append)
    assert heard == []


def test_a_file_on_another_backend_than_its_own(onnx_path: Path) -> None:
    with pytest.raises(InputRefused, match="runs on onnxruntime, which is not among torch"):
        bench([str(onnx_path)], backends=["torch"], settings=QUICK)
