"""Names of classes, in the forms in which they are found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.class_names import Matching, checked_labels, match_classes, names_of, read_labels

NAMES = ("cat", "dog", "sea lion")


@pytest.mark.parametrize(
    "text",
    ["cat\ndog\nsea lion", "cat\r\ndog\r\nsea lion\r\n\n", "\ufeffcat\ndog\nsea lion\n", json.dumps(NAMES),
     json.dumps({"sea lion": 2, "cat": 0, "dog": 1}), json.dumps({"id2label": {"0": "cat", "1": "dog", "2": "sea lion"}, "layers": 3}),
     json.dumps({"num_classes": 3, "class_to_idx": {"dog": 1, "cat": 0, "sea lion": 2}}), json.dumps({"classes": NAMES}),
     "{0: 'cat',\n 1: \"dog\",\n 2: 'sea lion'}", "{'cat': 0, 'dog': 1, 'sea lion': 2,}", "['cat', 'dog', 'sea lion']",
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
        (b'{"cat": 0, "dog": 1, "sea lion": 1}', '"dog" and "sea lion" both have the number 1; expected one name for each'),
        (b'{"cat": 0, "dog": 1, "sea lion": 3}', '"sea lion" has the number 3; expected the numbers 0 to 2'),
        (b'{"cat": 1, "dog": 2, "sea lion": 3}', '"sea lion" has the number 3; expected the numbers 0 to 2'),
        (b'{"cat": -1, "dog": 0, "sea lion": 1}', '"cat" has the number -1; expected the numbers 0 to 2'),
        (b"{0: 'a', 1: 'b', 3: 'c'}", "names has no entry 2; expected the numbers 0 to 2"),
        (b"{0: 'a', 1: 'b', 1: 'c'}", "it has a dictionary with two entries of one key"),
        (b"{0: 'a', 1: 'b'}", "it has 2 class names; expected 3"),
        (b"{0: __import__('os').system('true')}", "it is no JSON"),
        (b"{0: " + b"-" * 100_000 + b"1}", "it is no JSON"),
        (b"{0: " + b"(" * 100 + b"'a'" + b")" * 100 + b"}", "it is no JSON"),
        (b"{0: " + b"'a' " * 10 + b"* 99999999}", "it is no JSON"),
        (b"{" + b"0: 'a'," * 300_000 + b"}", "it is no JSON"),
        (b"{0: 'a', 1: 'b\\", "it is no JSON"),
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


def test_names_of_what_a_checkpoint_may_have() -> None:
    for value in (
        list(NAMES), NAMES, {"sea lion": 2, "cat": 0, "dog": 1}, {2: "sea lion", 0: "cat", 1: "dog"},
        {"0": "cat", "1": "dog", "2": "sea lion"},
        {0: ["n1", "cat"], 1: ["n2", "dog"], 2: ["n3", "sea lion"]},
    ):  # fmt: skip
        assert names_of(value, 3) == NAMES
    for value in (
        10, None, "cat", 3.5, {}, [], ["cat", "dog"], [1, 2, 3], [["a"], ["b"], ["c"]], ["a", "b", "x" * 201],
        {"cat": 0, "dog": 1}, {"cat": 0, "dog": 1, "sea lion": 1}, {"cat": 0, "dog": "x", "c": 2}, {"cat": True, "dog": False, "c": 2},
        {"cat": 1 << 80, "dog": 0, "c": 1}, {b"a": 0, b"b": 1, b"c": 2}, {0: "a", 1: "b", 3: "c"}, {(1, 2): "a", 1: "b", 2: "c"},
    ):  # fmt: skip
        assert names_of(value, 3) is None, value


FOLDERS = "by the order of the folders"


def test_classes_are_matched_by_name() -> None:
    model = ("airplane", "automobile", "sea lion", "T-shirt")
    folders = ("Sea_Lion", "airplane", "automobile", "t shirt")
    assert match_classes(model, folders, FOLDERS) == Matching("by name", (2, 0, 1, 3))
    assert match_classes(model, model, FOLDERS) == Matching("by name", None)
    for nobody in (match_classes((), folders, FOLDERS), match_classes(model, (), FOLDERS)):
        assert nobody == Matching(FOLDERS)
    assert match_classes(("a-b", "a b"), ("a b", "a-b"), FOLDERS) == Matching("by name", (1, 0))  # the very same names


def test_classes_with_other_names_are_taken_in_their_order() -> None:
    found = match_classes(("cat", "dog", "cow"), ("cat", "Horse", "pig"), FOLDERS)
    assert found == Matching(FOLDERS, None, "only the model has dog, cow; only the dataset has Horse, pig")
    many = match_classes([f"n{number}" for number in range(1000)], [f"class {number}" for number in range(1000)], FOLDERS)
    assert many.problem == (
        "only the model has n0, n1, n2, n3, n4 and 995 more; only the dataset has class 0, class 1, class 2, class 3, class 4 and 995 more"
    )
    for model, folders in ((("crane", "crane", "dog"), ("crane", "Crane", "dog")), (("a-b", "ab", "c"), ("a_b", "ab", "c"))):
        found = match_classes(model, folders, FOLDERS)
        assert found.how == FOLDERS and found.order is None
        assert found.problem == f"two classes of the model can't be told apart by name: {model[0]} and {model[1]}"
    assert "of the dataset can't be told apart by name: a-b and a_b" in str(
        match_classes(("ab", "c", "d"), ("a-b", "a_b", "c"), "x").problem
    )
