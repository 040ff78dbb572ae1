"""Datasets made to fill the memory, each read in a process of its own, whose address space is bounded."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from .dataset_files import (
    DTYPE,
    ENCODE,
    array,
    plain,
)
from .helpers import ROOT

MEMORY = 500 << 20  # bytes beyond what the interpreter has when all is imported


LIMITED = """
import resource, sys
import numpy, cnet_deploy.images.datasets, cnet_deploy.images.cifar_pickle
from cnet_deploy.errors import InputRefused
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)
try:
    cnet_deploy.images.datasets.open_dataset(sys.argv[1])
except InputRefused as error:
    print(error)
"""


def refused_apart(folder: Path, *says: str) -> None:
    """Refused for what it is and not for want of memory, in a process that has little of it."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(MEMORY)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    line = plain(done.stdout.removesuffix("\n"))
    assert "MemoryError" not in line
    for words in says:
        assert words in line, line


MEGABYTE = b"T" + struct.pack("<i", 1 << 20) + bytes(1 << 20)


# One megabyte, named again and again, each time to be made into another copy.
COPIES = {
    "encoded": b"\x80\x02}U\x04data](" + ENCODE + b"q\x00" + MEGABYTE + b"q\x01U\x06latin1q\x02\x86R"
    + b"h\x00h\x01h\x02\x86R" * 5_000 + b"es.",
    "under many keys": b"\x80\x02}(U\x04data" + array(MEGABYTE, b"J\x00\x00\x10\x00\x85") + b"q\x01"
    + b"".join(b"U\x04%04dh\x01" % n for n in range(5_000)) + b"u.",
    "as dtypes": b"\x80\x03}U\x04data]" + DTYPE + b"q\x00B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x01\x85Ra("
    + b"h\x00h\x01\x85R" * 5_000 + b"es.",
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_one_text(folder: Path, name: str) -> None:
    (folder / "test_batch").write_bytes(COPIES[name])
    refused_apart(folder, "test_batch: ")


def test_a_gzip_bomb(folder: Path) -> None:
    """A gigabyte of zeros in a megabyte, behind a header that claims as much."""
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(b"\0\0\x08\x03" + struct.pack(">3I", 1 << 20, 32, 32)) + packer.flush(zlib.Z_FULL_FLUSH)
    megabyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # after such a flush it is packed the same each time
    packed += megabyte * (1 << 10)
    for name in ("images-idx3", "labels-idx1"):
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(packed)
    refused_apart(folder, "t10k-images-idx3-ubyte.gz: unpacks to more than")


@pytest.mark.parametrize(
    "name", ["t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz", "test_batch", "test_batch.bin", "test.bin"]
)  # fmt: skip
def test_files_of_terabytes_that_take_no_space(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(3 << 30)
    refused_apart(folder, f"{name}: has {3 << 30} bytes; expected")


@pytest.mark.parametrize("name", ["batches.meta.txt", "batches.meta"])
def test_class_names_of_gigabytes(folder: Path, name: str) -> None:
    if name == "batches.meta":
        (folder / "test_batch").write_bytes(pickle.dumps({"data": np.zeros((10_000, 3072), np.uint8), "labels": [0] * 10_000}, 4))
    else:
        (folder / "test_batch.bin").write_bytes(bytes(3073 * 10_000))
    with (folder / name).open("wb") as file:
        file.truncate(3 << 30)
    refused_apart(folder, f"{name}: has {3 << 30} bytes; expected at most")
