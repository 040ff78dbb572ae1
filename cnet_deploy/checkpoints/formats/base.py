"""What every container of weights is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """A container as a module of this package declares it.

    ``recognises`` looks at the first bytes. ``read`` gives the object that was saved, its tensors as StoredTensor, and the container's own
    metadata. ``pickled``: its object is a pickle, which ``pickle_scan.examine`` must have passed first. Files with one of ``suffixes`` are
    of this format whatever they begin with.
    """

    name: str
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes], tuple[Any, dict[str, Any]]]
    pickled: bool = True
    suffixes: tuple[str, ...] = ()
