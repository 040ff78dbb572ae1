"""Read whole files, and write files so that a reader sees the old content or the new, never a part of either."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import hashlib
import itertools
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from cnet_deploy.errors import InputRefused, OutputRefused, Unavailable, in_words

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 30  # far larger than any model of the family
LIMITS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EFBIG)  # of a process, on files, their size and processes


def read_bytes(path: Path | str, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular, non-empty file of at most ``limit`` bytes. Raises InputRefused for anything else."""
    path = Path(path)
    check_input(path)
    try:
        size = path.stat().st_size
        if size > limit:
            raise InputRefused(f"{path}: has {size} bytes; expected at most {limit}")
        with path.open("rb") as file:
            data = file.read(size)
    except (OSError, MemoryError) as error:
        raise InputRefused(f"{path}: can't be read: {in_words(error)}") from None
    if not data:
        raise InputRefused(f"{path}: is empty; expected a file with content")
    log.info("read %s: %s bytes", path, f"{len(data):,}")
    return data


def exists(path: Path | str) -> bool:
    """Whether something exists at the path; False for text that can't be a path."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def check_input(path: Path | str) -> None:
    """Raise InputRefused for a path that is no regular file, without opening it."""
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputRefused(f"{path}: no such file{_instead(path)}") from None
    except (OSError, ValueError) as error:
        raise InputRefused(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(mode):
        raise InputRefused(f"{path}: is a directory; expected a file")
    if not stat.S_ISREG(mode):
        raise InputRefused(f"{path}: is a device or pipe; expected a regular file")


def _instead(path: Path) -> str:
    """A hint for a path that does not exist: a missing folder, or a file with a similar name."""
    with contextlib.suppress(OSError, ValueError):
        if not path.parent.exists():
            return f"; there is no folder {path.parent}"
        names = [entry.name for entry in itertools.islice(path.parent.iterdir(), 1000)]
        if near := difflib.get_close_matches(path.name, names, n=1):
            return f"; did you mean {path.with_name(near[0])}?"
    return ""


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def require_digest(path: Path | str, data: bytes, sha256: str | None) -> None:
    """Raise InputRefused if the SHA-256 of the bytes is not ``sha256``; None accepts any."""
    if sha256 is not None and (actual := digest(data)) != sha256.lower():
        raise InputRefused(f"{path}: has SHA-256 {actual}; expected {sha256}, as pinned: get the right file, or pin this one")


@contextlib.contextmanager
def atomic_output(path: Path | str, *, source: Path | str | None = None, reader: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """``atomic_outputs`` for a single file. ``reader`` is what will read it later: what it refuses is not written."""
    with atomic_outputs(path, source=source) as (temporary,):
        yield temporary
        if reader is not None:
            try:
                reader(temporary)
            except InputRefused as error:
                reason = str(error).replace(str(temporary), "it")
                raise OutputRefused(f"{path}: what would be written could not be read again: {reason}; nothing was changed") from None


def _rename(temporaries: Sequence[Path], targets: Sequence[Path]) -> None:
    for temporary, target in zip(temporaries, targets, strict=True):
        os.replace(temporary, target)


@contextlib.contextmanager
def atomic_outputs(
    *paths: Path | str, source: Path | str | None = None, commit: Callable[[Sequence[Path], Sequence[Path]], None] = _rename
) -> Iterator[list[Path]]:
    """A temporary path beside each of ``paths`` to write to. When the block ends all are renamed; if it fails all are removed.

    All files are flushed to disk before ``commit`` renames them, and only one process commits in a folder at a time. A link at one of
    ``paths`` is replaced; its target is left alone. The temporary paths keep the suffixes, since some libraries depend on them. ``source``
    is an input file that must not be overwritten. Raises OutputRefused at once if a path can't be written to, and at the end if it is a
    file of another kind than what was written (see replacing.py).
    """
    from cnet_deploy.files.replacing import require_replaceable

    targets = [Path(path) for path in paths]
    for target in targets:
        check_output(target, source=source)
    temporaries = [_temporary(target) for target in targets]
    current = targets[0]
    try:
        for current, temporary in zip(targets, temporaries, strict=True):
            _create(temporary, current)
        current = targets[0]
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        for current, temporary in zip(targets, temporaries, strict=True):
            require_replaceable(current, temporary)
        current = targets[0]
        with locked(current.parent):
            commit(temporaries, targets)
        log.info("wrote %s", ", ".join(map(str, targets)))
    except OSError as error:
        raise OutputRefused(f"{current}: can't be written: {error.strerror or error}; nothing was changed") from error
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes' commits, so that two commits of several files don't mix. The lock ends with the process.

    Without a lock (unsupported, or held by somebody for longer than a commit takes) each rename is still atomic. Renames are flushed to
    disk at the end.
    """
    with contextlib.ExitStack() as stack:
        held = None
        with contextlib.suppress(OSError):  # a folder without read permission can't be locked
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, held)
            _lock(held, folder)
        yield
        if held is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_UN)  # nobody waits for the disk
                os.fsync(held)


LOCK_SECONDS = 1.0  # a commit renames two files; whoever holds a lock for longer is no commit of ours
_locked_by_others: set[tuple[int, int]] = set()  # folders that were waited for in vain


def _lock(held: int, folder: Path) -> None:
    status = os.fstat(held)
    place = status.st_dev, status.st_ino
    end = time.monotonic() + (0 if place in _locked_by_others else LOCK_SECONDS)
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.01)
                continue
            if place not in _locked_by_others:
                log.warning("%s: another process holds a lock on this folder; it is written to without one", folder)
            _locked_by_others.add(place)
            return
        _locked_by_others.discard(place)
        return


def replace_bytes(path: Path, content: bytes) -> None:
    """Replace a small file atomically in a folder that is already ``locked``."""
    temporary = _temporary(path)
    try:
        _create(temporary, path)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def append(path: Path, data: bytes) -> None:
    """Append to a file, all or nothing. A link is followed, since a CI's summary page may be one. Raises OSError."""
    existed = path.exists()
    with path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            while data:
                data = data[file.write(data) :]
        except BaseException:
            file.truncate(size)
            if not existed:
                path.unlink(missing_ok=True)
            raise


def check_output(path: Path | str, *, source: Path | str | None = None, like: str = "") -> None:
    """Raise OutputRefused for a path that is no regular file, lies in a missing folder, or is the ``source`` itself.

    ``like`` is what will be written, if that is known (see replacing.key_of): a path where a file of another kind lies is then refused
    before any work is done.
    """
    from cnet_deploy.files.replacing import require_like

    path = Path(path)
    try:
        if path.is_dir():
            raise OutputRefused(f"{path}: is a directory; expected the name of a file to write")
        if not path.parent.is_dir():
            raise OutputRefused(f"{path}: {path.parent} is no directory; make it first")
        if path.exists() and not path.is_file():
            raise OutputRefused(f"{path}: is a device or pipe; expected the name of a regular file")
        if source is not None and same_file(path, Path(source)):
            raise OutputRefused(f"{path}: is the input itself; expected another name for the output")
        require_like(path, like)
    except (OSError, ValueError) as error:
        raise OutputRefused(f"{path}: can't be written: {getattr(error, 'strerror', None) or error}") from None


def same_file(path: Path, source: Path) -> bool:
    """Whether both exist and are one file."""
    with contextlib.suppress(OSError, ValueError):  # an unreadable source is reported when it is read
        return path.exists() and source.exists() and path.samefile(source)
    return False


def _create(temporary: Path, target: Path) -> None:
    """Create an empty file with the permissions of the file that it will replace; without one, or for a link, the umask decides.

    Special bits, as set-user-ID, are left out.
    """
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    with contextlib.suppress(FileNotFoundError):
        mode = target.lstat().st_mode
        if stat.S_ISREG(mode):
            temporary.chmod(mode & 0o777)


def _start(stem: str) -> str:
    """So much of a name that more can be added: at most 100 bytes of the 255 that a name may have."""
    while len(os.fsencode(stem)) > 100:
        stem = stem[:-1]
    return stem


def _temporary(path: Path) -> Path:
    return path.with_name(f".{_start(path.stem)}.{secrets.token_hex(4)}.tmp{path.suffix}")


@contextlib.contextmanager
def _making_temporary(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        try:
            where, reason = f" in {tempfile.gettempdir()}", in_words(error)
        except OSError:  # it has tried to write to each, the current folder too
            where, reason = "", "none of the usual folders, as /tmp, takes a file: their disks are full or read-only, or ulimit forbids it"
        advice = "raise the limit (ulimit)" if error.errno in LIMITS else "free space, or set TMPDIR to another folder"
        raise Unavailable(f"no temporary {what} can be made{where}: {reason}; {advice}") from None


def private_folder(purpose: str) -> Path:
    """A new folder for temporary files, which nobody else can write to; the caller removes it. ``purpose`` becomes part of its name.

    Raises Unavailable where none can be made.
    """
    with _making_temporary("folder"):
        return Path(tempfile.mkdtemp(prefix=f"cnet-deploy-{purpose}-"))


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A ``private_folder`` that is removed when the block ends."""
    folder = private_folder(purpose)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def temporary_text() -> IO[str]:
    """A file without a name, for text in UTF-8. Raises Unavailable where none can be made."""
    with _making_temporary("file"):
        return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def write_text(path: Path, text: str, *, reader: Callable[[Path], object] | None = None) -> None:
    """Write a text file atomically; ``reader``: see ``atomic_output``. Raises OutputRefused if it can't be written."""
    with atomic_output(path, reader=reader) as temporary:
        temporary.write_text(text, encoding="utf-8")
