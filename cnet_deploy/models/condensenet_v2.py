"""CondenseNet V2 (Yang et al., CVPR 2021; their repository: model/condensenetv2.py and converted_condensenetv2.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnet_deploy.models.architecture import Architecture, DenseLayerShape, Form
from cnet_deploy.models.condensenet import DenselyConnected, pointwise
from cnet_deploy.models.layers import IndexedUpdate, LearnedUpdate, NormActConv, SqueezeExcite


class CondenseNetV2(DenselyConnected):
    """CondenseNet V2: each layer updates the channels before it ("sparse feature reactivation"), and two linear layers end the network."""

    kind = "condensenet_v2"

    def _add_head(self) -> None:
        arch = self.architecture
        assert arch.excitation_channels is not None and arch.hidden_channels is not None
        self.features.add_module("se_last", SqueezeExcite(arch.features, arch.excitation_channels))
        self.fc = nn.Linear(arch.features, arch.hidden_channels)
        self.fc_act = nn.Hardswish()
        self.classifier = nn.Linear(arch.hidden_channels, arch.classes)

    def _dense_layer(self, layer: DenseLayerShape) -> nn.Module:
        return ReactivatingLayer(self.architecture, layer, self.form)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> logits [N, classes]."""
        logits: Tensor = self.classifier(self.fc_act(self.fc(self.features(x).flatten(1))))
        return logits


class ReactivatingLayer(nn.Module):
    """1x1, 3x3, excitation in some blocks; the output is appended to the input, which it updates first (model/condensenetv2.py,
    _SFR_DenseLayer)."""

    def __init__(self, architecture: Architecture, layer: DenseLayerShape, form: Form) -> None:
        super().__init__()
        conv, update = layer.pointwise, layer.update
        assert update is not None and architecture.update_groups is not None and architecture.hard_swish_from is not None
        activation = nn.Hardswish if layer.block >= architecture.hard_swish_from else nn.ReLU
        self.conv_1 = pointwise(architecture, conv, form, activation)
        self.conv_2 = NormActConv(conv.out_channels, layer.growth, 3, architecture.group_3x3, padding=1, activation=activation)
        if form == "training":
            self.sfr: nn.Module = LearnedUpdate(update.in_channels, update.out_channels, activation)
        else:
            self.sfr = IndexedUpdate(update.in_channels, update.out_channels, architecture.update_groups, activation)
        self.se = SqueezeExcite(layer.growth, layer.growth) if layer.excited else None  # last, as there: optimisers number parameters

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv_2(self.conv_1(x))
        if self.se is not None:
            new = self.se(new)
        return torch.cat([x + self.sfr(new), new], 1)
