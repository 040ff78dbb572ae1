"""The metadata of our ONNX files: one writer and one reader, for every runtime that opens them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import convert, parse_json, reading, to_json
from cnet_deploy.images.class_names import ClassNames, checked_labels
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.version import __version__

INPUT, OUTPUT = "input", "logits"
_PREFIX = "cnet_deploy."  # of the entries that are ours
_TYPED: Mapping[str, Any] = {"architecture": Architecture, "preprocessing": Preprocessing, "class_names": ClassNames}


@dataclass(frozen=True)
class OnnxMetadata:
    """``architecture`` and ``preprocessing`` are None, and ``class_names`` empty, where the file does not state them.

    ``other`` are the rest of our entries as they stand: the digest of the checkpoint, the tool that wrote the file.
    """

    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    other: Mapping[str, str] = field(default_factory=dict)


def entries_of(metadata: OnnxMetadata, source_sha256: str) -> dict[str, str]:
    """The entries that a file gets (``metadata_props`` of its ModelProto); JSON where a value is more than a word."""
    values = {"source_sha256": source_sha256, "tool": f"cnet-deploy {__version__}"}
    if metadata.class_names:
        values["class_names"] = to_json(metadata.class_names)
    if metadata.architecture is not None:
        values["architecture"] = to_json(metadata.architecture.to_dict(), sort_keys=True)
    if metadata.preprocessing is not None:
        values["preprocessing"] = to_json(metadata.preprocessing.to_dict(), sort_keys=True)
    return {_PREFIX + key: values[key] for key in sorted(values)}


def read_metadata(entries: Mapping[str, str]) -> OnnxMetadata:
    """The inverse of ``entries_of``; entries of others are passed over. Raises InputRefused for entries of ours that are damaged."""
    ours = {key.removeprefix(_PREFIX): value for key, value in entries.items() if key.startswith(_PREFIX)}
    with reading("its metadata", "export the model again"):
        typed = {key: convert(parse_json(ours[key], key), kind, key) for key, kind in _TYPED.items() if ours.get(key)}
        if "architecture" in typed and "class_names" in typed:
            checked_labels(typed["class_names"], typed["architecture"].classes)
    return OnnxMetadata(**typed, other={key: value for key, value in ours.items() if key not in _TYPED})


def check_metadata(metadata: OnnxMetadata, input_size: tuple[int, int], classes: int, stated: Architecture | None) -> None:
    """Raise InputRefused where metadata speaks of another network than the graph or the manifest.

    ``input_size`` (height, width) and ``classes`` are the graph's; ``stated`` is the manifest's architecture.
    """
    arch = metadata.architecture
    if arch is not None and (arch.classes, arch.input_size) != (classes, input_size):
        raise InputRefused(
            f"its metadata speaks of {arch.classes} classes and {arch.input_size} pixels, its graph has {classes} and reads {input_size}"
        )
    if metadata.class_names and len(metadata.class_names) != classes:
        raise InputRefused(f"its metadata names {len(metadata.class_names)} classes, its graph has {classes}")
    if stated is not None and stated != arch:
        raise InputRefused("its manifest speaks of another architecture than its metadata: export the model again")
