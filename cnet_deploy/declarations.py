"""What the modules of a package say of themselves in constants at their top, read without importing them.

Importing a backend needs its runtime, and takes seconds for some; which suffix it opens must be known where the runtime is missing too.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import pkgutil
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


@functools.cache
def declared(package: str) -> Mapping[str, Mapping[str, Any]]:
    """The literal constants (NAME = value, in capitals) of each module and subpackage of ``package``, by its name.

    Raises ModuleNotFoundError for what is no package.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package is called {package}")
    found = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
    return MappingProxyType({name: MappingProxyType(_constants(f"{package}.{name}")) for name in found})


def _constants(module: str) -> dict[str, Any]:
    spec = importlib.util.find_spec(module)
    source = getattr(spec and spec.loader, "get_source", lambda _: "")(module) or ""
    constants: dict[str, Any] = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id.isupper():
            with contextlib.suppress(ValueError):  # computed: no declaration
                constants[target.id] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    return constants
