"""What the tests of native libraries share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import cnet_deploy as cd
from cnet_deploy.exporters.native.toolchain import Compiler
from tests.exporters.native.helpers import every_kernel, of


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with all that it carries by default."""
    return cd.export(every_kernel(), "native", tmp_path_factory.mktemp("portable") / "model.so").path


@pytest.fixture
def gcc(system_tool: Callable[[str], str]) -> Compiler:
    return of(system_tool("g++"))
