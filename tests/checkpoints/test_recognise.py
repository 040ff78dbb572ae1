"""Architectures from state dicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cnet_deploy.checkpoints.recognise import expected_shapes, infer_architecture, infer_form
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build, build_random
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, TINY_V2, state_dict, tiny, training_model

State = dict[str, torch.Tensor]


def state_of(arch: Architecture, form: str = "training") -> State:
    model = training_model(arch) if form == "training" else build_random(arch)
    return dict(state_dict(model, prefix=""))


@pytest.mark.parametrize(
    "arch", [tiny(g, c) for g in (1, 2, 4, 8) for c in (2, 4, 8)] + [TINY_LGC, replace(TINY, bottleneck=2, group_3x3=2)]
)
def test_training_form(arch: Architecture) -> None:
    state = state_of(arch)
    assert infer_form(state) == "training"
    assert infer_architecture(state) == arch


@pytest.mark.parametrize("keep", [0.5, 1.0, 0.7])
@pytest.mark.parametrize("arch", [tiny(g, c) for g in (1, 2, 4, 8) for c in (1, 2, 4, 8)] + [TINY_LGC])
def test_group_conv_form(arch: Architecture, keep: float) -> None:
    arch = replace(arch, classifier_keep=keep)
    state = state_of(arch, "group-conv")
    assert infer_form(state) == "group-conv"
    found = infer_architecture(state)
    assert replace(found, classifier_keep=keep) == arch
    assert found.kept_features == arch.kept_features


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_plain_densenet_has_nothing_to_convert(groups: int) -> None:
    arch = replace(TINY_DENSENET, group_1x1=groups)
    state = state_of(arch, "group-conv")
    assert infer_form(state) == "group-conv"
    assert infer_architecture(state) == arch


@pytest.mark.parametrize("name", NAMED)
def test_the_papers_models(name: str) -> None:
    state = dict(build_random(NAMED[name]).state_dict())
    assert infer_architecture(state) == NAMED[name]


@pytest.mark.parametrize("form", ["training", "group-conv"])
@pytest.mark.parametrize("arch", [TINY, TINY_LGC, TINY_DENSENET])
def test_expected_shapes_are_those_of_the_modules(arch: Architecture, form: str) -> None:
    if not arch.learned and form == "training":
        return
    model = build(arch, form)  # type: ignore[arg-type]
    optional = ("num_batches_tracked", "_stage", "_count")
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.endswith(optional)}
    assert expected_shapes(arch, form) == shapes  # type: ignore[arg-type]


# ---- what tensors cannot tell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "classes", "expected"),
    [
        ((1,) * 5, 1000, ((224, 224), 2)),
        ((1,) * 5, 37, ((224, 224), 2)),
        ((1,) * 4, 1000, ((224, 224), 2)),
        ((1,) * 3, 10, ((32, 32), 1)),
        ((1,) * 3, 100, ((32, 32), 1)),
        ((1,) * 3, 1000, None),
        ((1,) * 5, 10, None),
        ((1,) * 3, 37, None),
        ((1,) * 4, 10, None),
        ((1,) * 4, 37, None),
    ],
)
def test_input_size_and_stride_follow_from_stages_and_classes_together(
    stages: tuple[int, ...], classes: int, expected: tuple[tuple[int, int], int] | None
) -> None:
    arch = Architecture(stages, (8,) * len(stages), classes=classes, classifier_keep=1.0)
    state = state_of(arch)
    if expected is None:
        for flags, missing in (
            ({}, "--input-size and --stem-stride"), ({"input_size": (64, 64)}, "--stem-stride"), ({"stem_stride": 1}, "--input-size")
        ):  # fmt: skip
            with pytest.raises(InputRefused, match=f"give {missing}$"):
                infer_architecture(state, **flags)
    else:
        found = infer_architecture(state)
        assert (found.input_size, found.stem_stride) == expected
        assert infer_architecture(state, stem_stride=3).stem_stride == 3
        assert infer_architecture(state, input_size=(96, 80)).input_size == (96, 80)
    both = infer_architecture(state, input_size=(96, 80), stem_stride=1)
    assert (both.input_size, both.stem_stride) == ((96, 80), 1)


# ---- G and C that can't be inferred ----------------------------------------------------------------------------------


def without(state: State, *endings: str) -> State:
    return {name: value for name, value in state.items() if not name.endswith(endings)}


@pytest.mark.parametrize("flags", [{}, {"groups": 4}, {"condense_factor": 4}])
def test_missing_counters_need_both_flags(flags: dict[str, int]) -> None:
    state = without(state_of(TINY), "_stage", "_count")
    with pytest.raises(InputRefused, match="both --groups and --condense-factor"):
        infer_architecture(state, **flags)
    assert infer_architecture(state, groups=4, condense_factor=4) == TINY


@pytest.mark.parametrize("flags", [{}, {"groups": 4}, {"condense_factor": 4}])
def test_stage_0_needs_both_flags(flags: dict[str, int]) -> None:
    with pytest.raises(InputRefused, match=r"16 of 16 input channels survive per group; training reached stage 0"):
        infer_architecture(dict(training_model(TINY, stage=0).state_dict()), **flags)


def test_a_network_that_was_never_to_be_pruned() -> None:
    state = state_of(tiny(4, 1))
    assert infer_architecture(state, groups=4, condense_factor=1) == tiny(4, 1)


@pytest.mark.parametrize("flags", [{"groups": 8}, {"condense_factor": 2}, {"groups": 2, "condense_factor": 4}])
def test_flags_that_the_tensors_belie(flags: dict[str, int]) -> None:
    for form in ("training", "group-conv"):
        if form == "training" and flags == {"groups": 8}:
            continue  # what repeats every 4 rows repeats every 8 too: the same network in more groups
        with pytest.raises(InputRefused, match="was given"):
            infer_architecture(state_of(TINY, form), **flags)


def test_masks_without_a_period() -> None:
    state = state_of(TINY)
    mask = state["features.denseblock_1.denselayer_1.conv_1._mask"]
    mask[0, :2] = 1 - mask[0, :2]
    with pytest.raises(InputRefused, match="rows do not repeat"):
        infer_architecture(state)


# ---- not of the family, or damaged -----------------------------------------------------------------------------------

FIRST = "features.denseblock_1.denselayer_1"


def drop(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


def put(name: str, *shape: int, fill: float = 0.0) -> Callable[[State], None]:
    return lambda state: state.__setitem__(name, torch.full(shape, fill))


def poke(name: str, value: float) -> Callable[[State], None]:
    return lambda state: state[name].view(-1).__setitem__(0, value)


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("training", drop(f"{FIRST}.conv_1.conv.weight"), "missing: features.denseblock_1.denselayer_1.conv_1.conv.weight"),
        ("training", drop("classifier.bias"), "missing: classifier.bias"),
        ("training", drop("features.norm_last.running_var"), "missing: features.norm_last.running_var"),
        ("training", drop("features.denseblock_3.denselayer_2.conv_1._mask"), "missing: features.denseblock_3.denselayer_2.conv_1._mask"),
        ("training", drop("features.denseblock_1.denselayer_1.conv_1.norm.weight"), "numbered up to"),
        ("training", put("aux.weight", 3), "has no tensors aux.weight"),
        ("training", put(f"{FIRST}.conv_2.conv.weight", 8, 1, 3, 3), "depthwise variant"),
        ("training", put(f"{FIRST}.conv_2.pointwise.weight", 8, 8, 1, 1), "has no tensors"),
        ("training", put("classifier.weight", 10, 7), "has shape"),
        ("training", put("features.init_conv.weight", 12, 3, 3, 3), "has shape"),
        ("training", put(f"{FIRST}.conv_2.conv.weight", 9, 8, 3, 3), "multiple of growth"),
        ("training", poke("classifier.weight", float("nan")), "classifier.weight holds 1 values that are NaN"),
        ("training", poke(f"{FIRST}.conv_1.conv.weight", float("inf")), "NaN or infinite"),
        ("training", poke("features.norm_last.running_var", -1.0), "negative variances"),
        ("group-conv", poke(f"{FIRST}.conv_1.index", 16), "points at channel 16; expected 0 to 15"),
        ("group-conv", poke(f"{FIRST}.conv_1.index", -1), "points at channel -1"),
        ("group-conv", lambda state: state[f"{FIRST}.conv_1.index"].fill_(3), "names a channel twice"),
        ("group-conv", lambda state: state["classifier.index"].fill_(3), "names a channel twice"),
        ("group-conv", put("classifier.index", 72), "whole numbers"),
        ("group-conv", put(f"{FIRST}.conv_1.conv.weight", 32, 3, 1, 1), "whole groups"),
        ("group-conv", put(f"{FIRST}.conv_1.index", 0), "positive size"),
    ],
)
def test_damage_is_named(form: str, change: Callable[[State], None], message: str) -> None:
    state = state_of(TINY, form)
    change(state)
    with pytest.raises(InputRefused, match=message):
        infer_architecture(state)


def test_a_whole_depthwise_variant() -> None:
    # Consistent in itself (bottleneck 1, as many 3x3 groups as channels), and still not the paper's network.
    arch = replace(TINY, bottleneck=1, group_3x3=8, growth=(8, 8, 8))
    with pytest.raises(InputRefused, match="depthwise variant of CondenseNet"):
        infer_architecture(state_of(arch))


def test_dropped_buffers_are_told_from_a_densenet() -> None:
    with pytest.raises(InputRefused, match="buffers were dropped"):
        infer_architecture(without(state_of(TINY), "_mask", "_stage", "_count"))


@pytest.mark.parametrize("state", [{}, {"conv1.weight": torch.ones(1)}, {"features.init_conv.weight": torch.ones(16, 3, 3, 3)}])
def test_another_network(state: State) -> None:
    with pytest.raises(InputRefused, match="another network: expected a CondenseNet, CondenseNet V2 or DenseNet"):
        infer_architecture(state)


def test_masks_of_nothing_that_is_pruned() -> None:
    """A mask makes it a training form; here it is of no 1x1 convolution."""
    state = state_of(TINY_DENSENET, "group-conv")
    state["features.denseblock_1.denselayer_1.conv_2._mask"] = torch.ones(1)
    with pytest.raises(InputRefused, match=r"has masks, but none of a 1x1 convolution"):
        infer_architecture(state)


@pytest.mark.parametrize("form", ["training", "group-conv"])
@pytest.mark.parametrize("layer", [1, 2])
def test_excitation_that_one_layer_misses(form: str, layer: int) -> None:
    # The first layer too: what is missing is named, not what the other layers have.
    state = state_of(TINY_V2, form)
    name = f"features.denseblock_3.denselayer_{layer}.se.fc."
    without = {key: value for key, value in state.items() if not key.startswith(name)}
    with pytest.raises(InputRefused, match=f"tensors are missing: {name}0.weight, {name}2.weight"):
        infer_architecture(without, hs_from=2)
