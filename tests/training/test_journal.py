"""The log survives kills, and the curves hold what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnet_deploy.errors import OutputRefused
from cnet_deploy.svg import COLOURS
from cnet_deploy.training.journal import LABEL, Journal, curves, read
from tests.pictures import Picture


def epoch(number: int, error: float) -> dict[str, Any]:
    score = {"loss": error / 50, "top1_error": error, "top5_error": 1.0, "images": 10}
    return {"epoch": number, "lr": 0.1, "train": score, "test": score}


def test_a_torn_line_is_dropped_and_the_log_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 3)
    journal.begin(0)
    journal.write("epoch", **epoch(0, 50.0))
    with journal.path.open("a") as file:
        file.write('{"event": "epoch", "ep')  # a kill in the midst of it
    journal.begin(1)
    journal.write("epoch", **epoch(1, 40.0))
    assert [event["epoch"] for event in read(journal.path)] == [0, 1]
    assert journal.path.read_text().count("\n") == 2
    journal.begin(0)
    assert read(journal.path) == []


def test_curves_show_the_last_word_on_each_epoch(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 5)
    for number, error in ((0, 80.0), (1, 99.0), (1, 60.0)):  # epoch 1 was done again after a resume
        journal.write("epoch", **epoch(number, error))
    journal.write("stage", epoch=1, step=2, stage=1, live=75, total=100)
    journal.draw()
    drawn = Picture(journal.curves.read_text())
    drawn.check()
    assert {"test 60", "train 60", "stage 1: 75% live", "learning rate", "epochs done"} <= set(drawn.texts)
    assert not any("99" in text for text in drawn.texts)
    lines = [line for line in drawn.lines if line.style.get("stroke") in COLOURS]
    assert [line.style["stroke"] for line in lines] == [*COLOURS[:2], *COLOURS[:2], COLOURS[0]]
    figures = {words.text: words for words in drawn.words if words.style.get("text-anchor") == "end"}
    across = {words.text: (words.left + words.right) / 2 for words in drawn.words if words.style.get("text-anchor") == "middle"}
    errors = lines[2].pieces[0]
    assert [x for x, _ in errors] == pytest.approx([across["1"], across["2"]], abs=0.5)
    heights = [(figures[text].top + figures[text].bottom) / 2 for text in ("80", "60")]
    assert [y for _, y in errors] == pytest.approx(heights, abs=2)
    stages = [line.pieces[0] for line in drawn.lines if "stroke-dasharray" in line.style]
    assert len(stages) == 3 and [x for line in stages for x, _ in line] == pytest.approx([across["1"]] * 6, abs=0.5)


def test_labels_do_not_lie_on_each_other() -> None:
    log = [{"event": "epoch", **epoch(number, 50.0), "lr": 1e-5} for number in range(40)]
    log += [{"event": "stage", "epoch": 6 * number, "stage": number, "live": 7 - number, "total": 8} for number in range(1, 7)]
    drawn = Picture(curves(log, 40))
    drawn.check()
    heights = [words.bottom for words in drawn.words if words.text in ("train 50", "test 50")]
    assert len(heights) == 2 and abs(heights[0] - heights[1]) >= LABEL
    assert sum(text.startswith("stage ") for text in drawn.texts) == 6 and "rate 1e-05" in drawn.texts


def test_nothing_done_is_drawn_too() -> None:
    drawn = Picture(curves([], 3))
    drawn.check()
    assert [text for text in drawn.texts if len(text) > 4] == ["cross entropy", "top-1 error, %", "epochs done", "learning rate"]


def test_a_log_that_can_not_be_written_says_how_to_go_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gone", 1)
    with pytest.raises(OutputRefused, match="--resume goes on"):
        journal.write("end")
