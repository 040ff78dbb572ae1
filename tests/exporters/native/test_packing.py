"""packing.py: order and numbers of what the kernels read."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cnet_deploy.exporters.native.packing import Data, fold_first_norm, route, tiled, to_bf16, to_words
from cnet_deploy.program.program import Pointwise


def pointwise(groups: int, rows: int, width: int, seed: int = 0) -> Pointwise:
    """Of a 1x1 with shuffled result, gains of either sign and one of zero."""
    random = np.random.default_rng(seed)
    scale, shift, bias = (random.standard_normal(n).astype(np.float32) for n in (groups * width, groups * width, groups * rows))
    scale[0] = 0
    weight = random.standard_normal((groups * rows, width)).astype(np.float32)
    order = np.arange(groups * rows).reshape(groups, rows).T.reshape(-1)
    return Pointwise("p", groups * width, np.arange(groups * width), scale, shift, weight, bias, groups, order)


def test_bf16_rounds_as_torch_does() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.standard_normal(10000), 10.0 ** random.uniform(-38, 38, 1000), [0.0, -0.0, np.inf, -np.inf]])
    values = values.astype(np.float32)
    ours = (to_bf16(values) << 16).astype(np.uint32).view(np.float32)
    assert np.array_equal(ours, torch.from_numpy(values).bfloat16().float().numpy())
    assert np.isnan((to_bf16(np.array([np.nan], np.float32)) << 16).astype(np.uint32).view(np.float32)).all()


def test_pairs_have_the_even_channel_below() -> None:
    words = to_words(np.array([[1.0, 2.0, 3.0, 4.0]]), paired=True)
    assert words.tolist() == [[0x40003F80, 0x40804040]]


def test_tiled_puts_a_tile_last() -> None:
    matrix = np.arange(10 * 3).reshape(10, 3)
    packed = tiled(matrix, (8, 4, 2, 1))
    assert packed[:8].tolist() == matrix[:8, 0].tolist() and packed[24:26].tolist() == matrix[8:, 0].tolist()
    assert sorted(packed) == list(range(30))


def test_tables_begin_on_cache_lines() -> None:
    data = Data()
    assert [data.add(np.zeros(n, np.float32)) for n in (1, 16, 17, 1)] == [0, 16, 32, 64]
    assert len(data.tobytes()) == 4 * data.size == 4 * 80


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_norm_and_relu_become_an_addition_and_a_maximum_or_minimum(seed: int, paired: bool) -> None:
    layer = pointwise(2, 4, 7, seed)
    layer.scale[1], layer.shift[1] = 1e-38, 5.0  # whose quotient does not fit into fp32
    x = np.random.default_rng(seed + 9).standard_normal((14, 50))
    for group in range(2):
        found = fold_first_norm(layer, group, paired=paired)
        part = slice(7 * group, 7 * group + 7)
        active = np.maximum(x[part] * layer.scale[part, None].astype(float) + layer.shift[part, None], 0)
        expected = layer.weight[4 * group : 4 * group + 4] @ active + layer.bias[4 * group : 4 * group + 4, None]
        sums = np.tile(found.bias[:, None], (1, 50))
        for i, position in enumerate(found.positions):
            moved = (x[7 * group + position] if position >= 0 else np.full(50, 7.0)) + found.shift[i]
            clipped = np.maximum(moved, 0) if i < found.maxima else np.minimum(moved, 0)
            sums = sums + found.weight[:, i : i + 1] * clipped
        np.testing.assert_allclose(sums, expected, atol=1e-12)
        assert np.isfinite(found.shift).all() and np.abs(found.shift).max() < 1e31
        if paired:
            assert len(found.positions) % 2 == 0 and found.maxima % 2 == 0


def test_an_input_without_gain_is_still_read() -> None:
    found = fold_first_norm(pointwise(1, 2, 5), 0, paired=False)
    assert sorted(found.positions) == [0, 1, 2, 3, 4]  # its NaN must be seen


@pytest.mark.parametrize(
    ("groups", "rows", "conv_groups"), [(4, 8, 4), (8, 4, 8), (2, 6, 4), (4, 6, 2), (3, 5, 1), (1, 12, 3), (4, 3, 6), (5, 7, 7)]
)
@pytest.mark.parametrize(("paired", "align"), [(False, 1), (False, 16), (True, 1), (True, 16)])
def test_routes_lead_every_row_to_its_channel(groups: int, rows: int, conv_groups: int, paired: bool, align: int) -> None:
    layer = pointwise(groups, rows, 3)
    path = route(layer, conv_groups, paired=paired, align=align)
    size, per_word = groups * rows // conv_groups, 2 if paired else 1
    places = len(path.sources[0])
    assert {len(listed) for listed in path.sources} == {places}
    assert {len(listed) % align for listed in path.rows} == {0} and len({len(listed) for listed in path.rows}) == 1
    assert [len(listed) for listed in path.slots] == [len(listed) // per_word for listed in path.rows]
    written = sorted(slot for slots in path.slots for slot in slots if slot >= 0)
    assert written == list(range(conv_groups * places))  # every place once, so that none holds chance
    channel_of = np.argsort(layer.order)
    for g, slots in enumerate(path.slots):
        for word, slot in enumerate(slots):
            mine = path.rows[g][word * per_word : (word + 1) * per_word]
            channels = tuple(int(channel_of[g * rows + row]) if row >= 0 else -1 for row in mine)
            if slot < 0:
                assert set(channels) == {-1}
                continue
            assert path.sources[slot // places][slot % places] == channels
            assert all(channel // size == slot // places for channel in channels if channel >= 0)
    seen = sorted(row for row in itertools.chain(*path.rows) if row >= 0)
    assert seen == sorted(list(range(rows)) * groups)
