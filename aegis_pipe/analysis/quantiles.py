"""Bounds on a quantile that hold whatever the distribution is: order statistics.

If x_1 <= ... <= x_n are independent samples, x_r is at least the q-quantile with probability
P(Binomial(n, q) < r): fewer than r samples lie at or below the quantile. So the largest of n
samples bounds it with confidence 1 - q^n; the 99.9 % quantile at 99 % takes 4,603 samples.
(David and Nagaraja, Order Statistics, section 7.1.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class QuantileBound(NamedTuple):
    """A duration that a share of all executions does not exceed, and how sure that is."""

    bound_ns: int
    quantile: float
    confidence: float
    samples: int


def samples_needed(quantile: float, confidence: float) -> int:
    """Return how many samples the largest of which bounds the quantile at this confidence."""
    return math.ceil(math.log1p(-confidence) / math.log(quantile))


def quantile_reached(samples: int, confidence: float) -> float:
    """Return the highest quantile that the largest of this many samples bounds."""
    return 1.0 - _failure(samples, confidence)


def _failure(samples: int, confidence: float) -> float:
    # 1 - (1 - c)^(1/n), without losing digits near 0.
    return -math.expm1(math.log1p(-confidence) / samples)


def bound(durations_ns: Sequence[int], quantile: float, confidence: float) -> QuantileBound:
    """Return the smallest sample that bounds the quantile at this confidence.

    With fewer than `samples_needed` no sample does: the largest is returned, with the lower
    quantile that it does bound. There must be at least one sample.
    """
    ordered, n = sorted(durations_ns), len(durations_ns)
    if n < samples_needed(quantile, confidence):
        return QuantileBound(ordered[-1], quantile_reached(n, confidence), confidence, n)
    rank = _smallest_rank(n, quantile, confidence)
    return QuantileBound(ordered[rank - 1], quantile, confidence, n)


def _smallest_rank(n: int, quantile: float, confidence: float) -> int:
    """Return the smallest r with P(Binomial(n, q) < r) >= confidence; r <= n is known.

    Counted from the top, where the probabilities are few and large enough to add up exactly:
    P(Binomial(n, q) >= r) = P(Binomial(n, 1 - q) <= n - r).
    """
    above, tail = 0, 0.0
    while True:
        tail += _binomial(n, above, 1.0 - quantile)
        if tail > 1.0 - confidence:
            # `above` samples over the bound are too many already; one fewer was fine.
            return n - above + 1
        above += 1


def _binomial(n: int, k: int, p: float) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.exp(log + k * math.log(p) + (n - k) * math.log1p(-p))


def wider(one: QuantileBound, other: QuantileBound) -> QuantileBound:
    """Return a bound that holds under either of two conditions, for what both can claim."""
    return QuantileBound(
        max(one.bound_ns, other.bound_ns),
        min(one.quantile, other.quantile),
        min(one.confidence, other.confidence),
        min(one.samples, other.samples),
    )
