"""A dataset small enough to train on in a test: real photographs in the layout of Fashion-MNIST, which tells its own size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cnet_deploy.datasets import ArrayDataset, open_dataset

IMAGES = {"train": 96, "t10k": 41}


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory: pytest.TempPathFactory, images_path: Path) -> Path:
    """96 images to train on and 41 to test on, of ten classes."""
    folder = tmp_path_factory.mktemp("dataset")
    source = open_dataset(images_path)
    assert isinstance(source, ArrayDataset)
    first = 0
    for prefix, count in IMAGES.items():
        grey = source.pixels[first : first + count].mean(1).astype(np.uint8)[:, 2:30, 2:30]
        labels = source.labels[first : first + count].astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte", grey)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
        first += count
    return folder


def write_idx(path: Path, values: np.ndarray) -> None:
    """The idx format: type and dimensions, each side with its highest byte first, the bytes."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(side.to_bytes(4, "big") for side in values.shape)
    path.write_bytes(header + values.tobytes())
