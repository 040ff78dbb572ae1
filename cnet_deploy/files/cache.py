"""The user's cache: a folder whose files nobody else can have written, or none at all.

What is kept there is run (compiled code) or believed. So no other user may be able to replace any part of the path to it, as with a HOME
that `sudo` kept or a folder that several users share. A digest beside an entry shows damage alone: who can write the one can write both.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
from pathlib import Path

from cnet_deploy.errors import OutputRefused
from cnet_deploy.files import atomic_output
from cnet_deploy.files.replacing import replacing_anything

log = logging.getLogger(__name__)

MAX_BYTES = 64 << 20  # of an entry
_LINKS = 20  # that a path may go through


@functools.cache
def _complain(text: str) -> None:
    """Once in a process."""
    log.warning("%s", text)


def folder(*names: str) -> Path | None:
    """The folder ``cnet-deploy/NAMES`` in $XDG_CACHE_HOME or ~/.cache, made if it is missing, if it is the user's alone.

    None where it can't be made or others could write there; the latter is said once. A relative $XDG_CACHE_HOME or $HOME is ignored, as
    the XDG base directory specification has it.
    """
    base = _base()
    if base is None:
        return None
    place = base.joinpath("cnet-deploy", *names)
    try:
        reason = _why_not_ours(place)
        if reason is None:
            for part in (*reversed(place.parents), place):
                if not os.path.lexists(part):
                    part.mkdir(mode=0o700, exist_ok=True)
            reason = _why_not_ours(place, whole=True)  # others may have made a part of it meanwhile
    except OSError:  # a full or read-only disk, a file in the way
        return None
    if reason is not None:
        _complain(f"the cache {place} is not used: {reason}; make it yours alone (chmod go-w), or set XDG_CACHE_HOME")
        return None
    return place


def read(place: Path, name: str) -> bytes | None:
    """The bytes of an entry of a ``folder``; None where there is none, or what there is is no regular file of the user's own."""
    try:
        descriptor = os.open(place / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and status.st_size <= MAX_BYTES and _unshared(status):
                return file.read(MAX_BYTES)
    except OSError:
        pass
    return None


def write(place: Path, name: str, data: bytes) -> None:
    """Keep an entry, if that is possible. What is there and is no regular file is removed."""
    with contextlib.suppress(OSError, OutputRefused):
        path = place / name
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            path.unlink()
        with replacing_anything(), atomic_output(path) as temporary:
            temporary.chmod(0o600)
            temporary.write_bytes(data)


def _base() -> Path | None:
    if (given := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return Path(os.path.normpath(given))
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry for the user
        return None
    return Path(os.path.normpath(home)) / ".cache" if home.is_absolute() else None


def _why_not_ours(place: Path, *, whole: bool = False) -> str | None:
    """Why others could change what lies at an absolute path, or None; links are followed step by step. ``whole``: all of it must be there.

    Others can change nothing below a folder that they can't enter, and in one with the sticky bit, as /tmp, nothing that is not their own.
    """
    user, here, closed, links = os.geteuid(), Path("/"), False, 0
    waiting = [*reversed(place.parts[1:])]
    while True:
        status = here.lstat()
        closed = closed or not status.st_mode & 0o011
        if not waiting:
            return None if closed or _unshared(status) else f"other users can write to {here}"
        if not closed and not _unshared(status) and not status.st_mode & stat.S_ISVTX:
            return f"other users can write to {here}"
        if (name := waiting.pop()) == "..":
            here, closed = here.parent, False
            continue
        part = here / name
        try:
            status = part.lstat()
        except FileNotFoundError:
            if whole:
                raise
            return None
        if status.st_uid != user and (status.st_uid or not (waiting or stat.S_ISLNK(status.st_mode))):
            return f"{part} belongs to another user"
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS:
                return f"{place} leads through too many links"
            target = part.readlink()
            waiting += reversed(target.parts[1:] if target.is_absolute() else target.parts)
            here, closed = (Path("/"), False) if target.is_absolute() else (here, closed)
        else:
            here = part


def _unshared(status: os.stat_result) -> bool:
    return not status.st_mode & 0o022
