"""Conversion against the masked training form and against a slow loop that shares no code with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.models.convert import require_classifier_keep
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, VARIETIES_V2, logits, noise, tiny, training_model

VARIED = [tiny(g, c) for g in (1, 2, 4, 8) for c in (2, 4, 8)] + [
    TINY_LGC,
    replace(TINY_LGC, group_1x1=2),
    replace(TINY, bottleneck=3, group_3x3=2),
    replace(TINY, input_size=(33, 47), stem_stride=2),
    *VARIETIES_V2,
]


@pytest.mark.parametrize("arch", VARIED, ids=lambda arch: arch.summary())
def test_computes_what_the_masked_training_form_computes(arch: cd.Architecture) -> None:
    model = training_model(arch)
    converted = cd.convert(model, classifier_keep=1.0)
    with torch.inference_mode():
        batch = torch.from_numpy(noise(model))
        masked, features = model.features(batch).numpy(), converted.features(batch).numpy()
    assert np.abs(masked - features).max() <= 1e-5 * np.abs(masked).max()
    assert np.abs(masked).max() > 0.1  # not a comparison of zeros
    expected = logits(model, noise(model))
    assert np.abs(logits(converted, noise(model)) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_real_checkpoint(trained: DenselyConnected) -> None:
    converted = cd.convert(trained, classifier_keep=1.0)
    batch = noise(trained, 8)
    expected = logits(trained, batch)
    assert np.abs(logits(converted, batch) - expected).max() <= 1e-5 * np.abs(expected).max()


def slowly(model: DenselyConnected, name: str, groups: int) -> tuple[list[int], np.ndarray, dict[str, list[float]]]:
    """Index, weight and norm of one converted layer, element by element, from the definition (paper, section 3.1)."""
    layer = model.get_submodule(name)
    weight, mask = layer.conv.weight.detach().numpy(), layer._mask.numpy()
    outputs, inputs = weight.shape[:2]
    index: list[int] = []
    rows: list[list[float]] = []
    for group in range(groups):
        kept = [channel for channel in range(inputs) if mask[group, channel, 0, 0] == 1]
        index += kept
        rows += [
            [float(weight[row, channel, 0, 0]) for channel in kept]
            for row in range(outputs)
            if row % groups == group
        ]  # fmt: skip
    parts = ("weight", "bias", "running_mean", "running_var")
    norm = {part: [float(getattr(layer.norm, part).detach()[channel]) for channel in index] for part in parts}
    return index, np.array(rows, np.float32), norm


def slowly_updated(model: DenselyConnected, name: str, groups: int) -> tuple[list[int], list[list[float]]]:
    """The channels that a converted update writes, and its rows, element by element: column k belongs to group k mod T."""
    layer = model.get_submodule(name)
    weight, mask = layer.conv.weight.detach().numpy()[:, :, 0, 0], layer._mask.numpy()[:, :, 0, 0]
    targets, rows = [], []
    for group in range(groups):
        for channel in range(len(weight)):
            if mask[channel, group] == 1:
                targets.append(channel)
                rows.append([float(weight[channel, k]) for k in range(weight.shape[1]) if k % groups == group])
    return targets, rows


@pytest.mark.parametrize("arch", [*VARIED, "real"], ids=str)
def test_every_kept_weight_is_the_same_number(arch: cd.Architecture | str, trained: DenselyConnected) -> None:
    model = trained if isinstance(arch, str) else training_model(arch)
    converted = cd.convert(model)
    for conv in model.architecture.pointwise_convs():
        index, weight, norm = slowly(model, conv.name, model.architecture.group_1x1)
        layer = converted.get_submodule(conv.name)
        assert layer.index.tolist() == index
        assert np.array_equal(layer.conv.weight.detach().numpy()[:, :, 0, 0], weight)
        for part, values in norm.items():
            assert getattr(layer.norm, part).tolist() == values, part
    for conv in model.architecture.updating_convs():
        targets, rows = slowly_updated(model, conv.name, model.architecture.update_groups or 1)
        layer = converted.get_submodule(conv.name)
        assert layer.index.tolist() == targets and layer.conv.weight.detach().numpy()[:, :, 0, 0].tolist() == rows
    for name in ("features.init_conv.weight", "features.norm_last.bias", "features.denseblock_2.denselayer_1.conv_2.conv.weight"):
        assert torch.equal(converted.state_dict()[name], model.state_dict()[name])


@pytest.mark.parametrize("keep", [0.5, 0.25, 0.9])
def test_classifier_keeps_the_heaviest_inputs(keep: float) -> None:
    model = training_model(TINY)
    converted = cd.convert(model, classifier_keep=keep)
    weight = model.classifier.weight.detach().numpy()
    heavy = sorted(range(weight.shape[1]), key=lambda channel: np.abs(weight[:, channel]).sum())
    expected = heavy[weight.shape[1] - int(weight.shape[1] * keep) :]
    assert converted.classifier.index.tolist() == expected
    assert np.array_equal(converted.classifier.linear.weight.detach().numpy(), weight[:, expected])
    assert torch.equal(converted.classifier.linear.bias, model.classifier.bias)
    assert converted.architecture == replace(TINY, classifier_keep=keep)


def test_the_model_given_is_left_as_it_was(trained: DenselyConnected) -> None:
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    converted = cd.convert(trained)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_source_and_preprocessing_stay(trained: DenselyConnected, converted: DenselyConnected) -> None:
    assert converted.source == trained.source
    assert converted.preprocessing == trained.preprocessing


@pytest.mark.parametrize("stage", [1, 2])
def test_unfinished_pruning_is_refused(stage: int) -> None:
    with pytest.raises(InputRefused, match=rf"denselayer_1\.conv_1: pruning is unfinished: .* training reached stage {stage} of 3"):
        cd.convert(training_model(TINY, stage=stage))


def test_a_group_conv_model_is_returned_as_it_is(converted: DenselyConnected) -> None:
    assert cd.convert(converted) is converted
    densenet = training_model(TINY_DENSENET)
    densenet.form = "group-conv"
    assert cd.convert(densenet) is densenet
    require_classifier_keep(converted, 0.5)
    with pytest.raises(InputRefused, match="needs the training checkpoint"):
        require_classifier_keep(converted, 1.0)
