"""What this tool writes of itself into a file of weights, and reads back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cnet_deploy.checkpoints.tensors import Contents
from cnet_deploy.errors import InputRefused
from cnet_deploy.files.strict_json import parse_json
from cnet_deploy.images.class_names import checked_labels
from cnet_deploy.version import __version__

if TYPE_CHECKING:
    from cnet_deploy.models.condensenet import DenselyConnected

METADATA_KEY = "cnet_deploy"
METADATA_VERSION = 1


def class_names_of(read: Contents, classes: int) -> tuple[str, ...]:
    """The names of the classes, where the file tells them: a model's own, or those of the data that a checkpoint was trained on.

    Raises InputRefused for what are none."""
    own = read.metadata.get(METADATA_KEY, {})
    training = own.get("training")
    names = own.get("class_names") or (training.get("class_names") if isinstance(training, dict) else None)
    return checked_labels(names, classes) if names else ()


def _with_own(metadata: dict[str, Any]) -> dict[str, Any]:
    """A file's metadata with what this tool wrote of itself parsed and checked."""
    if METADATA_KEY in metadata:
        own = parse_json(metadata[METADATA_KEY])
        if not isinstance(own, dict) or own.get("version") != METADATA_VERSION:
            raise InputRefused(f"was written by another version of cnet-deploy; expected metadata version {METADATA_VERSION}")
        _check_metadata(own)
        metadata[METADATA_KEY] = own
    return metadata


def _check_metadata(own: Mapping[str, Any]) -> None:
    for part in ("architecture", "preprocessing", "source"):
        if not isinstance(own.get(part), dict):
            raise ValueError(f"metadata has no {part}")
    source = own["source"]
    if not all(isinstance(source.get(key), str) for key in ("sha256", "name", "form")) or source["form"] not in (
        "training",
        "group-conv",
    ):
        raise ValueError("metadata has no whole source (sha256, name, form)")


def own_metadata(model: DenselyConnected, **more: Any) -> str:
    """What a file of ours says of its model beyond the tensors, as JSON; ``more`` are further entries."""
    source = model.source
    metadata = {
        "version": METADATA_VERSION,
        "tool": f"cnet-deploy {__version__}",
        "form": model.form,
        "architecture": model.architecture.to_dict(),
        "preprocessing": model.preprocessing.to_dict(),
        "source": {"sha256": source.digest if source else "", "name": source.name if source else "", "form": (source or model).form},
    }
    if model.class_names:
        metadata["class_names"] = list(model.class_names)
    return json.dumps({**metadata, **more}, sort_keys=True)
