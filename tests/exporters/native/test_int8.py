"""Networks in integers: whatever instructions a library runs on, it computes what ``QuantizedProgram.run`` does, to the bit."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.exporters.native import int8, toolchain, write
from cnet_deploy.exporters.native.planning import make_plan
from cnet_deploy.exporters.native.toolchain import SOURCES, resolve
from cnet_deploy.hardware.cpu import host_machine
from cnet_deploy.models.architecture import NAMED, Architecture
from cnet_deploy.models.build import build_named
from cnet_deploy.program.calibration import METHODS
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import DenseLayer
from cnet_deploy.program.quantize import quantize
from cnet_deploy.program.quantized import (
    BYTE,
    EXTRA,
    POOL_BITS,
    QuantizedLayer,
    QuantizedPointwise,
    QuantizedProgram,
    QuantizedTransition,
    Requantization,
)
from cnet_deploy.sessions import native
from tests.builders import TINY, TINY_DENSENET, TINY_LGC, VARIETIES
from tests.cases import examples, exhaustive, few, long
from tests.exporters.native.helpers import (
    EVERY_KERNEL,
    SANITIZERS,
    drive,
    driver,
    every_kernel,
    in_integers,
    isas,
    library,
    library_of,
    network,
    pixels_for,
)

Images = np.ndarray[Any, np.dtype[np.float32]]
pytestmark = pytest.mark.usefixtures("compiled_int8")
x86_only = pytest.mark.skipif(host_machine() != "x86_64", reason="instruction sets of x86")
# Transitions whose rows are no whole tiles, with one group and with several.
UNEVEN = [replace(TINY_DENSENET, group_1x1=1, transition_channels=(10, 6)), replace(TINY_LGC, transition_channels=(4, 12))]


@contextlib.contextmanager
def opened(made: Path, isa: str, threads: int) -> Iterator[Callable[..., Images]]:
    """A handle of a library, as a function from images, and how threads share them, to logits."""
    opened_library, handle = native._Library(made.read_bytes()), ctypes.c_void_p()
    calls = opened_library.calls
    sizes = [ctypes.c_size_t() for _ in range(4)]
    assert calls.cnet_shape(*map(ctypes.byref, sizes)) == 0
    assert calls.cnet_create_for(isa.encode(), threads, ctypes.byref(handle)) == 0

    def run(images: Images, sharing: str = "auto") -> Images:
        logits = np.empty((len(images), sizes[3].value), np.float32)
        assert calls.cnet_share(handle, native.SHARINGS.index(sharing)) == 0
        assert calls.cnet_run(handle, images.ctypes.data, images.size, len(images), logits.ctypes.data, logits.size) == 0
        return logits

    try:
        yield run
    finally:
        opened_library.close(handle)


def check(made: Path, program: QuantizedProgram, images: Images, *, names: tuple[str, ...] | None = None, threads: Any = (1, 2)) -> Images:
    """Every instruction set, number of threads and way of sharing gives the logits of ``run``, bit for bit."""
    expected = program.run(images)
    for isa in names or isas("int8"):
        for count in threads:
            with opened(made, isa, count) as run:
                for sharing in ("images", "layers"):  # the second finds what the first left in memory
                    assert np.array_equal(run(images, sharing).view(np.int32), expected.view(np.int32)), (isa, count, sharing)
    return expected


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with all that it carries by default: of every kernel, half of the layers in int16."""
    return library_of(in_integers(every_kernel()), tmp_path_factory.mktemp("int8") / "model.so", resolve(None, "int8").isas)


# ---- the same bits -----------------------------------------------------------------------------------------------------------------


@long
@pytest.mark.parametrize("name", few(name for name, arch in NAMED.items() if arch.kind != "condensenet_v2"))
def test_every_architecture_of_the_paper(name: str, tmp_path: Path) -> None:
    program = in_integers(build_named(name))
    check(library_of(program, tmp_path / "m.so", isas("int8")), program, pixels_for(program, 1), threads=(2, 3))


@pytest.mark.parametrize("arch", few([EVERY_KERNEL, *UNEVEN, *VARIETIES], 3), ids=str)
def test_the_rest_of_the_family(arch: Architecture, tmp_path: Path) -> None:
    program = in_integers(network(arch))
    check(library_of(program, tmp_path / "m.so", isas("int8")), program, pixels_for(program, 3))


@pytest.mark.parametrize("changes", [{"image_channels": 1}, {"image_channels": 4}, {"input_size": (48, 40), "final_pool": "original"}])
@long
def test_what_few_networks_have(changes: dict[str, Any], tmp_path: Path) -> None:
    program = in_integers(network(replace(TINY, **changes)))
    check(library_of(program, tmp_path / "m.so", isas("int8")), program, pixels_for(program, 3))


def test_batches_and_threads(everything: Path) -> None:
    program = in_integers(every_kernel())
    images = pixels_for(program, 9)
    expected = program.run(images)
    for isa in isas("int8")[:2]:
        for threads in (1, 2, 3, 4):
            with opened(everything, isa, threads) as run:
                for batch in range(1, 10):
                    assert np.array_equal(run(images[:batch]), expected[:batch]), (isa, threads, batch)
    for isa in isas("int8"):
        for threads in (7, 32):  # more than there are rows
            with opened(everything, isa, threads) as run:
                assert np.array_equal(run(images[:1]), expected[:1]), (isa, threads)


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Any shape of the family that is small enough to run, maps of one pixel and transitions of any width included."""
    kind = draw(st.sampled_from(("condensenet", "condensenet", "densenet_lgc", "densenet")))
    groups, condense, conv_groups = (draw(st.sampled_from(choice)) for choice in ((1, 2, 3, 4, 8), (1, 2, 4, 8), (1, 2, 3, 4, 8)))
    condense = 1 if kind == "densenet" else condense
    blocks = draw(st.integers(1, 3))
    step = int(np.lcm.reduce([groups, condense, conv_groups]))
    growth = tuple(step * draw(st.integers(1, max(1, 48 // step))) for _ in range(blocks))
    hypothesis.assume(max(growth) <= 96)
    widths = () if kind == "condensenet" else tuple(step * draw(st.integers(1, max(1, 40 // step))) for _ in range(blocks - 1))
    size = st.one_of(st.integers(9, 70), st.integers(1, 9), st.sampled_from((63, 64, 65, 127, 128, 129, 200)))
    try:
        return Architecture(
            tuple(draw(st.integers(1, 2)) for _ in range(blocks)), growth, kind=kind, bottleneck=draw(st.integers(1, 5)), group_1x1=groups,
            group_3x3=conv_groups, condense_factor=condense, classes=draw(st.sampled_from((1, 3, 10, 16, 17, 100))),
            stem_stride=draw(st.integers(1, 5)), input_size=(draw(size), draw(size)), transition_channels=widths,
            classifier_keep=draw(st.sampled_from((1.0, 0.5))),
        )  # fmt: skip
    except InputRefused:
        hypothesis.reject()


ANY = {"suppress_health_check": list(hypothesis.HealthCheck)}


@long
@hypothesis.settings(examples(25), **ANY)
@hypothesis.given(architectures(), st.integers(0, 9), st.sampled_from(METHODS), st.sets(st.integers(0, 5)), st.integers(2, 5))
def test_any_architecture(
    tmp_path_factory: pytest.TempPathFactory, arch: Architecture, seed: int, method: Any, kept: set[int], threads: int
) -> None:
    """As they are quantised: gains of either sign and of zero, ReLUs that always or never cut, planes that are constant."""
    program = lower(network(arch, seed))
    random = np.random.default_rng(seed)
    body = [_with_constants(layer, random) if isinstance(layer, DenseLayer) else layer for layer in program.body]
    program = replace(program, body=tuple(body))
    names = [layer.name for layer in program.body if isinstance(layer, DenseLayer)]
    done = quantize(program, pixels_for(program, 2, seed), method=method, int16=[name for n, name in enumerate(names) if n in kept])
    images = random.standard_normal((2, *arch.image_shape)).astype(np.float32) * 2
    check(library_of(done, tmp_path_factory.mktemp("any") / "m.so", isas("int8")), done, images, threads=(1, threads))


def _with_constants(layer: DenseLayer, random: np.random.Generator) -> DenseLayer:
    """Some shifts so large that the ReLU never cuts or lets nothing pass, and some rows without weights."""
    conv = layer.pointwise
    shift = conv.shift + random.choice([-50, 0, 0, 0, 50], conv.shift.size).astype(np.float32)
    weight = conv.weight * (random.random((len(conv.weight), 1)) > 0.1).astype(np.float32)
    return replace(layer, pointwise=replace(conv, shift=shift, weight=weight))


@hypothesis.settings(examples(25), **ANY)
@hypothesis.given(architectures(), st.integers(0, 1 << 20), st.integers(2, 5))
def test_any_integers(tmp_path_factory: pytest.TempPathFactory, arch: Architecture, seed: int, threads: int) -> None:
    """Numbers as no calibration gives them: weights at the ends of their types, every shift, multiplier and zero point."""
    done = scrambled(in_integers(network(arch)), seed)
    made = library_of(done, tmp_path_factory.mktemp("any") / "m.so", isas("int8"))
    check(made, done, pixels_for(done, 2, seed), threads=(1, threads))


def scrambled(program: QuantizedProgram, seed: int) -> QuantizedProgram:
    """Other numbers in the same shapes, as extreme as their types allow while sums have 31 bits. Half of the rows stay as they are."""
    random = np.random.default_rng(seed)

    def steps(old: Requantization, rows: np.ndarray[Any, Any]) -> Requantization:
        count = len(rows)
        shift = np.where(rows, random.integers(0, 32, count), old.shift)
        shift = np.where(rows & (random.random(count) < 0.5), random.integers(0, 12, count), shift)
        multiplier = np.where(rows, random.choice([1, 2, 16384, 32766, 32767, int(random.integers(1, 32768))], count), old.multiplier)
        zero = np.where(rows, random.choice([0, 1, 128, 255, -300, 1 << 14, -(1 << 14)], count), old.zero)
        return replace(old, shift=shift.astype(np.int32), multiplier=multiplier.astype(np.int32), zero=zero.astype(np.int32))

    def weights(old: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], largest: int) -> np.ndarray[Any, Any]:
        flat, ends = old.reshape(len(old), -1).copy(), np.iinfo(old.dtype)
        most = min(ends.max, (1 << 29) // (largest * flat.shape[1]))  # so that a row's sum has 30 bits at most, without its ends
        new = random.choice([-most, -1, 0, 1, most], flat.shape)
        few_ends = random.random(flat.shape) < min(1.0, 3 / flat.shape[1]) if ends.max > most else random.random(flat.shape) < 0.5
        bounded = np.cumsum(few_ends, 1) <= ((1 << 29) // (largest * (ends.max + 1)))
        new = np.where(few_ends & bounded, random.choice([ends.min, ends.max], flat.shape), new)
        return np.where(rows[:, None], new, flat).astype(old.dtype).reshape(old.shape)

    def bias(old: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        exponent = random.integers(0, 30, len(old))
        return np.where(rows, random.choice([-1, 1], len(old)) * (random.integers(0, 2, len(old)) + (1 << exponent)), old).astype(np.int32)

    def chosen(count: int) -> np.ndarray[Any, Any]:
        return random.random(count) < 0.5

    def pointwise(conv: QuantizedPointwise) -> QuantizedPointwise:
        rows, inputs, largest = chosen(len(conv.weight)), chosen(conv.index.size), BYTE << conv.extra
        ends = random.choice([0, 1, largest - 1, largest, int(random.integers(largest))], conv.index.size)
        return replace(
            conv, weight=weights(conv.weight, rows, largest), bias=bias(conv.bias, rows),
            requantization=steps(conv.requantization, rows), threshold=np.where(inputs, ends, conv.threshold).astype(np.int32),
            negative=conv.negative ^ chosen(conv.index.size),
        )  # fmt: skip

    def layer(old: QuantizedLayer | QuantizedTransition) -> QuantizedLayer | QuantizedTransition:
        if isinstance(old, QuantizedTransition):
            return replace(old, pointwise=old.pointwise and pointwise(old.pointwise))
        rows, conv = chosen(len(old.weight)), pointwise(old.pointwise)
        new = weights(old.weight, rows, conv.requantization.most)
        return replace(old, pointwise=conv, weight=new, requantization=steps(old.requantization, rows))

    stem, pool, head = program.stem, program.pool, program.head
    rows, kept = chosen(len(stem.weight)), chosen(pool.index.size)
    ends = random.choice([0, 1, (BYTE << POOL_BITS) - 1, BYTE << POOL_BITS], pool.index.size)
    return replace(
        program,
        stem=replace(
            stem, weight=weights(stem.weight, rows, BYTE), bias=bias(stem.bias, rows), requantization=steps(stem.requantization, rows)
        ),
        body=tuple(map(layer, program.body)),
        pool=replace(
            pool, threshold=np.where(kept, ends, pool.threshold).astype(np.int32), negative=pool.negative ^ chosen(pool.index.size),
            bits=int(random.integers(0, EXTRA + 1)),
        ),
        head=replace(head, weight=random.choice([-128, -127, -1, 0, 1, 127], head.weight.shape).astype(np.int8)),
    )  # fmt: skip


@functools.cache
def edges() -> QuantizedProgram:
    """A transition of 256 rows that read one byte each and add what brings the sum to an end of some type."""
    arch = replace(TINY_DENSENET, group_1x1=1, stages=(1, 1), growth=(8, 8), transition_channels=(256,), input_size=(16, 16))
    program = in_integers(network(arch))
    random = np.random.default_rng(0)
    cases = [
        (bias, shift, multiplier, zero)
        for shift in range(32)
        for bias in (-(1 << 31), (1 << 31) - 256, ((1 << 15) << shift) - 128, -((1 << 15) << shift) - 128, (1 << shift) - 128, -128)
        if -(1 << 31) <= bias <= (1 << 31) - 256
        for multiplier, zero in ((32767, 0), (32767, -(1 << 14)), (32767, 1 << 14), (1, 1), (1, 0), (2, 127), (16384, 255), (16385, -128))
    ]
    picked = np.array([cases[n] for n in random.permutation(len(cases))[:256]])
    body = list(program.body)
    transition = body[1]
    assert isinstance(transition, QuantizedTransition) and transition.pointwise is not None
    conv = transition.pointwise
    weight = np.zeros_like(conv.weight)
    weight[np.arange(256), random.integers(0, weight.shape[1], 256)] = 1
    bias, shift, multiplier, zero = picked.astype(np.int32).T
    body[1] = replace(
        transition,
        pointwise=replace(
            conv, weight=weight, bias=bias, threshold=np.zeros_like(conv.threshold), negative=np.zeros_like(conv.negative),
            requantization=Requantization(shift, multiplier, zero),
        ),
    )  # fmt: skip
    pool = replace(program.pool, threshold=np.zeros_like(program.pool.threshold), negative=np.zeros_like(program.pool.negative))
    return replace(program, body=tuple(body), pool=pool)


def test_requantization_at_the_ends(tmp_path: Path) -> None:
    """Sums at both ends of 32 bits and of 16, every shift, multipliers and zero points at their ends."""
    program = edges()
    conv = program.body[1].pointwise
    assert conv is not None and set(conv.requantization.shift) == set(range(32))
    planes = conv.of(
        program.body[0].of(program.stem.of(program.stem.to_pixels(pixels_for(program, 2)))).repeat(8, 1)[:, : conv.in_channels]
    )
    assert {0.0, 255.0} < set(np.unique(planes))
    check(library_of(program, tmp_path / "m.so", isas("int8")), program, pixels_for(program, 2))


def test_a_logit_is_rounded_as_the_yardstick_does(tmp_path: Path) -> None:
    """Product and sum apart: a multiply-add, which does not round the product, gives other logits where they nearly cancel."""
    arch = replace(TINY, stages=(1, 1, 1), growth=(64, 256, 768), bottleneck=1, classes=100)
    program = in_integers(network(arch))
    body = [
        replace(layer, requantization=_always_most(layer.requantization)) if isinstance(layer, QuantizedLayer) else layer
        for layer in program.body
    ]
    stem = replace(program.stem, requantization=_always_most(program.stem.requantization))
    threshold = np.zeros_like(program.pool.threshold)
    threshold[0] = 1 << POOL_BITS - EXTRA  # makes the sum odd
    pool = replace(program.pool, threshold=threshold, negative=threshold < 0, bits=EXTRA)
    total = (pool.index.size * (BYTE << EXTRA) - 1) * 127
    assert 1 << 29 < total < 1 << 31  # a product with 24 bits has more than the 53 of double precision
    scale = np.random.default_rng(0).random(100_000).astype(np.float32) + 1
    left = np.abs(total * scale.astype(np.float64) - (total * scale.astype(np.float64)).astype(np.float32))
    scale = scale[left.argsort()[:100]]  # whose product is nearest to a float32, so that its last bits stand alone
    bias = -(total * scale.astype(np.float64)).astype(np.float32)
    head = replace(program.head, weight=np.full_like(program.head.weight, 127), scale=scale, bias=bias)
    program = replace(program, stem=stem, body=tuple(body), pool=pool, head=head)
    logits = check(library_of(program, tmp_path / "m.so", isas("int8")), program, pixels_for(program, 1))
    at_once = [np.float32(float(total * Fraction(float(w)) + Fraction(float(b)))) for w, b in zip(scale, bias, strict=True)]
    assert not np.array_equal(logits[0], at_once)


def _always_most(steps: Requantization) -> Requantization:
    return replace(steps, zero=np.full_like(steps.zero, 1 << 14), multiplier=np.ones_like(steps.multiplier))


# ---- what is not finite ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", few([3, 5, 2, 1]))
def test_what_is_not_finite_gives_nan_to_its_image_alone(stride: int, tmp_path: Path) -> None:
    """In every row and at every edge, rows and columns that no output reads included."""
    arch = replace(TINY, stem_stride=stride, input_size=(8 * stride - stride // 2 + 1, 8 * stride))
    program = in_integers(network(arch))
    made = library_of(program, tmp_path / "m.so", isas("int8"))
    height, width = arch.input_size
    places = [(row, column) for row in range(height) for column in (0, width // 2, width - 1)]
    images = pixels_for(program, len(places) + 1)
    for number, (row, column) in enumerate(places):
        images[number, number % 3, row, column] = (np.nan, np.inf, -np.inf)[number % 3]
    expected = program.run(images)
    assert np.isnan(expected[:-1]).all() and np.isfinite(expected[-1]).all()
    for isa in isas("int8"):
        for threads in (1, 3):
            with opened(made, isa, threads) as run:
                for sharing in native.SHARINGS:
                    assert np.array_equal(run(images, sharing), expected, equal_nan=True), (isa, threads, sharing)
                    assert np.array_equal(run(images[-1:], sharing), expected[-1:])


def test_extreme_pixels(everything: Path) -> None:
    program = in_integers(every_kernel())
    images = np.full((6, *program.architecture.image_shape), 0, np.float32)
    images += np.array([0.0, -0.0, 1e-45, 1e30, -1e30, 3.4e38], np.float32)[:, None, None, None]
    halves = (np.arange(images[0].size) % 256 + 0.5 - 127) / 127  # between two bytes
    check(everything, program, np.concatenate([images, halves.astype(np.float32).reshape(1, *images[0].shape)]))


# ---- other processors --------------------------------------------------------------------------------------------------------------


def emulated(made: Path, program: QuantizedProgram, folder: Path, under: tuple[str, ...], isa: str, compiler: str = "gcc") -> None:
    """The best that an emulated processor has is chosen, and gives the same bits."""
    images = pixels_for(program, 2)
    images.tofile(folder / "images")
    classes = len(program.head.bias)
    executable = driver(made.with_name("driver"), made, compiler=(compiler,))
    for threads in (1, 2):
        done = drive(executable, "run", "best", threads, 2, images[0].size, classes, folder / "images", folder / "logits", under=under)
        assert (done.returncode, done.stdout.strip()) == (0, isa), done.stderr[-500:]
        assert np.array_equal(np.fromfile(folder / "logits", np.float32).reshape(2, -1), program.run(images))


@x86_only
@pytest.mark.parametrize(("cpu", "isa"), few([("Haswell", "avx2"), ("Nehalem", "baseline"), ("qemu64", "baseline")]))
def test_chooses_by_the_processor(cpu: str, isa: str, everything: Path, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    under = (system_tool("qemu-x86_64"), "-cpu", cpu)
    emulated(everything, in_integers(every_kernel()), tmp_path, under, isa)
    for lacking in ("avx512_vnni", "avx_vnni"):
        done = drive(everything.with_name("driver"), "run", lacking, 2, 2, 3 * 48 * 48, 70, "none", "none", under=under)
        assert done.returncode == 6, done.stderr[-500:]


@x86_only
@pytest.mark.parametrize(("target", "cpu"), few([("x86-64-v4", "Haswell"), ("x86-64-v3", "Nehalem"), ("x86-64-v4", "Nehalem")]))
def test_a_library_for_a_better_processor_says_so(target: str, cpu: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    made = library_of(in_integers(network(TINY)), tmp_path / "m.so", resolve(target, "int8").isas)
    under = (system_tool("qemu-x86_64"), "-cpu", cpu)
    done = drive(driver(tmp_path / "driver", made), "run", "best", 1, 1, 3072, 10, "none", "none", under=under)
    assert done.returncode == 6, done.stderr[-500:]


@pytest.mark.skipif("avx512_vnni" not in isas("int8"), reason="needs the instructions of AVX-512 VNNI")
@pytest.mark.parametrize("seed", few([None, *range(4)], 1))
@long
def test_avx_vnni_in_the_encoding_of_avx512(seed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors with AVX-512 VNNI need not have AVX-VNNI, but have the same instructions under another encoding."""
    monkeypatch.setattr(toolchain, "SOURCES", tmp_path / "cpp")
    for path in SOURCES.rglob("*.*"):
        text = path.read_text()
        if path.name == "bytes.hpp":
            assert text.count("%{vex%}") == 2
            text = text.replace("%{vex%}", "%{evex%}")
        if path.name == "cpu.hpp":
            assert text.count("has(a71, 4)") == 1
            text = text.replace("has(a71, 4)", "has(c7, 11) && v3")
        copy = tmp_path / "cpp" / path.relative_to(SOURCES)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    program = in_integers(every_kernel())
    program = program if seed is None else scrambled(program, seed)
    made = library_of(program, tmp_path / "m.so", ("avx_vnni",))
    check(made, program, pixels_for(program, 3), names=("avx_vnni",), threads=(1, 2, 3))


ARM = {"cortex-a57": "neon", "neoverse-n1": "neon_dotprod", "max": "neon_i8mm"}


@pytest.fixture(scope="module")
def for_arm(tmp_path_factory: pytest.TempPathFactory, system_tool: Callable[[str], str]) -> Path:
    system_tool("aarch64-linux-gnu-g++")
    out = tmp_path_factory.mktemp("arm") / "m.so"
    return library_of(in_integers(every_kernel()), out, resolve("aarch64", "int8").isas, machine="aarch64")


@pytest.mark.parametrize("cpu", ARM)
@long
def test_every_set_of_arm(cpu: str, for_arm: Path, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    under = (system_tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", "-cpu", cpu)
    emulated(for_arm, in_integers(every_kernel()), tmp_path, under, ARM[cpu], "aarch64-linux-gnu-gcc")
    assert drive(for_arm.with_name("driver"), "refuse", 3 * 48 * 48, 70, under=under).returncode == 0
    for isa in list(ARM.values())[list(ARM).index(cpu) + 1 :]:
        done = drive(for_arm.with_name("driver"), "run", isa, 1, 1, 3 * 48 * 48, 70, "none", "none", under=under)
        assert done.returncode == 6, done.stderr[-500:]


@pytest.mark.parametrize("seed", few(range(4), 2))
@long
def test_any_integers_on_arm(seed: int, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    system_tool("aarch64-linux-gnu-g++")
    emulator = (system_tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", "-cpu")
    for number, program in enumerate(
        (scrambled(in_integers(every_kernel()), seed), edges(), scrambled(in_integers(network(UNEVEN[0])), seed))
    ):
        (folder := tmp_path / str(number)).mkdir()
        made = library_of(program, folder / "m.so", resolve("aarch64", "int8").isas, machine="aarch64")
        for cpu, isa in ARM.items():
            emulated(made, program, folder, (*emulator, cpu), isa, "aarch64-linux-gnu-gcc")


@long
def test_a_library_for_a_better_arm_says_so(tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    """What refuses must itself run on any processor."""
    system_tool("aarch64-linux-gnu-g++")
    emulator = (system_tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", "-cpu")
    made = library_of(in_integers(network(TINY)), tmp_path / "m.so", ("neon_i8mm",), machine="aarch64")
    program = driver(tmp_path / "driver", made, compiler=("aarch64-linux-gnu-gcc",))
    for cpu, status in (("cortex-a57", 6), ("neoverse-n1", 6), ("max", 101)):  # 101: it has begun, and found no images
        done = drive(program, "run", "best", 1, 1, 3072, 10, "none", "none", under=(*emulator, cpu))
        assert done.returncode == status, done.stderr[-500:]


def test_a_machine_without_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "host_machine", lambda: "riscv64")
    for target in (None, "host"):
        with pytest.raises(Unavailable, match="int8 is compiled for x86_64 and aarch64, and this machine is riscv64"):
            resolve(target, "int8")
    assert resolve(None, "fp32").isas == ("baseline",)


def test_targets() -> None:
    assert resolve("x86-64-v3", "int8").isas == ("avx_vnni", "avx2") and resolve("x86-64-v4", "int8").isas == ("avx512_vnni",)
    assert resolve("aarch64", "int8").isas == ("neon_i8mm", "neon_dotprod", "neon")
    assert resolve("host", "int8").isas == isas("int8")[:1]


@pytest.mark.parametrize("compiler", few(["clang++"]))
@long
def test_clang_compiles_the_same_network(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_tool: Callable[[str], str]
) -> None:
    monkeypatch.setenv("CXX", system_tool(compiler))
    for number, program in enumerate((in_integers(every_kernel()), scrambled(in_integers(every_kernel()), 1), edges())):
        made = library_of(program, tmp_path / f"{number}.so", isas("int8"))
        check(made, program, pixels_for(program, 2))


@long
def test_the_compiler_from_pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system_tool: Callable[[str], str]) -> None:
    """For this machine and for another, with nothing of the system's on the path."""
    pytest.importorskip("ziglang", reason="needs the extra: cnet-deploy[compiler]")
    program = scrambled(in_integers(every_kernel()), 2)
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "empty"))
        made = library_of(program, tmp_path / "m.so", isas("int8")[:1])
        other = library_of(program, tmp_path / "other.so", ("neon_i8mm",), machine="aarch64")
    check(made, program, pixels_for(program, 2), names=isas("int8")[:1])
    system_tool("aarch64-linux-gnu-gcc")
    under = (system_tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu", "-cpu", "max")
    emulated(other, program, tmp_path, under, "neon_i8mm", "aarch64-linux-gnu-gcc")


# ---- the file ----------------------------------------------------------------------------------------------------------------------


@x86_only
@exhaustive("test_chooses_by_the_processor")
def test_no_instruction_set_shares_code_with_another(tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    names = ("avx512_vnni", "avx_vnni", "avx2", "baseline")
    made = library_of(in_integers(every_kernel()), tmp_path / "m.so", names, extra=["-DUNSTRIPPED"])
    command = [system_tool("objdump"), "-d", "-C", "--no-show-raw-insn", made]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seen = set()
    for function in code.split("\n\n"):
        name = function.partition("<")[2].partition(">:")[0]
        own = {isa for isa in names if f"cnet::{isa}::" in name}
        assert len(own) <= 1, name
        seen |= own
        if own != {"avx512_vnni"}:
            assert "%zmm" not in function and "%k1" not in function, name
        if not own & {"avx512_vnni", "avx_vnni"}:
            assert "vpdp" not in function, name
        if not own & {"avx512_vnni", "avx_vnni", "avx2"}:
            assert "%ymm" not in function, name
    assert seen == set(names)


RESIDENT = """
import ctypes, pathlib, sys
made, floats, classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def resident():
    pages = pathlib.Path("/proc/self/statm").read_text().split()
    return int(pages[1])
before = resident()
library, handle = ctypes.CDLL(made), ctypes.c_void_p()
library.cnet_create(1, ctypes.byref(handle))
size = ctypes.c_size_t
image, logits = (ctypes.c_float * floats)(), (ctypes.c_float * classes)()
assert library.cnet_run(handle, image, size(floats), size(1), logits, size(classes)) == 0
print(resident() - before)
"""


@long
def test_smaller_than_in_fp32(tmp_path: Path) -> None:
    """The weights, the file, and what a process has in memory after its first image."""
    arch = replace(TINY, stages=(4, 4, 4), growth=(32, 64, 128), input_size=(224, 224), stem_stride=2, classes=1000)
    program = lower(network(arch))
    done = quantize(program, pixels_for(program, 1))
    names = ("avx2",) if "avx2" in isas("int8") else isas("int8")[-1:]
    made = {
        "int8": library_of(done, tmp_path / "int8.so", names),
        "fp32": library(network(arch), tmp_path / "fp32.so", names),
    }
    weights = {
        "int8": int8.make_plan(done, description="", isas=names).weights,
        "fp32": make_plan(program, precision="fp32", description="", isas=names).weights,
    }
    assert len(weights["int8"]) < 0.35 * len(weights["fp32"])
    assert made["int8"].stat().st_size < 0.5 * made["fp32"].stat().st_size
    resident = {
        precision: int(subprocess.check_output([sys.executable, "-c", RESIDENT, path, str(3 * 224 * 224), "1000"], text=True))
        for precision, path in made.items()
    }
    assert resident["int8"] < resident["fp32"]


def test_one_program_gives_the_same_words() -> None:
    program = in_integers(every_kernel())
    first, second = (int8.make_plan(program, description="{}", isas=("avx2", "baseline")) for _ in range(2))
    assert first == second and first.layouts == ("int8",) * 3


@long
def test_a_damaged_library_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(TINY)
    made = cd.export(model, "native", tmp_path / "m.so", precision="int8", cpu="host", calibrate=pixels_for(lower(model), 2)).path
    data = made.read_bytes()
    monkeypatch.setattr(native, "_Library", lambda _: pytest.fail("it was loaded"))
    for damaged in (b"", data[:-1], data[: len(data) // 2], data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], data + b"x"):
        made.write_bytes(damaged)
        with pytest.raises(InputRefused):
            cd.open_session(made)
    made.write_bytes(data)
    made.with_name("m.so.json").unlink()
    with pytest.raises(InputRefused, match="has no manifest m.so.json beside it"):
        cd.open_session(made)


def test_int8_needs_a_quantization() -> None:
    with pytest.raises(InputRefused, match="needs images that the ranges of its values are taken from"):
        write(lower(network(TINY)), Path("never.so"), precision="int8")


# ---- the C interface ---------------------------------------------------------------------------------------------------------------


def test_the_c_interface(everything: Path, tmp_path: Path) -> None:
    """Every wrong call is a status, handles and threads are many, none outlives a fork, another model stands beside it."""
    program = driver(everything.with_name("driver"), everything)
    pixels_for(in_integers(every_kernel()), 2).tofile(tmp_path / "images")
    other = library_of(in_integers(network(TINY)), tmp_path / "other.so", isas("int8")[-1:])
    floats = 3 * 48 * 48
    for command in (("refuse", floats, 70), ("many", floats, 70, tmp_path / "images", 20), ("fork", floats, 70), ("foreign", other)):
        done = drive(program, *command)
        assert (done.returncode, done.stderr) == (0, ""), command


@hypothesis.settings(examples(15), **ANY)
@hypothesis.given(architectures(), st.integers(0, 1 << 20), st.integers(1, 5))
@long
def test_a_sanitizer_finds_nothing_in_any_architecture(
    tmp_path_factory: pytest.TempPathFactory, arch: Architecture, seed: int, threads: int
) -> None:
    """Every piece of memory ends where it must and is written before it is read; each set has runs of its own length."""
    flags = SANITIZERS["address,undefined"]
    folder = tmp_path_factory.mktemp("any")
    program = scrambled(in_integers(network(arch)), seed)
    images = pixels_for(program, 2)
    images.tofile(folder / "images")
    executable = driver(folder / "driver", library_of(program, folder / "m.so", isas("int8"), extra=flags), flags=flags)
    for isa in isas("int8"):
        command = ("run", isa, threads, 2, images[0].size, len(program.head.bias), folder / "images", folder / "logits")
        done = drive(executable, *command, ASAN_OPTIONS="detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255")
        assert done.returncode == 0, done.stderr[-3000:]
        assert np.array_equal(np.fromfile(folder / "logits", np.float32).reshape(2, -1), program.run(images)), isa
