"""That turns are taken and dropping is timed; what comes out, `make bench` records."""

from __future__ import annotations

from pathlib import Path

import pytest

from cnet_deploy.benchmarks.studies.training_step import dropping, in_turns, reference_models
from cnet_deploy.errors import InputRefused
from tests.builders import TINY


def test_both_sides_take_turns() -> None:
    ran: list[str] = []
    found = in_turns(lambda: ran.append("ours"), lambda: ran.append("original"), 2, 3)
    assert ran.count("ours") == ran.count("original") == 2 * 4
    assert ran[:4] == ["original", "original", "ours", "ours"] and ran[4:6] == ["ours", "ours"], "neither is always first"
    assert len(found["ours_seconds"]) == len(found["original_seconds"]) == 3 and found["ratio"] > 0


def test_every_stage_is_timed() -> None:
    assert len(dropping(TINY, rounds=2)) == 2 * 3


def test_a_folder_without_the_original(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="expected a checkout of ShichenLiu/CondenseNet"), reference_models(tmp_path):
        pass
