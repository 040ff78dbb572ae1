"""What the tests of native libraries share: networks that reach every kernel, libraries of them, and the C driver."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cnet_deploy.artifacts.pair import read_pair
from cnet_deploy.exporters.native import describe, int8, toolchain
from cnet_deploy.exporters.native.planning import Plan, make_plan
from cnet_deploy.exporters.native.toolchain import SOURCES, Compiler, build, find_compiler, resolve
from cnet_deploy.hardware.cpu import host_isas, host_machine
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.lower import lower
from cnet_deploy.program.program import DenseLayer, Program
from cnet_deploy.program.quantize import quantize
from cnet_deploy.program.quantized import QuantizedProgram
from cnet_deploy.sessions.native import open_file
from tests.builders import TINY

HERE = Path(__file__).parent
ERROR = 1e-5  # of the largest logit, in fp32
BF16_ERROR = 3e-2
# Blocks of 48, 24 and 12 pixels a row: 3x3 by rows with two outputs a group, flat with eight, narrow with sixteen.
EVERY_KERNEL = replace(TINY, stages=(2, 2, 2), growth=(8, 32, 64), input_size=(48, 48), classes=70)

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


def isas(precision: str = "fp32") -> tuple[str, ...]:
    """The instruction sets that a library carries by default and this processor has."""
    return tuple(isa for isa in resolve(None, precision).isas if isa in host_isas())


def network(arch: Architecture, seed: int = 0) -> DenselyConnected:
    """The group-conv form, its batch norms with gains of either sign and some of zero."""
    model = build_random(arch, seed)
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-1, 1, generator=random)
            module.weight.data[torch.rand(len(module.weight), generator=random) < 0.1] = 0
            module.bias.data.normal_(0, 0.5, generator=random)
            assert module.running_var is not None and module.running_mean is not None
            module.running_mean.normal_(0, 0.2, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
    return model.eval()


def images_for(model: DenselyConnected, batch: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((batch, *model.architecture.image_shape), np.float32)


def exact(model: DenselyConnected, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The logits in double precision."""
    double = model.double()
    try:
        with torch.inference_mode():
            logits: np.ndarray[Any, Any] = double(torch.from_numpy(images).double()).numpy()
            return logits
    finally:
        model.float()


def plan_of(model: DenselyConnected, names: Sequence[str], precision: str = "fp32", **options: Any) -> Plan:
    program = lower(model)
    if precision == "int8":
        return int8.make_plan(in_integers(model), description=describe(program, precision, tuple(names)), isas=names)
    return make_plan(program, precision=precision, description=describe(program, precision, tuple(names)), isas=names, **options)


@functools.lru_cache(maxsize=8)
def in_integers(model: DenselyConnected, seed: int = 0) -> QuantizedProgram:
    """With ranges from random pixels. Every other layer is in int16."""
    program = lower(model)
    names = [layer.name for layer in program.body if isinstance(layer, DenseLayer)]
    return quantize(program, pixels_for(program, 4, seed), int16=names[1::2])


def pixels_for(program: Program | QuantizedProgram, batch: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Images of random bytes, prepared as the network reads them."""
    raw = np.random.default_rng(seed).integers(0, 256, (batch, *program.architecture.image_shape), np.uint8)
    return program.preprocessing.apply(raw)


def library_of(program: QuantizedProgram, out: Path, names: Sequence[str], machine: str | None = None, extra: Sequence[str] = ()) -> Path:
    """The same of a network in integers, whatever its numbers."""
    plan = int8.make_plan(program, description=describe(program, "int8", tuple(names)), isas=names)
    build(
        find_compiler(machine or host_machine()), names, precision="int8", source=plan.source, weights=plan.weights, out=out,
        defines=plan.defines, extra=extra,
    )  # fmt: skip
    return out


def library(model: DenselyConnected, out: Path, names: Sequence[str], precision: str = "fp32", machine: str | None = None,
            extra: Sequence[str] = ()) -> Path:  # fmt: skip
    """A library straight from the toolchain, with flags of its own."""
    plan = plan_of(model, names, precision)
    build(
        find_compiler(machine or host_machine()), names, precision=precision, source=plan.source, weights=plan.weights, out=out,
        defines=plan.defines, extra=extra,
    )  # fmt: skip
    return out


def of(name: str) -> Compiler:
    """The C++ compiler that a command runs."""
    return toolchain._asked((name,), host_machine())


def driver(out: Path, made: Path, compiler: Sequence[str] = ("gcc",), flags: Sequence[str] = ()) -> Path:
    """driver.c, built against a library that lies beside it."""
    command = [*compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", *flags, "-I", SOURCES, HERE / "driver.c", "-o", out, made]
    subprocess.run([*command, "-lpthread", "-ldl", "-Wl,-rpath,$ORIGIN"], check=True)
    return out


def drive(program: Path, *arguments: Any, under: Sequence[str] = (), **surroundings: str) -> subprocess.CompletedProcess[str]:
    command = [*under, str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **surroundings})


def logits_on_neon(system_tool: Callable[[str], str], model: DenselyConnected, images: np.ndarray[Any, Any], folder: Path,
                   precision: str = "fp32", threads: int = 2) -> np.ndarray[Any, np.dtype[np.float32]]:  # fmt: skip
    """What a library for aarch64 answers, run by the emulator. The library and its driver stay in the folder."""
    system_tool("aarch64-linux-gnu-g++")
    emulator = (system_tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu")
    program, sizes = folder / "driver", (images[0].size, model.architecture.classes)
    if not program.exists():
        driver(program, library(model, folder / "m.so", ("neon",), precision, machine="aarch64"), compiler=("aarch64-linux-gnu-gcc",))
        assert drive(program, "refuse", *sizes, under=emulator).returncode == 0
    images.tofile(folder / "images")
    done = drive(program, "run", "best", threads, len(images), *sizes, folder / "images", folder / "logits", under=emulator)
    assert (done.returncode, done.stdout.strip()) == (0, "neon"), done.stderr[-500:]
    return np.fromfile(folder / "logits", np.float32).reshape(len(images), -1)


def check_nan(path: Path, model: DenselyConnected, precision: str, threads: Sequence[int]) -> None:
    """NaN of one image reaches the logits that it reaches in torch, and no other image, then or later."""
    images = images_for(model, 3)
    clean = images.copy()
    images[1, 2, 17, 33] = np.nan
    expected = np.isnan(exact(model, images))
    assert expected[1].all() and not expected[[0, 2]].any()
    for isa in isas(precision):
        for count in threads:
            with open_file(read_pair(path), device="cpu", threads=count, isa=isa) as session:
                before = session.run(clean)
                for sharing in ("layers", "images"):
                    session._share(sharing)
                    assert np.array_equal(np.isnan(session.run(images)), expected), sharing
                    assert np.array_equal(session.run(clean), before), sharing


@functools.cache
def every_kernel() -> DenselyConnected:
    return network(EVERY_KERNEL)
