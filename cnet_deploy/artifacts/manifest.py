"""What an artifact is: ``model.onnx.json`` beside ``model.onnx``. A digest is integrity, not origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import parse_json
from cnet_deploy.images.class_names import checked_labels
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture

FORMAT_VERSION = 1
MAX_BYTES = 1 << 20
REPLACES = "replaces"

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
    ``class_names`` are one for each class, or none where nobody told;
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
    class_names: tuple[str, ...] = ()
    proof: Mapping[str, Any] | None = None

    @property
    def unverified(self) -> str | None:
        """Why nobody has seen the artifact compute what its model does; None if somebody has."""
        return str(self.details.get("reason", "no reason given")) if self.details.get("verified") is False else None

    def to_json(self) -> str:
        values: dict[str, Any] = asdict(self)
        values["architecture"] = self.architecture and self.architecture.to_dict()
        values["preprocessing"] = self.preprocessing and self.preprocessing.to_dict()
        if not self.class_names:
            del values["class_names"]
        return json.dumps({"cnet_deploy_manifest": FORMAT_VERSION, **values}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of ``to_json``. Raises InputRefused for anything that is not a manifest of this version."""
        try:
            values = parse_json(text)
            if not isinstance(values, dict) or values.pop("cnet_deploy_manifest", None) != FORMAT_VERSION:
                raise InputRefused(f"is no manifest of version {FORMAT_VERSION}")
            values.pop(REPLACES, None)
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
            if "class_names" in values:
                names, arch = values["class_names"], values["architecture"]
                values["class_names"] = checked_labels(names, arch.classes if arch else len(names))
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
