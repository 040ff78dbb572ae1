"""Closed forms against the published tables, and numbers that can't be."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build
from cnet_deploy.models.counting import count
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, TINY_V2, tiny
from tests.cases import few

# Name, millions of FLOPs and of parameters, as printed in the paper's tables and the reference's README.
PUBLISHED = [
    ("condensenet-74-g4", "529", "4.8"),
    ("condensenet-74-g8", "274", "2.9"),
    ("condensenet-50", "28.6", "0.22"),
    ("condensenet-74", "51.9", "0.41"),
    ("condensenet-86", "65.8", "0.52"),
    ("condensenet-98", "81.3", "0.65"),
    ("condensenet-110", "98.2", "0.79"),
    ("condensenet-122", "116.7", "0.95"),
    ("condensenet-182", "513", "4.2"),
    # CondenseNet V2, the authors' README
    ("condensenet-v2-a", "46", "2.0"),
    ("condensenet-v2-b", "146", "3.6"),
    ("condensenet-v2-c", "310", "6.2"),  # printed as 309 and 6.1: cut off, not rounded; their script counts 309.741 and 6.178
]


@pytest.mark.parametrize(("name", "flops", "params"), PUBLISHED)
def test_published_figures_to_their_rounding(name: str, flops: str, params: str) -> None:
    arch = Architecture.from_name(name)
    for found, printed in ((arch.flops, flops), (arch.params, params)):
        assert f"{found / 1e6:.{len(printed.partition('.')[2])}f}" == printed


def test_every_named_model_is_published() -> None:
    assert {name for name, *_ in PUBLISHED} == set(NAMED)


def test_multiply_adds_alone() -> None:
    assert f"{Architecture.from_name('condensenet-74-g4').macs / 1e6:.1f}" == "516.6"
    assert f"{Architecture.from_name('condensenet-74-g8').macs / 1e6:.1f}" == "261.5"


@pytest.mark.parametrize(
    "arch",
    few(
        [tiny(4, 2), tiny(2, 8), tiny(8, 4), TINY_LGC, TINY_DENSENET, replace(TINY, input_size=(33, 47), stem_stride=2), *NAMED.values()], 7
    ),
    ids=lambda arch: arch.summary(),
)
@pytest.mark.parametrize("form", ["training", "group-conv"])
def test_closed_form_is_what_running_counts(arch: Architecture, form: str) -> None:
    if form == "training" and arch.learned:
        # The mask's product is not a module of its own: count the dense convolutions of the same sizes instead.
        arch = replace(arch, group_1x1=1, condense_factor=1, classifier_keep=1.0, update_groups=1 if arch.updates else None)
    counted = count(build(arch, "group-conv"), arch.input_size)
    if arch.updates:  # the authors' script counts no biases
        counted = replace(counted, linear_biases=0)
    cost = arch.cost("group-conv")
    assert (cost.flops, cost.macs, cost.params) == (counted.flops, counted.macs, counted.params)


@pytest.mark.parametrize("groups", [2, 4])
def test_training_form_costs_what_a_dense_network_does(groups: int) -> None:
    dense = replace(TINY, group_1x1=1, condense_factor=1)
    assert tiny(groups, 4).cost("training") == dense.cost()


def test_dict_round_trip() -> None:
    for arch in (*NAMED.values(), TINY_LGC, TINY_DENSENET, TINY_V2):
        assert Architecture.from_dict(arch.to_dict()) == arch == Architecture(**arch.to_dict())


V2 = {
    "kind": "condensenet_v2", "update_groups": 4, "hard_swish_from": 2, "excitation_from": 3, "excitation_channels": 4,
    "hidden_channels": 20,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_1x1": 3}, "multiple of 3"),
        ({"condense_factor": 3}, "multiple of 3"),
        ({"group_3x3": 5}, "multiples of 5"),
        ({"growth": (8, 8)}, "as many of each"),
        ({"stages": (0, 1, 1)}, "stages[0] is 0; expected a whole number from 1 to 16777215"),
        ({"stages": (2.0, 1, 1)}, "stages[0] is 2.0; expected a whole number from 1"),
        ({"classes": 0}, "classes is 0; expected a whole number from 1"),
        ({"classes": 1 << 24}, "expected a whole number from 1 to 16777215"),
        ({"bottleneck": True}, "bottleneck is true; expected a whole number from 1"),
        ({"classifier_keep": True}, "classifier_keep is true; expected a number over 0"),
        ({"classifier_keep": 0.0}, "a number over 0"),
        ({"classifier_keep": 1.5}, "at most 1"),
        ({"classifier_keep": float("nan")}, "at most 1"),
        ({"kind": "resnet"}, "expected one of condensenet"),
        ({"input_size": (3, 32)}, "too small"),
        ({"hidden_channels": 8}, "a condensenet has no hidden_channels"),
        ({"kind": "condensenet_v2"}, "a condensenet_v2 needs update_groups, hard_swish_from"),
        (dict(V2, classifier_keep=0.5), "the classifier of CondenseNet V2 is not condensed"),
        (dict(V2, hard_swish_from=5), "hard_swish_from 5; expected a block from 1 to 3, or 4 for none"),
        (dict(V2, excitation_from=9), "excitation_from 9; expected a block from 1 to 3"),
        (dict(V2, update_groups=16), "growth 8; expected a multiple of update_groups 16"),
        (dict(V2, hidden_channels=0), "hidden_channels is 0; expected a whole number from 1"),
        ({"input_size": (32,)}, "input_size is a list of 1; expected height and width, each 1 to 4096 pixels"),
        ({"input_size": (32, 4097)}, "input_size[1] is 4097; expected pixels, 1 to 4096"),
        ({"transition_channels": (8, 8)}, "expected 0"),
        ({"kind": "densenet"}, "nothing condensed"),
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputRefused, match=re.escape(message)):
        replace(TINY, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "values", [{}, {"stages": [1], "growth": [8], "depth": 3}, {"stages": 1, "growth": [8]}, {"stages": ["1"], "growth": [8]}]
)
def test_dicts_that_are_no_architecture(values: dict[str, object]) -> None:
    with pytest.raises(InputRefused, match="architecture"):
        Architecture.from_dict(values)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(InputRefused, match="condensenet-74-g4"):
        Architecture.from_name("condensenet-75")


_SIZES = st.lists(st.integers(-1, 20), max_size=4)


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"stages": _SIZES, "growth": _SIZES.map(lambda row: [8 * number for number in row])},
        optional={
            "kind": st.sampled_from(["condensenet", "densenet", "densenet_lgc", "x", None]), "bottleneck": st.integers(-1, 8),
            "group_1x1": st.integers(0, 8), "group_3x3": st.integers(0, 8), "condense_factor": st.integers(0, 8),
            "classes": st.integers(-1, 2000), "stem_stride": st.integers(0, 9), "input_size": st.lists(st.integers(0, 300), max_size=3),
            "classifier_keep": st.floats() | st.just(1), "transition_channels": _SIZES, "depth": st.just(1),
        },
    )
)  # fmt: skip
def test_any_dictionary_comes_back_or_is_refused(values: dict[str, Any]) -> None:
    try:
        arch = Architecture.from_dict(values)
    except InputRefused as error:
        assert str(error).startswith("architecture")
        return
    assert Architecture.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch
    assert min(arch.flops, arch.macs, arch.params, *arch.final_size, arch.kept_features) > 0


@pytest.mark.parametrize(
    ("stages", "stride", "least", "most"), [(5, 2, 223, 446), (3, 1, 32, 63), (3, 3, 94, 189), (1, 1, 8, 15), (4, 2, 111, 222)]
)
def test_the_original_pools_where_its_window_fits_just_once(stages: int, stride: int, least: int, most: int) -> None:
    def arch(side: int, final_pool: str = "original") -> Architecture:
        size = (side, least)
        return Architecture((1,) * stages, (8,) * stages, stem_stride=stride, input_size=size, final_pool=final_pool)  # type: ignore[arg-type]

    window = 7 if stride == 2 else 8
    for side in (least, most):
        assert arch(side).pool_window == (window, window)
        assert arch(side, "whole").pools_as_original is (arch(side).final_size == (window, window))
    for side in (least - 1, most + 1):
        assert arch(side, "whole").pools_as_original is None
        with pytest.raises(InputRefused, match=f"expected an input of {least} to {most} pixels a side"):
            arch(side)


def test_the_original_s_pooling_is_counted_as_it_is() -> None:
    arch = Architecture((1,) * 5, (8,) * 5, input_size=(256, 256), final_pool="original")
    counted = count(build(arch, "group-conv"), arch.input_size)
    assert (arch.flops, arch.macs, arch.params) == (counted.flops, counted.macs, counted.params)
    assert replace(arch, final_pool="whole").flops - arch.flops == arch.features * (8 * 8 - 7 * 7)
    assert Architecture.from_dict(arch.to_dict()) == arch and "final_pool" not in replace(arch, final_pool="whole").to_dict()
