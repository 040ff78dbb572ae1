"""Sessions: ``open_session`` opens anything that runs, and what it returns is the same whatever runs it.

A module of this package with ``SUFFIXES`` at its top is a backend; nothing else has to know of it. It has ``open_file(pair, *, device,
threads, **options)``, which gets the file's bytes as they were checked, and says of itself, in literal constants:

    SUFFIXES = (".onnx",)      what it opens
    PLACE = 3                  among the backends: where several open a suffix, the first does
    DEVICES = ("cpu", "cuda")  where it runs (default: both)
    PEER = True                if it is there to be compared with, and used where it is asked for by name (default: False)
    DESCRIBED = False          if its files have no manifest beside them (default: True)
    VARIANTS = {"bf16": ({}, {"precision": "bf16"})}
                               what may follow its name after dots, to be measured under a name of its own: (how it is opened, how it is
                               exported for it)
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cnet_deploy.artifacts import manifest
from cnet_deploy.artifacts import self_check as proof
from cnet_deploy.artifacts.pair import read_pair, update_manifest
from cnet_deploy.declarations import declared
from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, Unavailable
from cnet_deploy.files import check_input
from cnet_deploy.sessions.base import Binding, Session, Variants

log = logging.getLogger(__name__)

__all__ = ["BACKENDS", "Binding", "Session", "DEVICES", "PEERS", "VARIANTS", "Variant", "backend_of", "open_session", "resolve_backend"]

_SAID = {name: said for name, said in declared(__name__).items() if "SUFFIXES" in said}
_ORDER = sorted(_SAID, key=lambda name: (_SAID[name].get("PLACE", math.inf), name))
# Which backend opens which suffix, in the order of preference.
BACKENDS: dict[str, tuple[str, ...]] = {name: _SAID[name]["SUFFIXES"] for name in _ORDER}
VARIANTS: dict[str, Variants] = {name: _SAID[name].get("VARIANTS", {}) for name in _ORDER}
DEVICES = ("cpu", "cuda")
# Backends that no CPU runs.
GPU_ONLY = frozenset(name for name in _ORDER if "cpu" not in _SAID[name].get("DEVICES", DEVICES))
PEERS = frozenset(name for name in _ORDER if _SAID[name].get("PEER"))
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


class Variant(NamedTuple):
    """What a name such as "tensorrt.fp16.cudagraph" stands for: a backend, the options it is opened with, those of the export for it."""

    backend: str
    options: dict[str, Any]
    export: dict[str, Any]


def backend_of(path: Path | str) -> str:
    """The backend that opens a file of this suffix unless another is asked for. Raises InputRefused if none does."""
    suffix = Path(path).suffix
    for backend, suffixes in BACKENDS.items():
        if suffix in suffixes:
            return backend
    known = ", ".join(suffix for suffixes in BACKENDS.values() for suffix in suffixes)
    raise InputRefused(f"{path}: no backend opens the suffix {suffix or '(none)'!r}; expected one of {known}")


def resolve_backend(name: str) -> Variant:
    """The backend and the options behind a name of ``BACKENDS``, with parts of ``VARIANTS`` after dots.

    >>> resolve_backend("torch.cudagraph.fp16")
    Variant(backend='torch', options={'cudagraph': True, 'precision': 'fp16'}, export={})

    Raises InputRefused for another name, a part that the backend has not, one that stands there twice, and two precisions.
    """
    backend, *parts = name.split(".")
    if backend not in BACKENDS:
        raise InputRefused(f"no backend is called {name!r}; expected one of {', '.join(BACKENDS)}, with parts as in torch.compile")
    known = VARIANTS.get(backend, {})
    if unknown := [part for part in parts if part not in known]:
        raise InputRefused(f"no backend is called {name!r}: {backend} has no {unknown[0]!r}; expected {_choice(backend, known)}")
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise InputRefused(f"no backend is called {name!r}: {twice[0]!r} stands there twice; expected {_choice(backend, known)}")
    if len(both := [part for part in parts if part in PRECISIONS]) > 1:
        raise InputRefused(f"no backend is called {name!r}: {' and '.join(both)} are two precisions; expected one")
    options, export = ({key: value for part in parts for key, value in known[part][which].items()} for which in (0, 1))
    return Variant(backend, options, export)


def _choice(backend: str, known: Variants) -> str:
    return f"{backend} alone or with some of {', '.join(known)}, after dots" if known else f"{backend} alone"


def open_session(
    path: Path | str, backend: str | None = None, device: str | None = None, threads: int | None = None, *,
    sha256: str | None = None, **options: Any,
) -> Session:  # fmt: skip
    """Open an artifact or a model to run batches: ``with open_session("model.onnx") as session: session.run(batch)``.

    ``backend`` None takes the one that fits the suffix; ``device`` None is "cpu", and "cuda" for what runs there alone; ``threads`` None
    leaves the number to the backend. ``sha256`` pins the file: the digest that its bytes must have, in hexadecimal. ``options`` are the
    backend's own (native: ``isa``; openvino: ``precision``; torch: ``compiled`` …).
    An artifact that could not be run where it was made is verified now, by the proof in its manifest, which then says so.
    Raises InputRefused for a file that can't be opened, Unavailable for a backend or device that is not here, CheckFailed for an
    artifact that computes something else than its model.
    """
    path = Path(path)
    if backend is not None and backend not in BACKENDS:
        raise Unavailable(f"no backend is called {backend!r}; expected one of {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise InputRefused(f"threads is {threads}; expected at least 1")
    check_input(path)
    backend = backend or backend_of(path)
    if path.suffix not in BACKENDS[backend]:
        raise InputRefused(
            f"{path}: {backend} does not open {path.suffix or 'files without a suffix'}; expected {', '.join(BACKENDS[backend])}"
        )
    module = importlib.import_module(f"cnet_deploy.sessions.{backend}")
    device = device or ("cuda" if backend in GPU_ONLY else "cpu")
    pair = read_pair(path, sha256, described=_SAID[backend].get("DESCRIBED", True))
    session: Session = module.open_file(pair, device=device, threads=threads, **options)
    log.info("opened %s: %s on %s, %s", path, backend, session.device, session.precision)
    if session.manifest is not None and session.manifest.unverified:
        try:
            verified = _verified(session, session.manifest)
        except (CheckFailed, InputRefused) as error:
            session.close()
            raise type(error)(f"{path}: {error}") from None
        except BaseException:
            session.close()
            raise
        # A folder that can't be written to: the next opening verifies again.
        with contextlib.suppress(OutputRefused):
            update_manifest(path, session.manifest, verified)
        session.manifest = verified
    return session


def _verified(session: Session, found: manifest.Manifest) -> manifest.Manifest:
    """The manifest of an artifact that nobody had opened before. Raises CheckFailed if it does not keep what it promises."""
    if found.proof is None:
        raise InputRefused("was never verified, and its manifest carries no proof to do so now; export the model again")
    details = {key: value for key, value in found.details.items() if key not in ("verified", "reason")} | session.first_opening()
    entry = proof.check(session.run, session.input_shape[1:], found.proof)
    return replace(found, details=details, verification=(*found.verification, entry), proof=None)


def opened(
    path: Path, backend: str | None, device: str | None, threads: int | None, overrides: dict[str, Any], sha256: str | None = None
) -> Session:  # fmt: skip
    """``open_session`` with a backend's name as ``bench`` has them. Raises InputRefused for ``overrides`` of what infers nothing."""
    variant = resolve_backend(backend or backend_of(path))
    given = {name: value for name, value in overrides.items() if value is not None}
    if given and variant.backend != "torch":
        raise InputRefused(f"{path}: is an artifact, of which nothing is inferred; expected no {', '.join(given)}")
    return open_session(path, variant.backend, device, threads, sha256=sha256, **variant.options, **given)
