"""What tests of measuring share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asserts how long anything takes, so none has to wait until another cell's threads have gone to sleep."""
    monkeypatch.setattr("cnet_deploy.benchmarks.measure.SETTLE_SECONDS", 0.0)
