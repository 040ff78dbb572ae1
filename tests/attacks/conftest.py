"""What attacks share: a folder for the hostile file, and the sign that code ran."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cnet_deploy.errors import CnetDeployError

from .fixtures import disk, kills, models, mounting  # noqa: F401
from .words import require_plain


@pytest.fixture(autouse=True)
def plain_words(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every message of the package's errors in a test, which must be free of Python's words. See test_words.py."""
    messages: list[str] = []
    make = CnetDeployError.__init__

    def recorded(self: CnetDeployError, message: object) -> None:
        make(self, message)
        messages.append(str(self))

    monkeypatch.setattr(CnetDeployError, "__init__", recorded)
    yield messages
    for message in messages:
        require_plain(message)


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
