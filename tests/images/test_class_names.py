"""Names of classes, in the forms in which they are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.class_names import checked_labels, read_labels

NAMES = ("cat", "dog", "sea lion")


@pytest.mark.parametrize(
    "text",
    ["cat\ndog\nsea lion", "cat\r\ndog\r\nsea lion\r\n\n", "\ufeffcat\ndog\nsea lion\n", json.dumps(NAMES),
     '{"0": "cat", "1": "dog", "2": "sea lion"}', '{"2": ["n1", "sea lion"], "0": ["n2", "cat"], "1": ["n3", "dog"]}'],
)  # fmt: skip
def test_forms(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels").write_text(text, encoding="utf-8", newline="")
    assert read_labels(tmp_path / "labels", 3) == NAMES


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"cat\ndog\n", "2 class names; expected 3, as many as the network has classes"),
        (b"cat\n\ndog\n", "the name of class 1 has 0 characters"),
        (b"cat\ndog\n" + b"x" * 201, "201 characters; expected 1 to 200"),
        (b"\xff\xfe", "holds no labels (UnicodeDecodeError"),
        (b"[1, 2, 3]", "are no list of words"),
        (b'["a", "b", ["c"]]', "are no list of words"),
        (b'{"0": "a", "1": "b", "3": "c"}', "holds no labels (KeyError"),
        (b'{"0": [], "1": "b", "2": "c"}', "are no list of words"),
        (b"[" * 100_000, "holds no labels"),
        (b"{", "holds no labels"),
        (b"", "is empty"),
    ],
)
def test_what_are_no_labels(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(InputRefused) as caught:
        read_labels(path, 3)
    assert says in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    assert "one name a line" in str(caught.value)


def test_checked_labels() -> None:
    assert checked_labels(list(NAMES), 3) == NAMES
    for wrong in ("cat", None, 3, {"a": 1}, [None] * 3):
        with pytest.raises(InputRefused):
            checked_labels(wrong, 3)
