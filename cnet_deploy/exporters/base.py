"""What every target is, and what it says of the file that it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Written:
    """What an exporter says of the file it wrote: for the manifest.

    ``unverifiable`` says why the file can't be run where it was made; None if it can, and then it must be verified.
    """

    precision: str
    details: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=dict)
    unverifiable: str | None = None
