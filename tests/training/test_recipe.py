"""The recipe's numbers, step by step, against the reference's formulas written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.training.recipe import Recipe, architecture_of, stage_at


def test_cosine_falls_from_the_first_rate_to_nothing() -> None:
    recipe = Recipe(epochs=4, lr=0.2)
    rates = [recipe.learning_rate(epoch, step, 5, True) for epoch in range(4) for step in range(5)]
    assert rates[0] == 0.2 and rates[10] == pytest.approx(0.1) and 0 < rates[-1] < 0.002
    assert rates == sorted(rates, reverse=True)


CIFAR = [(0, 0.1), (49, 0.1), (50, 0.01), (75, 0.001), (99, 0.001)]
IMAGENET = [(0, 0.1), (29, 0.1), (30, 0.01), (60, 0.001), (99, 1e-4)]


@pytest.mark.parametrize(("epoch", "small", "rate"), [(e, True, r) for e, r in CIFAR] + [(e, False, r) for e, r in IMAGENET])
def test_multistep_divides_by_ten(epoch: int, small: bool, rate: float) -> None:
    assert Recipe(epochs=100, lr_type="multistep").learning_rate(epoch, 3, 10, small) == pytest.approx(rate)


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_stages_fill_the_first_half(factor: int) -> None:
    """The reference's own loop (layers.py, _check_drop) beside the closed form, at every step."""
    total = 840
    for done in range(total):
        progress = done / total
        expected = next((i for i in range(factor - 1) if progress * 2 < (i + 1) / (factor - 1)), factor - 1)
        assert stage_at(done, total, factor) == expected, done
    assert stage_at(total // 2, total, factor) == factor - 1


def test_a_recipe_survives_json_and_refuses_what_can_not_be() -> None:
    recipe = Recipe(epochs=7, precision="bf16", group_lasso_lambda=1e-5)
    assert Recipe.from_dict({**recipe.to_dict(), "unknown": 1}) == recipe
    with pytest.raises(InputRefused, match='recipe.epochs is "7"; expected a whole number from 1 to 2147483647$'):
        Recipe.from_dict({"epochs": "7"})
    for wrong in (
        {"epochs": 0},
        {"batch_size": -1},
        {"lr": math.nan},
        {"lr": 0.0},
        {"momentum": 1.0},
        {"dropout_rate": 1.0},
        {"label_smoothing": 1.0},
        {"weight_decay": math.inf},
    ):
        with pytest.raises(InputRefused, match="expected"):
            replace(recipe, **wrong)


def test_architectures_of_the_reference_s_options() -> None:
    common = {"classes": 10, "input_size": (32, 32)}
    arch = architecture_of("condensenet", (14, 14, 14), (8, 16, 32), **common)  # type: ignore[arg-type]
    assert (arch.stem_stride, arch.kind, arch.transition_channels) == (1, "condensenet", ())
    arch = architecture_of("densenet", (16, 16, 16), (12, 12, 12), group_1x1=1, group_3x3=1, **common)  # type: ignore[arg-type]
    assert (arch.kind, arch.condense_factor, arch.transition_channels) == ("densenet", 1, (108, 150))  # DenseNet-BC-100's
    arch = architecture_of("densenet_LGC", (2, 2, 2), (8, 8, 8), reduction=0.4, **common)  # type: ignore[arg-type]
    assert arch.transition_channels == (16, 16)  # 12.8 and 12.8, rounded up to a multiple of the groups
    assert architecture_of("condensenet", (1,), (8,), classes=1000, input_size=(224, 224)).stem_stride == 2
    arch = architecture_of("condensenet_v2", (1, 1, 4, 6, 8), (8, 8, 16, 32, 64), hidden_channels=828, group_1x1=8, group_3x3=8,
                           condense_factor=8, classes=1000, input_size=(224, 224))  # fmt: skip
    assert arch == Architecture.from_name("condensenet-v2-a")  # the defaults of the rest are as published
    for blocks, swish, excitation in ((1, 1, 1), (2, 2, 2), (3, 2, 2), (4, 2, 3)):
        arch = architecture_of("condensenet_v2", (1,) * blocks, (8,) * blocks, **common)  # type: ignore[arg-type]
        assert (arch.hard_swish_from, arch.excitation_from, arch.hidden_channels, arch.update_groups) == (swish, excitation, 1024, 4)
    with pytest.raises(InputRefused, match="--se-from is an option of condensenet_v2 alone, and the model is condensenet"):
        architecture_of("condensenet", (1,), (8,), se_from=1, **common)  # type: ignore[arg-type]
    for wrong, message in ((("vgg", (1,), (8,)), "no model is called 'vgg'"), (("densenet", (1, 2), (8,)), "2 stages and 1 growth")):
        with pytest.raises(InputRefused, match=message):
            architecture_of(*wrong, **common)  # type: ignore[arg-type]
    with pytest.raises(InputRefused, match="reduction is 0"):
        architecture_of("densenet", (1, 1), (8, 8), reduction=0.0, **common)  # type: ignore[arg-type]
