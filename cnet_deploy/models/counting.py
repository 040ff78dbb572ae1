"""Count the operations of any network by running it once on torch's meta device. For the baselines, and to check the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Count:
    """Operations for one image by kind (conventions differ in which they add up), and learned parameters.

    Multiply-adds of convolutions and of linear layers, elements of ReLUs and hard swishes, kernel area times outputs of poolings, biases of
    linear layers, two for each element of a sigmoid.
    """

    conv_macs: int = 0
    linear_macs: int = 0
    relu_elements: int = 0
    pool_ops: int = 0
    linear_biases: int = 0
    sigmoid_ops: int = 0
    params: int = 0

    @property
    def macs(self) -> int:
        """Multiply-adds: the convention of the MobileNet paper."""
        return self.conv_macs + self.linear_macs

    @property
    def flops(self) -> int:
        """FLOPs as the reference counts them (utils.py, measure_model)."""
        return self.macs + self.relu_elements + self.pool_ops + self.linear_biases + self.sigmoid_ops


def count(model: nn.Module, input_size: tuple[int, int]) -> Count:
    """Count one image of ``input_size`` (height, width). The model is moved to the meta device and can't be used afterwards."""
    total = Count(params=sum(p.numel() for p in model.parameters()))
    handles = [module.register_forward_hook(_Hook(total)) for module in model.modules() if not list(module.children())]
    try:
        channels = next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d))
        model.to("meta").eval()(torch.empty(1, channels, *input_size, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return total


class _Hook:
    def __init__(self, total: Count) -> None:
        self.total = total

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        total, x = self.total, inputs[0]
        if isinstance(module, nn.Conv2d):
            total.conv_macs += output.numel() * math.prod(module.weight.shape[1:])
        elif isinstance(module, nn.Linear):
            total.linear_macs += module.weight.numel() * len(x)
            total.linear_biases += output.numel() if module.bias is not None else 0
        elif isinstance(module, (nn.ReLU, nn.Hardswish)):
            total.relu_elements += output.numel()
        elif isinstance(module, (nn.AvgPool2d, nn.MaxPool2d)):
            kernel = module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
            total.pool_ops += output.numel() * kernel * kernel
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            total.pool_ops += x.numel()
        elif isinstance(module, nn.Sigmoid):
            total.sigmoid_ops += 2 * x.numel()
