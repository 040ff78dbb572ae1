"""The gate's decision rule: is head slower than base? It takes numbers and returns a verdict, without clocks or processes.

Samples of one process are correlated, and machines drift. The unit is therefore a round: a fresh process of each side, one right after
the other. The median of each is kept, and the round's value is d = ln(head / base). The estimate is exp(median d); its bounds come from a
bootstrap over rounds. With few rounds or much noise the verdict is inconclusive. The bootstrap of a median is too narrow for few rounds (at
8, the true value lies outside a 99 % bound in 2.5 % of cases), so a bound is never tighter than the exact one from order statistics, which
holds for any distribution (David and Nagaraja, Order Statistics, 7.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

LEAST_ROUNDS = 8
RESAMPLES = 4000
ONE_SIDED = 0.01  # each bound holds with 99 %
TWO_SIDED = 0.005  # the interval between two such bounds holds with 99 %

Floats = npt.NDArray[np.float64]
Seconds = Sequence[float]


class Verdict(Enum):
    """The verdict of a gate; ``value`` is its name in files."""

    PASS = "pass"
    REGRESSION = "regression"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Decision:
    """A verdict and the reasons for it. All ratios are head's time over base's: 1.03 is 3 % slower.

    ``lower`` and ``upper`` are one-sided 99 % bounds of ``estimate``; ``reason`` is a phrase for the report.
    """

    verdict: Verdict
    estimate: float
    lower: float
    upper: float
    rounds: int
    reason: str


@dataclass(frozen=True)
class SelfTest:
    """Base against itself: half the width of the 99 % interval of their ratio (whose true value is 1) after ``rounds`` rounds."""

    half_width: float
    limit: float
    rounds: int

    @property
    def passed(self) -> bool:
        """Whether the machine is quiet enough: the half width must be at most half the tolerance (``limit``)."""
        return self.rounds >= LEAST_ROUNDS and self.half_width <= self.limit


def decide(base: Seconds, head: Seconds, tolerance: float, *, paired: bool = True) -> Decision:
    """The verdict on the rounds' medians, in seconds; ``tolerance`` 0.05 allows head to take 5 % more time.

    Regression only if the estimate is beyond the tolerance and the lower bound beyond half of it; pass only if the upper bound is within
    the tolerance. ``paired`` False is for sides that were measured at different times: they are resampled independently.
    """
    rounds = min(len(base), len(head))
    estimate = _estimate(base, head, paired=paired)
    lower, upper = _bounds(base, head, ONE_SIDED, paired=paired)
    if rounds < LEAST_ROUNDS:
        verdict, reason = Verdict.INCONCLUSIVE, f"{rounds} rounds are too few; expected at least {LEAST_ROUNDS}"
    elif estimate > 1 + tolerance and lower > 1 + tolerance / 2:
        verdict, reason = Verdict.REGRESSION, "beyond the tolerance, and beyond half of it with 99 % confidence"
    elif upper < 1 + tolerance:
        verdict, reason = Verdict.PASS, "within the tolerance (99 % confidence)"
    else:
        verdict, reason = Verdict.INCONCLUSIVE, "neither within the tolerance nor beyond half of it with 99 % confidence"
    return Decision(verdict, estimate, lower, upper, rounds, reason)


def self_test(first: Seconds, second: Seconds, tolerance: float, *, paired: bool = True) -> SelfTest:
    """The spread of rounds of base against itself, with half the tolerance as its limit."""
    low, high = _bounds(first, second, TWO_SIDED, paired=paired)
    return SelfTest((high - low) / 2, tolerance / 2, min(len(first), len(second)))


def surely_faster(base: Seconds, head: Seconds, quiet: SelfTest, *, paired: bool = True) -> Decision | None:
    """A pass in spite of a self-test that failed: head is faster than base by more than base differs from itself. Else None.

    The upper bound must be below 1 by the half width of the self-test, so that noise can't make a slower head pass.
    """
    rounds = min(len(base), len(head))
    if min(rounds, quiet.rounds) < LEAST_ROUNDS:
        return None
    lower, upper = _bounds(base, head, ONE_SIDED, paired=paired)
    if upper >= 1 - quiet.half_width:
        return None
    reason = "faster than base by more than base differs from itself"
    return Decision(Verdict.PASS, _estimate(base, head, paired=paired), lower, upper, rounds, reason)


def adaptively(measure: Callable[[int], None], enough: Callable[[], bool], most: int) -> None:
    """Measure rounds until they are ``enough``: 8 first, then twice as many, up to ``most``. ``measure`` takes the round's number, from 0.

    The number is doubled because every look at the data is another chance of a wrong verdict.
    """
    done, goal = 0, LEAST_ROUNDS
    while done < most:
        goal = min(goal, most)
        for number in range(done, goal):
            measure(number)
        if enough():
            return
        done, goal = goal, 2 * goal


def _estimate(base: Seconds, head: Seconds, *, paired: bool) -> float:
    before, after = np.log(base), np.log(head)
    return math.exp(float(np.median(after - before) if paired else np.median(after) - np.median(before)))


def _bounds(base: Seconds, head: Seconds, error: float, *, paired: bool) -> tuple[float, float]:
    """Bounds of the ratio; each is wrong in at most a share ``error`` of all cases."""
    medians = _resampled(base, head, paired=paired)
    low, high = (float(np.quantile(medians, q)) for q in (error, 1 - error))
    if paired:
        ordered = np.sort(np.log(head) - np.log(base))
        rank = exact_rank(len(ordered), error)
        low, high = min(low, float(ordered[rank])), max(high, float(ordered[-1 - rank]))
    return math.exp(low), math.exp(high)


def exact_rank(count: int, error: float) -> int:
    """The rank (from 0) of the largest of ``count`` sorted values that is still a lower bound of the median with probability 1 - ``error``.

    At most r values lie below the median with the binomial probability sum C(n, k) / 2^n, k <= r.

    >>> [exact_rank(count, 0.01) for count in (8, 16, 32, 64)]
    [0, 2, 8, 22]
    """
    below, rank = 1, 0
    while rank < count // 2 and below + math.comb(count, rank + 1) <= error * 2**count:
        rank += 1
        below += math.comb(count, rank)
    return rank


def _resampled(base: Seconds, head: Seconds, *, paired: bool) -> Floats:
    """Bootstrap: the medians of ln(head / base) over rounds drawn with replacement. The random draws are the same in every call."""
    before, after = np.log(base), np.log(head)
    random = np.random.default_rng(0)
    draws = random.integers(0, len(after), (RESAMPLES, len(after)))
    if paired:
        return np.asarray(np.median((after - before)[draws], axis=1))
    others = random.integers(0, len(before), (RESAMPLES, len(before)))
    return np.asarray(np.median(after[draws], axis=1) - np.median(before[others], axis=1))
