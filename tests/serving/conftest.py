"""What the tests against a real server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.once import Once

from .server import STANDINS, Array, Installation, Server, find_installation, make_standins

collect_ignore = ["onnxruntime_standin", "openvino_standin"]  # for the server's Python


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The Triton server of this machine."""
    return find_installation()


@pytest.fixture(scope="session")
def standins(installation: Installation, once: Once) -> Path:
    """A folder of backends that stand in for Triton's onnxruntime and openvino."""
    if not all((installation.packages / name).is_dir() for name in STANDINS):
        pytest.skip("the environment of the Triton server has no onnxruntime and openvino, as with Python 3.13")
    return once("standins", lambda place: make_standins(installation, place))


@pytest.fixture(scope="session")
def images() -> Array:
    """One more than the largest batch."""
    return np.random.default_rng(0).standard_normal((33, 3, 32, 32), np.float32)


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The module's server (its fixture ``running``), of all tests that don't change it. What it logged meanwhile is printed, for pytest to
    show if the test failed."""
    begun = len(running.text())
    yield running
    print(running.text()[begun:])
