"""Sessions answer for images that a program holds, describe themselves, and name what is right where a batch is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cnet_deploy as cd
from tests.builders import ending_in_softmax

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = sorted((EXAMPLES / "images").glob("*.png"))
LABELS = EXAMPLES / "cifar10-labels.txt"


@pytest.fixture(scope="module")
def session(onnx_path: Path) -> Iterator[cd.Session]:
    with cd.open_session(onnx_path) as opened:
        yield opened


def arrays() -> list[Any]:
    return [np.asarray(Image.open(path).convert("RGB")) for path in PICTURES]


def test_paths_images_and_arrays_have_the_same_answers(session: cd.Session, onnx_path: Path) -> None:
    by_path = session.classify(PICTURES, labels=LABELS, top=3)
    assert [answer.guesses[0].name for answer in by_path] == ["cat", "ship", "truck"] and len(by_path[0].guesses) == 3
    with Image.open(PICTURES[0]) as image:
        given: list[Any] = [image, *arrays()[1:]]
        for made in (session.classify(given, labels=LABELS, top=3, batch=2), list(cd.classify(onnx_path, given, labels=LABELS, top=3))):
            assert [answer.image for answer in made] == ["image 0", "image 1", "image 2"]
            for ours, theirs in zip(made, by_path, strict=True):
                assert [guess.label for guess in ours.guesses] == [guess.label for guess in theirs.guesses]
                assert ours.guesses[0].probability == pytest.approx(theirs.guesses[0].probability, abs=1e-5)
    assert [a.guesses for a in session.classify(np.stack(arrays()))] == [a.guesses for a in session.classify(arrays())]
    assert [len(session.classify(one)) for one in (PICTURES[0], str(PICTURES[0]), arrays()[0], EXAMPLES / "images")] == [1, 1, 1, 3]
    assert session.preprocessing is not None
    logits = session.run(session.preprocessing.read(PICTURES[0])[None])
    assert int(logits.argmax()) == by_path[0].guesses[0].label


def test_a_damaged_image_is_an_answer_and_a_wrong_type_an_error(session: cd.Session, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"x")
    answers = session.classify([PICTURES[0], tmp_path / "x.png", Image.new("F", (32, 32)), PICTURES[1]])
    assert [bool(answer.problem) for answer in answers] == [False, True, True, False]
    assert str(answers[2].problem).startswith("image 2: ")
    with pytest.raises(cd.InputRefused, match=r"image 1: the array is float64.* to 1; expected uint8"):
        session.classify([PICTURES[0], arrays()[0] / 255])
    with pytest.raises(cd.InputRefused, match="what to classify is an int; expected a path"):
        session.classify(3)  # type: ignore[arg-type]
    with pytest.raises(cd.InputRefused, match="top is 0"):
        session.classify(PICTURES, top=0)


def test_what_was_guessed_is_said_once(onnx_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with cd.open_session(onnx_path) as session:
        for _ in range(3):
            session.classify(PICTURES[0])
    assert [message.partition(": ")[2][:30] for message in caplog.messages] == ["mean and std guessed from the i"[:30]]


def test_probabilities_stay_probabilities(onnx_path: Path, tmp_path: Path) -> None:
    ending_in_softmax(onnx_path, tmp_path / "s.onnx")
    stated = cd.Overrides(statistics="cifar10")
    with cd.open_session(onnx_path) as first, cd.open_session(tmp_path / "s.onnx") as second:
        (ours,), (theirs,) = (session.classify(PICTURES[0], preprocessing=stated) for session in (first, second))
    assert ours.guesses[0].probability == pytest.approx(theirs.guesses[0].probability, abs=1e-5)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), r"channels last; expected float32 \[N, 3, 32, 32\]: give batch\.transpose\(0, 3, 1, 2\)$"),
        (np.zeros((3, 32, 32), np.float32), r"one image; expected .*: give batch\[None\]"),
        (np.zeros((1, 3, 32, 32)), r"float64 .*: give batch\.astype\('float32'\)"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"uint8 .*, pixels that are not normalised; expected .*: call session\.classify"),
        (np.zeros((32, 32, 3), np.uint8), r"pixels that are not normalised; .*session\.preprocessing\.read"),
        (np.zeros((1, 3, 297, 428), np.float32), r"session\.preprocessing\.read resizes and crops"),
        (Image.new("RGB", (32, 32)), r"batch is a PIL\.Image\.Image; expected float32 \[N, 3, 32, 32\], a numpy array"),
        (None, "batch is nothing; expected"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_wrong_batch_is_answered_with_the_right_one(session: cd.Session, batch: Any, words: str) -> None:
    with pytest.raises(cd.InputRefused, match=words):
        session.run(batch)


def test_pixels_that_nobody_normalised_are_noted_once(onnx_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.stack(arrays()).transpose(0, 3, 1, 2).astype(np.float32)
    with cd.open_session(onnx_path) as session:
        session.run(pixels)
        session.run(pixels)
        assert session.preprocessing is not None
    (message,) = caplog.messages
    assert "pixels that are not normalised; this network's images have -1.99 to 2.13" in message
    caplog.clear()
    with cd.open_session(onnx_path) as session:
        session.run(session.preprocessing.apply(pixels.astype(np.uint8)))
        session.run(np.full((1, 3, 32, 32), np.nan, np.float32))
    assert caplog.records == [] and logging.getLogger("cnet_deploy").level == 0


def test_a_session_describes_itself(onnx_path: Path, checkpoint_path: Path) -> None:
    with cd.open_session(onnx_path, threads=1) as session:
        text = repr(session)
    assert text.startswith(f"<session of {onnx_path}: onnxruntime on cpu, fp32, 1 thread; input 3x32x32 (RGB, any batch), 10 classes")
    assert repr(session).endswith("10 classes, closed>")
    with cd.open_session(checkpoint_path) as session:
        assert "torch on cpu, fp32" in repr(session)
