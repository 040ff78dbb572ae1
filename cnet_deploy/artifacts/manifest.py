"""What an artifact is: ``model.onnx.json`` beside ``model.onnx``. A digest is integrity, not origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cnet_deploy.files import digest
from cnet_deploy.files.strict_json import InvalidValue, closed, convert, of_version, parse_json, to_json
from cnet_deploy.images.class_names import ClassNames, checked_labels
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture

FORMAT = "cnet_deploy_manifest"
FORMAT_VERSION = 1
MAX_BYTES = 4 << 20  # 10,000 class names have some 500,000
REPLACES = "replaces"


@closed
@dataclass(frozen=True)
class Manifest:
    """An artifact's description.

    ``sha256`` and ``bytes`` are the artifact's own; ``source_sha256`` is the digest of the checkpoint that it was made from ("" for
    weights that were never in a file). ``architecture`` and ``preprocessing`` are None for the paper's other networks. ``details`` is
    what only this kind of artifact has (opset, batch …), ``libraries`` what made it, ``verification`` how it compared with its model.
    ``class_names`` are one for each class, or empty where they are not known. ``proof`` (see self_check.py) is there until the artifact
    was verified; None then.
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
    class_names: ClassNames = ()
    proof: Mapping[str, Any] | None = None

    @property
    def unverified(self) -> str | None:
        """Why the artifact was never compared with its model; None if it was."""
        return str(self.details.get("reason", "no reason given")) if self.details.get("verified") is False else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values, the format's version among them."""
        values = {FORMAT: FORMAT_VERSION, **{entry.name: getattr(self, entry.name) for entry in fields(self)}}
        values["architecture"] = self.architecture and self.architecture.to_dict()
        values["preprocessing"] = self.preprocessing and self.preprocessing.to_dict()
        if not self.class_names:
            del values["class_names"]
        return values

    def to_json(self) -> str:
        """The file's text, without indentation where that would make it too large to be read again."""
        values = self.to_dict()
        text = to_json(values, indent=2, sort_keys=True) + "\n"
        return text if len(text) <= MAX_BYTES else to_json(values, sort_keys=True, compact=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """The inverse of ``to_dict``. Raises InputRefused for anything that is not a manifest of this version."""
        values = of_version(values, FORMAT, FORMAT_VERSION)
        if missing := [name for name in ("details", "libraries", "verification") if name not in values]:
            raise InvalidValue(f"it has no {missing[0]}")
        made = convert(values, cls)
        if made.class_names and made.architecture is not None:
            checked_labels(made.class_names, made.architecture.classes)
        if made.preprocessing is not None and made.architecture is not None:
            made.preprocessing.require_channels(made.architecture.image_channels)
        return made

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of ``to_json``, also for a transitional manifest (see pair.py). Raises InputRefused as ``from_dict`` does."""
        return read_both(text)[0]


@dataclass(frozen=True)
class Replaced:
    """The artifact that a transitional manifest replaces (see pair.py), and the values of its manifest; None where it had none."""

    sha256: str
    bytes: int
    manifest: Mapping[str, Any] | None


def read_both(data: str | bytes) -> tuple[Manifest, Replaced | None]:
    """A manifest, and what it replaces where it is a transitional one. Raises InputRefused as ``Manifest.from_dict`` does."""
    values = parse_json(data)
    before = values.pop(REPLACES, None) if isinstance(values, dict) else None
    return Manifest.from_dict(values), convert(before, Replaced | None, REPLACES)


def answers_digest(architecture: Architecture, preprocessing: Preprocessing, class_names: ClassNames) -> str:
    """SHA-256 of what decides an artifact's answers beside its weights, for artifacts that can't hold more than a digest of it."""
    values = {"architecture": architecture.to_dict(), "preprocessing": preprocessing.to_dict(), "class_names": list(class_names)}
    return digest(to_json(values, sort_keys=True).encode())


_ENGINE = "cnet-deploy answers "  # an engine's name has at most 4095 characters


def engine_name(architecture: Architecture, preprocessing: Preprocessing, class_names: ClassNames) -> str:
    """The name of a TensorRT engine: the digest of what decides its answers, which the engine itself has no place for."""
    return _ENGINE + answers_digest(architecture, preprocessing, class_names)


def named_as(manifest: Manifest, name: str) -> bool | None:
    """Whether an engine of this name belongs to what its manifest says of answers; None for a name of another kind (version 0.1.0)."""
    if not name.startswith(_ENGINE):
        return None
    own = manifest.architecture, manifest.preprocessing
    return own[0] is not None and own[1] is not None and name == engine_name(own[0], own[1], manifest.class_names)


def manifest_path(artifact: Path | str) -> Path:
    """The file of an artifact's manifest.

    >>> manifest_path("model.onnx").as_posix()
    'model.onnx.json'
    """
    return Path(f"{artifact}.json")
