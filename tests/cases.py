"""Cases that repeat what another one has shown, and those that take long: ``make test`` leaves them out, ``make test-all`` runs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hypothesis
import pytest

exhaustive = pytest.mark.exhaustive
long = pytest.mark.exhaustive(alone=True)  # nothing quicker shows the same, but it takes seconds that `make test` has not


def few(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """Parameters of a test: the first ``count`` in every run, the others in `make test-all`. A tuple is a case of several arguments."""
    listed = list(cases)
    rest = [case if isinstance(case, tuple) else (case,) for case in listed[count:]]
    return [*listed[:count], *(pytest.param(*case, marks=exhaustive) for case in rest)]


def examples(count: int) -> hypothesis.settings:
    """So many of hypothesis' examples, or the part of them that the chosen profile has of its usual hundred."""
    return hypothesis.settings(max_examples=max(1, count * hypothesis.settings.default.max_examples // 100), deadline=None)
