"""What several workflows begin with: open a file or a name, convert it if need be, name its classes, decide where the output goes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cnet_deploy.checkpoints.load import load
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters import target_of
from cnet_deploy.files import exists
from cnet_deploy.images.class_names import read_labels
from cnet_deploy.images.decode import Images, read_images
from cnet_deploy.models.architecture import CLASSES, INPUT_SIZE
from cnet_deploy.models.baselines import BASELINES
from cnet_deploy.models.build import NAMES, build_named
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.convert import DEFAULT_KEEP, convert, require_classifier_keep

Say = Callable[[str], None]


def default_output(source: Path | str, suffix: str) -> Path:
    """The artifact beside its model.

    >>> default_output("dir/model.pth.tar", ".onnx").as_posix()
    'dir/model.onnx'
    """
    source = Path(source)
    name = source.name
    for known in (".pth.tar", ".safetensors", ".pth", ".pt", ".tar"):
        if name.endswith(known):
            name = name.removesuffix(known)
            break
    return source.with_name(name + suffix)


def named_by(model: DenselyConnected, labels: Path | str | None) -> DenselyConnected:
    """The model with its classes named by a file of labels; None leaves the names that it has. The weights are shared."""
    if labels is None:
        return model
    named = copy.copy(model)
    named.class_names = read_labels(labels, model.architecture.classes)
    return named


def group_conv_form(model: DenselyConnected, keep: float | None, say: Say) -> DenselyConnected:
    """The model converted, if it is not yet, keeping ``keep`` of the classifier's inputs (None: the reference's half, or what is there).

    Raises InputRefused as ``convert`` does, and for a converted model that does not have what is to be kept.
    """
    if model.form == "training":
        keep = DEFAULT_KEEP if keep is None else keep
        say(f"the model is in training form: converting it first, keeping {keep:g} of the classifier's inputs")
        return convert(model, classifier_keep=keep)
    if keep is not None:
        require_classifier_keep(model, keep)
    return model


def output_of(source: Path | None, target: str, out: Path | str | None) -> Path:
    """Where an artifact goes: ``out``, or beside the model's file. Raises InputRefused for another suffix than the target's."""
    suffix = target_of(target).suffix
    if out is None:
        if source is None:
            raise InputRefused("out is needed for a model that is in memory; expected the path to write to")
        out = default_output(source, suffix)
    if Path(out).suffix != suffix:
        raise InputRefused(f"{out}: unknown suffix for the target {target}; expected {suffix}")
    return Path(out)


def open_model(model: Path | str, overrides: dict[str, Any], say: Say) -> nn.Module:
    """A file's model; or, where no such file is, the network of that name."""
    if str(model) in NAMES and not exists(model):
        if overrides.get("sha256"):
            raise InputRefused(f"{model}: is the name of a network, which has no digest; expected no --sha256")
        say(f"{model} is the name of a network: its weights are random, good for measuring alone")
        return build_named(str(model))
    if not exists(model) and not Path(model).suffix:
        raise InputRefused(f"{model}: no such file, and no network of that name; expected a checkpoint or one of {', '.join(NAMES)}")
    return load(model, **overrides)


def input_of(model: nn.Module, images: Path | str | None) -> tuple[tuple[int, int], int, Images | None]:
    """Input size, classes and the images to check on of what can be exported; anything else is refused."""
    if not isinstance(model, (DenselyConnected, *BASELINES.values())):
        raise InputRefused(f"can't export a {type(model).__name__}; expected a model of `load` or `convert`, or one of the paper's table")
    if other := next((str(p.dtype) for p in model.parameters() if p.dtype != torch.float32), None):
        raise InputRefused(f"the model's weights are {other}; expected torch.float32: call model.float() first")
    if isinstance(model, DenselyConnected):
        arch = model.architecture
        return arch.input_size, arch.classes, None if images is None else read_images(images, model.preprocessing, arch.classes)
    if images is not None:
        raise InputRefused("this network has no preprocessing of its own, so real images can't be fed to it; leave --images out")
    return INPUT_SIZE, CLASSES, None


def exportable(model: nn.Module, classifier_keep: float | None, labels: Path | str | None, say: Say) -> nn.Module:
    """What is lowered: a network of the family converted, and with the names of its classes."""
    if isinstance(model, DenselyConnected):
        return named_by(group_conv_form(model, classifier_keep, say), labels)
    if labels is not None:
        raise InputRefused("this network carries no names of classes; leave --labels out, and give them to `run`")
    return model
