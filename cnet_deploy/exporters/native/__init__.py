"""Native libraries: the Program compiled ahead of time into one shared library, with kernels of our own and no runtime to install."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.exporters.base import Option, Serving, Target, Written, require_quantization
from cnet_deploy.hardware.cpu import host_isas, host_machine
from cnet_deploy.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from cnet_deploy.artifacts.manifest import Manifest
    from cnet_deploy.exporters.native.toolchain import Processor
    from cnet_deploy.program.program import Program
    from cnet_deploy.program.quantize import Quantization
    from cnet_deploy.program.quantized import QuantizedProgram

PRECISIONS = ("fp32", "bf16", "int8")
FAMILIES = ("x86_64", "aarch64")  # of processors, for which libraries are compiled on any machine
TARGET = Target(
    suffix=".so",
    kind="library",
    title="native",
    help="Compile a shared library for the CPU: no runtime, several times faster.",
    container="native library",
    options=(
        Option("precision", "choice", "fp32, bf16 or int8", choices=PRECISIONS, several=True),
        Option(
            "cpu", "choice", "the processor to compile for [default: all of this machine's family, chosen when it is opened]",
            flag="target", choices=("host", "x86-64-v3", "x86-64-v4", "aarch64"),
        ),
    ),
    family_only=True,
    forms=False,
    serving=(
        Serving("", "cnet", "model.so", runs_on="cpu", threads="threads", states_threads=True, any_batch=True, release="24.10"),
    ),
    keeps="int16",
)  # fmt: skip
NOTE = "programs in C include cnet.h: `cnet-deploy include` prints its folder"
INCLUDE = Path(__file__).parent / "cpp"  # the folder of cnet.h
BACKEND = "libtriton_cnet.so"  # as Triton looks for the backend "cnet": in a version's folder, then a model's, then its own


def write(
    network: Program | nn.Module,
    path: Path,
    *,
    cpu: str | None = None,
    precision: str = "fp32",
    soname: str | None = None,
    quantization: Quantization | None = None,
) -> Written:
    """Compile one shared library, weights included. ``cpu`` None carries code for every processor of this machine's family.

    ``soname`` is the file name by which a program that is linked to the library looks for it (None: that of the path given to the linker).
    ``quantization`` is what int8 needs; the layers that it keeps are in int16. The same network gives the same bytes from the same
    compiler. Raises InputRefused for an unknown processor or precision, for int8 without a quantization, and for a network that is not of
    the family, Unavailable where no compiler is.
    """
    from cnet_deploy.exporters.native import int8
    from cnet_deploy.exporters.native.planning import make_plan
    from cnet_deploy.exporters.native.toolchain import build, find_compiler, resolve
    from cnet_deploy.program.program import Program

    if not isinstance(network, Program):
        raise InputRefused("only CondenseNet, DenseNet and their kin are compiled; expected one of them, or another target: --onnx")
    if precision not in PRECISIONS:
        raise InputRefused(f"precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    target = resolve(cpu, precision)
    compiler = find_compiler(target.machine)
    description = describe(network, precision, target.isas)
    integers = _in_integers(network, quantization) if precision == "int8" else None
    plan = (
        make_plan(network, precision=precision, description=description, isas=target.isas)
        if integers is None
        else int8.make_plan(integers, description=description, isas=target.isas)
    )
    build(compiler, target.isas, precision=precision, source=plan.source, weights=plan.weights, out=path, defines=plan.defines,
          soname=soname)  # fmt: skip
    parts = [network.stem, *network.body, network.pool, *filter(None, [network.hidden]), network.head]
    details = {
        "machine": target.machine, "isas": list(target.isas), "layouts": list(plan.layouts), "compiler": compiler.version,
        "operators": dict(Counter(type(layer).__name__ for layer in parts)),
    }  # fmt: skip
    exact = None if integers is None else integers.run
    return Written(precision, details, unverifiable=_why_not_here(target), notes=(NOTE,), exact=exact)


def serving_files(manifest: Manifest) -> Mapping[str, bytes]:
    """Triton's backend for a library, compiled for its machine. Raises Unavailable where no compiler is, InputRefused for a manifest
    that names no machine, or one for which libraries are not compiled."""
    from cnet_deploy.exporters.native.toolchain import build_backend, find_compiler

    machine = manifest.details.get("machine")
    if not isinstance(machine, str) or not machine:
        raise InputRefused("its manifest names no machine that the library is for; export the model again")
    known = tuple(dict.fromkeys((*FAMILIES, host_machine())))  # the name becomes part of a compiler's
    if machine not in known:
        raise InputRefused(
            f"its manifest names the machine {printable(machine, 60)}; expected {' or '.join(known)}: export the model again"
        )
    return {BACKEND: build_backend(find_compiler(machine))}


def _in_integers(program: Program, quantization: Quantization | None) -> QuantizedProgram:
    from cnet_deploy.program.quantize import quantized

    program, quantization = require_quantization(program, quantization)
    return quantized(program, quantization.calibration, int16=quantization.kept)


def _why_not_here(target: Processor) -> str | None:
    if target.machine != host_machine():
        return f"built for {target.machine}, and this machine is {host_machine()}"
    if not set(target.isas) & set(host_isas()):
        return f"built for {', '.join(target.isas)}, and this processor has no more than {host_isas()[0]}"
    return None


def describe(program: Program | QuantizedProgram, precision: str, isas: tuple[str, ...]) -> str:
    """What the library says of itself through ``cnet_describe``: JSON."""
    arch = program.architecture
    names = {"class_names": list(program.class_names)} if program.class_names else {}
    return json.dumps(
        {
            "tool": f"cnet-deploy {__version__}", "precision": precision, "isas": list(isas), "input": list(arch.image_shape),
            "classes": arch.classes, "architecture": arch.to_dict(), "preprocessing": program.preprocessing.to_dict(),
            "source_sha256": program.source_digest, **names,
        },
        sort_keys=True,
    )  # fmt: skip
