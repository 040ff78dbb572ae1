"""Model -> Program, the Program run in numpy against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import DenseLayer, Transition
from tests.builders import TINY, TINY_LGC, TINY_V2, VARIETIES, VARIETIES_V2, logits, noise, training_model


@pytest.mark.parametrize("arch", [*VARIETIES, *VARIETIES_V2], ids=lambda arch: arch.summary())
def test_program_computes_what_torch_does(arch: cd.Architecture) -> None:
    model = build_random(arch)
    batch = noise(model, 3)
    expected = logits(model.double(), batch.astype(np.float64))
    program = lower(model.float())
    # In double precision all that is left is that folded weights were rounded to single precision once.
    assert np.abs(program.run(batch.astype(np.float64)) - expected).max() <= 1e-6 * np.abs(expected).max()
    assert program.run(batch).dtype == np.float32
    assert np.abs(program.run(batch) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("arch", [TINY, TINY_V2], ids=lambda arch: arch.kind)
def test_negative_and_zero_gains(arch: cd.Architecture) -> None:
    model = build_random(arch)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight[::2] *= -1
                module.weight[::3] = 0
                module.running_var[::5] = 0
    expected = logits(model, noise(model))
    assert np.abs(lower(model).run(noise(model)) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_real_model(converted: DenselyConnected) -> None:
    batch = noise(converted, 4)
    expected = logits(converted, batch)
    assert np.abs(lower(converted).run(batch) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_nothing_of_torch_is_left_and_nothing_can_be_changed(converted: DenselyConnected) -> None:
    program = lower(converted)
    first = program.body[0]
    assert isinstance(first, DenseLayer)
    for array in (
        first.weight,
        first.pointwise.index,
        first.pointwise.weight,
        first.pointwise.bias,
        first.pointwise.order,
        program.head.weight,
    ):
        assert type(array) is np.ndarray
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert first.pointwise.index.dtype == np.int64
    assert program.source_digest == (converted.source and converted.source.digest)


def test_layers_keep_their_names_and_order() -> None:
    program = lower(build_random(TINY_LGC))
    assert [layer.name for layer in program.body] == [layer.name for layer in TINY_LGC.layers()]
    transitions = [layer for layer in program.body if isinstance(layer, Transition)]
    assert [layer.pointwise and layer.pointwise.in_channels for layer in transitions] == [32, 24]


def test_training_form_is_refused() -> None:
    with pytest.raises(InputRefused, match=r"call convert\(model\) first"):
        lower(training_model(TINY))


@pytest.mark.parametrize("arch", VARIETIES_V2, ids=lambda arch: arch.summary())
def test_an_update_as_one_dense_convolution(arch: cd.Architecture) -> None:
    """Each weight where the training form has it (reference: utils/layers.py of CondenseNet V2, SFR)."""
    model = training_model(arch)
    for layer in lower(cd.convert(model)).body:
        if isinstance(layer, DenseLayer):
            assert layer.update is not None
            origin = model.get_submodule(layer.update.name)
            assert np.array_equal(layer.update.dense(), (origin.conv.weight * origin._mask).detach().numpy()[:, :, 0, 0])


def test_what_is_observed_of_condensenet_v2() -> None:
    program = lower(build_random(TINY_V2))
    seen: dict[str, np.ndarray] = {}
    program.run(np.zeros((1, *TINY_V2.image_shape), np.float32), seen.__setitem__)
    for layer in program.body:
        if isinstance(layer, DenseLayer):
            assert layer.update is not None
            assert seen[layer.update.name].shape[1] == layer.update.channels and seen[layer.name].shape[1] == len(layer.weight)
