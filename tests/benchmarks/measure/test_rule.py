"""The decision rule on synthetic rounds: what it must never do, what it must nearly always do, and when it must say nothing."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from cnet_deploy.benchmarks.measure.rule import LEAST_ROUNDS, SelfTest, Verdict, adaptively, decide, exact_rank, self_test, surely_faster
from tests.cases import few, long

TOLERANCE, MOST = 0.05, 64


class Machine:
    """Times of fresh processes: the machine drifts as a random walk that comes to ``drift`` over a gate's length, each process has its own
    luck, and in some rounds one of the two is slow."""

    def __init__(self, seed: int, change: float = 0.0, *, process: float = 0.02, drift: float = 0.08, slow: float = 0.05) -> None:
        self.random = np.random.default_rng(seed)
        length = 2 * 2 * MOST
        self.walk = iter(np.cumsum(self.random.normal(0, drift / np.sqrt(length / 2), length)))
        self.change, self.process, self.slow = change, process, slow

    def round(self, number: int, change: float) -> tuple[float, float]:
        factors = [1.0, 1 + change]
        order = (1, 0) if number % 2 else (0, 1)
        times = [0.0, 0.0]
        for side in order:
            times[side] = 0.004 * factors[side] * float(np.exp(next(self.walk) + self.random.normal(0, self.process)))
        if self.random.random() < self.slow:
            times[self.random.integers(2)] *= 1.3
        return times[0], times[1]

    def gate(self, most: int = MOST) -> Verdict:
        """The whole rule, as the gate runs it."""
        itself: list[tuple[float, float]] = []
        rounds: list[tuple[float, float]] = []

        def quiet() -> bool:
            return self_test(*zip(*itself, strict=True), TOLERANCE).passed

        def decided() -> bool:
            return decide(*zip(*rounds, strict=True), TOLERANCE).verdict is not Verdict.INCONCLUSIVE

        adaptively(lambda n: itself.append(self.round(n, 0.0)), quiet, most)
        if not quiet():
            return Verdict.INCONCLUSIVE
        adaptively(lambda n: rounds.append(self.round(n, self.change)), decided, most)
        return decide(*zip(*rounds, strict=True), TOLERANCE).verdict


gates = pytest.mark.parametrize("gates", few([20, 200]))


def verdicts(gates: int, **options: float) -> Counter[Verdict]:
    return Counter(Machine(seed, **options).gate() for seed in range(gates))


@gates
def test_no_change_gives_no_alarm(gates: int) -> None:
    found = verdicts(gates)
    assert found[Verdict.REGRESSION] <= gates // 200
    assert found[Verdict.PASS] >= 0.95 * gates  # a gate that never says pass would be of no use either


@gates
def test_ten_percent_more_is_caught(gates: int) -> None:
    found = verdicts(gates, change=0.1)
    assert found[Verdict.REGRESSION] >= 0.975 * gates
    assert found[Verdict.PASS] == 0


@gates
def test_ten_percent_less_passes(gates: int) -> None:
    assert verdicts(gates, change=-0.1)[Verdict.PASS] >= 0.975 * gates


@gates
@pytest.mark.parametrize("change", [0.0, 0.1])
def test_wilder_noise_is_inconclusive(change: float, gates: int) -> None:
    found = verdicts(gates, change=change, process=0.25)
    assert found[Verdict.INCONCLUSIVE] >= 0.975 * gates
    assert found[Verdict.REGRESSION] <= 1 and (change == 0 or found[Verdict.PASS] == 0)


@pytest.mark.parametrize("change", [0.0, 0.1, 1.0])
def test_few_rounds_are_inconclusive(change: float) -> None:
    rounds = [Machine(0, drift=0, process=0, slow=0).round(n, change) for n in range(LEAST_ROUNDS - 1)]
    found = decide(*zip(*rounds, strict=True), TOLERANCE)
    assert found.verdict is Verdict.INCONCLUSIVE and "too few" in found.reason
    assert Machine(0, change=change).gate(most=LEAST_ROUNDS - 1) is Verdict.INCONCLUSIVE


def test_interleaving_takes_the_drift_out() -> None:
    """The machine gets 40 % slower while the gate runs: within rounds that hardly shows."""
    for seed in range(20):
        machine = Machine(seed, slow=0, process=0.005)
        machine.walk = iter(np.linspace(0, np.log(1.4), 4 * MOST))
        assert machine.gate() is Verdict.PASS


def decided(ratios: list[float], tolerance: float = TOLERANCE) -> Verdict:
    return decide([1.0] * len(ratios), ratios, tolerance).verdict


def test_each_clause_of_the_rule() -> None:
    assert decided([1.0] * 8) is Verdict.PASS
    assert decided([1.06] * 8) is Verdict.REGRESSION
    assert decided([1.04] * 8) is Verdict.PASS  # slower, and within the tolerance
    assert decided([1.06, 1.0] * 8) is Verdict.INCONCLUSIVE  # upper bound beyond the tolerance, estimate not
    assert decided([1.2, 1.2, 1.2, 1.2, 1.2, 0.9, 0.9, 0.9]) is Verdict.INCONCLUSIVE  # estimate beyond, lower bound not beyond half of it


def test_bounds_are_ordered_and_repeatable() -> None:
    head = list(np.random.default_rng(1).normal(1.02, 0.03, 16))
    first, second = decide([1.0] * 16, head, TOLERANCE), decide([1.0] * 16, head, TOLERANCE)
    assert first == second
    assert first.lower < first.estimate < first.upper
    assert first.estimate == pytest.approx(np.exp(np.median(np.log(head))))


@long
def test_the_interval_covers_what_it_promises() -> None:
    """One-sided 99 % bounds of the median, over many draws: each may miss in few of 400."""
    random = np.random.default_rng(2)
    for count in (8, 16):
        missed = [0, 0]
        for _ in range(400):
            found = decide([1.0] * count, list(np.exp(random.normal(0.05, 0.03, count))), TOLERANCE)
            missed[0] += found.lower > np.exp(0.05)
            missed[1] += found.upper < np.exp(0.05)
        assert max(missed) <= 10  # four are expected; with the bootstrap alone it would be ten with 8 rounds


@pytest.mark.parametrize("count", [8, 9, 16, 31, 64])
def test_exact_ranks(count: int) -> None:
    rank = exact_rank(count, 0.01)
    below = [sum(math.comb(count, k) for k in range(most + 1)) / 2**count for most in (rank, rank + 1)]
    assert below[0] <= 0.01 < below[1]


def test_sides_apart_are_resampled_apart() -> None:
    """Stored rounds have no partner: what pairs would cancel must widen the bounds."""
    drift = list(np.linspace(1.0, 1.3, 16))
    together, apart = decide(drift, drift, TOLERANCE), decide(drift, drift, TOLERANCE, paired=False)
    assert together.verdict is Verdict.PASS and apart.verdict is Verdict.INCONCLUSIVE
    assert apart.upper > together.upper
    assert decide([1.0] * 20, [1.0] * 8, TOLERANCE, paired=False).verdict is Verdict.PASS


def test_the_self_test_asks_for_half_the_tolerance() -> None:
    calm = [1.0, 1.001] * 8
    assert self_test([1.0] * 16, calm, TOLERANCE).passed
    wild = list(np.random.default_rng(3).normal(1, 0.1, 16))
    assert not self_test([1.0] * 16, wild, TOLERANCE).passed
    assert self_test([1.0] * 16, wild, 0.5).passed
    assert not self_test([1.0] * 7, [1.0] * 7, TOLERANCE).passed


@pytest.mark.parametrize(("enough_at", "most", "expected"), [(8, 64, 8), (9, 64, 16), (33, 64, 64), (99, 64, 64), (99, 20, 20), (99, 5, 5)])
def test_rounds_double_up_to_the_cap(enough_at: int, most: int, expected: int) -> None:
    done: list[int] = []
    adaptively(done.append, lambda: len(done) >= enough_at, most)
    assert done == list(range(expected))


def test_a_much_faster_head_passes_on_a_noisy_machine() -> None:
    """And nothing else does: neither an equal head nor a slower one, whatever the noise."""
    passed = Counter[float]()
    for seed in range(60):
        for ratio in (0.125, 0.5, 1.0, 1.1):
            random = np.random.default_rng(seed)
            base, again, third = (list(0.004 * np.exp(random.normal(0, 0.15, LEAST_ROUNDS))) for _ in range(3))
            quiet = self_test(base, again, TOLERANCE)
            assert not quiet.passed
            decision = surely_faster(base, [ratio * seconds for seconds in third], quiet)
            if decision is not None:
                assert decision.verdict is Verdict.PASS and decision.upper < 1 - quiet.half_width
                passed[ratio] += 1
    assert passed[0.125] >= 55 and passed[0.5] >= 20 and passed[1.0] == passed[1.1] == 0


def test_few_rounds_make_no_head_surely_faster() -> None:
    assert surely_faster([1.0] * 7, [0.1] * 7, SelfTest(0.1, 0.025, 8)) is None
    assert surely_faster([1.0] * 8, [0.1] * 8, SelfTest(0.1, 0.025, 7)) is None
    assert surely_faster([1.0] * 8, [0.1] * 8, SelfTest(0.1, 0.025, 8)) is not None
