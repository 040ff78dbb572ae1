"""What C++ and Python must agree on: where one of them alone is changed nothing is built, and the compiler says why."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cnet_deploy.exporters.native import constants, int8, toolchain
from cnet_deploy.exporters.native.planning import weights_name
from cnet_deploy.exporters.native.toolchain import SOURCES, Compiler, build, find_compiler, resolve
from cnet_deploy.hardware.cpu import host_isas, host_machine
from cnet_deploy.models.condensenet import DenselyConnected
from tests.builders import TINY, TINY_LGC
from tests.cases import few, long
from tests.exporters.native.helpers import drive, driver, every_kernel, images_for, in_integers, isas, library, network, of, plan_of

WINDOWED = replace(TINY, input_size=(48, 48), final_pool="original")
x86_only = pytest.mark.skipif(host_machine() != "x86_64", reason="instruction sets of x86")
# Instruction set -> the precision to try it in: half of them each.
PRECISIONS = {"avx512_bf16": "bf16", "avx512": "fp32", "avx2": "fp32", "baseline": "bf16", "neon": "fp32"}
IN_INTEGERS = {isa for target in (None, "aarch64") for isa in resolve(target, "int8").isas}


INTEGERS = ("-DCNET_INT8=1",)  # what sources of a network in integers are compiled with


def source(model: DenselyConnected | None = None, precision: str = "fp32") -> str:
    """A plan.cpp: by default with wide and narrow layers, and no 1x1 in its transitions."""
    return plan_of(model or every_kernel(), ("baseline",), precision).source


def complaints(text: str, folder: Path, compiler: Compiler, precision: str = "fp32", defines: Sequence[str] = ()) -> str:
    """What a compiler has against a plan.cpp, warnings included; nothing if it takes it."""
    (folder / "plan.cpp").write_text(text)
    for weights in re.findall(r"weights-\w+\.bin", text):
        (folder / weights).touch()
    command = [*compiler.command, *toolchain.plan_flags(precision, defines), "-Werror", "-c", "plan.cpp", "-o", "plan.o"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == ("error: " in done.stderr), done.stderr
    return done.stderr


@pytest.fixture
def cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of cpp/ that a test may change, and that plans are compiled against."""
    monkeypatch.setattr(toolchain, "SOURCES", Path(shutil.copytree(SOURCES, tmp_path / "cpp")))
    return tmp_path / "cpp"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


# ---- plan.cpp ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_no_compiler_warns_of_a_plan(name: str, precision: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    defines = INTEGERS if precision == "int8" else ()
    for model in (every_kernel(), network(TINY_LGC)):
        assert complaints(source(model, precision), tmp_path, of(system_tool(name)), precision, defines) == ""


def test_the_compiler_from_pypi_does_not_warn_of_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ziglang", reason="needs the extra: cnet-deploy[compiler]")
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler = find_compiler(host_machine())
    assert compiler.is_zig and complaints(source(), tmp_path, compiler) == ""


@pytest.mark.parametrize("name", [name for name in vars(constants) if name.isupper()])
def test_a_constant_that_differs_stops_the_build(name: str, tmp_path: Path, gcc: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    assert constants.assertions() in source()
    value = getattr(constants, name)
    monkeypatch.setattr(constants, name, value[:-1] if isinstance(value, tuple) else value + 1)
    text = f'#include "constants.h"\nnamespace cnet {{\n{constants.assertions()}\n}}\n'
    complaint = complaints(text, tmp_path, gcc)
    assert f"{name} in constants.py differs from {name.lower()} in cpp/constants.h; give both one value" in complaint
    assert complaint.count("error: ") == 1


def test_every_constant_of_the_kernels_is_asserted() -> None:
    in_cpp = re.findall(r"^constexpr (?:int|Tiles<.*>) (\w+)", (SOURCES / "constants.h").read_text(), re.MULTILINE)
    assert sorted(in_cpp) == sorted(name.lower() for name in vars(constants) if name.isupper())


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("    int32_t channels, stride;", "    int32_t stride, channels;", "designator order for field"),
        ("    int32_t channels, stride;", "    int32_t channels, stride, padding;", "missing initializer for member .*padding"),
        ("    int32_t channels, stride;", "    int32_t channels;", "no non-static data member named .*stride"),
        ("    int32_t channels, stride;", "    int32_t channels, step;", "no non-static data member named .*stride"),
        ("    int64_t whole; ", "    int64_t unknown, whole; ", "missing initializer for member .*unknown"),
        ("    int64_t activations;", "    int64_t unknown, activations;", "missing initializer for member .*unknown"),
        ("enum class Layout : int32_t { wide, narrow };", "enum class Layout : int32_t { wide, deep };", "narrow.* is not a member"),
    ],
)
def test_a_structure_that_differs_stops_the_build(old: str, new: str, complaint: str, cpp: Path, tmp_path: Path, gcc: Compiler) -> None:
    change(cpp / "plan.h", old, new)
    assert re.search(complaint, complaints(source(), tmp_path, gcc))


@pytest.mark.parametrize(
    ("field", "by", "complaint"),
    [
        ("pitch", 1, "geometry.py lays a map out as the kernels don't expect it"),
        ("plane", -32, "geometry.py lays a map out as the kernels don't expect it"),
        ("plane", 16, "geometry.py lays a map out as the kernels don't expect it"),
        ("map", 8, "geometry.py lays a map out as the kernels don't expect it"),
        ("middle", 8, "geometry.py lays a map out as the kernels don't expect it"),
        ("activations", -16, "geometry.py lays a map out as the kernels don't expect it"),
        ("between", 16, "planning.py and the kernels differ on the buffer between two convolutions"),
        ("between", -16, "planning.py and the kernels differ on the buffer between two convolutions"),
    ],
)
def test_a_plan_that_breaks_a_rule_stops_the_build(field: str, by: int, complaint: str, tmp_path: Path, gcc: Compiler) -> None:
    text = re.sub(rf"\.{field} = (\d+)", lambda match: f".{field} = {int(match[1]) + by}", source(), count=1)
    found = complaints(text, tmp_path, gcc)
    assert complaint in found and found.count("error: ") == 1
    assert complaints(source(), tmp_path, gcc) == ""


# Two ways to the same result; and what is no part of a run.
FREE = {"flips", "shifts", "whole", "shorter_side", "bicubic"}
LAID, FOLLOWS = "int8.py lays maps out as the kernels do not expect them", "a layer or block does not follow the one before it"
READS, TABLE = "the last pooling reads beyond its memory", "a table is not where the kernels look for it"
BETWEEN = "int8.py and the kernels differ on the buffer between two convolutions"


def in_int8(model: DenselyConnected | None = None) -> str:
    return source(model or network(TINY_LGC), "int8")


@pytest.mark.parametrize(
    ("field", "by", "expected"),
    [
        ("plane", 64, LAID), ("plane", 8, LAID), ("map", 8, LAID), ("middle", -64, LAID), ("activations", -16, LAID),
        ("between", 1, BETWEEN), ("between", -1, BETWEEN), ("channels", 4, FOLLOWS), ("height", 2, FOLLOWS), ("width", -2, FOLLOWS),
        ("stride", 1, FOLLOWS), ("first_layer", 1, FOLLOWS), ("last_layer", -1, FOLLOWS), ("middle_channels", 20, FOLLOWS),
        ("wide", 2, FOLLOWS), ("wide", 1, TABLE), ("groups", 1, TABLE), ("words", 1, TABLE), ("outputs", 4, TABLE), ("planes", 16, TABLE),
        ("weight", 16, TABLE), ("rows", -16, TABLE), ("target", 16, TABLE), ("kept", 16, READS), ("features", -1, READS),
        ("bits", 1, READS), ("window", 9, READS),
    ],
)  # fmt: skip
def test_a_plan_in_integers_that_breaks_a_rule_stops_the_build(field: str, by: int, expected: str, tmp_path: Path, gcc: Compiler) -> None:
    text = re.sub(rf"\.{field} = (\d+)", lambda match: f".{field} = {int(match[1]) + by}", in_int8(), count=1)
    assert expected in complaints(text, tmp_path, gcc, "int8", INTEGERS)


@pytest.mark.parametrize("name", ["ROW_TILE", "RUN_MOST", "CLASSES_AT_ONCE", "MOST_SHARES", "EXTRA", "POOL_BITS", "LINE", "CONV_TILES"])
def test_a_constant_of_int8_that_differs_stops_the_build(name: str, tmp_path: Path, gcc: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    assert int8.assertions() in in_int8()
    value = getattr(int8, name)
    monkeypatch.setattr(int8, name, value[:-1] if isinstance(value, tuple) else value + 1)
    text = f'#include "plan.h"\n#include "int8/constants.h"\nnamespace cnet {{\n{int8.assertions()}\n}}\n'
    complaint = complaints(text, tmp_path, gcc, "int8", INTEGERS)
    assert "in cpp/int8/constants.h differs from what int8.py has; give both one value" in complaint and complaint.count("error: ") == 1


def test_every_constant_of_int8_is_asserted() -> None:
    in_cpp = re.findall(r"^constexpr (?:int|Tiles<.*>) (\w+)", (SOURCES / "int8" / "constants.h").read_text(), re.MULTILINE)
    assert sorted(in_cpp) == sorted(re.findall(r"static_assert\((\w+) ==", int8.assertions()))


@long
def test_no_number_of_a_plan_in_integers_is_free(tmp_path: Path, gcc: Compiler) -> None:
    """Change any one: the compiler complains, or the library answers otherwise."""
    model = network(TINY_LGC, 1)
    program, names = in_integers(model), isas("int8")[:1]
    images = images_for(model, 2)
    images.tofile(tmp_path / "images")
    plan = plan_of(model, names, "int8")
    (tmp_path / weights_name(plan.weights)).write_bytes(plan.weights)
    made = library(model, tmp_path / "m.so", names, "int8")
    executable = driver(tmp_path / "driver", made)

    def answers() -> bool:
        command = ("run", "best", 2, 2, images[0].size, TINY_LGC.classes, tmp_path / "images", tmp_path / "logits")
        done = drive(executable, *command)
        return done.returncode == 0 and np.array_equal(np.fromfile(tmp_path / "logits", np.float32).reshape(2, -1), program.run(images))

    assert answers()
    lines = plan.source.splitlines()
    first = next(number for number, line in enumerate(lines) if "Layer layers[]" in line)
    seen, free = set(), []
    for number, line in enumerate(lines):
        for match in re.finditer(r"\.(\w+) = (\d+)", line if number > first else ""):
            where = (match[1], line[: match.start()].count("{"), line.strip()[:12])
            if match[1] in FREE or where in seen:
                continue
            seen.add(where)
            for by in (1, -1):
                changed = f"{line[: match.start(2)]}{int(match[2]) + by}{line[match.end(2) :]}"
                mutant = "\n".join([*lines[:number], changed, *lines[number + 1 :]])
                if complaints(mutant, tmp_path, gcc, "int8", plan.defines):
                    continue
                build(gcc, names, precision="int8", source=mutant, weights=plan.weights, out=made, defines=plan.defines)
                if answers():
                    free.append((match[1], by))
    assert len(seen) > 30
    assert set(free) <= {("activations", 1)}, free  # more memory than is needed


def test_a_plan_and_kernels_for_different_precisions(tmp_path: Path, gcc: Compiler) -> None:
    assert "the plan and the kernels are for different precisions" in complaints(source(), tmp_path, gcc, "bf16")


def test_a_plan_and_kernels_for_different_networks(tmp_path: Path, gcc: Compiler) -> None:
    """What few networks have is in their plan, and in kernels that were compiled for it."""
    text, windowed = source(network(WINDOWED)), ("-DCNET_WINDOWED=1",)
    assert complaints(text, tmp_path, gcc, defines=windowed) == ""
    assert "the plan has a window and the kernels read none, or the other way" in complaints(source(), tmp_path, gcc, defines=windowed)
    assert "no non-static data member named" in complaints(text, tmp_path, gcc)
    assert "the last pooling reads beyond the map" in complaints(
        text.replace(".window = 8", ".window = 13"), tmp_path, gcc, defines=windowed
    )
    grey = ("-DCNET_CHANNELS=1",)
    assert complaints(source(network(replace(TINY, image_channels=1))), tmp_path, gcc, defines=grey) == ""
    assert "the plan and the kernels are for images of different channels" in complaints(source(), tmp_path, gcc, defines=grey)


@x86_only
@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (" line = 16;", " line = 8;", "planes, chunks and classes are whole vectors"),
        (" plane_slack = line;", " plane_slack = 8;", "room after planes and maps holds the last vectors"),
        (" map_slack = 4 * line;", " map_slack = line;", "room after planes and maps holds the last vectors"),
        (" whole_slack = 8 * line;", " whole_slack = 2 * line;", "the zeros around a map end within its plane of the shared buffer"),
        (" chunk_slack = 16;", " chunk_slack = 8;", "the last tile of a map is read and written within its room"),
        (" row_least = 4;", " row_least = 6;", "each piece of a row that is cut up has a tile"),
        ("<32, 16> narrow_tiles", "<32, 16, 8> narrow_tiles", "what is left of a group after whole tiles is one chunk"),
        ("<32, 16, 8> row_tiles", "<32, 8> row_tiles", "a unit holds one tile of a size at most"),
    ],
)
@long
def test_constants_that_the_kernels_cannot_work_with(old: str, new: str, complaint: str, cpp: Path, gcc: Compiler) -> None:
    change(cpp / "constants.h", old, new)
    flags = (*gcc.flags("avx512"), *toolchain._isa_defines("avx512", "fp32"), "-std=c++17", "-fsyntax-only")
    done = subprocess.run([*gcc.command, *flags, "kernels.cpp"], cwd=cpp, capture_output=True, text=True, check=False)
    assert done.returncode and complaint in done.stderr


# ---- headers and instruction sets --------------------------------------------------------------------------------------------------


def check_headers(compiler: Compiler, suffix: str, isa: str, folder: Path, precision: str) -> None:
    """Every header on its own, with what is defined where kernels for the instruction set are compiled."""
    place = SOURCES / "int8" if precision == "int8" else SOURCES
    headers = sorted(path.name for path in place.glob(f"*{suffix}"))
    assert len(headers) > 2
    before = '#include "plan.h"\n' if precision == "int8" else ""  # which says how many channels an image has
    for header in headers:
        family = "#define CNET_V2 1\n" if header == "update.hpp" else ""  # what only a CondenseNet V2 has
        (folder / f"{header}.cpp").write_text(f'{family}{before}#include "{place / header}"\n')
    defines = (*toolchain._isa_defines(isa, precision), *(INTEGERS if precision == "int8" else ()))
    flags = (*toolchain._COMMON, *compiler.flags(isa), *defines, "-Werror", "-Wno-unused-function", "-fsyntax-only", "-I", str(SOURCES))
    command = [*compiler.command, *flags, *(f"{header}.cpp" for header in headers)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@x86_only
@pytest.mark.parametrize("name", few(["clang++", "g++"]))
@pytest.mark.parametrize("isa", few(isa for isa in PRECISIONS if isa != "neon"))
@long
def test_every_header_compiles_alone(isa: str, name: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    check_headers(of(system_tool(name)), ".hpp", isa, tmp_path, PRECISIONS[isa])


@x86_only
@pytest.mark.parametrize("name", few(["g++", "clang++"]))
@pytest.mark.parametrize("isa", few(resolve(None, "int8").isas))
@long
def test_every_header_of_int8_compiles_alone(isa: str, name: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    check_headers(of(system_tool(name)), ".hpp", isa, tmp_path, "int8")


@long
def test_every_header_compiles_alone_for_neon(tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    if host_machine() != "aarch64":
        system_tool("aarch64-linux-gnu-g++")
    check_headers(find_compiler("aarch64"), ".hpp", "neon", tmp_path, "fp32")
    for isa in resolve("aarch64", "int8").isas:
        (tmp_path / isa).mkdir()
        check_headers(find_compiler("aarch64"), ".hpp", isa, tmp_path / isa, "int8")


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_every_header_without_vectors_compiles_alone(name: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    for precision in ("fp32", "int8"):
        (tmp_path / precision).mkdir()
        check_headers(of(system_tool(name)), ".h", "baseline" if host_machine() == "x86_64" else "neon", tmp_path / precision, precision)


@pytest.mark.parametrize(
    ("name", "standard", "language"),
    [("gcc", "c11", "c"), ("clang", "c11", "c"), ("g++", "c++11", "c++"), ("clang++", "c++11", "c++"), ("g++", "c++17", "c++")],
)
def test_the_interface_is_c_and_cpp(name: str, standard: str, language: str, system_tool: Callable[[str], str]) -> None:
    command = [system_tool(name), f"-std={standard}", "-Wall", "-Wextra", "-Werror", "-pedantic", "-x", language, "-fsyntax-only"]
    done = subprocess.run([*command, "-I", SOURCES, "-"], input='#include "cnet.h"\n', capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_both_sides_know_the_same_instruction_sets() -> None:
    known = set(re.findall(r'strcmp\(isa, "(\w+)"\)', (SOURCES / "cpu.hpp").read_text()))
    assert known == set(toolchain._FLAGS) == set(toolchain._ZIG_FLAGS) == {*PRECISIONS, *IN_INTEGERS} and set(host_isas()) <= known
