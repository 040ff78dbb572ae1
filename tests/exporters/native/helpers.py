"""What the tests of native libraries share: networks that reach every kernel, libraries of them, and the C driver."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cnet_deploy.exporters.native import describe
from cnet_deploy.exporters.native.planning import Plan, make_plan
from cnet_deploy.exporters.native.toolchain import SOURCES, build, find_compiler
from cnet_deploy.hardware.cpu import host_isas, host_machine
from cnet_deploy.models.architecture import Architecture
from cnet_deploy.models.build import build_random
from cnet_deploy.models.condensenet import DenselyConnected
from cnet_deploy.program.lower import lower
from tests.builders import TINY

HERE = Path(__file__).parent
ERROR = 1e-5  # of the largest logit, in fp32
BF16_ERROR = 3e-2
# Blocks of 48, 24 and 12 pixels a row: 3x3 by rows with two outputs a group, flat with eight, narrow with sixteen.
EVERY_KERNEL = replace(TINY, stages=(2, 2, 2), growth=(8, 32, 64), input_size=(48, 48), classes=70)


def isas(precision: str = "fp32") -> tuple[str, ...]:
    """The instruction sets that a library carries by default and this processor has."""
    best = ("avx512_bf16",) if precision == "bf16" else ("avx512",)
    return tuple(
        isa for isa in (*best, "avx2", "neon", "baseline") if isa in host_isas() and (isa != "baseline" or host_machine() == "x86_64")
    )


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
    return make_plan(program, precision=precision, description=describe(program, precision, tuple(names)), isas=names, **options)


def library(model: DenselyConnected, out: Path, names: Sequence[str], precision: str = "fp32", machine: str | None = None,
            extra: Sequence[str] = ()) -> Path:  # fmt: skip
    """A library straight from the toolchain, with flags of its own."""
    plan = plan_of(model, names, precision)
    build(
        find_compiler(machine or host_machine()), names, precision=precision, source=plan.source, weights=plan.weights, out=out,
        defines=plan.defines, extra=extra,
    )  # fmt: skip
    return out


def driver(out: Path, made: Path, compiler: Sequence[str] = ("gcc",), flags: Sequence[str] = ()) -> Path:
    """driver.c, built against a library that lies beside it."""
    command = [*compiler, "-std=c11", "-Wall", "-Wextra", "-Werror", *flags, "-I", SOURCES, HERE / "driver.c", "-o", out, made]
    subprocess.run([*command, "-lpthread", "-ldl", "-Wl,-rpath,$ORIGIN"], check=True)
    return out


def drive(program: Path, *arguments: Any, under: Sequence[str] = (), **surroundings: str) -> subprocess.CompletedProcess[str]:
    command = [*under, str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **surroundings})


@functools.cache
def every_kernel() -> DenselyConnected:
    return network(EVERY_KERNEL)
