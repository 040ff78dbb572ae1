"""What the tests against a real server share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.once import Once

from .server import Installation, find_installation, make_standin

collect_ignore = ["onnxruntime_standin"]  # for the server's Python


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The Triton server of this machine."""
    return find_installation()


@pytest.fixture(scope="session")
def onnxruntime_backend(installation: Installation, once: Once) -> Path:
    """A folder of backends with the stand-in for onnxruntime's."""
    if not (installation.packages / "onnxruntime").is_dir():  # as with Python 3.13, which has no numpy that the backend can read
        pytest.skip("the environment of the Triton server has no onnxruntime")
    return once("onnxruntime-backend", lambda place: make_standin(installation, "onnxruntime", place))
