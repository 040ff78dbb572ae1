"""The table's other networks against what their papers publish."""

from __future__ import annotations

import pytest
import torch

from cnet_deploy.models.architecture import INPUT_SIZE
from cnet_deploy.models.baselines import BASELINES
from cnet_deploy.models.counting import count


@pytest.mark.parametrize(
    ("name", "convention", "flops", "params"),
    [
        ("vgg-16", "conv_macs", "15.3 G", "138 M"),  # He et al., 2016: 15.3 billion; Simonyan and Zisserman, 2015: 138 million
        ("resnet-18", "flops", "1818 M", "11.7 M"),  # CondenseNet's own count; torchvision: 11.7 million
        ("mobilenet-1.0-224", "macs", "569 M", "4.2 M"),  # Howard et al., 2017: 569 million multiply-adds, 4.2 million
    ],
)
def test_published_figures_to_their_rounding(name: str, convention: str, flops: str, params: str) -> None:
    counted = count(BASELINES[name](), INPUT_SIZE)
    for found, printed in ((getattr(counted, convention), flops), (counted.params, params)):
        number, unit = printed.split()
        assert f"{found / {'G': 1e9, 'M': 1e6}[unit]:.{len(number.partition('.')[2])}f}" == number


@pytest.mark.parametrize("name", ["resnet-18", "mobilenet-1.0-224"])
def test_they_run(name: str) -> None:
    with torch.inference_mode():
        assert BASELINES[name]().eval()(torch.zeros(2, 3, *INPUT_SIZE)).shape == (2, 1000)
