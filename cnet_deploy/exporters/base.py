"""The declaration of a target, and what an exporter reports about a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cnet_deploy.errors import InputRefused

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    from cnet_deploy.images.preprocessing import Preprocessing
    from cnet_deploy.models.architecture import Architecture
    from cnet_deploy.program.program import Program
    from cnet_deploy.program.quantize import Quantization

Kind = Literal["choice", "number", "batch", "batches", "bytes", "file"]


@dataclass(frozen=True)
class Option:
    """An option of a target that `export` offers.

    ``name`` is the keyword of the target's ``write``; ``flag`` is its name on the command line, if that differs. ``kind`` is the type of
    its value: one of ``choices``; a whole number within ``bounds``; "batch", a number of images; "batches", one number or LEAST:BEST:MOST;
    bytes as 512M; a file's path. ``affects_artifact`` is False if the written file does not depend on it. ``several``: `export` takes
    several of the choices, and writes an artifact for each.
    """

    name: str
    kind: Kind
    help: str
    flag: str = ""
    choices: tuple[str, ...] = ()
    bounds: tuple[int, int] | None = None
    affects_artifact: bool = True
    several: bool = False

    @property
    def command_line(self) -> str:
        """The flag, with its hyphens."""
        return f"--{self.flag or self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Serving:
    """How Triton Inference Server runs an artifact.

    ``backend`` is the server's, ``file`` the artifact's name in a version's folder; ``platform`` is empty for a backend that has none.
    ``runs_on`` is what an instance may run on: anything, only a CPU, or only a GPU. ``threads`` is the parameter by which the backend is
    told how many threads an instance has; empty where it has none. Where ``states_threads``, it is always written. ``any_batch``: such
    artifacts take any batch, and their manifests don't say so. ``release`` is that of the server's container which is told to users: one
    that was tested, or YY.MM where the artifact decides.
    """

    platform: str
    backend: str
    file: str
    runs_on: Literal["any", "cpu", "gpu"] = "any"
    threads: str = ""
    states_threads: bool = False
    any_batch: bool = False
    release: str = "YY.MM"


@dataclass(frozen=True)
class Target:
    """The declaration of a target: ``TARGET = Target(…)`` in a module of this package. The module's name is the target's.

    ``suffix`` is that of its artifacts, ``kind`` what they are by their first bytes (see Kind.opened_by), ``title`` its name in messages,
    ``help`` the help of its flag, ``container`` the name of the file format in `inspect`. ``family_only`` targets take only a Program, so
    not the paper's other networks. ``forms``: whether the forms of program/forms.py can be chosen. ``serving`` has the ways in which
    Triton serves its artifacts, the default first; it is empty if there is none. ``keeps`` is the precision of the layers that int8 keeps
    in a higher one. ``measured_as`` is the target whose artifacts answer the same in int8 and are built sooner; empty for its own.
    """

    suffix: str
    title: str
    help: str
    container: str = ""
    kind: str = ""
    options: tuple[Option, ...] = ()
    family_only: bool = False
    forms: bool = True
    serving: tuple[Serving, ...] = ()
    keeps: str = "fp32"
    measured_as: str = ""


@dataclass(frozen=True)
class Written:
    """An exporter's report on the file that it wrote, for the manifest.

    ``unverifiable`` says why the file can't be run on this machine; None if it can, and then it must be verified. ``notes`` are lines of
    text about what was built. ``exact`` computes the logits that the file gives, to the bit; None where it only comes near to its network.
    """

    precision: str
    details: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    unverifiable: str | None = None
    notes: tuple[str, ...] = ()
    exact: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None


def require_quantization(network: Program | nn.Module, quantization: Quantization | None) -> tuple[Program, Quantization]:
    """What int8 needs. Raises InputRefused for a network that is not of the family, for a CondenseNet V2, and without ranges."""
    from cnet_deploy.program.calibration import require_integers
    from cnet_deploy.program.program import Program

    if not isinstance(network, Program):
        raise InputRefused("precision int8 is for networks of the CondenseNet family; expected fp32 or fp16 for this one")
    require_integers(network)
    if quantization is None:
        raise InputRefused("precision int8 needs images that the ranges of its values are taken from; give some: --calibrate DATA")
    return network, quantization


@dataclass(frozen=True)
class Inside:
    """The contents of an artifact, read from its bytes without running it.

    ``operators`` counts its nodes by operator. ``multiply_adds`` for one image (None if shapes can't be inferred) and ``params`` are
    counted in the graph, not taken from its metadata. ``precision`` is that of most weights; None without weights. ``details`` are further
    facts for `inspect`.
    """

    operators: Mapping[str, int]
    multiply_adds: int | None
    params: int
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    precision: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
