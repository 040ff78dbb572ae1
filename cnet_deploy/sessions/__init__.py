"""Sessions: ``open_session`` opens an artifact or model with any backend and returns an object with the same interface for all.

Each backend is a module of this package with ``BACKEND = Backend(…)`` (see base.py) and a function
``open_file(pair, *, device, threads, **options) -> Session``; ``pair`` has the file's checked bytes. A module imports its runtime inside
its functions, so that its declaration can be read without the runtime.
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
from types import EllipsisType, MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from cnet_deploy.errors import CheckFailed, InputRefused, OutputRefused, Unavailable
from cnet_deploy.files import read_bytes
from cnet_deploy.files.kinds import EXPECTED, Kind, describe, kind_of_file

if TYPE_CHECKING:
    from cnet_deploy.artifacts.manifest import Manifest
    from cnet_deploy.sessions.base import Backend, Session

log = logging.getLogger(__name__)

# The first backend that opens a file is its default. Modules that are not listed here come last.
ORDER = ("native", "tensorrt", "onnxruntime", "openvino", "torch")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8")


class Variant(NamedTuple):
    """The meaning of a name such as "torch.compile": a backend, options of its session, and of the export for it."""

    backend: str
    options: dict[str, Any]
    export: dict[str, Any]


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all backends in order. Nothing is imported."""
    modules = {module.name for module in pkgutil.iter_modules(__path__)} - {"base", "trial"}
    return (*(name for name in ORDER if name in modules), *sorted(modules.difference(ORDER)))


@functools.cache
def backends() -> Mapping[str, Backend]:
    """The declarations of all backends by name, in order."""
    return MappingProxyType({name: importlib.import_module(f"{__name__}.{name}").BACKEND for name in names()})


def backend_of(path: Path | str) -> str:
    """The default backend for a file, by its first bytes (see ``opens``). Raises InputRefused if there is none, or no file."""
    kind = kind_of_file(path)
    for name, backend in backends().items():
        if _opens(backend, path, kind):
            return name
    named = next((backend for backend in backends().values() if _has_suffix(backend, path)), None)
    expected = _expected(named) if named else ", ".join(dict.fromkeys(map(_expected, backends().values())))
    code = next((backend for backend in backends().values() if backend.runs_code and kind and kind.opened_by in backend.opens), None)
    if kind is not None and code is not None:
        raise InputRefused(
            f"{path}: is {kind.name}, which is code, and is opened under a name that ends in {code.suffixes[0]} alone; rename it if you "
            "trust where it comes from"
        )
    raise InputRefused(f"{path}: {describe(kind, expected)}")


def backend_by_suffix(suffix: str) -> str:
    """The default backend for files with this suffix. Raises InputRefused if there is none."""
    for name, backend in backends().items():
        if suffix in backend.suffixes:
            return name
    raise InputRefused(f"no backend opens files that end in {suffix}")


def opens(backend: Backend, path: Path | str) -> bool:
    """Whether a backend opens a file: by its first bytes, and by its suffix where these are like nothing known.

    A file that is code must have the suffix too: nobody runs code that calls itself a file of data.
    """
    return _opens(backend, path, kind_of_file(path))


def _opens(backend: Backend, path: Path | str, kind: Kind | None) -> bool:
    if kind is None or not backend.opens:
        return _has_suffix(backend, path)
    return kind.opened_by in backend.opens and (not backend.runs_code or _has_suffix(backend, path))


def _has_suffix(backend: Backend, path: Path | str) -> bool:
    return Path(path).suffix.lower() in backend.suffixes


def _expected(backend: Backend) -> str:
    """What a backend opens, for messages."""
    return " or ".join(EXPECTED[kind] for kind in backend.opens) or f"a file that ends in {' or '.join(backend.suffixes)}"


def holds_weights(path: Path | str) -> bool:
    """Whether a file is a checkpoint or a model, which may hold several sets of weights, and no artifact. Raises as ``backend_of``."""
    return backends()[backend_of(path)].opens_models


def resolve_backend(name: str) -> Variant:
    """The backend and options for a backend's name, which may have parts after dots.

    >>> resolve_backend("torch.cudagraph.fp16")
    Variant(backend='torch', options={'cudagraph': True, 'precision': 'fp16'}, export={})

    Raises InputRefused for an unknown name or part, a repeated part, and two precisions.
    """
    backend, *parts = name.split(".")
    if backend not in backends():
        example = next(f"{other}.{part}" for other, spec in backends().items() for part in spec.parts)
        raise InputRefused(f"no backend is called {name!r}; expected one of {', '.join(names())}, with parts as in {example}")
    known = backends()[backend].parts
    expected = f"{backend} alone or with some of {', '.join(known)}, after dots" if known else f"{backend} alone"
    if unknown := [part for part in parts if part not in known]:
        raise InputRefused(f"no backend is called {name!r}: {backend} has no {unknown[0]!r}; expected {expected}")
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise InputRefused(f"no backend is called {name!r}: it has {twice[0]!r} twice; expected {expected}")
    if len(both := [part for part in parts if part in PRECISIONS]) > 1:
        raise InputRefused(f"no backend is called {name!r}: {' and '.join(both)} are two precisions; expected one")
    options = {key: value for part in parts for key, value in known[part].options.items()}
    return Variant(backend, options, {key: value for part in parts for key, value in known[part].export.items()})


def open_session(
    path: Path | str, backend: str | None = None, device: str | None = None, threads: int | None = None, *,
    sha256: str | None = None, timeout: float | EllipsisType | None = ..., **options: Any,
) -> Session:  # fmt: skip
    """Open an artifact or a model to run batches: ``with open_session("model.onnx") as session: session.run(batch)``.

    ``backend`` None takes the default for the file, by its first bytes; a name may have parts, as in "torch.compile". ``device`` None is
    "cpu", or "cuda" for backends that need it; ``threads`` None leaves the number to the backend. ``sha256`` is the digest that the file
    must have, in hexadecimal. An ONNX file that is no plain network, as `export` writes, is first opened and run once in a process of its
    own, which may take ``timeout`` seconds (60, unless ``trial.time_limit`` says otherwise); None trusts the file. ``options`` are the
    backend's own (native: ``isa``; openvino: ``precision``; torch: ``compiled`` …) and, for a checkpoint, those of ``checkpoints.load``, of
    which ONNX files take ``input_size`` where they leave it free. An artifact that could not be run where it was made is verified now, by
    the self-check in its manifest, and the manifest is updated. Raises InputRefused for a file that can't be opened, Unavailable for a
    missing backend or device, CheckFailed for an artifact whose outputs differ from its model's.
    """
    from cnet_deploy.artifacts.pair import read_pair, update_manifest
    from cnet_deploy.sessions.base import LOADING_OPTIONS

    path = Path(path)
    if backend is not None and backend.partition(".")[0] not in backends():
        raise Unavailable(f"no backend is called {backend!r}; expected one of {', '.join(names())}")
    if threads is not None and threads < 1:
        raise InputRefused(f"threads is {threads}; expected at least 1")
    variant = resolve_backend(backend or backend_of(path))
    spec, kind = backends()[variant.backend], kind_of_file(path)
    if not _opens(spec, path, kind):
        backend_of(path)  # if none opens it, the reason is there
        what = kind.name if kind is not None else f"no {_expected(spec).partition(' ')[2]}"
        raise InputRefused(f"{path}: is {what}, which {variant.backend} does not open; expected {_expected(spec)}")
    given = {key: value for key, value in options.items() if value is not None or key not in LOADING_OPTIONS}
    if not spec.opens_models and (foreign := [key for key in given if key in LOADING_OPTIONS and key not in spec.takes]):
        raise InputRefused(f"{path}: is an artifact, whose architecture is fixed; expected no {', '.join(foreign)}")
    if "input_size" in given:
        given["input_size"] = tuple(given["input_size"])  # a list, from JSON
    pair = read_pair(path, sha256, described=not spec.opens_models)
    module = importlib.import_module(f"{__name__}.{variant.backend}")
    device, given = device or spec.devices[0], {**variant.options, **given}
    if spec.tried_apart and timeout is not None:
        from cnet_deploy.sessions import trial

        limit = timeout if isinstance(timeout, (int, float)) else None
        trial.require(pair, variant.backend, spec.packages, device, threads, given, limit)
    session: Session = module.open_file(pair, device=device, threads=threads, **given)
    session.path = path
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
        # If the folder can't be written to, the artifact is verified again when it is opened next.
        with contextlib.suppress(OutputRefused):
            update_manifest(path, session.manifest, verified)
        session.manifest = verified
    return session


def try_first(path: Path, backend: str, device: str, threads: int | None, options: Mapping[str, Any]) -> None:
    """What ``open_session`` does before it opens a stranger's graph, for a file that another process is to open.

    A file that can't be opened for other reasons is left to that. Raises InputRefused for one that crashes or does not end.
    """
    from cnet_deploy.artifacts.pair import Pair
    from cnet_deploy.sessions import trial

    spec = backends()[backend]
    if spec.tried_apart:
        trial.require(Pair(path, read_bytes(path)), backend, spec.packages, device, threads, options)


def _verified(session: Session, manifest: Manifest) -> Manifest:
    """Verify an artifact by its self-check. Returns the updated manifest. Raises CheckFailed if the outputs differ."""
    from cnet_deploy.artifacts import self_check

    if manifest.proof is None:
        raise InputRefused("was never verified, and its manifest has no self-check to do so now; export the model again")
    details = {key: value for key, value in manifest.details.items() if key not in ("verified", "reason")} | session.first_opening()
    precisions = session.precision, session.weights_precision
    entry = self_check.check(
        session.run, session.input_shape[1:], manifest.proof, classes=session.classes, most=self_check.tolerance_of(*precisions),
        least_cosine=self_check.cosine_of(*precisions),
    )  # fmt: skip
    return replace(manifest, details=details, verification=(*manifest.verification, entry), proof=None)
