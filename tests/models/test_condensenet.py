"""The modules: the reference's names, the shuffle, random weights that are fit for measuring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import NAMES, build, build_named, build_random
from cnet_deploy.models.condensenet import CondenseNet
from cnet_deploy.models.layers import shuffle
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, TINY_V2, logits, noise, training_model
from tests.cases import few


def test_the_references_parameter_names(trained: CondenseNet) -> None:
    names = set(trained.state_dict())
    layer = "features.denseblock_2.denselayer_3"
    assert {f"{layer}.conv_1.{part}" for part in ("norm.weight", "conv.weight", "_count", "_stage", "_mask")} <= names
    assert {f"{layer}.conv_2.norm.running_var", f"{layer}.conv_2.conv.weight", "features.norm_last.bias", "classifier.bias"} <= names


def test_shuffle_interleaves_the_groups() -> None:
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("arch", [TINY, TINY_V2], ids=lambda arch: arch.kind)
def test_the_mask_decides_what_is_computed(arch: Architecture) -> None:
    model = training_model(arch)
    before = logits(model, noise(model))
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "_mask"):
                module.conv.weight[module._mask == 0] = 1e6
    assert np.array_equal(logits(model, noise(model)), before)


@pytest.mark.parametrize("arch", [TINY, TINY_LGC, TINY_DENSENET, TINY_V2], ids=lambda arch: arch.kind)
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (37, 50)])
def test_any_input_size(arch: Architecture, size: tuple[int, int]) -> None:
    model = build_random(replace(arch, input_size=size))
    assert logits(model, noise(model)).shape == (2, 10)


def test_a_network_of_another_kind_is_not_built() -> None:
    with pytest.raises(ValueError, match="built from a condensenet architecture"):
        CondenseNet(TINY_LGC)


@pytest.mark.parametrize("name", few(name for name in NAMES if name != "vgg-16"))
def test_named_networks_are_fit_for_measuring(name: str) -> None:
    model, again = build_named(name), build_named(name)
    tiny = torch.finfo(torch.float32).tiny
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])  # the same weights in every process
        if value.is_floating_point():
            assert not ((value != 0) & (value.abs() < tiny)).any(), f"{key} holds subnormals, which are slow on many processors"
    size = (32, 32) if name.startswith("condensenet-") and not name.startswith("condensenet-74-g") else (224, 224)
    with torch.inference_mode():
        found = model(torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, *size), np.float32)))
    assert 0.01 < found.std() < 1000 and found.isfinite().all()
    assert not torch.allclose(found[0], found[1])


def test_unknown_name() -> None:
    with pytest.raises(InputRefused, match="expected one of condensenet-74-g4"):
        build_named("alexnet")


def test_random_indices_are_valid() -> None:
    model = build_random(TINY)
    for conv in TINY.pointwise_convs():
        rows = model.get_submodule(conv.name).index.view(TINY.group_1x1, -1)
        assert all(len(set(row.tolist())) == rows.shape[1] for row in rows) and int(rows.max()) < conv.in_channels
    assert build(TINY).form == "group-conv"
