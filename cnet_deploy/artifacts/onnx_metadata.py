"""Metadata in the ONNX files that this package writes: one writer, and one reader for all runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import convert, parse_json, reading, to_json
from cnet_deploy.images.class_names import ClassNames, checked_labels
from cnet_deploy.images.preprocessing import CHANNELS, Preprocessing
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.version import __version__

INPUT, OUTPUT = "input", "logits"
_PREFIX = "cnet_deploy."  # of this package's entries
_TYPED: Mapping[str, Any] = {"architecture": Architecture, "preprocessing": Preprocessing, "class_names": ClassNames}


@dataclass(frozen=True)
class OnnxMetadata:
    """The metadata of a file. ``architecture`` and ``preprocessing`` are None, and ``class_names`` empty, if the file does not state them.

    ``other`` holds the other entries unparsed: the digest of the checkpoint, the tool that wrote the file.
    """

    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    other: Mapping[str, str] = field(default_factory=dict)


def entries_of(metadata: OnnxMetadata, source_sha256: str) -> dict[str, str]:
    """The entries to write (``metadata_props`` of the ModelProto); structured values are JSON."""
    values = {"source_sha256": source_sha256, "tool": f"cnet-deploy {__version__}"}
    if metadata.class_names:
        values["class_names"] = to_json(metadata.class_names)
    if metadata.architecture is not None:
        values["architecture"] = to_json(metadata.architecture.to_dict(), sort_keys=True)
    if metadata.preprocessing is not None:
        values["preprocessing"] = to_json(metadata.preprocessing.to_dict(), sort_keys=True)
    return {_PREFIX + key: values[key] for key in sorted(values)}


def read_metadata(entries: Mapping[str, str]) -> OnnxMetadata:
    """The inverse of ``entries_of``; other tools' entries are ignored. Raises InputRefused if this package's entries are damaged."""
    ours = {key.removeprefix(_PREFIX): value for key, value in entries.items() if key.startswith(_PREFIX)}
    with reading("its metadata", "export the model again"):
        typed = {key: convert(parse_json(ours[key], key), kind, key) for key, kind in _TYPED.items() if ours.get(key)}
        if "architecture" in typed and "class_names" in typed:
            checked_labels(typed["class_names"], typed["architecture"].classes)
        if "architecture" in typed and "preprocessing" in typed:
            typed["preprocessing"].require_channels(typed["architecture"].image_channels)
    return OnnxMetadata(**typed, other={key: value for key, value in ours.items() if key not in _TYPED})


def _pixels(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def check_metadata(
    metadata: OnnxMetadata, input_size: tuple[int, int], classes: int, stated: Architecture | None, channels: int = 3
) -> None:  # fmt: skip
    """Raise InputRefused if the metadata describes another network than the graph or the manifest.

    ``input_size`` (height, width), ``classes`` and ``channels`` are the graph's; ``stated`` is the manifest's architecture.
    """
    arch = metadata.architecture
    if arch is not None and (arch.classes, arch.input_size) != (classes, input_size):
        raise InputRefused(
            f"its metadata describes {arch.classes} classes and {_pixels(arch.input_size)} pixels, "
            f"but its graph has {classes} classes and reads {_pixels(input_size)} pixels"
        )
    if (known := arch.image_channels if arch else metadata.preprocessing and metadata.preprocessing.channels) and known != channels:
        raise InputRefused(f"its metadata describes {CHANNELS[known]} images, but its graph reads {CHANNELS[channels]} images")
    if metadata.class_names and len(metadata.class_names) != classes:
        raise InputRefused(f"its metadata names {len(metadata.class_names)} classes, its graph has {classes}")
    if stated is not None and stated != arch:
        raise InputRefused("its manifest describes another architecture than its metadata: export the model again")
