"""Sessions: ``open_session`` opens anything that runs, and what it returns is the same whatever runs it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from cnet_deploy.errors import InputRefused, Unavailable
from cnet_deploy.files import check_input
from cnet_deploy.sessions.base import Binding, Session

__all__ = ["BACKENDS", "Binding", "Session", "PEERS", "VARIANTS", "backend_of", "open_session", "resolve_backend"]

# Which backend opens which suffix, in the order of preference. A backend is a module of this package with ``open_file``.
BACKENDS: dict[str, tuple[str, ...]] = {
    "native": (".so",),
    "onnxruntime": (".onnx",),
    "openvino": (".onnx",),
    "torch": (".safetensors", ".tar", ".pth", ".pt"),
}

# Backends that are there to be compared with, and used where they are asked for by name.
PEERS = frozenset({"openvino"})
# What is measured under a name of its own, though it is a backend with an option.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"torch.compile": ("torch", {"compiled": True})}


def backend_of(path: Path | str) -> str:
    """The backend that opens a file of this suffix unless another is asked for. Raises InputRefused if none does."""
    suffix = Path(path).suffix
    for backend, suffixes in BACKENDS.items():
        if suffix in suffixes:
            return backend
    known = ", ".join(suffix for suffixes in BACKENDS.values() for suffix in suffixes)
    raise InputRefused(f"{path}: no backend opens the suffix {suffix or '(none)'!r}; expected one of {known}")


def resolve_backend(name: str) -> tuple[str, dict[str, Any]]:
    """The backend behind a name of ``BACKENDS`` or ``VARIANTS``, and the options that make it the variant.

    >>> resolve_backend("torch.compile")
    ('torch', {'compiled': True})

    Raises InputRefused for any other name.
    """
    if name not in BACKENDS and name not in VARIANTS:
        raise InputRefused(f"no backend is called {name!r}; expected some of {', '.join((*BACKENDS, *VARIANTS))}")
    return VARIANTS.get(name, (name, {}))


def open_session(path: Path | str, backend: str | None = None, device: str = "cpu", threads: int | None = None, **options: Any) -> Session:
    """Open an artifact or a model to run batches: ``with open_session("model.onnx") as session: session.run(batch)``.

    ``backend`` None takes the one that fits the suffix; ``threads`` None leaves the number to the backend.
    ``options`` are the backend's own (native: ``isa``; openvino: ``precision``; torch: ``compiled``).
    Raises InputRefused for a file that can't be opened, Unavailable for a backend or device that is not here.
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
    session: Session = module.open_file(path, device=device, threads=threads, **options)
    return session
