"""What compiled libraries compute, and what they are made of, on every instruction set that this machine or an emulator has."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import cnet_deploy as cd
from cnet_deploy.architecture import NAMED, Architecture
from cnet_deploy.data import read_images
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.native.toolchain import SOURCES
from cnet_deploy.machine import host_machine
from cnet_deploy.manifest import read_pair
from cnet_deploy.models import build_named
from cnet_deploy.sessions.native import open_file
from tests.builders import TINY, VARIETIES
from tests.exporters.native.helpers import (
    EVERY_KERNEL,
    drive,
    driver,
    every_kernel,
    exact,
    images_for,
    isas,
    library,
    network,
)

ERROR = 1e-5  # of the largest logit, in fp32
BF16_ERROR = 3e-2

x86_only = pytest.mark.skipif(host_machine() != "x86_64", reason="instruction sets of x86")


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
    """The largest error of a library, relative to the largest logit, over instruction sets, batches and threads."""
    worst = 0.0
    for batch in batches:
        images = images_for(model, batch, seed)
        expected = exact(model, images)
        for isa in names:
            for count in threads:
                with open_file(read_pair(path), device="cpu", threads=count, isa=isa) as session:
                    assert session.isa == isa
                    for _ in range(2):  # the second finds what the first left in memory
                        worst = max(worst, float(np.abs(session.run(images) - expected).max() / np.abs(expected).max()))
    assert worst <= bound
    return worst


# ---- numbers -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_every_architecture_of_the_paper(name: str, tmp_path: Path) -> None:
    model = build_named(name)
    path = cd.export(model, "native", tmp_path / "m.so").path
    # The portable code takes a second an image on the largest: once is enough.
    check(path, model, ERROR, names=tuple(isa for isa in isas() if isa != "baseline"), threads=(1, 2, 3, 4))
    check(path, model, ERROR, names=isas()[-1:], batches=(1,), threads=(2,))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arch", [*VARIETIES, EVERY_KERNEL], ids=str)
def test_the_rest_of_the_family(arch: Architecture, precision: str, tmp_path: Path) -> None:
    model = network(arch)
    path = cd.export(model, "native", tmp_path / "m.so", precision=precision, tolerance=1).path
    check(path, model, ERROR if precision == "fp32" else BF16_ERROR, names=isas(precision), batches=(1, 3))


def test_batches_and_threads(tmp_path: Path) -> None:
    path = cd.export(every_kernel(), "native", tmp_path / "m.so").path
    check(path, every_kernel(), ERROR, names=isas()[:1], batches=tuple(range(1, 10)), threads=(1, 2, 3, 4))
    check(path, every_kernel(), ERROR, names=isas(), batches=(1,), threads=(1, 7, 32))  # more threads than there are rows


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


@pytest.mark.slow
@hypothesis.settings(max_examples=40, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(architectures(), st.sampled_from(("fp32", "bf16")), st.integers(1, 5), st.integers(0, 9))
def test_any_architecture(tmp_path_factory: pytest.TempPathFactory, arch: Architecture, precision: str, threads: int, seed: int) -> None:
    model = network(arch, seed)
    path = cd.export(model, "native", tmp_path_factory.mktemp("any") / "m.so", precision=precision, tolerance=1).path
    bound = ERROR if precision == "fp32" else 0.1
    check(path, model, bound, names=isas(precision), batches=(3,), threads=(threads,), seed=seed)


def test_bf16_on_real_images(converted: Any, images_path: Path, tmp_path: Path) -> None:
    done = cd.export(converted, "native", tmp_path / "m.so", precision="bf16", images=images_path)
    random, real = done.comparisons
    assert real.images == 500 and real.top1 == real.reference_top1 == 0.9
    assert real.agreement >= 0.99 and random.max_error > 1e-5 * random.scale  # it is bf16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nan_goes_where_torch_lets_it_go_and_does_not_stay(precision: str, tmp_path: Path) -> None:
    model = every_kernel()
    path = cd.export(model, "native", tmp_path / "m.so", precision=precision, tolerance=1).path
    images = images_for(model, 3)
    clean = images.copy()
    images[1, 2, 17, 33] = np.nan
    expected = np.isnan(exact(model, images))
    assert expected[1].all() and not expected[[0, 2]].any()
    for isa in isas(precision):
        with open_file(path, device="cpu", threads=2, isa=isa) as session:
            before = session.run(clean)
            assert np.array_equal(np.isnan(session.run(images)), expected)
            assert np.array_equal(session.run(clean), before)


def test_extreme_inputs_stay_what_they_are(tmp_path: Path) -> None:
    model = network(TINY)
    path = cd.export(model, "native", tmp_path / "m.so").path
    with open_file(path, device="cpu", threads=2) as session:
        for value in (0.0, 1e-30, 1e6):
            images = np.full((1, 3, 32, 32), value, np.float32)
            expected = exact(model, images)
            assert np.abs(session.run(images) - expected).max() <= ERROR * np.abs(expected).max()


# ---- what a library is made of ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with all that it carries by default."""
    return cd.export(every_kernel(), "native", tmp_path_factory.mktemp("portable") / "model.so").path


def test_needs_nothing_but_libc(portable: Path, system_tool: Callable[[str], str]) -> None:
    shown = subprocess.run([system_tool("readelf"), "-dW", portable], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.+?)\]", shown))
    assert "libc.so.6" in needed and all(re.fullmatch(r"(libc|libm)\.so\.6|ld-linux.*\.so\.\d", name) for name in needed)
    assert "TEXTREL" not in shown


def test_shows_nothing_but_its_interface(portable: Path, system_tool: Callable[[str], str]) -> None:
    shown = subprocess.run([system_tool("nm"), "-D", "--defined-only", portable], capture_output=True, text=True, check=True).stdout
    declared = set(re.findall(r"CNET_API cnet_status (cnet_\w+)\(", (SOURCES / "cnet.h").read_text()))
    assert {line.split()[-1] for line in shown.splitlines()} == declared


@x86_only
def test_no_instruction_set_shares_code_with_another(tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    """Weak symbols are what a linker merges: those of the kernels must all be in the namespace of one instruction set."""
    path = library(every_kernel(), tmp_path / "m.so", ("avx512", "avx2", "baseline"), extra=["-DUNSTRIPPED"])
    listed = subprocess.run([system_tool("nm"), "-C", path], capture_output=True, text=True, check=True).stdout
    symbols = [line.split(maxsplit=2)[1:] for line in listed.splitlines() if re.match(r"[0-9a-f]+ [tTwWvVu] ", line)]
    weak = [name for kind, name in symbols if kind in "wWvVu"]
    mixed = [name for name in weak if sum(f"cnet::{isa}::" in name for isa in ("avx512", "avx2", "baseline")) > 1]
    assert mixed == []
    kernels = {isa: [name for _, name in symbols if f"cnet::{isa}::" in name] for isa in ("avx512", "avx2", "baseline")}
    assert min(map(len, kernels.values())) > 20
    code = subprocess.run(
        [system_tool("objdump"), "-d", "-C", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
    ).stdout
    for function in code.split("\n\n"):
        name = function.partition("<")[2].partition(">:")[0]
        if "cnet::avx512::" in name:
            continue
        assert "%zmm" not in function, name
        if "cnet::avx2::" not in name:
            assert "%ymm" not in function, name


@pytest.mark.skipif(host_machine() != "x86_64", reason="the emulator is set to processors of x86")
@pytest.mark.parametrize(("cpu", "isa"), [("qemu64", "baseline"), ("Nehalem", "baseline"), ("Haswell", "avx2")])
def test_chooses_by_the_processor(cpu: str, isa: str, portable: Path, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    model = every_kernel()
    program = driver(portable.with_name("driver"), portable)
    images = images_for(model, 2)
    images.tofile(tmp_path / "images")
    qemu = (system_tool("qemu-x86_64"), "-cpu", cpu)
    done = drive(program, "run", "best", 2, 2, images[0].size, 70, tmp_path / "images", tmp_path / "logits", under=qemu)
    assert (done.returncode, done.stdout.strip()) == (0, isa), done.stderr[-500:]
    expected = exact(model, images)
    logits = np.fromfile(tmp_path / "logits", np.float32).reshape(2, 70)
    assert np.abs(logits - expected).max() <= ERROR * np.abs(expected).max()
    # What the processor lacks is a status, never an illegal instruction.
    refused = drive(program, "run", "avx512", 2, 2, images[0].size, 70, tmp_path / "images", tmp_path / "logits", under=qemu)
    assert refused.returncode == 6, refused.stderr[-500:]


@x86_only
def test_a_library_for_a_better_processor_says_so(tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    path = library(network(TINY), tmp_path / "m.so", ("avx2",))
    program = driver(tmp_path / "driver", path)
    done = drive(program, "run", "best", 1, 1, 3072, 10, "none", "none", under=(system_tool("qemu-x86_64"), "-cpu", "Nehalem"))
    assert done.returncode == 6, done.stderr[-500:]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_neon(precision: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    system_tool("aarch64-linux-gnu-g++")
    emulator = (system_tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu")
    model = cd.convert(cd.load(Path(__file__).parents[3] / "examples" / "reference-cifar10.pth.tar"))
    path = library(model, tmp_path / "m.so", ("neon",), precision, machine="aarch64")
    program = driver(tmp_path / "driver", path, compiler=("aarch64-linux-gnu-gcc",))
    images = images_for(model, 2)
    images.tofile(tmp_path / "images")
    expected = exact(model, images)
    for threads in (1, 2):
        done = drive(program, "run", "best", threads, 2, 3072, 10, tmp_path / "images", tmp_path / "logits", under=emulator)
        assert (done.returncode, done.stdout.strip()) == (0, "neon"), done.stderr[-500:]
        logits = np.fromfile(tmp_path / "logits", np.float32).reshape(2, 10)
        assert np.abs(logits - expected).max() <= (ERROR if precision == "fp32" else BF16_ERROR) * np.abs(expected).max()
    assert drive(program, "refuse", 3072, 10, under=emulator).returncode == 0


# ---- the C interface ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(portable: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The driver of a library, and a file with one image."""
    place = tmp_path_factory.mktemp("images") / "images"
    images_for(every_kernel(), 2).tofile(place)
    return driver(portable.with_name("driver"), portable), place


FLOATS, CLASSES = 3 * 48 * 48, EVERY_KERNEL.classes


def test_every_wrong_call_is_a_status(program: tuple[Path, Path]) -> None:
    done = drive(program[0], "refuse", FLOATS, CLASSES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_many_handles_in_many_threads(program: tuple[Path, Path]) -> None:
    done = drive(program[0], "many", FLOATS, CLASSES, program[1])
    assert done.returncode == 0, done.stderr


def test_a_handle_does_not_outlive_a_fork(program: tuple[Path, Path]) -> None:
    done = drive(program[0], "fork", FLOATS, CLASSES)
    assert done.returncode == 0, done.stderr


SANITIZERS = {
    # One build that knows where every piece of memory ends and what is undefined, and one that sees what threads don't agree on.
    "address,undefined": (
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-fno-omit-frame-pointer",
        "-O1",
        "-g",
        "-DCNET_DEBUG",
    ),
    "thread": ("-fsanitize=thread", "-O1", "-g"),
}


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sanitizers_find_nothing(sanitizer: str, precision: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    names = isas(precision)[:1] if precision == "fp32" else isas(precision)[-1:]
    path = library(every_kernel(), tmp_path / "m.so", names, precision, extra=flags)
    program = driver(tmp_path / "driver", path, flags=flags)
    images_for(every_kernel(), 2).tofile(tmp_path / "images")
    surroundings = {"ASAN_OPTIONS": "detect_leaks=0"} if "-DCNET_DEBUG" in flags else {"TSAN_OPTIONS": "halt_on_error=1"}
    commands = [
        ("refuse", FLOATS, CLASSES), ("many", FLOATS, CLASSES, tmp_path / "images"),
        *(("run", names[0], n, 2, FLOATS, CLASSES, tmp_path / "images", tmp_path / "logits") for n in (1, 2, 3, 4)),
    ]  # fmt: skip
    if "-DCNET_DEBUG" in flags:
        commands.append(("destroyed",))
    for command in commands:
        done = drive(program, *command, **surroundings)
        assert done.returncode == 0, done.stderr[-3000:]
    expected = exact(every_kernel(), images_for(every_kernel(), 2))
    logits = np.fromfile(tmp_path / "logits", np.float32).reshape(2, CLASSES)
    assert np.abs(logits - expected).max() <= (ERROR if precision == "fp32" else BF16_ERROR) * np.abs(expected).max()


@pytest.mark.slow
def test_nothing_leaks(tmp_path: Path) -> None:
    flags = ("-fsanitize=address", "-O1", "-g")
    path = library(network(TINY), tmp_path / "m.so", ("baseline",) if host_machine() == "x86_64" else isas()[-1:], extra=flags)
    program = driver(tmp_path / "driver", path, flags=flags)
    images_for(network(TINY), 1).tofile(tmp_path / "images")
    done = drive(program, "many", 3072, 10, tmp_path / "images", ASAN_OPTIONS="detect_leaks=1")
    assert done.returncode == 0, done.stderr[-3000:]


# ---- the example --------------------------------------------------------------------------------------------------------------------

EXAMPLE = Path(__file__).parents[3] / "examples" / "native" / "classify.c"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_example_classifies(
    compiler: str, converted: Any, images_path: Path, tmp_path: Path, system_tool: Callable[[str], str]
) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 80
    cd.export(converted, "native", tmp_path / "model.so")
    command = [system_tool(compiler), "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-I", SOURCES, EXAMPLE, "-o", tmp_path / "classify"]
    subprocess.run([*command, tmp_path / "model.so", "-Wl,-rpath,$ORIGIN"], check=True)
    steps = converted.preprocessing
    images = read_images(images_path, steps, 10)
    for number in (0, 7, 123):
        ppm = b"P6\n32 32\n255\n" + images.pixels[number].transpose(1, 2, 0).tobytes()
        (tmp_path / "one.ppm").write_bytes(ppm)
        done = drive(tmp_path / "classify", tmp_path / "one.ppm")
        assert done.returncode == 0, done.stderr
        with cd.open_session(tmp_path / "model.so") as session:
            logits = session.run(steps.apply(images.pixels[number : number + 1]))[0]
        lines = [line.split() for line in done.stdout.splitlines()]
        assert [int(line[0]) for line in lines] == [int(c) for c in np.argsort(-logits)[:3]]
        assert float(lines[0][1]) == pytest.approx(float(logits.max()), abs=1e-3)
    for wrong in (b"x", ppm[:-1], b"P6\n31 32\n255\n" + bytes(3 * 31 * 32)):
        (tmp_path / "wrong.ppm").write_bytes(wrong)
        assert drive(tmp_path / "classify", tmp_path / "wrong.ppm").returncode == 1
