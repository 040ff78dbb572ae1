"""CondenseNet in training form and in group-conv form, and the base class of the family."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.models.architecture import Architecture, DenseLayerShape, Form, Kind, PointwiseShape
from cnet_deploy.models.layers import (
    Activation,
    IndexedGroupConv,
    IndexedLinear,
    IndexedUpdate,
    LearnedGroupConv,
    LearnedUpdate,
    NormActConv,
)


@dataclass(frozen=True)
class Source:
    """The origin of a model's weights: the SHA-256 of the original file, its name without folders, and the model's form in it."""

    digest: str
    name: str
    form: Form


class DenselyConnected(nn.Module):
    """The base class of the family: stem, dense blocks, transitions, final norm, average pooling and classifier.

    Parameter names are the reference's. Pooling of the whole map, and transitions that round down, allow other input sizes.
    """

    kind: ClassVar[Kind]

    def __init__(self, architecture: Architecture, form: Form = "group-conv") -> None:
        super().__init__()
        if architecture.kind != self.kind:
            raise ValueError(f"{type(self).__name__} is built from a {self.kind} architecture; got {architecture.kind}")
        self.architecture = architecture
        self.form: Form = form
        self.source: Source | None = None
        self.preprocessing = Preprocessing.of(architecture.input_size, architecture.classes, channels=architecture.image_channels)
        self.class_names: tuple[str, ...] = ()  # one for each class; empty if not known
        self.features = nn.Sequential()
        self.features.add_module(
            "init_conv",
            nn.Conv2d(architecture.image_channels, architecture.stem_channels, 3, stride=architecture.stem_stride, padding=1, bias=False),
        )
        block = nn.Sequential()
        for layer in architecture.layers():
            _, parent, name = (*layer.name.split("."), "")[:3]
            if isinstance(layer, DenseLayerShape):
                if parent not in self.features._modules:
                    block = nn.Sequential()
                    self.features.add_module(parent, block)
                block.add_module(name, self._dense_layer(layer))
            else:
                conv = None if layer.pointwise is None else pointwise(architecture, layer.pointwise, form)
                self.features.add_module(parent, Transition(conv))
        self.features.add_module("norm_last", nn.BatchNorm2d(architecture.features))
        self.features.add_module("relu_last", nn.ReLU(inplace=False))
        whole = architecture.final_pool == "whole"
        self.features.add_module("pool_last", nn.AdaptiveAvgPool2d(1) if whole else nn.AvgPool2d(architecture.pool_window))
        self._add_head()

    def _add_head(self) -> None:
        """What follows the pooling."""
        architecture = self.architecture
        if self.form == "group-conv" and architecture.condenses_classifier:
            self.classifier: nn.Module = IndexedLinear(architecture.kept_features, architecture.classes)
        else:
            self.classifier = nn.Linear(architecture.features, architecture.classes)

    def _dense_layer(self, layer: DenseLayerShape) -> nn.Module:
        return DenseLayer(self.architecture, layer, self.form)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> logits [N, classes]."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class DenseLayer(nn.Module):
    """1x1, then 3x3 convolution; the output is appended to the input (reference: models/condensenet.py, _DenseLayer)."""

    def __init__(self, architecture: Architecture, layer: DenseLayerShape, form: Form) -> None:
        super().__init__()
        self.conv_1 = pointwise(architecture, layer.pointwise, form)
        self.conv_2 = NormActConv(layer.pointwise.out_channels, layer.growth, 3, architecture.group_3x3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv_2(self.conv_1(x))], 1)


class Transition(nn.Module):
    """A 1x1 convolution, if the kind of network has one, and 2x2 average pooling."""

    def __init__(self, conv: nn.Module | None) -> None:
        super().__init__()
        self.conv = conv
        self.pool = nn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.pool(x if self.conv is None else self.conv(x))
        return pooled


class CondenseNet(DenselyConnected):
    """CondenseNet (Huang et al., CVPR 2018; reference: models/condensenet.py and condensenet_converted.py)."""

    kind = "condensenet"


def pointwise(architecture: Architecture, conv: PointwiseShape, form: Form, activation: Activation = nn.ReLU) -> nn.Module:
    """The module of a 1x1 convolution in the given form."""
    if not architecture.learned:
        return NormActConv(conv.in_channels, conv.out_channels, 1, architecture.group_1x1)
    if form == "training":
        return LearnedGroupConv(conv.in_channels, conv.out_channels, activation)
    return IndexedGroupConv(architecture.gathered(conv), conv.out_channels, architecture.group_1x1, activation)


def initialise(model: nn.Module, seed: int) -> None:
    """Random weights that preserve the scale of activations (He et al., 2015), and non-trivial batch-norm statistics; no subnormals.

    For measuring and testing: the network does the same computation as a trained one. What updates add to earlier channels is divided by
    the root of their number, as with other residual branches (Radford et al., "Language models are unsupervised multitask learners",
    2019): the map of a deep CondenseNet V2 would else grow by half at each layer, beyond what fp16 holds.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = math.prod(module.weight.shape[1:])
                module.weight.normal_(0, math.sqrt(2 / fan_in), generator=random)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=random)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 1 / math.sqrt(module.in_features), generator=random)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=random)
            elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
                module.weight.uniform_(0.5, 1.5, generator=random)
                module.bias.normal_(0, 0.2, generator=random)
                module.running_mean.normal_(0, 0.2, generator=random)
                module.running_var.uniform_(0.5, 1.5, generator=random)
        updates = [module for module in model.modules() if isinstance(module, (IndexedUpdate, LearnedUpdate))]
        for update in updates:
            update.conv.weight.div_(math.sqrt(len(updates)))
