"""Files that are none, names not for printing, folders without end: each is refused in one printable line."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnet_deploy.images.batches import batches
from cnet_deploy.images.datasets import FolderDataset, open_dataset

from .dataset_files import (
    CIFAR,
    IMAGES,
    LABELS,
    plain,
    refused,
)
from .helpers import within

# --- idx files


TERABYTES = [(1 << 32) - 1] * 3


@pytest.mark.parametrize(
    "images",
    [
        b"\0\0\x08\x03" + struct.pack(">3I", *TERABYTES) + bytes(100),
        b"\0\0\x08\x03" + struct.pack(">3I", 1 << 31, 1 << 31, 4),  # 2^64: nothing, to whoever counts in 64 bits
        b"\0\0\x08\x03" + struct.pack(">3I", 0, *TERABYTES[:2]),
        b"\0\0\x08\xff" + b"\xff" * 1020,
        b"\0\0\x08\x00",
        b"\0\0\x08\x03",
        b"\0",
        b"\x1f\x8b",
        b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"a" * (1 << 20),  # a name without end
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\xff\xff",
        gzip.compress(b"", mtime=0) * 50_000,
        gzip.compress(gzip.compress(IMAGES, mtime=0), mtime=0),
        gzip.compress(IMAGES, mtime=0) + gzip.compress(IMAGES, mtime=0),
        gzip.compress(b"", mtime=0),
    ],
    ids=lambda images: f"{len(images)}-{hashlib.sha256(images).hexdigest()[:6]}",
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_hostile_idx_files(folder: Path, images: bytes, suffix: str) -> None:
    (folder / f"t10k-images-idx3-ubyte{suffix}").write_bytes(images)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(LABELS)
    refused(lambda: open_dataset(folder), f"t10k-images-idx3-ubyte{suffix}: ")


# --- folders


@pytest.mark.parametrize("name", ["test_batch", "test_batch.bin", "test.bin", "t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_what_is_no_file(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(name),
        "device": lambda: path.symlink_to("/dev/zero"),
    }
    make[kind]()
    refused(lambda: open_dataset(folder), name)


@pytest.mark.parametrize("name", ["batches.meta.txt", "batches.meta"])
def test_class_names_that_are_a_pipe(folder: Path, name: str) -> None:
    """Nobody waits for it; classes are numbered as where there is none."""
    if name == "batches.meta":
        (folder / "test_batch").write_bytes(pickle.dumps({"data": np.zeros((10_000, 3072), np.uint8), "labels": [0] * 10_000}, 4))
    else:
        (folder / "test_batch.bin").write_bytes(bytes(3073 * 10_000))
    os.mkfifo(folder / name)
    with within(10):
        assert open_dataset(folder).class_names == tuple("0123456789")


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32)).save(path, "PNG")


def test_pipes_folders_and_loops_in_place_of_images(folder: Path) -> None:
    """They are passed over, and nothing is opened before it is asked for."""
    image(folder / "a" / "good.png")
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "folder.png").mkdir()
    (folder / "a" / "loop.png").symlink_to("loop.png")
    (folder / "a" / "nothing.png").symlink_to("nowhere.png")
    (folder / "a" / "device.png").symlink_to("/dev/zero")
    (folder / "a" / "round").symlink_to(folder)
    (folder / "a" / "self").symlink_to(".")
    with within(10):
        found = open_dataset(folder)
    assert isinstance(found, FolderDataset)
    assert {file.name for file in found.files} == {"good.png"}
    (folder / "a" / "good.png").unlink()
    refused(lambda: open_dataset(folder), f"{folder / 'a'}: holds no images")


def test_a_class_that_is_the_folder_itself(folder: Path) -> None:
    """A link to a folder is a class like any other; what lies in it is found once and no further."""
    image(folder / "a" / "good.png")
    (folder / "b").symlink_to(folder)
    with within(10):
        found = open_dataset(folder)
    assert found.class_names == ("a", "b") and sorted(set(found.labels.tolist())) == [0, 1] and len(found) <= 4


def test_an_image_that_became_a_pipe(folder: Path) -> None:
    image(folder / "a" / "1.png")
    image(folder / "a" / "2.png")
    dataset = open_dataset(folder)
    (folder / "a" / "1.png").unlink()
    os.mkfifo(folder / "a" / "1.png")
    with within(10):
        (batch,) = batches(dataset, [CIFAR], [0, 1], 2)
    assert len(batch.labels) == 1 and "1.png: is a device or pipe" in plain(*batch.refused)


HOSTILE_NAMES = [b"a\nb", b"\x1b[31mred", b"\xff\xfe", "\u202eright".encode(), b"\x9b31m", b" ", b"\r"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_that_are_not_for_printing(folder: Path, name: bytes) -> None:
    inside = folder / os.fsdecode(name)
    (inside / os.fsdecode(name)).mkdir(parents=True)
    refused(lambda: open_dataset(folder), "holds no images")
    refused(lambda: open_dataset(inside), "holds no images")
    refused(lambda: open_dataset(inside, "train"), "has no folder train")
    broken = inside / os.fsdecode(name + b".png")
    broken.write_bytes(b"no image")
    dataset = open_dataset(folder)
    assert len(dataset) == 1
    refused(lambda: dataset.image(0, CIFAR), "is no readable image")
    (batch,) = batches(dataset, [CIFAR], [0], 1)
    assert "is no readable image" in plain(*batch.refused)
    for file in ("test_batch", "test_batch.bin", "t10k-images-idx3-ubyte"):
        (inside / file).write_bytes(b"no data")
        refused(lambda: open_dataset(inside), file)
        (inside / file).unlink()


def test_folders_nested_deeper_than_the_stack(folder: Path) -> None:
    """Few readers of folders are written without recursion."""
    here = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(1_100):
            Path("a").mkdir()
            os.chdir("a")
        os.chdir(folder)
        before = sys.getrecursionlimit()
        with within(20):
            refused(lambda: open_dataset(folder), str(folder))
        assert sys.getrecursionlimit() == before
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", str(folder / "a")], check=True)


def test_images_that_are_bombs(folder: Path) -> None:
    """A few kilobytes that claim 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    (folder / "a").mkdir()
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")
    (folder / "a" / "bomb.png").write_bytes(data)
    dataset = open_dataset(folder)
    refused(lambda: dataset.image(0, CIFAR), "bomb.png: is no readable image")
