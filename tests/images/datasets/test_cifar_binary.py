"""CIFAR's binary versions are read as they are meant; what is missing, cut or damaged is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.datasets import ArrayDataset, open_dataset

from .helpers import (
    COUNT,
    HUNDRED,
    TEN,
    numbers,
    records,
    refuses,
    replaced,
)


def test_cifar_10_binary(binary: Path) -> None:
    for path in (binary, binary.parent):
        found = open_dataset(path)
        assert isinstance(found, ArrayDataset) and found.pixels.shape == (COUNT, 3, 32, 32) and found.pixels.dtype == np.uint8
        assert found.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1] and found.labels.dtype == np.int64
        assert numbers(found.pixels) == list(range(COUNT))
        assert (found.pixels[:, 1, 0, 0] == 7).all() and (found.pixels[:, 2, 31, 31] == 9).all()  # the planes are red, green, blue
        assert (found.name, found.classes, found.statistics, found.input_size) == ("cifar10", 10, "cifar10", (32, 32))
        assert found.class_names == tuple(TEN) and len(found) == COUNT


def test_cifar_10_trains_on_five_files_in_their_order(binary: Path) -> None:
    found = open_dataset(binary, "train")
    assert len(found) == 50_000
    assert found.labels[::COUNT].tolist() == [1, 2, 3, 4, 5]
    assert found.class_names == tuple(TEN)


def test_classes_without_names_are_numbered(copy: Path) -> None:
    (copy / "batches.meta.txt").unlink()
    assert open_dataset(copy).class_names == tuple("0123456789")
    (copy / "batches.meta.txt").write_text("airplane\nautomobile\n")  # too few
    assert open_dataset(copy).class_names == tuple("0123456789")


def test_a_binary_file_by_its_own_name(binary: Path, tmp_path: Path) -> None:
    found = open_dataset(binary / "test_batch.bin")
    assert len(found) == COUNT and found.name == "test_batch.bin" and found.class_names == tuple(TEN)
    (tmp_path / "some.bin").write_bytes(records(3, [np.asarray([4, 5, 6]), np.asarray([97, 98, 99])]))
    hundred = open_dataset(str(tmp_path / "some.bin"), classes=100)
    assert hundred.labels.tolist() == [97, 98, 99] and hundred.statistics == "cifar100" and hundred.classes == 100


@pytest.mark.parametrize("above", [False, True])
def test_cifar_100_binary(tmp_path: Path, above: bool) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "test.bin").write_bytes(records(COUNT, [np.full(COUNT, 19), np.arange(COUNT) % 100]))
    (folder / "fine_label_names.txt").write_text("\n".join(HUNDRED))
    found = open_dataset(tmp_path if above else folder)
    assert isinstance(found, ArrayDataset) and numbers(found.pixels) == list(range(COUNT))
    assert found.labels[98:102].tolist() == [98, 99, 0, 1]  # the fine ones
    assert (found.name, found.classes, found.statistics) == ("cifar100", 100, "cifar100") and found.class_names == tuple(HUNDRED)
    refuses(folder, "has no train.bin; expected all files", split="train")


@pytest.mark.parametrize(("name", "split"), [("data_batch_3.bin", "train"), ("test_batch.bin", "val")])
def test_a_missing_binary_batch(copy: Path, name: str, split: str) -> None:
    (copy / name).unlink()
    refuses(copy, f"{copy}: has no {name}; expected all files of the dataset", split=split)


def test_truncated_binary_batches(copy: Path) -> None:
    file = copy / "test_batch.bin"
    whole = file.read_bytes()
    for data, says in (
        (whole[:-1], "30729999 bytes; expected records of 3073 bytes"),
        (whole[:-3073], "holds 9999 images; expected 10000: the file is truncated"),
        (whole[:3073], "holds 1 images; expected 10000"),
        (whole + whole[:3073], "has 30733073 bytes; expected 30730000"),
        (b"", "is empty"),
    ):
        replaced(file, data)
        refuses(copy, f"{file}: ", says)


def test_binary_labels_out_of_range(copy: Path, tmp_path: Path) -> None:
    replaced(copy / "test_batch.bin", records(COUNT, [np.where(np.arange(COUNT) == 5, 10, 0)]))
    refuses(copy, f"{copy / 'test_batch.bin'}: has label 10; expected 0 to 9")
    (tmp_path / "hundred.bin").write_bytes(records(1, [np.zeros(1), np.asarray([100])]))
    with pytest.raises(InputRefused, match="has label 100; expected 0 to 99"):
        open_dataset(tmp_path / "hundred.bin", classes=100)
