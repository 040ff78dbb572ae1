"""First steps of several workflows: open a file or a named network, convert it if necessary, name its classes, choose the output path."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
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
from cnet_deploy.images.preprocessing import NO_OVERRIDES, Overrides
from cnet_deploy.models.architecture import CLASSES, INPUT_SIZE
from cnet_deploy.models.baselines import BASELINES
from cnet_deploy.models.build import NAMES, build_named
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.convert import convert, require_classifier_keep, require_cut
from cnet_deploy.sessions import PRECISIONS

log = logging.getLogger(__name__)
# Of models' files, from the last to the first: model.pth.tar.gz.
_SUFFIXES = (".gz", ".zip", ".tar", ".safetensors", ".pth", ".pt", ".ckpt", ".th", ".pkl", ".bin")

Notify = Callable[[str], None]  # gets lines of text about what is done


def default_output(source: Path | str, suffix: str) -> Path:
    """The path beside ``source`` with another suffix.

    >>> default_output("dir/model.pth.tar", ".onnx").as_posix()
    'dir/model.onnx'
    >>> default_output("net.PTH.zip", ".onnx").as_posix()
    'net.onnx'
    """
    source = Path(source)
    name = source.name
    for known in _SUFFIXES:
        if len(name) > len(known) and name.lower().endswith(known):
            name = name[: -len(known)]
    return source.with_name(name + suffix)


def named_by(model: DenselyConnected, labels: Path | str | None) -> DenselyConnected:
    """The model with class names from the file ``labels`` (None: the names that it has). The weights are shared."""
    if labels is None:
        return model
    named = copy.copy(model)
    named.class_names = read_labels(labels, model.architecture.classes)
    return named


def prepared_by(model: DenselyConnected, stated: Overrides) -> DenselyConnected:
    """The model with what ``stated`` says of how its images are prepared. The weights are shared.

    Raises InputRefused as ``Overrides.apply_to`` does.
    """
    if stated == NO_OVERRIDES:
        return model
    prepared = copy.copy(model)
    prepared.preprocessing = stated.apply_to(model.preprocessing, model.architecture.input_size, model.architecture.image_channels)
    return prepared


def stated_by(model: nn.Module, stated: Overrides) -> nn.Module:
    """As ``prepared_by``. Raises InputRefused for a network whose artifacts can't hold it."""
    if isinstance(model, DenselyConnected):
        return prepared_by(model, stated)
    if stated != NO_OVERRIDES:
        raise InputRefused(
            "an artifact of this network can't hold how images are prepared; expected no --statistics and the like here, but at `run`"
        )
    return model


def tell_of_pool(model: nn.Module, overrides: Mapping[str, Any] | None) -> None:
    """Warn where the last pooling averages another part of the map than the original does, and nobody chose that."""
    if not isinstance(model, DenselyConnected) or (overrides or {}).get("final_pool"):
        return
    arch = model.architecture
    if arch.pools_as_original is False:
        (height, width), window = arch.final_size, arch.original_window
        log.warning(
            "%s: the whole last map of %dx%d is averaged (the default, --final-pool whole), but the reference averages %dx%d at its "
            "top left: give --final-pool original if the network was trained or measured so",
            model.source.name if model.source else "the network", height, width, window, window,
        )  # fmt: skip


def group_conv_form(model: DenselyConnected, keep: float | None, notify: Notify) -> DenselyConnected:
    """The model in group-conv form. ``keep`` is the share of the classifier's inputs to keep (None: what is usual,
    half or all, or what a converted model has).

    Raises InputRefused as ``convert`` does, and for a converted model whose classifier has another share.
    """
    if model.form == "training":
        keep = model.architecture.usual_keep if keep is None else keep
        require_cut(model, keep)
        kept = "" if model.architecture.updates else f", keeping {keep:g} of the classifier's inputs"
        notify(f"the model is in training form: converting it first{kept}")
        return convert(model, classifier_keep=keep)
    if keep is not None:
        require_classifier_keep(model, keep)
    return model


def default_artifact(source: Path | str, target: str, precision: str | None = None) -> Path:
    """The path of an artifact beside the model's file. A smaller precision than fp32 is part of the name, so that it replaces no other.

    >>> [default_artifact("dir/m.safetensors", "onnx", precision).as_posix() for precision in (None, "fp32", "fp16")]
    ['dir/m.onnx', 'dir/m.onnx', 'dir/m.fp16.onnx']
    """
    suffix = target_of(target).suffix
    return default_output(source, suffix if precision in (None, PRECISIONS[0]) else f".{precision}{suffix}")


def output_of(source: Path | None, target: str, out: Path | str | None, precision: str | None = None) -> Path:
    """The path of an artifact: ``out``, or beside the model's file. Raises InputRefused if its suffix is not the target's."""
    suffix = target_of(target).suffix
    if out is None:
        if source is None:
            raise InputRefused("a model in memory has no default path; expected out, the path to write to")
        out = default_artifact(source, target, precision)
    if Path(out).suffix != suffix:
        raise InputRefused(f"{out}: unknown suffix for the target {target}; expected {suffix}")
    return Path(out)


def open_model(model: Path | str, overrides: dict[str, Any], notify: Notify) -> nn.Module:
    """The model in a file; if there is no such file, the network of that name with random weights."""
    if str(model) in NAMES and not exists(model):
        if overrides.get("sha256"):
            raise InputRefused(f"{model}: is the name of a network, which has no digest; expected no --sha256")
        if given := [f"--{name.replace('_', '-')}" for name, value in overrides.items() if value is not None]:
            raise InputRefused(f"{model}: is the name of a network, whose shape is known; leave out {', '.join(given)}, or give a file")
        notify(f"{model} is the name of a network: its weights are random, so it is useful only for measuring")
        return build_named(str(model))
    if not exists(model) and not Path(model).suffix:
        raise InputRefused(f"{model}: no such file, and no network of that name; expected a checkpoint or one of {', '.join(NAMES)}")
    return load(model, **overrides)


def input_of(model: nn.Module, images: Path | str | None) -> tuple[tuple[int, int], int, Images | None]:
    """Input size, number of classes and the ``images`` to check on. Raises InputRefused for a model that can't be exported."""
    if not isinstance(model, (DenselyConnected, *BASELINES.values())):
        raise InputRefused(
            f"can't export a {type(model).__name__}; expected a model from `load` or `convert`, or a network of the paper's table"
        )
    if other := next((str(p.dtype) for p in model.parameters() if p.dtype != torch.float32), None):
        raise InputRefused(f"the model's weights are {other}; expected torch.float32: call model.float() first")
    if isinstance(model, DenselyConnected):
        arch = model.architecture
        return arch.input_size, arch.classes, None if images is None else read_images(images, model.preprocessing, arch.classes)
    if images is not None:
        raise InputRefused("this network records no preprocessing for real images; leave --images out")
    return INPUT_SIZE, CLASSES, None


def exportable(model: nn.Module, classifier_keep: float | None, labels: Path | str | None, notify: Notify) -> nn.Module:
    """The model to export: a network of the family is converted and gets the names of its classes."""
    if isinstance(model, DenselyConnected):
        return named_by(group_conv_form(model, classifier_keep, notify), labels)
    if labels is not None:
        raise InputRefused("an artifact of this network can't hold class names; leave --labels out here, and give it to `run`")
    return model
