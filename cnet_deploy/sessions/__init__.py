"""Sessions: ``open_session`` opens anything that runs, and what it returns is the same whatever runs it.

Each backend is a module of this package with ``BACKEND = Backend(…)`` (see base.py) and a function
``open_file(pair, *, device, threads, **options) -> Session``; ``pair`` has the file's bytes as they were checked. A module imports its
runtime inside its functions, so that its description can be read where the runtime is missing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, Unavailable

if TYPE_CHECKING:
    from cnet_deploy.artifacts.manifest import Manifest
    from cnet_deploy.sessions.base import Backend, Session

log = logging.getLogger(__name__)

# Where several backends open a file, the first of these does unless another is asked for. A module that is not named here comes after them.
ORDER = ("native", "tensorrt", "onnxruntime", "openvino", "torch")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


class Variant(NamedTuple):
    """What a name such as "torch.compile" stands for: a backend, the options it is opened with, those of the export for it."""

    backend: str
    options: dict[str, Any]
    export: dict[str, Any]


@functools.cache
def names() -> tuple[str, ...]:
    """The backends in order; nothing is imported for it."""
    modules = {module.name for module in pkgutil.iter_modules(__path__)} - {"base"}
    return (*(name for name in ORDER if name in modules), *sorted(modules.difference(ORDER)))


@functools.cache
def backends() -> Mapping[str, Backend]:
    """The description of every backend by its name, in order."""
    return MappingProxyType({name: importlib.import_module(f"{__name__}.{name}").BACKEND for name in names()})


def backend_of(path: Path | str) -> str:
    """The backend that opens a file of this suffix unless another is asked for. Raises InputRefused if none does."""
    suffix = Path(path).suffix
    for name, backend in backends().items():
        if suffix in backend.suffixes:
            return name
    known = ", ".join(dict.fromkeys(suffix for backend in backends().values() for suffix in backend.suffixes))
    raise InputRefused(f"{path}: no backend opens the suffix {suffix or '(none)'!r}; expected one of {known}")


def resolve_backend(name: str) -> Variant:
    """The backend and the options behind a backend's name, which parts may follow after dots.

    >>> resolve_backend("torch.cudagraph.fp16")
    Variant(backend='torch', options={'cudagraph': True, 'precision': 'fp16'}, export={})

    Raises InputRefused for another name, a part that the backend has not, one that is there twice, and two precisions.
    """
    backend, *parts = name.split(".")
    if backend not in backends():
        example = next(f"{other}.{part}" for other, described in backends().items() for part in described.parts)
        raise InputRefused(f"no backend is called {name!r}; expected one of {', '.join(names())}, with parts as in {example}")
    known = backends()[backend].parts
    expected = f"{backend} alone or with some of {', '.join(known)}, after dots" if known else f"{backend} alone"
    if unknown := [part for part in parts if part not in known]:
        raise InputRefused(f"no backend is called {name!r}: {backend} has no {unknown[0]!r}; expected {expected}")
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise InputRefused(f"no backend is called {name!r}: {twice[0]!r} is there twice; expected {expected}")
    if len(both := [part for part in parts if part in PRECISIONS]) > 1:
        raise InputRefused(f"no backend is called {name!r}: {' and '.join(both)} are two precisions; expected one")
    options = {key: value for part in parts for key, value in known[part].options.items()}
    return Variant(backend, options, {key: value for part in parts for key, value in known[part].export.items()})


def open_session(
    path: Path | str, backend: str | None = None, device: str | None = None, threads: int | None = None, *,
    sha256: str | None = None, **options: Any,
) -> Session:  # fmt: skip
    """Open an artifact or a model to run batches: ``with open_session("model.onnx") as session: session.run(batch)``.

    ``backend`` None takes the one that fits the suffix; parts may follow its name, as in "torch.compile". ``device`` None is "cpu", and
    "cuda" for what runs there alone; ``threads`` None leaves the number to the backend. ``sha256`` pins the file: the digest that its bytes
    must have, in hexadecimal. ``options`` are the backend's own (native: ``isa``; openvino: ``precision``; torch: ``compiled`` …) and, for
    a checkpoint, those of ``checkpoints.load``.
    An artifact that could not be run where it was made is verified now, by the self-check in its manifest, which then says so.
    Raises InputRefused for a file that can't be opened, Unavailable for a backend or device that is not here, CheckFailed for an
    artifact that computes something else than its model.
    """
    from cnet_deploy.artifacts.pair import read_pair, update_manifest
    from cnet_deploy.files import check_input
    from cnet_deploy.sessions.base import LOADING_OPTIONS

    path = Path(path)
    if backend is not None and backend.partition(".")[0] not in backends():
        raise Unavailable(f"no backend is called {backend!r}; expected one of {', '.join(names())}")
    if threads is not None and threads < 1:
        raise InputRefused(f"threads is {threads}; expected at least 1")
    check_input(path)
    variant = resolve_backend(backend or backend_of(path))
    described = backends()[variant.backend]
    if path.suffix not in described.suffixes:
        raise InputRefused(
            f"{path}: {variant.backend} does not open {path.suffix or 'files without a suffix'}; expected {', '.join(described.suffixes)}"
        )
    given = {key: value for key, value in options.items() if value is not None or key not in LOADING_OPTIONS}
    if not described.opens_models and (foreign := [key for key in given if key in LOADING_OPTIONS]):
        raise InputRefused(f"{path}: is an artifact, of which nothing is inferred; expected no {', '.join(foreign)}")
    pair = read_pair(path, sha256, described=not described.opens_models)
    module = importlib.import_module(f"{__name__}.{variant.backend}")
    session: Session = module.open_file(pair, device=device or described.devices[0], threads=threads, **{**variant.options, **given})
    log.info("opened %s: %s on %s, %s", path, variant.backend, session.device, session.precision)
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


def _verified(session: Session, manifest: Manifest) -> Manifest:
    """The manifest of an artifact that nobody had opened before. Raises CheckFailed if it does not keep what it promises."""
    from cnet_deploy.artifacts import self_check

    if manifest.proof is None:
        raise InputRefused("was never verified, and its manifest carries no proof to do so now; export the model again")
    details = {key: value for key, value in manifest.details.items() if key not in ("verified", "reason")} | session.first_opening()
    entry = self_check.check(session.run, session.input_shape[1:], manifest.proof)
    return replace(manifest, details=details, verification=(*manifest.verification, entry), proof=None)
