"""G, C and whether pruning has finished, from masks and counters alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnet_deploy.errors import InputRefused
from cnet_deploy.models.pruning import LayerPruning, infer_condense_factor, infer_groups, read_layer, read_update, require_finished


def layer(groups: int, factor: int, stage: int | None = None, *, channels: int = 48, rows: int = 32, seed: int = 0) -> LayerPruning:
    """A layer pruned as the reference prunes: in/C channels a stage and group, row r in group r mod G."""
    stage = factor - 1 if stage is None else stage
    random = np.random.default_rng(seed)
    mask = np.ones((rows, channels), bool)
    dropped = stage * channels // factor
    for group in range(groups):
        mask[group::groups, random.permutation(channels)[:dropped]] = False
    return LayerPruning("features.denseblock_1.denselayer_1.conv_1", mask, stage, dropped)


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_groups_and_condense_factor_are_told_by_a_finished_layer(groups: int, factor: int) -> None:
    found = layer(groups, factor)
    assert infer_groups([found]) == groups
    assert infer_condense_factor([found]) == factor
    require_finished([found], groups, factor)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(1, 12))
def test_the_period_is_the_smallest_there_is(rows: list[int], times: int) -> None:
    mask = (np.array(rows * times)[:, None] >> np.arange(2) & 1).astype(bool)
    found = LayerPruning("a", mask, None, None)
    assert found.period == next(period for period in range(1, len(mask) + 1) if found.groups_agree(period))


def test_groups_are_the_period_that_all_layers_have() -> None:
    # Two groups of one layer may keep the same channels by chance: alone it looks like G=2.
    lucky = layer(2, 4)
    assert infer_groups([lucky]) == 2
    assert infer_groups([lucky, layer(4, 4, seed=1)]) == 4


def test_a_stopped_run_is_not_taken_for_a_finished_one_of_another_factor() -> None:
    stopped = layer(4, 4, stage=2)
    finished = layer(4, 2)
    assert (stopped.mask == finished.mask).all()  # the masks tell nothing: half of the channels are gone in both
    assert infer_condense_factor([stopped]) == 4
    require_finished([finished], 4, 2)
    with pytest.raises(InputRefused, match=r"conv_1: pruning is unfinished: 24 of 48 .* C=4 keeps 12; training reached stage 2 of 3"):
        require_finished([stopped], 4, 4)
    with pytest.raises(InputRefused, match="unfinished"):
        require_finished([stopped], 4, 2)


def test_one_unfinished_layer_among_finished_ones_is_named() -> None:
    late = LayerPruning("features.denseblock_2.denselayer_3.conv_1", layer(4, 4, 1).mask, 1, 12)
    with pytest.raises(InputRefused, match=r"denseblock_2\.denselayer_3"):
        require_finished([layer(4, 4), late], 4, 4)
    untouched = LayerPruning("last", np.ones((32, 48), bool), 0, 0)
    with pytest.raises(InputRefused, match="last: pruning is unfinished: 48 of 48"):
        require_finished([layer(4, 4), untouched], 4, 4)


def test_untouched_masks_tell_nothing() -> None:
    untouched = layer(4, 4, 0)
    assert infer_groups([untouched]) is None
    assert infer_condense_factor([untouched]) is None


def test_a_flipped_mask_entry_is_found() -> None:
    damaged = layer(4, 4)
    damaged.mask[5, 7] = ~damaged.mask[5, 7]
    assert infer_groups([damaged]) is None
    with pytest.raises(InputRefused, match="outputs of one group read different inputs"):
        require_finished([damaged], 4, 4)


def test_a_layer_that_most_others_belie_is_damaged() -> None:
    damaged = layer(4, 4, seed=1, rows=64)
    kept, dropped = np.flatnonzero(damaged.mask[5])[0], np.flatnonzero(~damaged.mask[5])[0]
    damaged.mask[5, [kept, dropped]] = [False, True]  # as many as before: only the rows of its group tell
    assert infer_groups([damaged, *(layer(4, 4, seed=seed, rows=128) for seed in (2, 3))]) is None


def test_as_many_groups_as_the_narrowest_layer_has_outputs() -> None:
    assert infer_groups([layer(8, 8, rows=8), layer(8, 8, rows=16), layer(8, 8, rows=32)]) == 8
    assert infer_groups([layer(8, 8, rows=8)]) is None  # nothing repeats: agreement that proves nothing


def test_counters_rounded_to_bfloat16() -> None:
    # condensenet-74-g8: 518 of 592 channels dropped at stage 7, which bf16 saves as 520.
    assert LayerPruning("a", np.ones((8, 592), bool), 7, 520).condense_factor == 8


def test_groups_that_keep_different_numbers_are_refused() -> None:
    uneven = layer(4, 4)
    row = uneven.mask[0::4]
    row[:, np.flatnonzero(~row[0])[0]] = True
    with pytest.raises(InputRefused, match="12 to 13 of 48"):
        require_finished([uneven], 4, 4)


def test_counters_that_contradict_each_other_or_the_layers() -> None:
    with pytest.raises(InputRefused, match="whole number"):
        _ = LayerPruning("a", np.ones((4, 48), bool), 2, 7).condense_factor
    with pytest.raises(InputRefused, match="whole number"):
        _ = LayerPruning("a", np.ones((4, 48), bool), 2, 0).condense_factor
    with pytest.raises(InputRefused, match="C=2 in .*, C=4 in"):
        infer_condense_factor([layer(4, 4), layer(4, 2)])


def tensors(**parts: object) -> dict[str, np.ndarray]:
    base = {"_mask": np.ones((4, 8, 1, 1)), "_stage": np.zeros(1), "_count": np.zeros(1)}
    return {f"l.{key}": np.asarray(value) for key, value in {**base, **parts}.items()}


def test_counters_may_be_missing() -> None:
    found = read_layer("l", {"l._mask": np.ones((4, 8, 1, 1))})
    assert found.stage is None
    assert found.count is None


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"_mask": np.full((4, 8, 1, 1), 0.5)}, "other than 0 and 1"),
        ({"_mask": np.full((4, 8, 1, 1), np.nan)}, "other than 0 and 1"),
        ({"_mask": np.ones((4, 8))}, r"expected \[out, in, 1, 1\]"),
        ({"_stage": np.array([1.5])}, "whole number"),
        ({"_stage": np.array([np.nan])}, "whole number"),
        ({"_count": np.array([1.0, 2.0])}, "whole number"),
        ({"_count": np.array([-1.0])}, "whole number"),
    ],
)
def test_masks_and_counters_that_are_none(parts: dict[str, object], message: str) -> None:
    with pytest.raises(InputRefused, match=message):
        read_layer("l", tensors(**parts))


def test_an_update_is_a_layer_transposed() -> None:
    """Its groups are of columns, and they lose outputs; see CondenseNet V2, section 3.2."""
    found = layer(4, 4)
    mask = found.mask.T.astype(np.float32)[:, :, None, None]
    tensors = {"a._mask": mask, "a._stage": np.float32([found.stage]), "a._count": np.float32([found.count])}
    update = read_update("a", tensors)
    assert np.array_equal(update.mask, found.mask) and (infer_groups([update]), infer_condense_factor([update])) == (4, 4)
    require_finished([update], 4, 4)
    mask[0, 0] = 1 - mask[0, 0]
    with pytest.raises(InputRefused, match="a: inputs of one group write different outputs; expected one mask per group with T=4"):
        require_finished([read_update("a", tensors)], 4, 4)
    stopped = layer(4, 4, stage=2)
    tensors = {"a._mask": stopped.mask.T.astype(np.float32)[:, :, None, None], "a._stage": np.float32([2]), "a._count": np.float32([24])}
    with pytest.raises(InputRefused, match=r"24 of 48 output channels survive per group where T=4 keeps 12; training reached stage 2 of 3"):
        require_finished([read_update("a", tensors)], 4, 4)
