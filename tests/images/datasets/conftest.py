"""CIFAR-10's binary version, and no litter of large files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from .helpers import (
    COUNT,
    TEN,
    records,
)


@pytest.fixture(autouse=True)
def no_litter(tmp_path: Path) -> Iterator[None]:
    """Files of a whole batch are large, and pytest keeps those of its last runs."""
    yield
    for file in tmp_path.rglob("test*"):
        file.unlink()


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All of CIFAR-10's binary version. Not to be changed: link to its files."""
    folder = tmp_path_factory.mktemp("data") / "cifar-10-batches-bin"
    folder.mkdir()
    for n in range(1, 6):
        (folder / f"data_batch_{n}.bin").write_bytes(records(COUNT, [np.full(COUNT, n)]))
    (folder / "test_batch.bin").write_bytes(records(COUNT, [np.arange(COUNT) % 10]))
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def copy(binary: Path, tmp_path: Path) -> Path:
    """The same, of which files may be removed or replaced."""
    for file in binary.iterdir():
        (tmp_path / file.name).symlink_to(file)
    return tmp_path
