"""Counts and quantiles against NumPy's on the same data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from aegis_pipe.events import RequestFinished, RequestSubmitted
from aegis_pipe.scheduling.statistics import LatencyHistogram, RequestStatistics


@given(
    st.lists(st.integers(1, 10**11), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
)
def test_quantiles_are_within_one_percent(durations: list[int], q: float) -> None:
    histogram = LatencyHistogram()
    for duration in durations:
        histogram.add(duration)
    exact = int(np.quantile(durations, q, method="inverted_cdf"))
    # A bucket's middle is within 1 % of what is in it, and is then rounded to whole nanoseconds.
    assert abs(histogram.quantile_ns(q) - exact) <= 0.01 * exact + 1


def test_no_durations_no_quantile() -> None:
    assert LatencyHistogram().quantile_ns(0.99) == 0


def finished(request_id: int, outcome: str, arrival: int, start: int, end: int, missed=False):
    return RequestFinished(end, request_id, "m", outcome, "", "", arrival, start, 0, missed)


def test_every_request_is_counted_once_by_its_outcome() -> None:
    statistics = RequestStatistics(("m", "idle"))
    for request_id in range(4):
        statistics(RequestSubmitted(0, request_id, "m", 0, 0, 1, ""))
    statistics(finished(0, "completed", 1000, 3000, 10_000))
    statistics(finished(1, "completed", 1000, 3000, 10_000, missed=True))
    statistics(finished(2, "expired", 1000, 0, 5000, missed=True))
    statistics(finished(3, "failed", 1000, 2000, 5000))
    statistics(finished(4, "rejected", 1000, 0, 1000))
    model, idle = statistics.snapshot()
    assert (model.submitted, model.completed, model.expired) == (5, 2, 1)
    assert (model.failed, model.rejected, model.cancelled) == (1, 1, 0)
    assert model.deadline_misses == 2
    assert model.latency_p99_ns == pytest.approx(9000, rel=0.01)
    assert model.queue_p50_ns == pytest.approx(2000, rel=0.01)
    assert model.service_p50_ns == pytest.approx(7000, rel=0.01)
    assert idle.submitted == 0
