"""Counts and latency quantiles per model, over all requests of a run, in fixed memory.

Latencies go into logarithmic buckets (as in HdrHistogram and DDSketch): a quantile is exact to
within 1 % of its value, whatever the number of requests, with no window and no sampling.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from aegis_pipe.events import Event, RequestFinished, RequestSubmitted

_GROWTH = 1.02
_LOG_GROWTH = math.log(_GROWTH)


class LatencyHistogram:
    """Durations in nanoseconds, in buckets that grow by 2 %."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total_ns = 0
        self.largest_ns = 0

    def add(self, duration_ns: int) -> None:
        """Count one duration."""
        self._buckets[int(math.log(max(duration_ns, 1)) / _LOG_GROWTH)] += 1
        self.count += 1
        self.total_ns += duration_ns
        self.largest_ns = max(self.largest_ns, duration_ns)

    def quantile_ns(self, q: float) -> int:
        """Return the duration that a share `q` (0 to 1) does not exceed; 0 without any."""
        rank, seen = max(1, math.ceil(q * self.count)), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                middle_ns: float = _GROWTH ** (bucket + 0.5)
                return min(round(middle_ns), self.largest_ns)
        return 0


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """What the scheduler has done so far, and where its requests stand now."""

    waiting: int
    """Requests that hold a place in the queue."""
    running: int
    paused: int
    """Requests at a segment boundary that hold their stream, or run along with one that does."""
    suspended: int
    """Requests whose stream was taken at a segment boundary."""
    submitted: int
    """Requests that got a place in the queue."""
    started: int
    preempted: int
    batched: int
    """Requests that ran along with another."""
    degraded: int
    completed: int
    failed: int
    expired: int
    cancelled: int
    rejected: int
    """Requests refused at once: no place, no time, or the runtime was stopping."""
    deadline_missed: int
    """Requests whose result came late or not at all."""
    queue_depth_max: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """One model's figures so far; durations in nanoseconds."""

    model: str
    submitted: int
    completed: int
    failed: int
    expired: int
    rejected: int
    cancelled: int
    deadline_misses: int
    latency_p50_ns: int
    """Arrival to result, of completed requests."""
    latency_p99_ns: int
    latency_max_ns: int
    queue_p50_ns: int
    """Arrival to start, of requests that started."""
    queue_p99_ns: int
    service_p50_ns: int
    """Start to result, of completed requests."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Requests by the reason of their end; plain completions have none."""


class _Figures:
    def __init__(self) -> None:
        self.submitted = 0
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.deadline_misses = 0
        self.latency = LatencyHistogram()
        self.queue = LatencyHistogram()
        self.service = LatencyHistogram()


class RequestStatistics:
    """A listener that keeps every model's figures; refused requests count as submitted too."""

    def __init__(self, models: tuple[str, ...]) -> None:
        self._figures = {model: _Figures() for model in models}
        # Refusals are told by the submitting threads, everything else by the loop's.
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take notice of submissions and endings; all else is let pass."""
        if type(event) is RequestFinished:
            with self._lock:
                self._finish(self._figures[event.model], event)
        elif type(event) is RequestSubmitted:
            with self._lock:
                self._figures[event.model].submitted += 1

    @staticmethod
    def _finish(figures: _Figures, event: RequestFinished) -> None:
        figures.outcomes[event.outcome] += 1
        if event.reason:
            figures.reasons[event.reason] += 1
        figures.submitted += event.outcome == "rejected"
        figures.deadline_misses += event.deadline_missed
        if event.start_ns:
            figures.queue.add(event.start_ns - event.arrival_ns)
        if event.outcome == "completed":
            figures.latency.add(event.at_ns - event.arrival_ns)
            figures.service.add(event.at_ns - event.start_ns)

    def add(self, models: tuple[str, ...]) -> None:
        """Count for these models too; figures of those that are known go on."""
        with self._lock:
            known = self._figures
            figures = {model: known.get(model) or _Figures() for model in models}
            self._figures = figures | {m: f for m, f in known.items() if m not in figures}

    def snapshot(self) -> tuple[ModelStatistics, ...]:
        """Return all figures: models in the manifest's order, then those no longer in it."""
        with self._lock:
            return tuple(self._snapshot(model, figures) for model, figures in self._figures.items())

    @staticmethod
    def _snapshot(model: str, figures: _Figures) -> ModelStatistics:
        outcomes = figures.outcomes
        return ModelStatistics(
            model=model,
            submitted=figures.submitted,
            completed=outcomes["completed"],
            failed=outcomes["failed"],
            expired=outcomes["expired"],
            rejected=outcomes["rejected"],
            cancelled=outcomes["cancelled"],
            deadline_misses=figures.deadline_misses,
            latency_p50_ns=figures.latency.quantile_ns(0.5),
            latency_p99_ns=figures.latency.quantile_ns(0.99),
            latency_max_ns=figures.latency.largest_ns,
            queue_p50_ns=figures.queue.quantile_ns(0.5),
            queue_p99_ns=figures.queue.quantile_ns(0.99),
            service_p50_ns=figures.service.quantile_ns(0.5),
            reasons=dict(sorted(figures.reasons.items())),
        )
