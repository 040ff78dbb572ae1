"""What every target is: its description, and what it reports of a file that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cnet_deploy.images.preprocessing import Preprocessing
    from cnet_deploy.models.architecture import Architecture

Kind = Literal["choice", "number", "batch", "batches", "bytes", "file"]


@dataclass(frozen=True)
class Option:
    """An option of a target, as `export` offers it.

    ``name`` is the keyword of the target's ``write``; ``flag`` what it is called on the command line, where that is another word. ``kind``
    is how its value is written: one of ``choices``; a whole number within ``bounds``; "batch", a number of images; "batches", one number or
    LEAST:BEST:MOST; bytes as 512M; a file's path. ``affects_artifact`` is False for what changes nothing in the file that is written.
    """

    name: str
    kind: Kind
    help: str
    flag: str = ""
    choices: tuple[str, ...] = ()
    bounds: tuple[int, int] | None = None
    affects_artifact: bool = True

    @property
    def command_line(self) -> str:
        """The flag, with its hyphens."""
        return f"--{self.flag or self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Serving:
    """How Triton Inference Server runs such artifacts: its platform, its backend, the file's name there, and whether on GPUs alone."""

    platform: str
    backend: str
    file: str
    gpu_only: bool = False


@dataclass(frozen=True)
class Target:
    """A target as a module of this package declares it: ``TARGET = Target(…)``. The module's name is the target's.

    ``suffix`` is that of its artifacts; ``title`` its name for people, ``help`` the help of its flag, ``container`` what `inspect` calls
    such a file. ``family_only`` targets are made from a Program alone, which the paper's other networks have not. ``forms`` says whether
    the network may be written in other forms (program/forms.py). ``serving`` is None for what Triton does not serve.
    """

    suffix: str
    title: str
    help: str
    container: str = ""
    options: tuple[Option, ...] = ()
    family_only: bool = False
    forms: bool = True
    serving: Serving | None = None


@dataclass(frozen=True)
class Written:
    """What an exporter reports of the file that it wrote, for the manifest.

    ``unverifiable`` is why the file can't be run where it was made; None if it can, and then it must be verified. ``notes`` are lines for
    people about what was built.
    """

    precision: str
    details: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    unverifiable: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inside:
    """What an artifact's bytes tell of it without being run.

    ``operators`` counts its nodes by operator; ``multiply_adds`` of one image (None where shapes can't be told) and ``params`` are counted
    in the graph, whatever its metadata say. ``details`` are further facts for people.
    """

    operators: Mapping[str, int]
    multiply_adds: int | None
    params: int
    architecture: Architecture | None = None
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
