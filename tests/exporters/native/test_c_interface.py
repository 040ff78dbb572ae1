"""The C interface as a C program calls it, under sanitizers too, and the example."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.exporters.native.toolchain import SOURCES
from cnet_deploy.hardware.cpu import host_machine
from cnet_deploy.images.decode import read_images
from tests.builders import TINY
from tests.cases import few
from tests.exporters.native.helpers import (
    BF16_ERROR,
    ERROR,
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
    done = drive(program[0], "many", FLOATS, CLASSES, program[1], 20)
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


@pytest.mark.parametrize(("sanitizer", "times"), few([("thread", 4), ("thread", 20), ("address,undefined", 20)]))
@pytest.mark.parametrize("precision", few(["fp32", "bf16"]))
def test_sanitizers_find_nothing(sanitizer: str, times: int, precision: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    names = isas(precision)[:1] if precision == "fp32" else isas(precision)[-1:]
    path = library(every_kernel(), tmp_path / "m.so", names, precision, extra=flags)
    program = driver(tmp_path / "driver", path, flags=flags)
    images_for(every_kernel(), 2).tofile(tmp_path / "images")
    surroundings = {"ASAN_OPTIONS": "detect_leaks=0"} if "-DCNET_DEBUG" in flags else {"TSAN_OPTIONS": "halt_on_error=1"}
    commands = [
        ("refuse", FLOATS, CLASSES), ("many", FLOATS, CLASSES, tmp_path / "images", times),
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


def test_nothing_leaks(tmp_path: Path) -> None:
    flags = ("-fsanitize=address", "-O0", "-g")
    path = library(network(TINY), tmp_path / "m.so", ("baseline",) if host_machine() == "x86_64" else isas()[-1:], extra=flags)
    program = driver(tmp_path / "driver", path, flags=flags)
    images_for(network(TINY), 1).tofile(tmp_path / "images")
    done = drive(program, "many", 3072, 10, tmp_path / "images", 20, ASAN_OPTIONS="detect_leaks=1")
    assert done.returncode == 0, done.stderr[-3000:]


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
