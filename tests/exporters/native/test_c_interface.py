"""The C interface as a C program calls it, under sanitizers too, and the example."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cnet_deploy as cd
from cnet_deploy.errors import InputRefused
from cnet_deploy.exporters.native import toolchain
from cnet_deploy.exporters.native.toolchain import SOURCES
from cnet_deploy.hardware.cpu import host_machine
from cnet_deploy.images.decode import read_images
from cnet_deploy.images.inputs import pixels_of
from cnet_deploy.images.preprocessing import Preprocessing
from cnet_deploy.sessions.native import NativeSession
from tests.builders import TINY
from tests.cases import few, long
from tests.exporters.native.helpers import (
    BF16_ERROR,
    ERROR,
    EVERY_KERNEL,
    SANITIZERS,
    drive,
    driver,
    every_kernel,
    exact,
    images_for,
    in_integers,
    isas,
    library,
    network,
)
from tests.images.golden import Case, cases, record, recorded


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


@long
@pytest.mark.parametrize(("sanitizer", "times"), few([("thread", 4), ("thread", 20), ("address,undefined", 20)]))
@pytest.mark.parametrize("precision", few(["fp32", "bf16", "int8"]))
def test_sanitizers_find_nothing(sanitizer: str, times: int, precision: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    names = isas(precision)[-1:] if precision == "bf16" else isas(precision)[:1]
    path = library(every_kernel(), tmp_path / "m.so", names, precision, extra=flags)
    program = driver(tmp_path / "driver", path, flags=flags)
    images_for(every_kernel(), 5).tofile(tmp_path / "images")
    surroundings = {"ASAN_OPTIONS": "detect_leaks=0"} if "-DCNET_DEBUG" in flags else {"TSAN_OPTIONS": "halt_on_error=1"}
    commands = [
        ("refuse", FLOATS, CLASSES), ("many", FLOATS, CLASSES, tmp_path / "images", times),
        *(("run", names[0], n, 5, FLOATS, CLASSES, tmp_path / "images", tmp_path / "logits") for n in (1, 2, 3, 4, 7)),
    ]  # fmt: skip
    if "-DCNET_DEBUG" in flags:
        commands.append(("destroyed",))
    for command in commands:
        done = drive(program, *command, **surroundings)
        assert done.returncode == 0, done.stderr[-3000:]
    images, model = images_for(every_kernel(), 5), every_kernel()
    expected = in_integers(model).run(images) if precision == "int8" else exact(model, images)
    logits = np.fromfile(tmp_path / "logits", np.float32).reshape(5, CLASSES)
    assert np.abs(logits - expected).max() <= {"fp32": ERROR, "bf16": BF16_ERROR, "int8": 0}[precision] * np.abs(expected).max()


@long
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
        assert lines[0][2:] == list(converted.class_names[int(lines[0][0]) :][:1])
    with Image.open(EXAMPLE.parent / "cat.ppm") as cat, cd.open_session(tmp_path / "model.so") as session:
        larger = cat.resize((77, 130), Image.Resampling.BICUBIC)
        larger.save(tmp_path / "larger.ppm")
        done = drive(tmp_path / "classify", tmp_path / "larger.ppm")
        assert int(done.stdout.split()[0]) == session.classify(larger)[0].guesses[0].label
    for wrong in (b"x", ppm[:-1], b"P6\n0 32\n255\n", b"P6\n99999 99999\n255\n", b"P6\n1 1\n65535\n" + bytes(6)):
        (tmp_path / "wrong.ppm").write_bytes(wrong)
        assert drive(tmp_path / "classify", tmp_path / "wrong.ppm").returncode == 1


def _as_c(values: dict[str, Any], folder: Path, extra: Sequence[str] = ()) -> tuple[Preprocessing, Path]:
    """A small network that prepares images by ``values``, and the driver of its library."""
    steps = Preprocessing.from_dict(values)
    model = network(replace(TINY, input_size=steps.crop, image_channels=steps.channels))
    model.preprocessing, model.class_names = steps, tuple(f'Käse "{n}"\\?' for n in range(TINY.classes))
    made = library(model, folder / "m.so", ("baseline",) if host_machine() == "x86_64" else isas()[-1:], extra=extra)
    return steps, driver(folder / "driver", made, flags=extra)


def _prepared_by(program: Path, pixels: np.ndarray[Any, Any], steps: Preprocessing, row_bytes: int = 0, **surroundings: str) -> Any:
    """What cnet_prepare makes of pixels [height, width, channels], or its status."""
    height, width, channels = pixels.shape
    rows = np.zeros((height, row_bytes or width * channels), np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    rows.tofile(program.with_name("pixels"))
    out = program.with_name("prepared")
    done = drive(program, "prepare", height, width, channels, row_bytes, program.with_name("pixels"), out, **surroundings)
    assert done.stderr == "", done.stderr[-3000:]
    return done.returncode or np.fromfile(out, np.float32).reshape(steps.channels, *steps.crop)


BY_STEPS: dict[str, list[Case]] = {}
for _case in cases():
    if _case.orientation == 1:
        BY_STEPS.setdefault(json.dumps(_case.steps), []).append(_case)


@pytest.mark.parametrize("steps", few(BY_STEPS, 4))
def test_images_are_prepared_as_in_python(steps: str, tmp_path: Path) -> None:
    """To the bit: the golden pixels, and images of random sizes."""
    preprocessing, program = _as_c(json.loads(steps), tmp_path)
    for case in BY_STEPS[steps]:
        prepared = _prepared_by(program, case.pixels(), preprocessing)
        assert np.array_equal(prepared, preprocessing.read(case.pixels())), case.name
        assert record(pixels_of(case.pixels(), preprocessing), prepared) == recorded()[case.name]
    random = np.random.default_rng(5)
    for _ in range(12):
        pixels = random.integers(0, 256, (*random.integers(1, 200, 2), int(random.choice([1, 3, 4]))), np.uint8)
        prepared = _prepared_by(program, pixels, preprocessing, row_bytes=pixels.shape[1] * pixels.shape[2] + int(random.integers(9)))
        assert np.array_equal(prepared, preprocessing.read(pixels)), pixels.shape
    long = np.zeros((1, 60_000, 3), np.uint8)
    if (preprocessing.resize or min(preprocessing.crop)) ** 2 * 60_000 > 1 << 25:
        assert _prepared_by(program, long, preprocessing) == 11
        with pytest.raises(InputRefused, match="which is too large"):
            preprocessing.read(long)


@long
def test_preparing_under_a_sanitizer(tmp_path: Path) -> None:
    values = next(json.loads(steps) for steps in BY_STEPS if len(json.loads(steps)["mean"]) == 4)
    steps, program = _as_c(values, tmp_path, SANITIZERS["address,undefined"])
    random = np.random.default_rng(6)
    for size in ((1, 1), (200, 1), (1, 200), (32, 32), (36, 36), (31, 90), (90, 31)):
        for channels in (1, 3, 4):
            pixels = random.integers(0, 256, (*size, channels), np.uint8)
            prepared = _prepared_by(program, pixels, steps, row_bytes=size[1] * channels + 3, ASAN_OPTIONS="detect_leaks=0")
            assert np.array_equal(prepared, steps.read(pixels))


def test_two_models_in_one_process(portable: Path, tmp_path: Path) -> None:
    """The second is opened as cnet.h has it. Each refuses the other's handles."""
    program = driver(portable.with_name("driver"), portable)
    other = library(network(TINY), tmp_path / "other.so", isas()[-1:])
    done = drive(program, "foreign", other)
    assert (done.returncode, done.stderr) == (0, "")


@long
def test_class_names_and_the_name_of_the_file(tmp_path: Path, system_tool: Callable[[str], str], quick_compiler: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """Names through C and in the description; and a program that is linked to a library looks for it by its file's name."""
    monkeypatch.setenv("CXX", str(quick_compiler))
    model = network(TINY)
    model.class_names = tuple(f'Käse "{n}"\\?' for n in range(TINY.classes))
    (tmp_path / "deep").mkdir()
    made = cd.export(model, "native", tmp_path / "deep" / "cheese.so", cpu="host").path
    shown = subprocess.run([system_tool("readelf"), "-dW", made], capture_output=True, text=True, check=True).stdout
    assert "SONAME" in shown and "[cheese.so]" in shown
    loaded, text = ctypes.CDLL(str(made)), ctypes.c_char_p()
    for number, name in enumerate(model.class_names):
        assert loaded.cnet_class_name(ctypes.c_size_t(number), ctypes.byref(text)) == 0
        assert (text.value or b"").decode() == name
    assert loaded.cnet_describe(ctypes.byref(text)) == 0
    assert json.loads(text.value or b"")["class_names"] == list(model.class_names)
    with cd.open_session(made) as session:
        assert session.class_names == model.class_names
    # From another folder: the path that was given to the linker is not in the program.
    program = driver(tmp_path / "driver", made)
    shown = subprocess.run([system_tool("readelf"), "-dW", program], capture_output=True, text=True, check=True).stdout
    assert "[cheese.so]" in shown and str(tmp_path) not in shown
    assert drive(program, "refuse", 3072, 10, LD_LIBRARY_PATH=str(tmp_path / "deep")).returncode == 0


@long
def test_a_library_of_version_1_is_opened_as_before(
    quick_compiler: Path, images_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 0.1.0 made them: without the calls that later versions added."""
    monkeypatch.setenv("CXX", str(quick_compiler))
    monkeypatch.setattr(toolchain, "SOURCES", Path(shutil.copytree(SOURCES, tmp_path / "cpp")))
    monkeypatch.delitem(toolchain._ENGINE, "prepare.cpp")
    header = tmp_path / "cpp" / "cnet.h"
    header.write_text(header.read_text().replace("CNET_API_VERSION 3u", "CNET_API_VERSION 1u"))
    model = network(TINY)
    made = cd.export(model, "native", tmp_path / "old.so", cpu="host").path
    assert not hasattr(ctypes.CDLL(str(made)), "cnet_prepare")
    with cd.open_session(made) as session:
        assert isinstance(session, NativeSession) and session.reserved is None
        assert session.run(images_for(model, 2)).shape == (2, 10)
    with pytest.raises(InputRefused, match="its threads share layers only.*export the model again"):
        cd.open_session(made, sharing="images")
    header.write_text(header.read_text().replace("CNET_API_VERSION 1u", "CNET_API_VERSION 4u"))
    with pytest.raises(InputRefused, match="has version 4 of the interface; expected 1 to 3"):
        cd.export(model, "native", tmp_path / "new.so", cpu="host")
