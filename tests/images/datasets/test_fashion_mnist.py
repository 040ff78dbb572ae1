"""Fashion-MNIST's idx files, packed or not; what is missing, cut or damaged is refused by name."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from cnet_deploy.images.datasets import ArrayDataset, open_dataset

from .helpers import (
    fashion,
    idx,
    refuses,
)


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inside", ["", "FashionMNIST", "FashionMNIST/raw"])
def test_fashion_mnist(tmp_path: Path, mark: str, packed: bool, inside: str) -> None:
    fashion(tmp_path / inside, "t10k", mark, packed=packed)
    fashion(tmp_path / inside, "train", mark, packed=packed, count=20)
    found = open_dataset(tmp_path)
    assert isinstance(found, ArrayDataset) and found.pixels.shape == (12, 3, 32, 32) and found.pixels.dtype == np.uint8
    expected = np.zeros((12, 3, 32, 32), np.uint8)  # in the middle of black
    expected[:, :, 2:30, 2:30] = np.arange(1, 13)[:, None, None, None]
    assert np.array_equal(found.pixels, expected)
    assert found.labels.tolist() == [n % 10 for n in range(12)] and found.labels.dtype == np.int64
    assert (found.name, found.classes, found.statistics) == ("fashion-mnist", 10, "fashion-mnist")
    assert found.class_names[0] == "T-shirt/top" and found.class_names[9] == "Ankle boot"
    assert len(open_dataset(tmp_path, "train")) == 20


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("t10k-images-idx3-ubyte", b"\x00\x00\x08\x01" + bytes(20), ("begins 00 00 08 01; expected 00 00 08 03",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((2, 28, 28), np.uint8), kind=9), ("begins 00 00 09 03; expected 00 00 08 03",)),
        ("t10k-labels-idx1-ubyte", b"GIF8", ("begins 47 49 46 38; expected 00 00 08 01",)),
        ("t10k-images-idx3-ubyte", b"\x00\x00\x08\x03" + bytes(11), ("begins 00 00 08 03; expected",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((12, 28, 28), np.uint8))[:-1], ("has 9407 bytes of data; expected 9408 (12x28x28)",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((12, 28, 28), np.uint8)) + b"a", ("has 9409 bytes of data; expected 9408 (12x28x28)",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((0, 28, 28), np.uint8)), ("has 0 bytes of data; expected some (0x28x28)",)),
        ("t10k-images-idx3-ubyte", idx(np.zeros((12, 28, 27), np.uint8)), ("has images of 28x27; expected 28x28",)),
        ("t10k-labels-idx1-ubyte", idx(np.zeros(11, np.uint8)), ("has 11 t10k labels for 12 images; expected one each",)),
        ("t10k-labels-idx1-ubyte", idx(np.full(12, 10, np.uint8)), ("has label 10 in the t10k labels; expected 0 to 9",)),
        ("t10k-labels-idx1-ubyte", b"", ("is empty",)),
    ],
)
def test_damaged_idx_files(tmp_path: Path, name: str, data: bytes, says: tuple[str, ...]) -> None:
    fashion(tmp_path)
    (tmp_path / name).write_bytes(data)
    refuses(tmp_path, *says)


@pytest.mark.parametrize("missing", ["images-idx3", "labels-idx1"])
def test_a_missing_idx_file(tmp_path: Path, missing: str) -> None:
    fashion(tmp_path)
    (tmp_path / f"t10k-{missing}-ubyte").unlink()
    fashion(tmp_path, "train")
    refuses(tmp_path, f"{tmp_path}: has no t10k-{missing}-ubyte; expected all files")


def test_damaged_gzip(tmp_path: Path) -> None:
    fashion(tmp_path, packed=True)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for data, says in (
        (whole[:-9], "its end is missing"),
        (whole[:-1], "its end is missing"),
        (whole[:5], "its end is missing"),
        (whole[:-8] + bytes(4) + whole[-4:], "incorrect data check"),
        (whole[:-4] + bytes(4), "incorrect length check"),
        (whole[:2] + b"\x07" + whole[3:], "unknown compression method"),
        (whole + b"more", "it has extra data"),
    ):
        file.write_bytes(data)
        refuses(tmp_path, f"{file}: is no complete gzip file (", says)


def test_a_plain_file_under_the_packed_name_and_the_other_way_round(tmp_path: Path) -> None:
    """What a file is says its content."""
    fashion(tmp_path)
    for name in ("images-idx3", "labels-idx1"):
        plain = tmp_path / f"t10k-{name}-ubyte"
        if name == "images-idx3":
            plain.rename(plain.with_name(f"{plain.name}.gz"))
        else:
            with gzip.GzipFile(fileobj=(packed := io.BytesIO()), mode="wb", filename="labels") as file:
                file.write(plain.read_bytes())
            plain.write_bytes(packed.getvalue())
    assert len(open_dataset(tmp_path)) == 12
