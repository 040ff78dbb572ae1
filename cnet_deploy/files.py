"""Reading whole files and writing them so that a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cnet_deploy.errors import InputRefused, OutputRefused


def read_bytes(path: Path | str) -> bytes:
    """The bytes of a regular, non-empty file. Raises InputRefused for anything else (directory, device, unreadable)."""
    path = Path(path)
    try:
        if path.is_dir():
            raise InputRefused(f"{path}: is a directory; expected a file")
        if not path.exists():
            raise InputRefused(f"{path}: no such file")
        if not path.is_file():
            raise InputRefused(f"{path}: is a device or pipe; expected a regular file")
        data = path.read_bytes()
    except OSError as error:
        raise InputRefused(f"{path}: can't be read: {error.strerror or error}") from None
    if not data:
        raise InputRefused(f"{path}: is empty; expected a model")
    return data


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file, read in pieces. Raises InputRefused where it can't be read."""
    try:
        total = hashlib.sha256()
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                total.update(piece)
        return total.hexdigest()
    except OSError as error:
        raise InputRefused(f"{path}: can't be read: {error.strerror or error}") from None


@contextlib.contextmanager
def atomic_output(path: Path | str, *, source: Path | str | None = None) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` when the block ends well, removed when it does not.

    The suffix stays, so that libraries that look at it are content. ``source`` is a file that must not be overwritten by its own
    product. Raises OutputRefused before anything is computed if the place can't be written to.
    """
    path = Path(path)
    check_output(path, source=source)
    temporary = _temporary(path)
    try:
        # Made now, so that a place that refuses files is found before any work is done; the umask decides its mode.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputRefused(f"{path}: can't be written: {error.strerror or error}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_output(path: Path | str, *, source: Path | str | None = None) -> None:
    """Refuse an output path that is a directory, lies in a folder that is not there, or is the ``source`` itself."""
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputRefused(f"{path}: is a directory; expected the name of a file to write")
        if not path.parent.is_dir():
            raise OutputRefused(f"{path}: {path.parent} is no directory; make it first")
        if source is not None and path.exists() and Path(source).exists() and path.samefile(source):
            raise OutputRefused(f"{path}: is the input itself; expected another name for the output")
    except OSError as error:
        raise OutputRefused(f"{path}: can't be written: {error.strerror or error}") from None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}.tmp{path.suffix}")
