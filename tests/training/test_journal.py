"""The log survives kills, and the curves hold what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest

from cnet_deploy.errors import OutputRefused
from cnet_deploy.training.journal import Journal, curves, read


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
    text = journal.curves.read_text()
    svg = Xml.fromstring(text)
    words = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"test 60", "train 60", "stage 1: 75% live", "learning rate"} <= set(words) and "99" not in text
    lines = list(svg.iter("{http://www.w3.org/2000/svg}polyline"))
    assert [len(line.attrib["points"].split()) for line in lines] == [2] * 5


def test_labels_of_equal_curves_do_not_lie_on_each_other() -> None:
    svg = Xml.fromstring(curves([{"event": "epoch", **epoch(0, 50.0)}], 1))
    heights = [
        float(e.attrib["y"]) for e in svg.iter("{http://www.w3.org/2000/svg}text") if (e.text or "").startswith(("train 5", "test 5"))
    ]
    assert len(heights) == 2 and abs(heights[0] - heights[1]) >= 15


def test_nothing_done_is_drawn_too() -> None:
    assert Xml.fromstring(curves([], 3)).tag.endswith("svg")


def test_a_log_that_can_not_be_written_says_how_to_go_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "gone", 1)
    with pytest.raises(OutputRefused, match="--resume goes on"):
        journal.write("end")
