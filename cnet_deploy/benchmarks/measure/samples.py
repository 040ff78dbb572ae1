"""Summarise samples: the median, percentiles if there are enough samples for them, and the spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNSTABLE = 0.025  # coefficient of variation above which times are unstable, as in trtexec
PERCENTILES = (0.90, 0.95, 0.99)


@dataclass(frozen=True)
class Summary:
    """Seconds of ``count`` samples. A percentile is None if there are too few samples for it (see ``support``)."""

    count: int
    least: float
    median: float
    mean: float
    p90: float | None
    p95: float | None
    p99: float | None
    variation: float

    @property
    def unstable(self) -> bool:
        """Whether the coefficient of variation is above 2.5 %."""
        return self.variation > UNSTABLE


def support(share: float) -> int:
    """The least number of samples of which one lies beyond this percentile with 95 % confidence: ln 0.05 / ln share.

    The maximum of fewer samples may be below it (Wilks, Determination of sample sizes for setting tolerance limits, 1941).

    >>> [support(share) for share in PERCENTILES]
    [29, 59, 299]
    """
    return math.ceil(math.log(0.05) / math.log(share))


def percentile(samples: Sequence[float], share: float) -> float | None:
    """The value that this share of the samples does not exceed; None for fewer than ``support`` samples."""
    if len(samples) < support(share):
        return None
    return float(np.quantile(samples, share, method="inverted_cdf"))


def summarise(samples: Sequence[float]) -> Summary | None:
    """The summary of all samples; None without samples.

    ``variation`` is the coefficient of variation: standard deviation over mean, 0 for a single sample.
    """
    if not samples:
        return None
    mean = statistics.fmean(samples)
    spread = statistics.stdev(samples) / mean if len(samples) > 1 else 0.0
    p90, p95, p99 = (percentile(samples, share) for share in PERCENTILES)
    return Summary(len(samples), min(samples), statistics.median(samples), mean, p90, p95, p99, spread)


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds with three or four significant digits; empty for None.

    >>> [milliseconds(seconds) for seconds in (0.0001234, 0.01234, 0.1234, None)]
    ['0.123', '12.34', '123.4', '']
    """
    if seconds is None:
        return ""
    value = seconds * 1e3
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.1f}"
