"""Statistics by hand, and percentiles that too few samples don't support."""

from __future__ import annotations

import numpy as np
import pytest

from cnet_deploy.benchmarks.measure.samples import PERCENTILES, percentile, summarise, support


def test_by_hand() -> None:
    found = summarise([3.0, 1.0, 2.0, 10.0, 4.0])
    assert found is not None
    assert (found.count, found.least, found.median, found.mean) == (5, 1.0, 3.0, 4.0)
    assert found.variation == pytest.approx(np.std([3, 1, 2, 10, 4], ddof=1) / 4) and found.unstable
    assert (found.p90, found.p95, found.p99) == (None, None, None)
    assert summarise([]) is None
    alone = summarise([2.0])
    assert alone is not None and alone.variation == 0 and not alone.unstable


@pytest.mark.parametrize("share", PERCENTILES)
def test_a_percentile_needs_its_support(share: float) -> None:
    samples = [float(n) for n in range(1, support(share) + 1)]
    assert percentile(samples[:-1], share) is None
    assert percentile(samples, share) == np.ceil(share * len(samples))
    # The least number: with one sample fewer the greatest lies before the percentile in more than 5 % of all cases.
    assert share ** support(share) <= 0.05 < share ** (support(share) - 1)


def test_unstable_begins_above_2_5_percent() -> None:
    def with_variation(share: float) -> list[float]:
        return [1 - share / 2**0.5, 1 + share / 2**0.5]

    calm, wild = summarise(with_variation(0.0249)), summarise(with_variation(0.0251))
    assert calm is not None and wild is not None and not calm.unstable and wild.unstable
