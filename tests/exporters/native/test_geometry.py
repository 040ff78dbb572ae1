"""geometry.py: layouts, and maps in memory."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.native.geometry import blocks_of, place, plain_paths
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build_named
from cnet_deploy.program.lower import lower
from tests.builders import TINY, VARIETIES
from tests.cases import long
from tests.exporters.native.helpers import network

LAYOUTS = {
    "condensenet-74-g4": "wide wide wide narrow narrow", "condensenet-74-g8": "wide wide wide wide narrow",
    "condensenet-86": "wide wide narrow", "condensenet-182": "wide wide narrow", "condensenet-v2-a": "wide wide wide wide wide",
    "condensenet-v2-b": "wide wide wide wide narrow", "condensenet-v2-c": "wide wide wide wide narrow",
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_the_papers_models(name: str) -> None:
    assert " ".join(block.layout for block in blocks_of(lower(build_named(name)))) == LAYOUTS[name]


@long
def test_what_of_the_papers_models_falls_to_a_plain_path() -> None:
    found = {name: plain_paths(lower(build_named(name))) for name in NAMED}
    assert {name: paths for name, paths in found.items() if paths} == {
        "condensenet-182": ["block 1: in groups of 3 outputs, one output is computed alone"]
    }


def test_what_falls_to_a_plain_path() -> None:
    odd = replace(TINY, growth=(12, 12, 12), group_1x1=4, group_3x3=4, stem_stride=3, input_size=(47, 47))
    assert plain_paths(lower(network(odd))) == [
        "the first convolution has stride 3: rows are split pixel by pixel (strides 1 and 2 use vectors)",
        "block 1: in groups of 3 outputs, one output is computed alone",
        "block 2: in groups of 3 outputs, one output is computed alone",
        "block 3: in groups of 3 outputs, one output is computed alone",
    ]


@pytest.mark.parametrize("arch", VARIETIES, ids=str)
def test_maps_that_live_together_lie_apart(arch: Architecture) -> None:
    blocks = blocks_of(lower(network(arch)))
    total = place(blocks)
    spans = [(b.map, b.map + b.channels * b.plane) for b in blocks]
    middles = [(b.middle, b.middle + b.middle_channels * b.plane) for b in blocks]
    for (begin, end), (other, other_end) in itertools.pairwise(spans):
        assert end <= other or other_end <= begin
    for (begin, end), middle in [*zip(spans, middles, strict=True), *zip(spans[1:], middles, strict=False)]:
        assert end <= middle[0] or middle[1] <= begin or middle[0] == middle[1]
    assert max(end for _, end in spans + middles) <= total
    for b in blocks:
        assert b.plane >= b.size[0] * b.pitch + 15 and b.plane % 32 == 16 and b.map % 16 == 0
        assert b.pitch == b.size[1] + (b.layout == "wide")


def test_maps_too_large_for_the_tables_are_refused() -> None:
    arch = replace(TINY, input_size=(4096, 4096), growth=(8, 8, 16), stages=(20, 1, 1))
    with pytest.raises(InputRefused, match="times too large for the tables; expected images of fewer pixels"):
        place(blocks_of(lower(network(arch))))
