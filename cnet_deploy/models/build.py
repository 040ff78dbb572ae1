"""Build networks: the family in both forms, and the other networks of the paper's inference-time table."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import NAMED, Architecture, Form
from cnet_deploy.models.baselines import BASELINES
from cnet_deploy.models.condensenet import CondenseNet, DenselyConnected, Source, initialise
from cnet_deploy.models.condensenet_v2 import CondenseNetV2
from cnet_deploy.models.densenet import DenseNet, DenseNetLGC
from cnet_deploy.models.layers import IndexedGroupConv, IndexedLinear, IndexedUpdate

__all__ = [
    "NAMES",
    "CondenseNet",
    "CondenseNetV2",
    "DenseNet",
    "DenseNetLGC",
    "DenselyConnected",
    "Source",
    "build",
    "build_named",
    "build_random",
]

NAMES = (*NAMED, *BASELINES)

_KINDS: dict[str, type[DenselyConnected]] = {model.kind: model for model in (CondenseNet, CondenseNetV2, DenseNet, DenseNetLGC)}


def build(architecture: Architecture, form: Form = "group-conv") -> DenselyConnected:
    """The network of an Architecture, in evaluation mode, with torch's default initial weights. All indices are zero."""
    return _KINDS[architecture.kind](architecture, form).eval()


def build_random(architecture: Architecture, seed: int = 0) -> DenselyConnected:
    """A group-conv network with random weights and random, valid indices, for measuring and testing."""
    model = build(architecture)
    initialise(model, seed)
    random = np.random.default_rng(seed)
    for module, channels in ((model.get_submodule(conv.name), conv.in_channels) for conv in architecture.pointwise_convs()):
        if isinstance(module, IndexedGroupConv):
            per_group = module.index.numel() // module.groups
            picks = [np.sort(random.permutation(channels)[:per_group]) for _ in range(module.groups)]
            module.index.copy_(torch.from_numpy(np.concatenate(picks)))
            # As after conversion: a channel's batch norm is the same in every group that reads it.
            for values in (module.norm.weight.data, module.norm.bias.data, module.norm.running_mean, module.norm.running_var):
                if values is not None:
                    values.copy_(values[module.index % values.numel()])
    for module in (model.get_submodule(conv.name) for conv in architecture.updating_convs()):
        assert isinstance(module, IndexedUpdate)
        outputs = module.index.numel()
        picks = [np.sort(random.permutation(outputs)[: outputs // module.groups]) for _ in range(module.groups)]
        module.index.copy_(torch.from_numpy(np.concatenate(picks)))
    if isinstance(model.classifier, IndexedLinear):
        kept = model.classifier.index.numel()
        model.classifier.index.copy_(torch.from_numpy(np.sort(random.permutation(architecture.features)[:kept])))
    return model


def build_named(name: str, seed: int = 0) -> nn.Module:
    """One of the networks in ``NAMES`` with random weights, in evaluation mode. Raises InputRefused for an unknown name."""
    if name in NAMED:
        return build_random(NAMED[name], seed)
    if name not in BASELINES:
        raise InputRefused(f"unknown network {name!r}; expected one of {', '.join(NAMES)}")
    model = BASELINES[name]()
    initialise(model, seed)
    return model.eval()
