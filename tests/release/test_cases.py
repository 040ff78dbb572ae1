"""What `make test` leaves out, and what it shows instead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.conftest import ITEMS


def left_out(items: list[pytest.Item]) -> Iterator[tuple[str, str]]:
    """Every function of which cases are left out, by the name of one that must have a case which is not."""
    for item in items:
        if (marker := item.get_closest_marker("exhaustive")) and not marker.kwargs:
            file, _, name = item.nodeid.partition("[")[0].rpartition("::")
            like = marker.args[0] if marker.args else name
            yield f"{file}::{name}", like if "/" in like else f"{file}::{like}"


def test_what_is_left_out_is_shown_once(request: pytest.FixtureRequest) -> None:
    """A case that repeats others leaves one of its own test, or names a test that shows the same. ``long`` ones stand alone."""
    items = request.config.stash[ITEMS]
    kept: dict[str, bool] = defaultdict(bool)
    for item in items:
        kept[item.nodeid.partition("[")[0]] |= item.get_closest_marker("exhaustive") is None
    files = {item.nodeid.partition("::")[0] for item in items}
    lost = {(test, like) for test, like in left_out(items) if like.partition("::")[0] in files and not kept[like]}
    assert not lost
