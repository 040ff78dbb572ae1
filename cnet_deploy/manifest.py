"""What an artifact is: ``model.onnx.json`` beside ``model.onnx``. A digest is integrity, not origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cnet_deploy.architecture import Architecture
from cnet_deploy.errors import InputRefused
from cnet_deploy.files import digest, read_bytes
from cnet_deploy.metadata import parse_json
from cnet_deploy.preprocessing import Preprocessing

FORMAT_VERSION = 1
MAX_BYTES = 1 << 20
METADATA_PREFIX = "cnet_deploy."  # of the entries that an artifact carries inside itself, where its format has room for them

_KINDS = {
    "target": str, "sha256": str, "bytes": int, "precision": str, "source_sha256": str,
    "details": dict, "libraries": dict, "verification": list,
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """An artifact's description.

    ``sha256`` and ``bytes`` are the artifact's own; ``source_sha256`` is the digest of the checkpoint that it was made from ("" for
    weights that were never in a file). ``architecture`` and ``preprocessing`` are None for the paper's other networks. ``details`` is
    what only this kind of artifact has (opset, batch …), ``libraries`` what made it, ``verification`` how it compared with its model;
    ``proof`` (see proof.py) is there while that is still to be seen.
    """

    target: str
    sha256: str
    bytes: int
    precision: str
    source_sha256: str
    architecture: Architecture | None
    preprocessing: Preprocessing | None
    details: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    verification: tuple[Mapping[str, Any], ...] = ()
    proof: Mapping[str, Any] | None = None

    @property
    def unverified(self) -> str | None:
        """Why nobody has seen the artifact compute what its model does; None if somebody has."""
        return str(self.details.get("reason", "no reason given")) if self.details.get("verified") is False else None

    def to_json(self) -> str:
        values: dict[str, Any] = asdict(self)
        values["architecture"] = self.architecture and self.architecture.to_dict()
        values["preprocessing"] = self.preprocessing and self.preprocessing.to_dict()
        return json.dumps({"cnet_deploy_manifest": FORMAT_VERSION, **values}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of ``to_json``. Raises InputRefused for anything that is not a manifest of this version."""
        try:
            values = parse_json(text)
            if not isinstance(values, dict) or values.pop("cnet_deploy_manifest", None) != FORMAT_VERSION:
                raise InputRefused(f"is no manifest of version {FORMAT_VERSION}")
            for key, kind in _KINDS.items():
                if type(values.get(key)) is not kind:
                    raise InputRefused(f"{key} is missing or not of type {kind.__name__}")
            if not all(isinstance(entry, dict) for entry in values["verification"]):
                raise InputRefused("verification holds something else than comparisons")
            if (arch := values["architecture"]) is not None:
                values["architecture"] = Architecture.from_dict(arch)
            if (steps := values["preprocessing"]) is not None:
                values["preprocessing"] = Preprocessing.from_dict(steps)
            values["verification"] = tuple(values["verification"])
            if not isinstance(values.get("proof"), (dict, type(None))):
                raise InputRefused("proof is none")
            return cls(**values)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputRefused(f"is no whole manifest ({type(error).__name__}: {error})") from None


def manifest_path(artifact: Path | str) -> Path:
    """Where the manifest of an artifact stands.

    >>> manifest_path("model.onnx").as_posix()
    'model.onnx.json'
    """
    return Path(f"{artifact}.json")


def read(artifact: Path | str, data: bytes | None = None) -> Manifest | None:
    """The manifest beside an artifact, checked against the artifact's bytes (``data``, if they were read); None where there is none.

    Raises InputRefused for a manifest that can't be read, and for one that describes other bytes than the artifact's.
    """
    path = manifest_path(artifact)
    if not path.exists():
        return None
    try:
        manifest = Manifest.from_json(read_bytes(path, MAX_BYTES).decode("utf-8"))
    except (UnicodeDecodeError, InputRefused) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputRefused(f"{path}: {reason}; export the model again, or delete the manifest if you trust the file") from None
    data = read_bytes(artifact) if data is None else data
    found = digest(data)
    if (found, len(data)) != (manifest.sha256, manifest.bytes):
        raise InputRefused(
            f"{artifact}: has {len(data)} bytes with SHA-256 {found[:16]}…, but its manifest {path.name} expects {manifest.bytes} with "
            f"{manifest.sha256[:16]}…; the pair does not belong together: export the model again, or delete the manifest if you trust it"
        )
    return manifest
