"""Order-statistic bounds, held against exact binomial sums and against drawn samples."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest

from aegis_pipe.analysis.quantiles import (
    QuantileBound,
    bound,
    quantile_reached,
    samples_needed,
    wider,
)


def confidence_of(rank: int, n: int, q: Fraction) -> Fraction:
    """P(Binomial(n, q) < rank), exactly."""
    return sum(comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(rank))


def test_the_99_9_percent_quantile_at_99_percent_takes_4603_samples():
    assert samples_needed(0.999, 0.99) == 4603
    assert bound(range(4603), 0.999, 0.99).bound_ns == 4602
    assert quantile_reached(4603, 0.99) >= 0.999 > quantile_reached(4602, 0.99)


@pytest.mark.parametrize(("n", "q", "c"), [(100, "9/10", 0.95), (300, "95/100", 0.99)])
def test_the_rank_is_the_smallest_that_is_sure_enough(n, q, c):
    quantile = Fraction(q)
    rank = bound(range(1, n + 1), float(quantile), c).bound_ns
    assert confidence_of(rank, n, quantile) >= c > confidence_of(rank - 1, n, quantile)


def test_too_few_samples_bound_a_lower_quantile_and_say_which():
    found = bound([5, 3, 9], 0.999, 0.99)
    assert (found.bound_ns, found.samples) == (9, 3)
    assert 1 - found.quantile**3 == pytest.approx(0.99)


def test_it_holds_as_often_as_it_promises_whatever_the_distribution():
    dice = np.random.default_rng(5)
    truth = np.exp(1.5 * 1.2815515655446004)  # The 90 % quantile of this lognormal distribution.
    held = 0
    for _ in range(2000):
        samples = dice.lognormal(0, 1.5, 60)
        held += bound(samples.tolist(), 0.9, 0.9).bound_ns >= truth
    assert held >= 0.88 * 2000


def test_of_two_conditions_the_longer_time_counts_and_the_smaller_claim():
    one, other = QuantileBound(7, 0.9, 0.99, 100), QuantileBound(9, 0.8, 0.95, 50)
    assert wider(one, other) == wider(other, one) == QuantileBound(9, 0.8, 0.95, 50)
