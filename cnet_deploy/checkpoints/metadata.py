"""What this tool writes of itself into a file of weights, and reads back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cnet_deploy.checkpoints.tensors import Contents
from cnet_deploy.errors import InputRefused, OutputRefused
from cnet_deploy.files.strict_json import InvalidValue, convert, of_version, parse_json, reading, to_json
from cnet_deploy.images.class_names import ClassName, checked_labels, names_of
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture, Form
from cnet_deploy.version import __version__

if TYPE_CHECKING:
    from cnet_deploy.models.condensenet import DenselyConnected

METADATA_KEY = "cnet_deploy"
METADATA_VERSION = 1
# Stages and growth of CondenseNet V2-A and V2-B, for which its authors resize so, not for V2-C (test.py there: by the model's name).
_BICUBIC = (((1, 1, 4, 6, 8), (8, 8, 16, 32, 64)), ((2, 4, 6, 8, 6), (6, 12, 24, 48, 96)))
_MAX_LENGTH = 4 << 20  # characters: a thousand class names have some 30,000


@dataclass(frozen=True)
class OwnSource:
    """The file that the weights were first read from: its digest ("" for weights that were never in a file), its name, its form."""

    sha256: str
    name: str
    form: Form


@dataclass(frozen=True)
class _Training:
    """Of what a training run writes (training/run.py), the part that is needed here."""

    class_names: tuple[ClassName, ...] = ()


@dataclass(frozen=True)
class OwnMetadata:
    """What this tool wrote beside the tensors. ``class_names`` may be empty; ``training`` is there in a checkpoint of a training run."""

    form: Form
    architecture: Architecture
    preprocessing: Preprocessing
    source: OwnSource
    tool: str | None = None
    class_names: tuple[ClassName, ...] = ()
    training: _Training | None = None


def class_names_of(read: Contents, classes: int) -> tuple[str, ...]:
    """The names of the classes, where the file has them: a model's own, or those of the data that a checkpoint was trained on.

    Other people's files have them as ``classes``, ``class_to_idx`` and the like; what does not name these classes is ignored there.
    Raises InputRefused for a file of ours where they are not as many as the classes.
    """
    own: OwnMetadata | None = read.metadata.get(METADATA_KEY)
    if names := own and (own.class_names or (own.training and own.training.class_names)):
        return checked_labels(names, classes)
    return next((names for value in read.named.values() if (names := names_of(value, classes))), ())


def preprocessing_of(read: Contents, arch: Architecture) -> Preprocessing:
    """How images are prepared for a file's network: as the file states it, or as its dialect always does, else as the network's shape
    suggests (see ``guessed`` there).

    Raises InputRefused where the file states it for images of other channels.
    """
    own: OwnMetadata | None = read.metadata.get(METADATA_KEY)
    if own:  # resizing depends on the input size: if that was overridden, only the rest is taken from the file
        with reading("its metadata", "convert the checkpoint again"):
            own.preprocessing.require_channels(arch.image_channels)
        return own.preprocessing.of_size(arch.input_size)
    data = read.dialect.data if read.dialect else None
    if data is None or data.classes != arch.classes or arch.image_channels != 3:
        steps = Preprocessing.of(arch.input_size, arch.classes, channels=arch.image_channels)
    else:
        steps = replace(Preprocessing.of(data.input_size, data.classes, data.statistics), guessed=()).of_size(arch.input_size)
    if (arch.stages, arch.growth) in _BICUBIC and arch.updates:
        steps = replace(steps, interpolation="bicubic")
    return steps


def with_own(metadata: dict[str, Any]) -> dict[str, Any]:
    """A file's metadata with what this tool wrote as OwnMetadata. Raises InputRefused where that is damaged, or of another version."""
    if METADATA_KEY not in metadata:
        return metadata
    with reading("its metadata", "convert the checkpoint again"):
        text = convert(metadata[METADATA_KEY], str, METADATA_KEY)
        if len(text) > _MAX_LENGTH:
            raise InvalidValue(f"it has {len(text)} characters")
        values = parse_json(text)
        return {**metadata, METADATA_KEY: convert(of_version(values, "version", METADATA_VERSION), OwnMetadata)}


def own_metadata(model: DenselyConnected, **more: Any) -> str:
    """What a file of ours holds of its model beyond the tensors, as JSON; ``more`` are further entries.

    Raises OutputRefused for what could not be read again.
    """
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
    text = to_json({**metadata, **more}, sort_keys=True)
    try:
        with_own({METADATA_KEY: text})
    except InputRefused as error:
        raise OutputRefused(f"the model's metadata could not be read again: {error}; nothing was written") from None
    return text
