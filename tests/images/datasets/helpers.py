"""The published layouts, written small or as whole as their readers want them."""

from __future__ import annotations

import gzip
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.datasets import open_dataset
from cnet_deploy.images.preprocessing import Preprocessing
from tests.builders import TINY

CIFAR = Preprocessing.of(TINY.input_size, TINY.classes)


COUNT = 10_000


TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


HUNDRED = [f"fine {number}" for number in range(100)]


Write = Callable[[Any], bytes]


def rows(count: int = COUNT) -> np.ndarray:
    """Images [N, 3072] that are cheap to make and all different: the first two bytes are their number."""
    made = np.zeros((count, 3072), np.uint8)
    made[:, 0], made[:, 1] = np.arange(count) >> 8, np.arange(count) & 255
    made[:, 1024], made[:, 3071] = 7, 9
    return made


def numbers(pixels: np.ndarray) -> list[int]:
    """Which of ``rows`` the images are."""
    return [int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]) for image in pixels]


def refuses(path: Path, *says: str, split: Any = "val") -> None:
    """Refused, and the message has all of ``says``."""
    with pytest.raises(InputRefused) as caught:
        open_dataset(path, split)
    for words in says:
        assert words in str(caught.value), f"{words!r} is not in: {caught.value}"


class Python2:
    """Writes as Python 2's pickle does in protocol 2: text and bytes alike as BINSTRING, numpy by its old names."""

    def __call__(self, value: Any) -> bytes:
        return b"\x80\x02" + self.item(value) + b"."

    def item(self, value: Any) -> bytes:
        if isinstance(value, str):
            return self.string(value.encode("latin-1"))
        if isinstance(value, int):
            return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(self.item, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(self.item(part) for pair in value.items() for part in pair) + b"u"
        assert isinstance(value, np.ndarray)
        shape = b"(" + b"".join(b"M" + struct.pack("<H", side) for side in value.shape) + b"t"
        dtype = (
            b"cnumpy\ndtype\n"
            + self.item("u1")
            + b"K\x00K\x01\x87R(K\x03"
            + self.item("|")
            + b"NNN"
            + b"J\xff\xff\xff\xff" * 2
            + b"K\x00tb"
        )
        made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + self.item("b") + b"\x87R"
        columns = value.flags.f_contiguous and not value.flags.c_contiguous
        return made + b"(K\x01" + shape + dtype + (b"\x88" if columns else b"\x89") + self.string(value.tobytes("A")) + b"tb"

    @staticmethod
    def string(content: bytes) -> bytes:
        return (b"U" + bytes([len(content)]) if len(content) < 256 else b"T" + struct.pack("<i", len(content))) + content


PYTHON2 = Python2()


WRITERS: dict[str, Write] = {"python2": PYTHON2} | {
    f"python3 protocol {protocol}": lambda value, protocol=protocol: pickle.dumps(value, protocol) for protocol in (2, 3, 4, 5)
}


def cifar10_python(folder: Path, write: Write = PYTHON2) -> Path:
    """The test part and the names; labels are the numbers modulo 10."""
    folder.mkdir()
    batch = {
        "batch_label": "testing batch 1 of 1",
        "labels": [n % 10 for n in range(COUNT)],
        "data": rows(),
        "filenames": ["a.png", "b.png"],
    }
    (folder / "test_batch").write_bytes(write(batch))
    (folder / "batches.meta").write_bytes(write({"num_cases_per_batch": COUNT, "label_names": TEN, "num_vis": 3072}))
    return folder


def records(count: int, header: list[np.ndarray]) -> bytes:
    return np.concatenate([*(part.astype(np.uint8)[:, None] for part in header), rows(count)], axis=1).tobytes()


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fashion(folder: Path, prefix: str = "t10k", mark: str = "-", *, packed: bool = False, count: int = 12) -> Path:
    """As it is published, with ``count`` images of one grey each, labels the numbers modulo 10."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.repeat(np.arange(1, count + 1, dtype=np.uint8), 28 * 28).reshape(count, 28, 28)
    for name, array in (("images", images), ("labels", np.arange(count).astype(np.uint8) % 10)):
        file = folder / f"{prefix}-{name}{mark}idx{array.ndim}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return folder


def image(path: Path, red: int = 0, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 0, 0)).save(path)


def replaced(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)
