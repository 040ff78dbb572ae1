"""What attacks share: a folder for the hostile file, and the sign that code ran."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .fixtures import disk, kills, models, mounting  # noqa: F401


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that appears if code ran; outside the folder of the hostile file."""
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "files"
    path.mkdir()
    yield path
    for file in path.iterdir():
        if file.is_file() and file.stat().st_size > 1 << 20:
            file.unlink()
