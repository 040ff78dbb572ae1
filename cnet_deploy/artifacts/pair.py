"""An artifact and its manifest as one: read together, written together."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnet_deploy.artifacts.manifest import MAX_BYTES, REPLACES, Manifest, manifest_path, read_both
from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.files import atomic_outputs, digest, locked, read_bytes, replace_bytes, require_digest
from cnet_deploy.files.strict_json import InvalidValue, parse_json, reading, to_json
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture


@dataclass(frozen=True)
class Pair:
    """A file that was read once, and the manifest of these very bytes; None if the file has no manifest, or it was not asked for.

    ``pinned``: the digest of the bytes was given by the caller. That does not cover the manifest, so nothing that decides answers is then
    taken from it alone.
    """

    path: Path
    data: bytes
    manifest: Manifest | None = None
    pinned: bool = False

    def require_manifest(self, what: str) -> Manifest:
        """The manifest of what is code that opening it would run. Raises InputRefused where there is none."""
        if self.manifest is None:
            raise InputRefused(
                f"{self.path}: has no manifest {manifest_path(self.path).name} beside it, and {what} is code that would be run "
                "unchecked; put its manifest there, or export the model again"
            )
        return self.manifest


def read_pair(path: Path | str, sha256: str | None = None, *, described: bool = True) -> Pair:
    """An artifact's bytes and its manifest, as they were together at one moment, whoever writes them meanwhile.

    ``sha256`` pins the bytes: in hexadecimal, the digest that they must have. ``described`` False leaves the manifest alone. Raises
    InputRefused for bytes of another digest, for a manifest that can't be read, and for one of other bytes.
    """
    for attempt in itertools.count():
        before = _state(path)
        data = read_bytes(path)
        try:
            pair = Pair(Path(path), data, read_manifest(path, data) if described else None, sha256 is not None)
        except InputRefused:
            if attempt >= _ATTEMPTS or before == _state(path):
                raise
            continue  # somebody replaced them in between
        require_digest(path, data, sha256)
        return pair
    raise AssertionError("not reached")


def read_manifest(artifact: Path | str, data: bytes | None = None) -> Manifest | None:
    """The manifest beside an artifact, checked against the artifact's bytes (``data``, if they were read); None if there is no manifest.

    Raises InputRefused for a manifest that can't be read, and for one that describes other bytes than the artifact's.
    """
    path = manifest_path(artifact)
    if not path.exists():
        return None
    text = read_bytes(path, MAX_BYTES)
    data = read_bytes(artifact) if data is None else data
    actual = (digest(data), len(data))
    with reading(path, f"export the model again, or delete the manifest if you trust {Path(artifact).name}"):
        manifest, before = read_both(text)
        if actual == (manifest.sha256, manifest.bytes):
            return manifest
        if before is not None and actual == (before.sha256, before.bytes):
            return None if before.manifest is None else Manifest.from_dict(before.manifest)
    raise InputRefused(
        f"{artifact}: has {len(data)} bytes with SHA-256 {actual[0][:16]}…, but its manifest {path.name} expects {manifest.bytes} with "
        f"{manifest.sha256[:16]}…; the pair does not belong together: export the model again, or delete the manifest if you trust it"
    )


# Two names can't be renamed at once. While the artifact is replaced, its manifest speaks of both, the new one and, under "replaces", the
# old one: whenever a kill parts the two renames, what lies there is still a pair.
_ATTEMPTS = 20


@contextlib.contextmanager
def atomic_pair(artifact: Path | str, *, source: Path | str | None = None) -> Iterator[tuple[Path, Path]]:
    """Temporary paths for an artifact and its manifest (see files.atomic_outputs): readers see the old pair or the new one.

    Raises OutputRefused for a manifest that could not be read again.
    """
    with atomic_outputs(artifact, manifest_path(artifact), source=source, commit=_commit) as (temporary, beside):
        yield temporary, beside
        if described := beside.read_bytes():
            _readable(manifest_path(artifact), described)


def describe(
    artifact: Path, target: str, precision: str, *, details: Mapping[str, Any] | None = None, libraries: Mapping[str, str] | None = None,
    source_sha256: str = "", architecture: Architecture | None = None, preprocessing: Preprocessing | None = None,
    class_names: tuple[str, ...] = (),
) -> Manifest:  # fmt: skip
    """The manifest of a file that an exporter wrote, before anybody ran it. The arguments are Manifest's fields."""
    content = artifact.read_bytes()
    return Manifest(
        target, digest(content), len(content), precision, source_sha256, architecture, preprocessing, details or {}, libraries or {},
        class_names=class_names,
    )  # fmt: skip


def update_manifest(artifact: Path | str, before: Manifest, after: Manifest) -> None:
    """Put a manifest in place of ``before``, unless another artifact has come meanwhile. Raises OutputRefused where that can't be done."""
    path = manifest_path(artifact)
    try:
        with locked(path.parent):
            if read_manifest(artifact) == before:
                replace_bytes(path, _readable(path, after.to_json().encode()))
    except OSError as error:
        raise OutputRefused(f"{path}: can't be written: {error.strerror}") from None


def _readable(path: Path, data: bytes) -> bytes:
    """A manifest's bytes, if they can be read again. Raises OutputRefused."""
    try:
        with reading("it"):
            if len(data) > MAX_BYTES:
                raise InvalidValue(f"it has {len(data)} bytes; expected at most {MAX_BYTES}")
            read_both(data)
    except InputRefused as error:
        raise OutputRefused(f"{path}: what would be written could not be read again: {error}; nothing was changed") from None
    return data


def _commit(temporaries: Sequence[Path], targets: Sequence[Path]) -> None:
    (new, description), (artifact, path) = temporaries, targets
    before = path.read_bytes() if path.exists() else None
    if (there := _there(artifact)) is None:  # a manifest alone harms nobody
        os.replace(description, path)
    else:
        both = to_json({**parse_json(description.read_bytes()), REPLACES: there}, compact=True).encode()
        if len(both) > MAX_BYTES:  # both are very large: for the moment that the old artifact is left, it has no manifest
            both = to_json({**parse_json(description.read_bytes()), REPLACES: {**there, "manifest": None}}, compact=True).encode()
        replace_bytes(path, both)
    try:
        os.replace(new, artifact)
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink() if before is None else replace_bytes(path, before)
        raise
    if there is not None:
        with contextlib.suppress(OSError):  # both are whole already
            os.replace(description, path)


def _there(artifact: Path) -> dict[str, Any] | None:
    """What a transitional manifest holds of the artifact that is to be replaced; None where there is none, or where it does not belong to
    its manifest (such a pair is refused before and after)."""
    try:
        pair = read_pair(artifact)
    except InputRefused:
        return None
    return {"sha256": digest(pair.data), "bytes": len(pair.data), "manifest": pair.manifest and pair.manifest.to_dict()}


def _state(artifact: Path | str) -> list[tuple[int, int, int] | None]:
    """Changes when an artifact or its manifest is replaced."""
    states: list[tuple[int, int, int] | None] = []
    for path in (Path(artifact), manifest_path(artifact)):
        try:
            status = path.stat()
            states.append((status.st_ino, status.st_mtime_ns, status.st_size))
        except (OSError, ValueError):
            states.append(None)
    return states
