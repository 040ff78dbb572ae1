"""Models from checkpoints of the family, and files of models."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from cnet_deploy import __version__
from cnet_deploy.contents import METADATA_KEY, METADATA_VERSION, architecture_of, class_names_of, read_tensors
from cnet_deploy.errors import OutputRefused, naming
from cnet_deploy.files import atomic_output
from cnet_deploy.inference import infer_form
from cnet_deploy.models import DenselyConnected, Source, build
from cnet_deploy.preprocessing import Preprocessing


def load(
    path: Path | str,
    *,
    groups: int | None = None,
    condense_factor: int | None = None,
    input_size: tuple[int, int] | None = None,
    stem_stride: int | None = None,
    sha256: str | None = None,
    data: bytes | None = None,
) -> DenselyConnected:
    """A model from a checkpoint of the family, in the form in which it is stored, ready to run.

    ``groups``, ``condense_factor``, ``input_size`` (height, width) and ``stem_stride``: see ``infer_architecture``; ``sha256`` and
    ``data``: see ``read_tensors``. Raises InputRefused as both do; the message begins with the file's name.
    """
    read = read_tensors(path, sha256, data)
    with naming(path):
        form = infer_form(read.tensors)
        arch = architecture_of(read, groups=groups, condense_factor=condense_factor, input_size=input_size, stem_stride=stem_stride)
        model = build(arch, form)
        own = read.metadata.get(METADATA_KEY)
        steps = Preprocessing.from_dict(own["preprocessing"]) if own else model.preprocessing
        model.class_names = class_names_of(read, arch.classes)
    # Counters may be absent from old files, and are one number in any shape; everything else was checked name by name.
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value).reshape(shapes[name]) for name, value in read.tensors.items()}, strict=False)
    model.source = Source(read.digest, read.source, form)
    if own and own["source"]["sha256"]:
        model.source = Source(own["source"]["sha256"], own["source"]["name"], own["source"]["form"])
    # Resizing belongs to the input size: where that was overridden, only the statistics are the file's.
    if steps.crop == arch.input_size:
        model.preprocessing = steps
    else:
        model.preprocessing = replace(model.preprocessing, statistics=steps.statistics, mean=steps.mean, std=steps.std)
    return model


def save(model: DenselyConnected, path: Path | str, *, source: Path | str | None = None) -> None:
    """Write a model: ``.safetensors`` (ours) or ``.pth.tar`` (the reference's converted format), by the suffix of ``path``.

    ``source`` is the file it was made from, which is never overwritten. Raises OutputRefused for another suffix, for a model that
    the reference's ``--evaluate-from`` could not read back (``.pth.tar`` only), and where the place can't be written to.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".tar", ".pth"):
        raise OutputRefused(f"{path}: unknown suffix; expected .safetensors, or .pth.tar for the reference's converted format")
    if path.suffix != ".safetensors" and (reasons := reference_cannot_read(model)):
        raise OutputRefused(f"{path}: the reference can't read {'; nor '.join(reasons)}; write .safetensors instead")
    with atomic_output(path, source=source) as temporary:
        temporary.write_bytes(_safetensors_bytes(model) if path.suffix == ".safetensors" else _reference_bytes(model))


def reference_cannot_read(model: DenselyConnected) -> list[str]:
    """Why the reference's ``condensenet_converted`` can't hold this model; empty if it can (reference: models/, main.py)."""
    arch = model.architecture
    reasons = []
    if arch.kind != "condensenet" or model.form != "group-conv":
        reasons.append(f"a {arch.kind} in {model.form} form (only CondenseNet in group-conv form)")
    if arch.condense_factor != arch.group_1x1:
        reasons.append(f"C={arch.condense_factor} with G={arch.group_1x1} (only C = G)")
    if model.form == "group-conv" and arch.kept_features != int(arch.features * 0.5):
        reasons.append(f"a classifier keep of {arch.classifier_keep:g} (only 0.5)")
    if arch.classes not in (10, 100, 1000):
        reasons.append(f"{arch.classes} classes (only 10, 100 and 1000)")
    stride, final = (2, 7) if arch.classes == 1000 else (1, 8)
    if arch.stem_stride != stride or arch.final_size != (final, final):
        reasons.append(
            f"{arch.classes} classes with stem stride {arch.stem_stride} and a last map of {arch.final_size[0]}x{arch.final_size[1]} "
            f"(only {stride} and {final}x{final})"
        )
    return reasons


def _safetensors_bytes(model: DenselyConnected) -> bytes:
    # One entry, since the library writes several in an order of its own and the file would differ from run to run.
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    return safetensors.torch.save(tensors, {METADATA_KEY: own_metadata(model)})


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


def _reference_bytes(model: DenselyConnected) -> bytes:
    state = OrderedDict((f"module.{name}", value.clone()) for name, value in model.state_dict().items())
    buffer = io.BytesIO()
    # The legacy container: the torch of the reference's day (1.1) reads no other.
    torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()
