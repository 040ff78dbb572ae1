"""Training form -> group-conv form: masks become an index and a grouped convolution (paper, section 3.1; reference: layers.py,
CondensingConv and CondensingLinear)."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor, nn

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.layers import IndexedGroupConv, IndexedLinear, IndexedUpdate, LearnedGroupConv, LearnedUpdate
from cnet_deploy.models.pruning import read_layer, read_update, require_finished

log = logging.getLogger(__name__)


def convert(model: DenselyConnected, *, classifier_keep: float | None = None) -> DenselyConnected:
    """The group-conv form of a model in training form, which is not changed.

    Pruning must be finished in every layer. Kept weights are unchanged, bit for bit, and each group's inputs are in ascending order, as
    in the reference. ``classifier_keep`` is the share of features that the classifier keeps: those with the largest summed absolute
    weights (0.5 in the reference, and for None; 1.0 keeps all). CondenseNet V2 keeps its classifier whole. A model that is already in
    group-conv form is returned unchanged (see ``require_classifier_keep``). Raises InputRefused if pruning is unfinished, or a classifier
    is to keep a part that can't.
    """
    if not isinstance(model, DenselyConnected):
        raise InputRefused(f"can't convert a {type(model).__name__}; expected a model from `load`")
    if model.form == "group-conv":
        return model
    keep = model.architecture.usual_keep if classifier_keep is None else classifier_keep
    require_cut(model, keep)
    arch = replace(model.architecture, classifier_keep=keep)
    modules = dict(model.named_modules())
    state = model.state_dict()
    require_finished([read_layer(conv.name, state) for conv in arch.pointwise_convs()], arch.group_1x1, arch.condense_factor)
    if arch.update_groups is not None:
        require_finished([read_update(conv.name, state) for conv in arch.updating_convs()], arch.update_groups, arch.update_groups)
    converted = build(arch, "group-conv")
    with torch.no_grad():
        for name, target in converted.named_modules():
            origin = modules.get(name)
            if isinstance(target, IndexedGroupConv) and isinstance(origin, LearnedGroupConv):
                _convert_pointwise(origin, target)
            elif isinstance(target, IndexedUpdate) and isinstance(origin, LearnedUpdate):
                _convert_update(origin, target)
            elif isinstance(target, IndexedLinear) and isinstance(origin, nn.Linear):
                _convert_classifier(origin, target)
            elif (
                isinstance(target, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))
                and isinstance(origin, type(target))
                and not _inside_learned(name, modules)
            ):
                target.load_state_dict(origin.state_dict())
    log.info("converted to group-conv form, keeping %g of the classifier's inputs", keep)
    converted.source, converted.preprocessing, converted.class_names = model.source, model.preprocessing, model.class_names
    return converted


def require_classifier_keep(model: DenselyConnected, wanted: float) -> None:
    """Raise InputRefused if a converted model's classifier keeps another share of features than ``wanted``; it can't be changed later."""
    arch = model.architecture
    require_cut(model, wanted)
    if arch.kept_features != replace(arch, classifier_keep=wanted).kept_features:
        origin = f", {model.source.name}" if model.source and model.source.form == "training" else ""
        raise InputRefused(
            f"is already in group-conv form, with a classifier keep of {arch.classifier_keep:g}; "
            f"{wanted:g} needs the training checkpoint{origin}"
        )


def require_cut(model: DenselyConnected, keep: float) -> None:
    """Raise InputRefused where the classifier is to keep a part of its inputs, but reads them all in every form."""
    arch = model.architecture
    if arch.updates and keep != 1:
        raise InputRefused(
            f"a classifier keep of {keep:g} was given, but the classifier of CondenseNet V2 reads all of its hidden layer; leave it out"
        )


def _convert_pointwise(origin: LearnedGroupConv, target: IndexedGroupConv) -> None:
    """Gather the weights that each group kept. Output k of group i is row i + k * G in the training form."""
    groups = target.groups
    kept = origin._mask[:groups, :, 0, 0].bool()
    index = kept.nonzero()[:, 1]  # row-major, so group after group, ascending within each
    per_group = index.view(groups, -1)
    target.index.copy_(index)
    weight = origin.conv.weight[:, :, 0, 0].view(-1, groups, origin.conv.in_channels).transpose(0, 1)  # [G, out/G, in]
    picked = weight.gather(2, per_group.unsqueeze(1).expand(-1, weight.shape[1], -1))
    target.conv.weight.copy_(picked.reshape(target.conv.weight.shape))
    _gather_norm(origin.norm, target.norm, index)


def _convert_update(origin: LearnedUpdate, target: IndexedUpdate) -> None:
    """Gather the outputs that each group kept, ascending. Input k of group j is column j + k * T in the training form."""
    groups = target.groups
    index = origin._mask[:, :groups, 0, 0].bool().T.nonzero()[:, 1].view(groups, -1)
    target.index.copy_(index.reshape(-1))
    weight = origin.conv.weight[:, :, 0, 0]
    target.conv.weight.copy_(torch.cat([weight[rows, group::groups] for group, rows in enumerate(index)])[:, :, None, None])
    target.norm.load_state_dict(origin.norm.state_dict())


def _gather_norm(origin: nn.BatchNorm2d, target: nn.BatchNorm2d, index: Tensor) -> None:
    target.load_state_dict({name: value[index] if value.ndim else value for name, value in origin.state_dict().items()})


def _convert_classifier(origin: nn.Linear, target: IndexedLinear) -> None:
    kept = target.index.numel()
    order = origin.weight.abs().sum(0).sort(stable=True)[1]
    # A whole classifier keeps its order, which needs no gather; a part is ordered by importance, as in the reference.
    index = torch.arange(kept) if kept == origin.in_features else order[origin.in_features - kept :]
    target.index.copy_(index)
    target.linear.weight.copy_(origin.weight[:, index])
    target.linear.bias.copy_(origin.bias)


def _inside_learned(name: str, modules: dict[str, nn.Module]) -> bool:
    return isinstance(modules.get(name.rpartition(".")[0]), LearnedGroupConv)
