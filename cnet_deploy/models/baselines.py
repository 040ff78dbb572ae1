"""The other rows of the paper's inference-time table: VGG-16, ResNet-18 and MobileNet 1.0-224, for ImageNet.

Built from their papers, with torchvision's parameter names for the first two. They are only measured, so their weights are random.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from cnet_deploy.models.architecture import CLASSES, OTHERS

_VGG_16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_MOBILENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class Vgg16(nn.Module):
    """VGG-16, configuration D (Simonyan and Zisserman, 2015, table 1): 3x3 convolutions with biases, three linear layers."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block in _VGG_16:
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224] -> [N, classes]."""
        x = self.classifier(self.features(x).flatten(1))
        return x


class _BasicBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(x)) + residual)
        return out


class ResNet18(nn.Module):
    """ResNet-18 (He et al., 2016, table 1), with projection shortcuts where the size changes."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for number, (channels, width) in enumerate(pairwise((64, 64, 128, 256, 512)), 1):
            stride = 1 if channels == width else 2
            self.add_module(f"layer{number}", nn.Sequential(_BasicBlock(channels, width, stride), _BasicBlock(width, width, 1)))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        out: Tensor = self.fc(self.avgpool(x).flatten(1))
        return out


class MobileNet(nn.Module):
    """MobileNet 1.0-224 (Howard et al., 2017, table 1): depthwise separable convolutions."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        layers: list[nn.Module] = _conv_norm_relu(3, 32, 3, 2, 1)
        channels = 32
        for width, stride in _MOBILENET:
            layers += _conv_norm_relu(channels, channels, 3, stride, channels) + _conv_norm_relu(channels, width, 1, 1, 1)
            channels = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, classes]."""
        out: Tensor = self.fc(self.avgpool(self.features(x)).flatten(1))
        return out


def _conv_norm_relu(channels: int, width: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]


BASELINES: dict[str, type[Vgg16] | type[ResNet18] | type[MobileNet]] = dict(zip(OTHERS, (Vgg16, ResNet18, MobileNet), strict=True))
