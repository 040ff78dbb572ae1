"""Exporters: each target is a module of this package with ``TARGET = Target(…)`` (see base.py) and a function ``write``.

``write(network, path, **options) -> Written`` writes one file; ``network`` is a Program or, unless the target is for the family only, a
torch module. A module imports its libraries inside its functions, so that its declaration can be read without them. It may also have

    inspect(data) -> Inside                      describe a file's bytes without running it (without it `inspect` shows only the manifest)
    comparable(options, folder) -> options       options with which several networks are built in the same way, for a comparison
    require_servable(manifest)                   raises if Triton can't serve this particular artifact
    serving_files(manifest) -> {name: bytes}     what Triton needs in the model's folder, as a backend
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from cnet_deploy.errors import InputRefused, printable
from cnet_deploy.exporters.base import Target, Written
from cnet_deploy.files.kinds import Kind

# The order of preference and of listings. Modules that are not listed here come last.
ORDER = ("onnx", "native", "tensorrt")


@functools.cache
def targets() -> Mapping[str, Target]:
    """All targets by name, in order."""
    names = {module.name for module in pkgutil.iter_modules(__path__)} - {"base"}
    ordered = [name for name in ORDER if name in names] + sorted(names.difference(ORDER))
    return MappingProxyType({name: importlib.import_module(f"{__name__}.{name}").TARGET for name in ordered})


def target_of(name: str) -> Target:
    """The target of this name. Raises InputRefused for an unknown one."""
    if name not in targets():
        raise InputRefused(f"no target is called {name!r}; expected one of {', '.join(targets())}")
    return targets()[name]


def module_of(name: str) -> ModuleType:
    """The module of a target. Raises InputRefused for an unknown one."""
    target_of(name)
    return importlib.import_module(f"{__name__}.{name}")


def exporter(name: str) -> Callable[..., Written]:
    """``write`` of a target. Raises InputRefused for an unknown one."""
    write: Callable[..., Written] = module_of(name).write
    return write


def options_of(name: str) -> frozenset[str]:
    """The keywords that a target's ``write`` takes from users: all but ``quantization``, which `export` makes from theirs."""
    keywords = {key for key, p in inspect.signature(exporter(name)).parameters.items() if p.kind is p.KEYWORD_ONLY}
    return frozenset(keywords - {"quantization"})


def require_choices(name: str, options: Mapping[str, Any]) -> None:
    """Raise InputRefused for a value that an option of a target does not take, before anything is loaded."""
    for option in target_of(name).options:
        if option.choices and (value := options.get(option.name)) is not None and value not in option.choices:
            raise InputRefused(
                f"{target_of(name).title} has no {option.name} {printable(value, 60)}; expected one of {', '.join(option.choices)}"
            )


def target_by_suffix(suffix: str) -> str | None:
    """The name of the target whose artifacts have this suffix; None if there is none."""
    return next((name for name, target in targets().items() if target.suffix == suffix), None)


def target_of_file(path: Path | str, kind: Kind | None) -> str | None:
    """The name of the target whose artifact a file of this kind is; its suffix decides for a kind that is not known. None for others."""
    if kind is None:
        return target_by_suffix(Path(path).suffix.lower())
    by_kind = (name for name, target in targets().items() if target.kind and target.kind == kind.opened_by)
    by_suffix = (name for name, target in targets().items() if not target.kind and target.suffix == Path(path).suffix)
    return next(by_kind, None) or next(by_suffix, None)
