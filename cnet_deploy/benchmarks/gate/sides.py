"""Base and head of a gate: each is exported by its own installation if its backend can't open it, and becomes a cell."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnet_deploy import subprocesses
from cnet_deploy.benchmarks.measure.cells import Cell
from cnet_deploy.benchmarks.measure.worker import NAMED
from cnet_deploy.benchmarks.sweep.figures import Figures, figures_of
from cnet_deploy.benchmarks.sweep.plan import (
    backends_of,
    copied,
    default_threads,
    export_options,
    is_calibrated,
    is_named,
    target_for,
)
from cnet_deploy.benchmarks.sweep.ranges import Ranges
from cnet_deploy.errors import InputRefused, Unavailable, naming
from cnet_deploy.exporters import targets
from cnet_deploy.files import check_input, exists
from cnet_deploy.sessions import backend_of, holds_weights, resolve_backend

Notify = Callable[[str], None]  # gets lines of text
EXPORT_SECONDS = 3600.0  # a TensorRT engine may take very long


@dataclass(frozen=True)
class Side:
    """Base or head: the given model, the interpreter that runs it, and its cell.

    ``figures`` are those of the artifact that is run (None for a network that the backend builds itself), ``model_figures`` those of the
    given file.
    """

    name: str
    model: str
    python: str
    cell: Cell
    figures: Figures | None = None
    model_figures: Figures | None = None

    def check(self, error: str | None, exit_code: int | None) -> None:
        """Raise its process's error as InputRefused or Unavailable, with the name of the given model."""
        if error is not None:
            message = error.replace(self.cell.model, self.model)
            raise (InputRefused if exit_code == InputRefused.exit_code else Unavailable)(f"{self.name}: {message}")


def make_side(
    name: str, model: str, backend: str | None, threads: int | None, python: str, folder: Path, notify: Notify, device: str, batch: int = 1,
    weights: str | None = None, calibrate: Path | None = None,
) -> Side:  # fmt: skip
    """A file or named network, ready to run ``batch`` images per inference. Files made for it are written to ``folder``.

    ``weights`` is the key of a set of weights, for a checkpoint that holds several; ``calibrate``: see ``bench``. Raises Unavailable if
    the side is missing, or can't be exported or run; InputRefused for a file or backend that is refused.
    """
    chosen = _backend_for(name, model, backend, device)
    weights = weights if not is_named(model) and holds_weights(model) else None
    label, target = Path(model).name, target_for(chosen, model)
    # A copy, since the file is opened again in every round and may change meanwhile.
    path = model if is_named(model) else str(copied(model, folder / name))
    try:
        given = None if is_named(model) else figures_of(path, weights)
    except InputRefused as error:
        raise InputRefused(f"{name}: {str(error).replace(path, model)}") from None
    if target is not None:
        source, path = path, str(folder / f"{name}{targets()[target].suffix}")
        notify(f"{name}: exporting {model} for {chosen}")
        taken: dict[str, Any] = {} if weights is None else {"weights": weights}
        if is_calibrated(chosen, model):
            ranges = Ranges(calibrate and calibrate.absolute())
            notify(f"{name}: {ranges.note()}")
            taken |= ranges.options(source, folder, taken)
        _export(name, model, source, target, path, python, folder, export_options(chosen, batch) | taken)
    elif is_named(model):
        path = NAMED + model
    options = {} if weights is None or target is not None else {"weights": weights}
    cell = Cell(label, path, chosen, threads or default_threads(), batch, options=options, device=device)
    figures = None if path.startswith(NAMED) else figures_of(path, options.get("weights"))
    return Side(name, model, python, cell, figures, given)


def needs_ranges(name: str, model: str, backend: str | None, device: str) -> bool:
    """Whether a side will be exported in a precision that needs ranges. Raises as ``make_side`` does, before anything is exported."""
    return is_calibrated(_backend_for(name, model, backend, device), model)


def _backend_for(name: str, model: str, backend: str | None, device: str) -> str:
    if not is_named(model):
        require_file(name, model)
    with naming(name):
        if backend is not None:
            resolve_backend(backend)
        own = (backend,) if backend else () if is_named(model) else (backend_of(model),)
        return backends_of(model, own, device)[-1]


def interpreter(python: str | None) -> str:
    """The interpreter's path, valid in any folder (None: this one). Links are not followed, or a virtual environment would be lost."""
    if python is None:
        return sys.executable
    return str(Path(python).absolute()) if os.sep in python else python


def require_file(name: str, model: str) -> None:
    """Raise Unavailable for a missing file, InputRefused for one that can't be read."""
    if not exists(model):
        raise Unavailable(f"{name}: {model}: no such file, and no network of that name; nothing was compared, so the gate did not pass")
    with naming(name):
        check_input(model)


def _export(name: str, model: str, source: str, target: str, path: str, python: str, folder: Path, options: dict[str, Any]) -> None:
    """Export with the side's own installation, from a folder in which Python finds no other."""
    arguments = ["export", source, f"--{target}", "-o", path]
    for key, value in options.items():
        arguments += [f"--{key}", ":".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    foreign = python != sys.executable
    command = [python, "-m", "cnet_deploy", *arguments] if foreign else subprocesses.python("cnet_deploy", *arguments)
    try:
        done = subprocesses.run(command, seconds=EXPORT_SECONDS, folder=folder, foreign=foreign)
    except subprocesses.TooLong:
        raise Unavailable(
            f"{name}: {model} can't be exported for --{target}: it took more than {EXPORT_SECONDS / 60:.0f} minutes"
        ) from None
    except OSError as error:
        raise Unavailable(f"{name}: {python}: can't be run ({error.strerror}); expected a Python that has cnet-deploy installed") from None
    if done.code:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        refused = done.code == InputRefused.exit_code
        raise (InputRefused if refused else Unavailable)(
            f"{name}: {model} can't be exported for --{target}: {reason.removeprefix('Error: ').replace(source, model)}"
        )
