"""Any damage at all to a dataset: it is read or refused, and nothing else happens."""

from __future__ import annotations

import gzip
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cnet_deploy.errors import InputRefused
from cnet_deploy.images.cifar_pickle import read_arrays
from cnet_deploy.images.datasets import open_dataset
from tests.cases import examples

from .dataset_files import (
    IMAGES,
    LABELS,
    plain,
)
from .helpers import within

BOUNDED = settings(examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])


SMALL = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 300], "names": ["a", "b"], "batch_label": "testing"}


WHOLE = [pickle.dumps(SMALL, protocol) for protocol in (0, 2, 4, 5)]


Changes = list[tuple[int, int, bytes]]


CHANGES = st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4)


def changed(data: bytes, changes: Changes) -> bytes:
    """Some bytes taken out at some places and others put in."""
    for place, length, instead in changes:
        at = place % (len(data) + 1)
        data = data[:at] + instead + data[at + length :]
    return data


def survives(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused in one line; any other end fails."""
    with within(10), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read()
        except InputRefused as error:
            plain(str(error))
            return None


@BOUNDED
@given(st.sampled_from(WHOLE), CHANGES)
def test_any_change_to_a_pickle(tmp_path_factory: pytest.TempPathFactory, whole: bytes, changes: Changes) -> None:
    path = tmp_path_factory.getbasetemp() / "changed_pickle"
    path.write_bytes(changed(whole, changes))
    found = survives(lambda: read_arrays(path))
    if found is not None:
        assert isinstance(found, dict) and all(type(key) is str for key in found)
        assert all(value.dtype == np.uint8 and value.nbytes <= 12 for value in found.values() if isinstance(value, np.ndarray))


@BOUNDED
@given(st.booleans(), CHANGES)
def test_any_change_to_an_idx_file(tmp_path_factory: pytest.TempPathFactory, packed: bool, changes: Changes) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed_idx"
    folder.mkdir(exist_ok=True)
    (folder / "t10k-images-idx3-ubyte").write_bytes(changed(gzip.compress(IMAGES, mtime=0) if packed else IMAGES, changes))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(changed(LABELS, changes[:1]))
    found = survives(lambda: open_dataset(folder))
    if found is not None:
        assert found.pixels.shape[1:] == (3, 32, 32) and len(found.pixels) == len(found.labels) and found.labels.max() < 10


def test_what_is_not_changed_is_read(tmp_path: Path) -> None:
    """So that the two above have something to lose."""
    for whole in WHOLE:
        (tmp_path / "file").write_bytes(whole)
        assert read_arrays(tmp_path / "file")["data"].tolist() == SMALL["data"].tolist()  # type: ignore[attr-defined]
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(gzip.compress(IMAGES, mtime=0))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(LABELS)
    assert len(open_dataset(tmp_path)) == 2
