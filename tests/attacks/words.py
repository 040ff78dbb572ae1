"""What no message to a user may have: Python's own words."""

from __future__ import annotations

import re

from cnet_deploy.errors import PYTHON

_TEMPORARY = re.compile(r"/\S*pytest-of-[^:;,'\"\s]*")  # named after tests and their parameters


def require_plain(message: str) -> None:
    """Fail for a message with a representation of an object, or with the name of one of Python's types or exceptions."""
    text = _TEMPORARY.sub("", message)
    found = PYTHON.search(text)
    assert found is None, f"Python's own words ({found[0]!r}) in: {message[:400]}"
