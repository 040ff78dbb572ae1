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
        (b"cat\ndog\n", "it has 2 class names; expected 3, as many as the network has classes"),
        (b"cat\n\ndog\n", 'names[1] is ""; expected a name of 1 to 200 characters'),
        (b"cat\ndog\n" + b"x" * 201, 'names[2] is "xxx'),
        (b"\xff\xfe", "it is no text in UTF-8"),
        (b"[1, 2, 3]", "names[0] is 1; expected a name of 1 to 200 characters"),
        (b'["a", "b", ["c"]]', "names[2] is a list of 1; expected a name"),
        (b'{"0": "a", "1": "b", "3": "c"}', "names has no entry 2; expected the numbers 0 to 2"),
        (
            b'{"0": [], "1": "b", "2": "c"}',
            'names["0"] is an empty list; expected a name of 1 to 200 characters or a list that',
        ),
        (b'{"0": "a", "0": "b", "1": "c"}', 'it has an object with two entries "0"'),
        (b"[]", "names is an empty list; expected a list of names, at least one"),
        (b"[" * 100_000, "it nests more than 32 lists and objects"),
        (b"{", "it is no JSON (line 1, column 2"),
    ],
)
def test_what_are_no_labels(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(InputRefused) as caught:
        read_labels(path, 3)
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "one name a line" in str(caught.value)


def test_checked_labels() -> None:
    assert checked_labels(list(NAMES), 3) == NAMES
    for wrong in ("cat", None, 3, {"a": 1}, [None] * 3):
        with pytest.raises(InputRefused):
            checked_labels(wrong, 3)
