"""What compiled libraries compute, on every instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import cnet_deploy as cd
from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.errors import InputRefused
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build_named
from cnet_deploy.program.lower import lower
from cnet_deploy.sessions.native import SHARINGS, open_file
from tests.builders import TINY, VARIETIES
from tests.cases import examples, few, long
from tests.exporters.native.helpers import (
    BF16_ERROR,
    ERROR,
    EVERY_KERNEL,
    check_nan,
    every_kernel,
    exact,
    images_for,
    isas,
    network,
    pixels_for,
)


def check(
    path: Path,
    model: Any,
    bound: float,
    *,
    names: tuple[str, ...],
    batches: tuple[int, ...] = (2,),
    threads: tuple[int, ...] = (1, 2),
    seed: int = 1,
) -> float:
    """The largest error of a library, relative to the largest logit, over instruction sets, batches, threads and how they share."""
    worst = 0.0
    for batch in batches:
        images = images_for(model, batch, seed)
        expected = exact(model, images)
        for isa in names:
            for count in threads:
                with open_file(read_pair(path), device="cpu", threads=count, isa=isa) as session:
                    assert session.isa == isa
                    for sharing in ("images", "layers"):  # the second finds what the first left in memory
                        session._share(sharing)
                        worst = max(worst, float(np.abs(session.run(images) - expected).max() / np.abs(expected).max()))
    assert worst <= bound
    return worst


@long
@pytest.mark.parametrize("name", few(NAMED))
def test_every_architecture_of_the_paper(name: str, tmp_path: Path) -> None:
    model = build_named(name)
    path = cd.export(model, "native", tmp_path / "m.so").path
    # The portable code takes a second an image on the largest: once is enough.
    check(path, model, ERROR, names=tuple(isa for isa in isas() if isa != "baseline"), threads=(1, 2, 3, 4))
    check(path, model, ERROR, names=isas()[-1:], batches=(1,), threads=(2,))


@pytest.mark.parametrize("precision", few(["fp32", "bf16"]))
@pytest.mark.parametrize("arch", [*VARIETIES, EVERY_KERNEL], ids=str)
def test_the_rest_of_the_family(arch: Architecture, precision: str, tmp_path: Path) -> None:
    model = network(arch)
    path = cd.export(model, "native", tmp_path / "m.so", precision=precision, tolerance=1).path
    check(path, model, ERROR if precision == "fp32" else BF16_ERROR, names=isas(precision), batches=(1, 3))


def test_batches_and_threads(tmp_path: Path) -> None:
    path = cd.export(every_kernel(), "native", tmp_path / "m.so").path
    check(path, every_kernel(), ERROR, names=isas()[:1], batches=tuple(range(1, 10)), threads=(1, 2, 3, 4))
    check(path, every_kernel(), ERROR, names=isas(), batches=(1,), threads=(1, 7, 32))  # more threads than there are rows


@pytest.mark.parametrize("precision", few(["fp32", "bf16", "int8"]))
def test_a_batch_is_shared_in_any_way(precision: str, tmp_path: Path) -> None:
    """By layers or by images, on any number of threads: the bits are those of single images on one thread."""
    model, images = every_kernel(), images_for(every_kernel(), 9)
    data: dict[str, Any] = {"calibrate": pixels_for(lower(model), 4)} if precision == "int8" else {}
    path = cd.export(model, "native", tmp_path / "m.so", precision=precision, tolerance=1, **data).path
    with open_file(read_pair(path), device="cpu", threads=1) as session:
        expected = np.concatenate([session.run(image[None]) for image in images])
    for sharing in SHARINGS:
        for threads in (1, 2, 3, 4, 7):
            with open_file(read_pair(path), device="cpu", threads=threads, isa=isas(precision)[0], sharing=sharing) as session:
                before = session.reserved
                for batch in (1, threads - 1 or 1, threads, threads + 1, 9, 1):
                    assert np.array_equal(session.run(images[:batch]), expected[:batch]), (sharing, threads, batch)
                assert before is not None and session.reserved is not None
                assert (session.reserved > before) == (sharing == "auto" and threads > 1)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any shape of the family that is small enough to run: G, C and groups of the 3x3 apart, growth of any divisor, sizes of any kind."""
    groups, condense, conv_groups = (draw(st.sampled_from(choice)) for choice in ((1, 2, 3, 4, 8), (1, 2, 4, 8), (1, 2, 3, 4, 8)))
    blocks = draw(st.integers(1, 3))
    bottleneck = draw(st.integers(1, 5))
    step = int(np.lcm.reduce([groups, condense, conv_groups]))
    growth = tuple(step * draw(st.integers(1, max(1, 48 // step))) for _ in range(blocks))
    size = (draw(st.integers(9, 70)), draw(st.integers(9, 70)))
    hypothesis.assume(max(growth) <= 96)
    try:
        return Architecture(
            tuple(draw(st.integers(1, 2)) for _ in range(blocks)), growth, bottleneck=bottleneck, group_1x1=groups, group_3x3=conv_groups,
            condense_factor=condense, classes=draw(st.sampled_from((3, 10, 100))), stem_stride=draw(st.integers(1, 3)), input_size=size,
            classifier_keep=draw(st.sampled_from((1.0, 0.5))),
        )  # fmt: skip
    except InputRefused:
        hypothesis.reject()


@pytest.mark.parametrize("precision", few(["fp32", "bf16"]))
@hypothesis.settings(examples(40), suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(architectures(), st.integers(1, 5), st.integers(0, 9))
def test_any_architecture(tmp_path_factory: pytest.TempPathFactory, precision: str, arch: Architecture, threads: int, seed: int) -> None:
    model = network(arch, seed)
    path = cd.export(model, "native", tmp_path_factory.mktemp("any") / "m.so", precision=precision, tolerance=1).path
    bound = ERROR if precision == "fp32" else 0.1
    check(path, model, bound, names=isas(precision), batches=(3,), threads=(threads,), seed=seed)


@pytest.mark.parametrize(("count", "accuracy"), few([(100, 0.91), (500, 0.9)]))
def test_bf16_on_real_images(count: int, accuracy: float, converted: Any, first_images: Callable[[int], Path], tmp_path: Path) -> None:
    done = cd.export(converted, "native", tmp_path / "m.so", precision="bf16", cpu="host", images=first_images(count))
    random, real = done.comparisons
    assert real.images == count and real.top1 == real.reference_top1 == accuracy
    assert real.agreement >= 0.99 and random.max_error > 1e-5 * random.scale  # it is bf16


@pytest.mark.parametrize("precision", few(["fp32", "bf16"]))
def test_nan_goes_where_torch_lets_it_go_and_does_not_stay(precision: str, tmp_path: Path) -> None:
    model = every_kernel()
    path = cd.export(model, "native", tmp_path / "m.so", precision=precision, tolerance=1).path
    check_nan(path, model, precision, (2,))


def test_extreme_inputs_stay_what_they_are(tmp_path: Path) -> None:
    model = network(TINY)
    path = cd.export(model, "native", tmp_path / "m.so").path
    with open_file(read_pair(path), device="cpu", threads=2) as session:
        for value in (0.0, 1e-30, 1e6):
            images = np.full((1, 3, 32, 32), value, np.float32)
            expected = exact(model, images)
            assert np.abs(session.run(images) - expected).max() <= ERROR * np.abs(expected).max()
