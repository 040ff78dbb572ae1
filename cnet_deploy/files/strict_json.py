"""JSON that somebody else wrote: what a file says of itself."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_DEPTH = 32


def parse_json(text: str) -> Any:
    """The value of ``text``. Raises ValueError or RecursionError for what is no JSON, and for what nests too deep to be printed.

    >>> parse_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    value = json.loads(text, parse_constant=_refuse)
    level = [value]
    for _ in range(MAX_DEPTH):
        if not all(math.isfinite(entry) for entry in level if isinstance(entry, float)):
            raise ValueError("it has a number beyond all bounds")
        level = [
            inner
            for entry in level
            if isinstance(entry, (dict, list))
            for inner in (entry.values() if isinstance(entry, dict) else entry)
        ]  # fmt: skip
        if not level:
            return value
    raise ValueError(f"it nests more than {MAX_DEPTH} lists and entries")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number of JSON")
