"""CondenseNet V2 in compiled libraries: hard swish, excitation, planes that change in place, the hidden layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import cnet_deploy as cd
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.base import require_quantization
from cnet_deploy.exporters.native.constants import WIDE_TILES
from cnet_deploy.exporters.native.geometry import blocks_of, place
from cnet_deploy.exporters.native.packing import Data, keep_first_norm, tiles
from cnet_deploy.exporters.native.planning import _update
from cnet_deploy.exporters.native.toolchain import Compiler
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.program.calibration import calibrate
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import DenseLayer
from cnet_deploy.sessions.native import open_file
from tests.builders import TINY_V2, VARIETIES_V2
from tests.cases import examples, few, long
from tests.exporters.native.helpers import (
    BF16_ERROR,
    ERROR,
    SANITIZERS,
    check_nan,
    drive,
    driver,
    exact,
    images_for,
    isas,
    library,
    logits_on_neon,
    network,
    plan_of,
)
from tests.exporters.native.test_agreement import complaints
from tests.exporters.native.test_native import check

# Blocks of 48, 24 and 12 pixels a row: 3x3 by rows, flat, narrow; updates plane by plane, then by groups. ReLU in the first, excitation in
# the last; the other has hard swish and excitation in all.
EVERY_KERNEL = replace(TINY_V2, stages=(2, 2, 2), growth=(8, 32, 64), input_size=(48, 48), classes=70)
EXCITED = replace(EVERY_KERNEL, excitation_from=1, hard_swish_from=1)


def test_every_kernel(quick_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of threads changes no bit: strips meet where planes that change are read too."""
    monkeypatch.setenv("CXX", str(quick_compiler))
    model = network(EVERY_KERNEL)
    assert plan_of(model, ("baseline",)).layouts == ("wide", "wide", "narrow")
    path = cd.export(model, "native", tmp_path / "m.so", cpu="host").path
    images = images_for(model, 2)
    expected = exact(model, images)
    logits = []
    for threads in (1, 2, 3, 4):
        with open_file(read_pair(path), device="cpu", threads=threads, isa=isas()[0]) as session:
            for sharing in ("layers", "images", "layers"):  # each finds what the one before left in memory
                session._share(sharing)
                logits.append(session.run(images))
    assert np.abs(logits[0] - expected).max() <= ERROR * np.abs(expected).max()
    assert all(np.array_equal(logits[0], other) for other in logits)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", [EVERY_KERNEL, EXCITED, *VARIETIES_V2], ids=str)
@long
def test_every_variety(arch: Architecture, precision: str, tmp_path: Path) -> None:
    model = network(arch)
    path = cd.export(model, "native", tmp_path / "m.so", precision=precision, tolerance=1).path
    bound = ERROR if precision == "fp32" else BF16_ERROR
    check(path, model, bound, names=isas(precision), batches=(1, 2, 3, 4, 5), threads=(1, 2, 3, 4))
    check(path, model, bound, names=isas(precision), batches=(1,), threads=(7, 32))  # more threads than there are rows


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any shape that is small enough to run: groups of each kind apart, activations and excitation from any block or none."""
    groups, condense, conv_groups, updates = (draw(st.sampled_from((1, 2, 3, 4, 8))) for _ in range(4))
    blocks = draw(st.integers(1, 3))
    step = int(np.lcm.reduce([groups, condense, conv_groups, updates]))
    growth = tuple(step * draw(st.integers(1, max(1, 48 // step))) for _ in range(blocks))
    hypothesis.assume(max(growth) <= 96)
    try:
        return Architecture(
            tuple(draw(st.integers(1, 2)) for _ in range(blocks)), growth, "condensenet_v2", bottleneck=draw(st.integers(1, 5)),
            group_1x1=groups, group_3x3=conv_groups, condense_factor=condense, classes=draw(st.sampled_from((3, 10, 100))),
            stem_stride=draw(st.integers(1, 2)), input_size=(draw(st.integers(9, 70)), draw(st.integers(9, 70))), classifier_keep=1.0,
            image_channels=draw(st.sampled_from((1, 3, 4))), final_pool=draw(st.sampled_from(("whole", "original"))),
            update_groups=updates, hard_swish_from=draw(st.integers(1, blocks + 1)), excitation_from=draw(st.integers(1, blocks + 1)),
            excitation_channels=draw(st.integers(1, 40)), hidden_channels=draw(st.integers(1, 100)),
        )  # fmt: skip
    except InputRefused:
        hypothesis.reject()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@hypothesis.settings(examples(20), suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(architectures(), st.integers(1, 5), st.integers(1, 5), st.integers(0, 9))
@long
def test_any_architecture(tmp_path_factory: pytest.TempPathFactory, precision: str, arch: Architecture, threads: int, batch: int,
                          seed: int) -> None:  # fmt: skip
    model = network(arch, seed)
    path = cd.export(model, "native", tmp_path_factory.mktemp("any") / "m.so", precision=precision, tolerance=1).path
    check(path, model, ERROR if precision == "fp32" else 0.1, names=isas(precision), batches=(batch,), threads=(threads,), seed=seed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@long
def test_nan_goes_where_torch_lets_it_go_and_does_not_stay(precision: str, tmp_path: Path) -> None:
    model = network(EVERY_KERNEL)
    path = cd.export(model, "native", tmp_path / "m.so", precision=precision, tolerance=1).path
    check_nan(path, model, precision, (1, 2))


@long
def test_extreme_inputs_stay_what_they_are(tmp_path: Path) -> None:
    model = network(TINY_V2)
    path = cd.export(model, "native", tmp_path / "m.so").path
    for isa in isas():
        with open_file(read_pair(path), device="cpu", threads=2, isa=isa) as session:
            for value in (0.0, 1e-30, 1e6):
                images = np.full((1, 3, 32, 32), value, np.float32)
                expected = exact(model, images)
                assert np.abs(session.run(images) - expected).max() <= ERROR * np.abs(expected).max()


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
@pytest.mark.parametrize("arch", [EVERY_KERNEL, EXCITED], ids=["swish", "excited"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@long
def test_sanitizers_find_nothing(sanitizer: str, arch: Architecture, precision: str, tmp_path: Path) -> None:
    """No two threads touch one value of the planes that change, unless they have met between."""
    flags, model = SANITIZERS[sanitizer], network(arch)
    names = isas(precision)[-1:] if precision == "bf16" else isas(precision)[:1]
    program = driver(tmp_path / "driver", library(model, tmp_path / "m.so", names, precision, extra=flags), flags=flags)
    images = images_for(model, 2)
    images.tofile(tmp_path / "images")
    expected = exact(model, images)
    surroundings = {"ASAN_OPTIONS": "detect_leaks=0"} if "-DCNET_DEBUG" in flags else {"TSAN_OPTIONS": "halt_on_error=1"}
    for threads in (1, 2, 3, 4, 9):
        command = ("run", names[0], threads, 2, images[0].size, arch.classes, tmp_path / "images", tmp_path / "logits")
        done = drive(program, *command, **surroundings)
        assert done.returncode == 0, done.stderr[-3000:]
        logits = np.fromfile(tmp_path / "logits", np.float32).reshape(expected.shape)
        assert np.abs(logits - expected).max() <= {"fp32": ERROR, "bf16": BF16_ERROR}[precision] * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@long
def test_neon(precision: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    model = network(EVERY_KERNEL)
    images = images_for(model, 2)
    expected = exact(model, images)
    for threads in (1, 2):
        logits = logits_on_neon(system_tool, model, images, tmp_path, precision, threads)
        assert np.abs(logits - expected).max() <= (ERROR if precision == "fp32" else BF16_ERROR) * np.abs(expected).max()


# ---- the plan ----------------------------------------------------------------------------------------------------------------------


def test_no_compiler_warns_of_a_plan(tmp_path: Path, gcc: Compiler) -> None:
    text = plan_of(network(TINY_V2), ("baseline",)).source
    assert complaints(text, tmp_path, gcc, defines=("-DCNET_V2=1",)) == ""
    assert "no non-static data member named" in complaints(text, tmp_path, gcc)


def test_a_plan_and_kernels_for_different_families(tmp_path: Path, gcc: Compiler) -> None:
    """The plan of a network without updates has none of their fields."""
    text = plan_of(network(TINY_V2), ("baseline",)).source.replace("CNET_V2 == 1", "CNET_V2 == 0")
    found = complaints(text, tmp_path, gcc, defines=("-DCNET_V2=1",))
    assert "the plan and the kernels are for different families of networks; build both for one" in found


@pytest.mark.parametrize(
    ("part", "field", "by"),
    [
        ("update", "inputs", 1), ("update", "targets", 1000), ("update", "groups", 3), ("update", "swish", 1), ("excite", "channels", 1),
        ("excite", "hidden", -16), ("hidden", "features", 1), ("hidden", "outputs", -1), ("hidden", "excited", -99),
        ("hidden", "fresh", -(1 << 24)), ("hidden", "fresh", 8), ("hidden", "fresh", 1 << 24),
    ],
)  # fmt: skip
def test_a_plan_that_breaks_a_rule_stops_the_build(part: str, field: str, by: int, tmp_path: Path, gcc: Compiler) -> None:
    text = plan_of(network(TINY_V2), ("baseline",)).source
    # The first of its kind that is no "none": the last layers alone have an excitation.
    pattern = rf"(\.{part} = {{(?!\.channels = 0)[^\n]*?\.{field} = )(\d+)"
    changed, count = re.subn(pattern, lambda match: f"{match[1]}{int(match[2]) + by}", text, count=1)
    found = complaints(changed, tmp_path, gcc, defines=("-DCNET_V2=1",))
    assert count == 1 and "planning.py describes no layers that update the planes before them" in found and found.count("error: ") == 1


@pytest.mark.parametrize("arch", VARIETIES_V2, ids=str)
def test_planes_that_wait_for_their_excitation_lie_beside_their_map(arch: Architecture) -> None:
    blocks = blocks_of(lower(network(arch)))
    total = place(blocks)
    for block in blocks:
        assert block.map + block.channels * block.plane <= block.middle
        assert block.middle + block.excited * block.plane <= total
    assert sum(block.excited > 0 for block in blocks) == len(blocks) + 1 - (arch.excitation_from or 0)


@pytest.mark.parametrize("growth", [(8, 8, 16), (16, 32, 64)], ids=["by_plane", "by_group"])
@pytest.mark.parametrize("groups", few([8, 2, 1]))
def test_the_tables_of_an_update_are_its_dense_form(groups: int, growth: tuple[int, ...]) -> None:
    """Few inputs a group: the terms of each channel, from all groups. Many: tiles of each group's rows."""
    seen = set()
    for block in blocks_of(lower(network(replace(TINY_V2, growth=growth, update_groups=groups)))):
        for layer in block.layers:
            assert layer.update is not None
            data = Data()
            text = _update(layer.update, block, data)
            number = {name: int(value) for name, value in re.findall(r"\.(\w+) = (\d+)", text)}
            words = np.frombuffer(data.tobytes(), np.int32)

            def table(name: str, count: int, words: Any = words, number: Any = number) -> Any:
                return words[number[name] : number[name] + count]

            targets, inputs, by = number["targets"], number["inputs"], number["groups"]
            channel, target = table("channel", inputs), table("target", targets)
            assert not (target % block.plane).any()
            seen.add(by > 0)
            dense = np.zeros_like(layer.update.dense())
            if by:
                assert not table("target", targets + WIDE_TILES[0])[targets:].any()  # what a tile reads ahead of the last
                weight = table("weight", targets * inputs // by).view(np.float32)
                for g, part in enumerate(np.split(weight, by)):
                    for begin, size in tiles(targets // by, WIDE_TILES):
                        tile, part = np.split(part, [size * inputs // by])
                        rows = target[g * targets // by + begin :][:size] // block.plane
                        dense[np.ix_(rows, channel[g * inputs // by :][: inputs // by])] += tile.reshape(-1, size).T
            else:
                first = table("first", targets + 1)
                source, weight = table("source", int(first[-1])), table("weight", int(first[-1])).view(np.float32)
                assert len(set(target)) == targets
                for i, plane in enumerate(target // block.plane):
                    assert first[i] < first[i + 1]
                    dense[plane, channel[source[first[i] : first[i + 1]]]] += weight[first[i] : first[i + 1]]
            assert np.array_equal(dense, layer.update.dense())
    assert (growth[0] > 8 or groups < 8) in seen


@pytest.mark.parametrize("paired", [False, True])
def test_the_norm_before_hard_swish_stays_as_it_is(paired: bool) -> None:
    layer = next(layer for layer in lower(network(replace(TINY_V2, hard_swish_from=1))).body if isinstance(layer, DenseLayer)).pointwise
    width, rows = layer.index.size // layer.groups, len(layer.weight) // layer.groups
    found = keep_first_norm(layer, 1, paired=paired)
    assert found.positions == list(range(width)) + [-1] * (width % 2 * paired)
    assert np.array_equal(found.scale[:width], layer.scale[width : 2 * width])
    assert np.array_equal(found.shift[:width], layer.shift[width : 2 * width])
    assert np.array_equal(found.weight[:, :width], layer.weight[rows : 2 * rows]) and not found.weight[:, width:].any()


def test_integers_are_refused(tmp_path: Path) -> None:
    program = lower(network(TINY_V2))
    images = np.zeros((1, 3, 32, 32), np.float32)
    for ask in (lambda: calibrate(program, images), lambda: require_quantization(program, None)):
        with pytest.raises(InputRefused, match="a CondenseNet V2 has no form in integers yet, so no precision int8; expected fp32 or bf16"):
            ask()
