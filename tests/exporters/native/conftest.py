"""What the tests of native libraries share."""

from __future__ import annotations

from pathlib import Path

import pytest

import cnet_deploy as cd
from tests.exporters.native.helpers import (
    every_kernel,
)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with all that it carries by default."""
    return cd.export(every_kernel(), "native", tmp_path_factory.mktemp("portable") / "model.so").path
