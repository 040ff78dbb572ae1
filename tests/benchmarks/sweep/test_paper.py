"""The paper's rows, counted here."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnet_deploy.benchmarks.sweep.paper import BASE, CONVENTIONS, FAMILIES, PAPER, V2, counted, paper_ratio, paper_row, ratio_text
from cnet_deploy.benchmarks.sweep.results import read_report
from cnet_deploy.cli import bench


@pytest.mark.parametrize("row", PAPER, ids=lambda row: row.model)
def test_what_is_counted_here_rounds_to_what_the_paper_prints(row) -> None:  # type: ignore[no-untyped-def]
    flops, _ = counted(row.model)
    digits = 1e8 if row.mflops % 100 == 0 else 1e6  # 15300 is given to the hundred
    assert round(flops / digits) * digits == row.mflops * 1e6


def test_the_papers_own_ratios() -> None:
    found = {row.model: ratio_text(row) for row in PAPER}
    assert found == {"vgg-16": "180.61", "resnet-18": "4.15", BASE: "1.00", "condensenet-74-g4": "0.96", "condensenet-74-g8": "0.51"}
    assert paper_row(BASE) is PAPER[2] and paper_row("condensenet-50") is None


@pytest.mark.parametrize("row", V2, ids=lambda row: row.model)
def test_condensenet_v2_counts_as_its_authors_script_does(row) -> None:  # type: ignore[no-untyped-def]
    """They print 309 M for 309.7 M, so a million more or less."""
    flops, params = counted(row.model)
    assert abs(flops - row.mflops * 1e6) < 1e6
    assert round(params / 1e3) == {"a": 2038, "b": 3593, "c": 6178}[row.model[-1]]
    assert paper_ratio(row) is None and ratio_text(row) == ratio_text(None) == ""
    assert paper_row(row.model) is row and row.convention in CONVENTIONS


def test_the_command_s_families_are_those_of_the_tables() -> None:
    assert tuple(FAMILIES) == bench.FAMILIES


def test_recorded_runs_can_be_read() -> None:
    folder = Path(__file__).parents[3] / "cnet_deploy" / "benchmarks" / "results"
    found = [read_report(path) for path in sorted(folder.glob("amd-epyc-2-cores/table-*.json"))]
    assert len(found) >= 2
    for made in found:
        assert made.after is not None and [row.label for row in made.rows] == [row.model for row in PAPER]
        assert all(result.error is None for result in made.results)
