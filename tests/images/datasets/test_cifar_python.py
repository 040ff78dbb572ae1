"""CIFAR's Python versions, as either Python wrote them; what is missing, cut or damaged is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.cifar_pickle import read_arrays
from cnet_deploy.images.datasets import ArrayDataset, open_dataset

from .helpers import (
    COUNT,
    HUNDRED,
    PYTHON2,
    TEN,
    WRITERS,
    cifar10_python,
    numbers,
    refuses,
    rows,
)


@pytest.mark.parametrize("writer", ["python2", "python3 protocol 4"])
def test_cifar_10_python(tmp_path: Path, writer: str) -> None:
    cifar10_python(tmp_path / "cifar-10-batches-py", WRITERS[writer])
    found = open_dataset(tmp_path)
    assert isinstance(found, ArrayDataset) and numbers(found.pixels) == list(range(COUNT))
    assert (found.pixels[:, 1, 0, 0] == 7).all() and (found.pixels[:, 2, 31, 31] == 9).all()
    assert found.labels[8:12].tolist() == [8, 9, 0, 1] and found.labels.dtype == np.int64
    assert (found.name, found.statistics) == ("cifar10", "cifar10") and found.class_names == tuple(TEN)


def test_cifar_100_python(tmp_path: Path) -> None:
    fine = [n % 100 for n in range(COUNT)]
    (tmp_path / "test").write_bytes(PYTHON2({"fine_labels": fine, "coarse_labels": [0] * COUNT, "data": rows(), "filenames": ["a"]}))
    (tmp_path / "meta").write_bytes(PYTHON2({"fine_label_names": HUNDRED, "coarse_label_names": ["any"]}))
    found = open_dataset(tmp_path)
    assert isinstance(found, ArrayDataset) and numbers(found.pixels) == list(range(COUNT))
    assert found.labels.tolist() == fine and found.class_names == tuple(HUNDRED) and found.name == "cifar100"
    refuses(tmp_path, "has no train; expected all files", split="train")


@pytest.mark.parametrize("writer", WRITERS)
def test_pickled_arrays(tmp_path: Path, writer: str) -> None:
    """In either order, of no rows, and with every byte there is: Python 2 wrote bytes as text."""
    every = np.arange(256, dtype=np.uint8).reshape(64, 4)
    value = {
        "by rows": every,
        "by columns": np.asfortranarray(every),
        "small": np.ones((2, 1), np.uint8),
        "words": ["a", "\xe9"],
        "n": 300,
    }
    (tmp_path / "file").write_bytes(WRITERS[writer](value))
    found = read_arrays(tmp_path / "file")
    assert list(found) == list(value) and found["words"] == ["a", "\xe9"] and found["n"] == 300
    for name in ("by rows", "by columns", "small"):
        assert found[name].dtype == np.uint8 and np.array_equal(found[name], value[name])


@pytest.mark.parametrize("code", ["i4", "f8", "O", "U3", "i1"])
def test_arrays_of_anything_but_bytes(tmp_path: Path, code: str) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps({"data": np.zeros((2, 3), code)}, 4))
    with pytest.raises(InputRefused, match=rf"array is of {code[:2]}.*expected bytes \(u1\)"):
        read_arrays(tmp_path / "file")


def test_a_missing_python_batch(tmp_path: Path) -> None:
    cifar10_python(tmp_path / "py")
    refuses(tmp_path / "py", "has no data_batch_1; expected all files", split="train")


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return {"data": rows(), "labels": [0] * COUNT}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": rows(COUNT - 1), "labels": [0] * (COUNT - 1)}, "holds 9999 images; expected 10000"),
        ({"labels": [0] * (COUNT - 1)}, "has 9999 labels for 10000 images; expected one each"),
        ({"labels": [0] * (COUNT - 1) + [10]}, "has label 10; expected 0 to 9"),
        ({"labels": [0] * (COUNT - 1) + [-1]}, "has label -1; expected 0 to 9"),
        ({"labels": [0] * (COUNT - 1) + ["1"]}, "has a label that is not a whole number; expected 0 to 9"),
        ({"labels": [0] * (COUNT - 1) + [True]}, "has a label that is not a whole number; expected 0 to 9"),
        ({"labels": "0" * COUNT}, "has no list under labels"),
        ({"data": rows()[:, :3000]}, "has bytes of shape [10000, 3000] under data"),
        ({"data": rows().reshape(-1)}, "has bytes of shape [30720000] under data"),
        ({"data": [1, 2]}, "has no array under data"),
        ({"data": None}, "has no array under data"),
    ],
)
def test_python_batches_that_do_not_fit(tmp_path: Path, batch: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch | changes, 4))
    refuses(tmp_path, f"{tmp_path / 'test_batch'}: ", says)


def test_python_batches_without_their_parts(tmp_path: Path, batch: dict[str, Any]) -> None:
    for value, says in (
        ({"data": batch["data"]}, "has no list under labels"),
        ({"labels": batch["labels"]}, "has no array under data"),
        ([1, 2], "it holds something other than a dictionary"),
        ({1: 2}, "it has a key that is not text"),
    ):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(value, 4))
        refuses(tmp_path, f"{tmp_path / 'test_batch'}: ", says)


@pytest.mark.parametrize("writer", ["python2", "python3 protocol 4"])
def test_truncated_python_batches(tmp_path: Path, writer: str) -> None:
    whole = WRITERS[writer]({"data": rows(100), "labels": [0] * 100})
    for length in (1, 2, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "test_batch").write_bytes(whole[:length])
        refuses(tmp_path, f"{tmp_path / 'test_batch'}: is truncated, damaged or not one of CIFAR's Python files")


def test_damaged_class_names(tmp_path: Path) -> None:
    cifar10_python(tmp_path / "py")
    meta = tmp_path / "py" / "batches.meta"
    for value in ({"label_names": TEN[:9]}, {"label_names": "0123456789"}, {"label_names": [1] * 10}, {}):
        meta.write_bytes(pickle.dumps(value, 4))
        assert open_dataset(tmp_path / "py").class_names == tuple("0123456789")
    meta.write_bytes(meta.read_bytes()[:-1])
    refuses(tmp_path / "py", f"{meta}: is truncated, damaged")
