"""Dropping and the group lasso, against their definitions written out slowly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build
from cnet_deploy.models.convert import convert
from cnet_deploy.models.layers import LearnedGroupConv, LearnedUpdate
from cnet_deploy.training.condensation import Condensation, drop, initialise
from tests.builders import TINY_LGC, TINY_V2, tiny


def slowly_dropped(weight: np.ndarray, mask: np.ndarray, groups: int, count: int) -> np.ndarray:
    """One group and one input at a time, as section 3.1 of the paper says it."""
    mask = mask.copy()
    for group in range(groups):
        while (mask[group] == 0).sum() < count:
            strengths = {j: np.abs(weight[group::groups, j]).sum() for j in range(weight.shape[1]) if mask[group, j]}
            mask[group::groups, min(strengths, key=strengths.__getitem__)] = 0
    return mask


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(4, 16, 32), (1, 8, 8), (8, 24, 16)])
def test_the_weakest_inputs_of_each_group_go_first_and_stay_gone(groups: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    layer = LearnedGroupConv(inputs, outputs)
    expected = np.ones((outputs, inputs), np.float32)
    for count in (inputs // 4, inputs // 2, 3 * inputs // 4):
        torch.nn.init.normal_(layer.conv.weight)  # other weights each time: what is gone must not come back
        expected = slowly_dropped(layer.conv.weight.detach().numpy()[:, :, 0, 0], expected, groups, count)
        drop(layer, groups, count)
        assert (layer._mask.numpy()[:, :, 0, 0] == expected).all() and int(layer._count) == count


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(4, 16, 32), (1, 8, 8), (8, 24, 16)])
def test_the_weakest_outputs_of_each_group_of_an_update_go(groups: int, inputs: int, outputs: int) -> None:
    """The same as of a 1x1, transposed."""
    torch.manual_seed(3)
    layer = LearnedUpdate(inputs, outputs)
    expected = np.ones((inputs, outputs), np.float32)
    for count in (outputs // 4, outputs // 2, 3 * outputs // 4):
        torch.nn.init.normal_(layer.conv.weight)
        expected = slowly_dropped(layer.conv.weight.detach().numpy()[:, :, 0, 0].T, expected, groups, count)
        drop(layer, groups, count)
        assert (expected == layer._mask.numpy()[:, :, 0, 0].T).all() and int(layer._count) == count


# Masks [12, 8] that the layer of the authors of CondenseNet V2 had after each stage (utils/layers.py, SFR with 4 groups at 4431162), and
# its lasso, for the weights of ``formula``.
THEIRS = [
    ("ff 77 bb bb 99 ff cc ee 66 ff 77 dd", 1658.352783203125),
    ("dd 22 33 aa 11 ff 44 cc 22 ee 55 99", 1089.840576171875),
    ("99 22 11 22 00 ee 44 88 00 00 55 00", 0.0),
]


def formula(stage: int) -> torch.Tensor:
    number = torch.arange(96, dtype=torch.float32)
    return ((number * number * (7 + stage) + 3 * number) % 101 - 50).view(12, 8, 1, 1)


def test_updates_are_pruned_as_by_their_authors() -> None:
    layer = LearnedUpdate(8, 12)
    condensation = Condensation(build(TINY_V2, "training"))
    condensation.layers = [layer]
    for stage, (rows, lasso) in enumerate(THEIRS, start=1):
        layer.conv.weight.data = formula(stage)
        layer.conv.weight.grad = torch.zeros_like(layer.conv.weight)
        assert condensation.reach(stage)
        expected = np.array([[int(bit) for bit in f"{int(row, 16):08b}"] for row in rows.split()])
        assert (layer._mask.numpy()[:, :, 0, 0] == expected).all()
        assert (int(layer._stage), int(layer._count)) == (stage, 3 * stage)
        found = condensation.add_lasso_gradient(1.0)
        if not condensation.finished:  # theirs is 0 then
            assert found is not None and float(found) == pytest.approx(lasso, rel=1e-6)


def test_exact_zeros_are_not_taken_for_what_was_dropped() -> None:
    """Weights that are zero without having been dropped: still as many inputs go as the stage asks for."""
    layer = LearnedGroupConv(8, 8)
    torch.nn.init.zeros_(layer.conv.weight)
    for count in (2, 4, 6):
        drop(layer, 4, count)
        assert (layer._mask.view(2, 4, 8).sum(2) == 8 - count).all()


@pytest.mark.parametrize(
    "arch",
    [tiny(4, 4), tiny(8, 4), tiny(2, 8), TINY_LGC, TINY_V2, replace(TINY_V2, group_1x1=8)],
    ids=lambda arch: f"{arch.kind}-{arch.group_1x1}-{arch.condense_factor}",
)
def test_all_stages_lead_to_a_model_that_converts(arch) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    model = build(arch, "training")
    initialise(model)
    condensation = Condensation(model)
    assert not condensation.finished and condensation.progress.live == condensation.progress.total
    last = arch.condense_factor - 1
    for stage in range(1, last + 1):
        assert condensation.reach(stage)
        assert not condensation.reach(stage), "a stage is reached once"
        found = condensation.progress
        assert (found.stage, found.stages, found.live * arch.condense_factor) == (stage, last, found.total * (arch.condense_factor - stage))
    assert condensation.finished and f"stage {last} of {last}" in condensation.progress.summary()
    converted = convert(model)
    images = torch.randn(2, 3, *arch.input_size)
    with torch.inference_mode():
        if arch.updates:  # its classifier keeps all features
            assert torch.allclose(converted(images), model(images), rtol=1e-4, atol=1e-5)


def test_updates_have_the_stages_of_the_1x1() -> None:
    with pytest.raises(InputRefused, match="update_groups is 2 and the condense factor 4; training expects them to be equal"):
        Condensation(build(replace(TINY_V2, update_groups=2), "training"))


def test_a_stage_that_was_jumped_over_is_made_up_for() -> None:
    """The reference drops one stage's share where a short run passes two at once, and can never be converted."""
    model = build(tiny(4, 4), "training")
    initialise(model)
    assert Condensation(model).reach(3)
    convert(model)


@pytest.mark.parametrize("arch", [tiny(4, 4), TINY_V2], ids=lambda arch: arch.kind)
def test_the_lasso_and_its_gradient_are_the_definition_s(arch) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(2)
    model = build(arch, "training")
    initialise(model)
    condensation = Condensation(model)
    condensation.reach(1)
    weight = 0.37
    for layer in condensation.layers:
        layer.conv.weight.data[:, 0] = 0  # a norm without a slope: no gradient, and no NaN
        layer.conv.weight.grad = torch.zeros_like(layer.conv.weight)
    expected = torch.zeros(())
    for layer in condensation.layers:
        masked = layer.conv.weight * layer._mask
        masked = masked.transpose(0, 1) if isinstance(layer, LearnedUpdate) else masked
        for group in range(4):
            for j in range(masked.shape[1]):
                square = masked[group::4, j].square().sum()
                expected = expected + square.clamp(min=1e-6).sqrt()
    wanted = torch.autograd.grad(weight * expected, [layer.conv.weight for layer in condensation.layers])
    found = condensation.add_lasso_gradient(weight)
    assert found is not None and torch.allclose(found, expected, rtol=1e-5)
    for layer, gradient in zip(condensation.layers, wanted, strict=True):
        assert layer.conv.weight.grad is not None
        assert torch.allclose(layer.conv.weight.grad, gradient, rtol=1e-5, atol=1e-7)
        assert (layer.conv.weight.grad[layer._mask == 0] == 0).all()


def test_initial_weights_have_the_reference_s_spread() -> None:
    model = build(tiny(4, 4), "training")
    torch.manual_seed(0)
    initialise(model)
    conv = model.get_submodule("features.denseblock_3.denselayer_2.conv_2.conv")
    weight = next(conv.parameters()).detach()
    assert float(weight.std()) == pytest.approx((2 / (9 * weight.shape[0])) ** 0.5, rel=0.05)
    assert (model.classifier.bias == 0).all()


def test_initial_weights_of_condensenet_v2() -> None:
    """Convolutions and norms as above, those of updates too; linear layers as torch makes them, in its own order."""
    torch.manual_seed(5)
    model = build(TINY_V2, "training")
    linear = {name: value.clone() for name, value in model.state_dict().items() if "fc" in name or "classifier" in name}
    initialise(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in linear.items()) and len(linear) == 10
    update = model.get_submodule("features.denseblock_3.denselayer_2.sfr")
    assert isinstance(update, LearnedUpdate) and (update.norm.weight == 1).all()
    assert float(update.conv.weight.detach().std()) == pytest.approx((2 / update.conv.out_channels) ** 0.5, rel=0.1)
