"""Exporters: each target is a module of this package with ``write``. A target that can't be built here says why and how to get it.

A module with a ``SUFFIX`` at its top is a target; nothing else has to know of it. What it says of itself there, in literal constants:

    SUFFIX = ".onnx"       of its artifacts
    HELP = "Write …."      of its flag, --onnx
    PLACE = 1              among the targets, where order matters
    FAMILY_ONLY = True     if it is made from a Program alone: the paper's other networks have none (default: False)
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable

from cnet_deploy.declarations import declared
from cnet_deploy.errors import InputRefused, Unavailable, raise_if_interrupted
from cnet_deploy.exporters.base import Written

__all__ = ["FAMILY_ONLY", "HELP", "SUFFIXES", "Written", "exporter", "options_of"]

_TARGETS = {name: said for name, said in declared(__name__).items() if "SUFFIX" in said}
_ORDER = sorted(_TARGETS, key=lambda name: (_TARGETS[name].get("PLACE", math.inf), name))
# Target -> suffix of its artifacts, and the help of its flag. The module is cnet_deploy.exporters.<target>.
SUFFIXES: dict[str, str] = {name: _TARGETS[name]["SUFFIX"] for name in _ORDER}
HELP: dict[str, str] = {name: _TARGETS[name].get("HELP", f"Export to {name}.") for name in _ORDER}
FAMILY_ONLY = frozenset(name for name in _ORDER if _TARGETS[name].get("FAMILY_ONLY"))


def exporter(target: str) -> Callable[..., Written]:
    """``write(network, path, **options)`` of a target; ``network`` is a Program, or a module of the paper's other networks.

    Raises InputRefused for an unknown target, Unavailable where what it needs is missing.
    """
    if target not in SUFFIXES:
        raise InputRefused(f"no target is called {target!r}; expected one of {', '.join(SUFFIXES)}")
    try:
        module = importlib.import_module(f"cnet_deploy.exporters.{target}")
    except ImportError as error:
        raise_if_interrupted(error)
        raise Unavailable(f"the {target} exporter can't be loaded ({error}); install cnet-deploy with the extra it belongs to") from None
    write: Callable[..., Written] = module.write
    return write


def options_of(target: str) -> frozenset[str]:
    """The names of a target's own options."""
    return frozenset(name for name, p in inspect.signature(exporter(target)).parameters.items() if p.kind is p.KEYWORD_ONLY)
