"""torch model -> file of weights, in this package's format or the reference's."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path

import safetensors.torch
import torch

from cnet_deploy.checkpoints.metadata import METADATA_KEY, own_metadata
from cnet_deploy.checkpoints.read import read_tensors
from cnet_deploy.checkpoints.update_tables import one_hot
from cnet_deploy.errors import OutputRefused
from cnet_deploy.files import atomic_output
from cnet_deploy.images.preprocessing import CHANNELS
from cnet_deploy.models.condensenet import DenselyConnected


def save(model: DenselyConnected, path: Path | str, *, source: Path | str | None = None) -> None:
    """Write a model as ``.safetensors`` or as ``.pth.tar`` (the reference's converted format), by the suffix of ``path``.

    ``source`` is the file that the model was made from; it is never overwritten. Raises OutputRefused for another suffix, for a model
    that the reference's ``--evaluate-from`` can't read (``.pth.tar`` only), and if the file can't be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".tar", ".pth"):
        raise OutputRefused(f"{path}: unknown suffix; expected .safetensors, or .pth.tar for the reference's converted format")
    if path.suffix != ".safetensors" and (reasons := reference_cannot_read(model)):
        raise OutputRefused(f"{path}: the reference can't read {'; nor '.join(reasons)}; write .safetensors instead")
    with atomic_output(path, source=source, reader=read_tensors) as temporary:
        temporary.write_bytes(_safetensors_bytes(model) if path.suffix == ".safetensors" else _reference_bytes(model))


def reference_cannot_read(model: DenselyConnected) -> list[str]:
    """The reasons why the reference's ``condensenet_converted`` can't hold this model; empty if it can (reference: models/, main.py).

    For CondenseNet V2 that is its authors' class (model/converted_condensenetv2.py), whose scripts read networks for ImageNet alone.
    """
    arch = model.architecture
    reasons = []
    if arch.updates:
        return _v2_cannot_read(model)
    if arch.kind != "condensenet" or model.form != "group-conv":
        reasons.append(f"a {arch.kind} in {model.form} form (only CondenseNet in group-conv form)")
    if arch.condense_factor != arch.group_1x1:
        reasons.append(f"C={arch.condense_factor} with G={arch.group_1x1} (only C = G)")
    if model.form == "group-conv" and arch.kept_features != int(arch.features * 0.5):
        reasons.append(f"a classifier keep of {arch.classifier_keep:g} (only 0.5)")
    if arch.image_channels != 3:
        reasons.append(f"{CHANNELS[arch.image_channels]} images (only RGB)")
    if arch.classes not in (10, 100, 1000):
        reasons.append(f"{arch.classes} classes (only 10, 100 and 1000)")
    stride, final = (2, 7) if arch.classes == 1000 else (1, 8)
    if arch.stem_stride != stride or arch.final_size != (final, final):
        reasons.append(
            f"{arch.classes} classes with stem stride {arch.stem_stride} and a last map of {arch.final_size[0]}x{arch.final_size[1]} "
            f"(only {stride} and {final}x{final})"
        )
    return reasons


def _v2_cannot_read(model: DenselyConnected) -> list[str]:
    arch = model.architecture
    reasons = []
    if model.form != "group-conv":
        reasons.append(f"a {arch.kind} in {model.form} form (only in group-conv form)")
    if arch.condense_factor != arch.group_1x1:
        reasons.append(f"C={arch.condense_factor} with G={arch.group_1x1} (only C = G)")
    if arch.image_channels != 3:
        reasons.append(f"{CHANNELS[arch.image_channels]} images (only RGB)")
    hidden = arch.excitation_channels or 0
    if arch.features // hidden < 1 or arch.features // (arch.features // hidden) != hidden:
        reasons.append(f"a last excitation of {hidden} for {arch.features} channels (only whole parts of them)")
    if arch.stem_stride not in (1, 2) or not arch.pools_as_original:
        window = arch.original_window
        height, width = arch.final_size
        reasons.append(f"a last map of {height}x{width} with stem stride {arch.stem_stride} (only {window}x{window}, or 8x8 and stride 1)")
    return reasons


def _their_index(name: str, value: torch.Tensor) -> torch.Tensor:
    if not name.endswith(".sfr.index"):
        return value.clone()
    return torch.from_numpy(one_hot(value.numpy()))


def _safetensors_bytes(model: DenselyConnected) -> bytes:
    # A single metadata entry: the library writes several in random order, and the file would differ from run to run.
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    return safetensors.torch.save(tensors, {METADATA_KEY: own_metadata(model)})


def _reference_bytes(model: DenselyConnected) -> bytes:
    if model.architecture.updates:  # their converter unwraps the network, and writes the channels that are updated as a matrix
        state = OrderedDict((name, _their_index(name, value)) for name, value in model.state_dict().items())
    else:
        state = OrderedDict((f"module.{name}", value.clone()) for name, value in model.state_dict().items())
    buffer = io.BytesIO()
    # The legacy container, the only one that the reference's torch (1.1) reads.
    torch.save({"state_dict": state}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()
