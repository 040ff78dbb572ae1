"""The declaration of a container of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Format:
    """A container of weights; each module of this package declares one.

    ``recognises`` checks the first bytes. ``read`` returns the saved object, its tensors as StoredTensor, and the container's metadata.
    ``pickled``: the object is a pickle, which must be scanned with ``pickle_scan.examine`` first. Files with one of ``suffixes`` have this
    format regardless of their first bytes.
    """

    name: str
    recognises: Callable[[bytes], bool]
    read: Callable[[bytes], tuple[Any, dict[str, Any]]]
    pickled: bool = True
    suffixes: tuple[str, ...] = ()
