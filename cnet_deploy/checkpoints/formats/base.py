"""The declaration of a container of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """A container of weights; each module of this package declares one.

    ``recognises`` checks the first bytes. ``read`` returns the saved object, its tensors as StoredTensor, and the container's metadata.
    ``pickled``: the object is a pickle, which must be scanned with ``pickle_scan.examine`` first. A file with one of ``suffixes`` is taken
    for this format if its first bytes are those of none.
    """

    name: str
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes], tuple[Any, dict[str, Any]]]
    pickled: bool = True
    suffixes: tuple[str, ...] = ()
