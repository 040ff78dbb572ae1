"""What a library is made of, and which of its instruction sets it chooses, under an emulator too."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import cnet_deploy as cd
from cnet_deploy.exporters.native.toolchain import SOURCES
from cnet_deploy.hardware.cpu import host_machine
from cnet_deploy.models.architecture import Architecture
from tests.builders import TINY, TINY_V2
from tests.cases import exhaustive, few, long
from tests.exporters.native.helpers import (
    BF16_ERROR,
    ERROR,
    EVERY_KERNEL,
    drive,
    driver,
    every_kernel,
    exact,
    images_for,
    library,
    logits_on_neon,
    network,
)

x86_only = pytest.mark.skipif(host_machine() != "x86_64", reason="instruction sets of x86")


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
@exhaustive("test_shows_nothing_but_its_interface")
@pytest.mark.parametrize("arch", [EVERY_KERNEL, TINY_V2], ids=["v1", "v2"])
def test_no_instruction_set_shares_code_with_another(arch: Architecture, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    """Weak symbols are what a linker merges: those of the kernels must all be in the namespace of one instruction set."""
    path = library(network(arch), tmp_path / "m.so", ("avx512", "avx2", "baseline"), extra=["-DUNSTRIPPED"])
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
@pytest.mark.parametrize(("cpu", "isa"), few([("Haswell", "avx2"), ("qemu64", "baseline"), ("Nehalem", "baseline")]))
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


@pytest.mark.parametrize("precision", few(["fp32", "bf16"]))
@long
def test_neon(precision: str, tmp_path: Path, system_tool: Callable[[str], str]) -> None:
    model = cd.convert(cd.load(Path(__file__).parents[3] / "examples" / "reference-cifar10.pth.tar"))
    images = images_for(model, 2)
    expected = exact(model, images)
    for threads in (1, 2):
        logits = logits_on_neon(system_tool, model, images, tmp_path, precision, threads)
        assert np.abs(logits - expected).max() <= (ERROR if precision == "fp32" else BF16_ERROR) * np.abs(expected).max()
