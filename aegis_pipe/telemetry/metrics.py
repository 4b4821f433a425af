"""Metrics in OpenTelemetry's data model: sums, gauges and exponential histograms.

Fed from the same events as traces, on the exporter's thread: a request pays nothing for them. Not
through the SDK's instruments, whose histograms take 32 us a value on the interpreter that the
requests need too; here it is 1 us. `sdk_metrics` hands them to the SDK's readers, `prometheus`
shows them to a Prometheus.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceReadings
from aegis_pipe.events import (
    CopyFinished,
    DecisionMade,
    Event,
    ManifestReloaded,
    MemoryAllocated,
    MemoryReleased,
    ModelLoaded,
    ProfileOverrun,
    RequestFinished,
    RequestSubmitted,
    RuntimeStarted,
    SegmentFinished,
)

SCALE: Final = 3
"""Of all histograms: 2 ** SCALE buckets double the value, so that each is 9 % wide."""


class Metric(NamedTuple):
    """What one instrument measures; `docs/telemetry.md` lists them."""

    kind: str
    """`counter`, `gauge` or `histogram`."""
    unit: str
    labels: tuple[str, ...]
    meaning: str


METRICS: Final[dict[str, Metric]] = {
    "aegis.requests": Metric(
        "counter", "", ("model", "outcome", "reason"), "Requests that reached their final state."
    ),
    "aegis.deadline.misses": Metric(
        "counter", "", ("model",), "Requests whose result came after the deadline, or never."
    ),
    "aegis.request.duration": Metric(
        "histogram", "s", ("model", "outcome"), "From arrival to the final state."
    ),
    "aegis.queue.wait": Metric(
        "histogram", "s", ("model",), "From arrival to start, of requests that started."
    ),
    "aegis.execution.duration": Metric(
        "histogram", "s", ("model",), "From start to result, of completed requests."
    ),
    "aegis.profile.overruns": Metric(
        "counter", "", ("model",), "Segments that took longer than the model's profile says."
    ),
    "aegis.reloads": Metric(
        "counter",
        "",
        ("outcome",),
        "Reloads: `applied`, `unchanged`, `refused`, `restored`, `failed`.",
    ),
    "aegis.queue.depth": Metric("gauge", "", (), "Requests waiting, as last heard of."),
    "aegis.stream.busy": Metric(
        "counter", "s", ("stream",), "Time a stream worked: segments and copies."
    ),
    "aegis.stream.utilisation": Metric(
        "gauge",
        "",
        ("stream",),
        "Share of the run so far that a stream worked; for a recent share take the rate of "
        "`aegis.stream.busy`.",
    ),
    "aegis.memory.planned": Metric(
        "gauge", "By", ("model", "kind"), "Bytes planned for a model: `weights`, `arena`."
    ),
    "aegis.memory.reserved": Metric(
        "gauge", "By", ("pool",), "Bytes of a pool up to the last tensor in it."
    ),
    "aegis.memory.peak": Metric(
        "gauge", "By", ("model",), "Highest end of a model's tensors, summed over the pools."
    ),
    "aegis.device.temperature": Metric(
        "gauge", "Cel", ("device",), "The device's temperature now; absent if it tells none."
    ),
    "aegis.device.clock": Metric(
        "gauge",
        "Hz",
        ("device", "domain"),
        "The device's frequency now: `sm`, `memory`; absent if it tells none.",
    ),
    "aegis.telemetry.dropped": Metric(
        "counter", "", ("what",), "Telemetry that was lost: `events`, `spans`, `log_lines`."
    ),
}


_RELOADS: Final = tuple(
    (outcome,) for outcome in ("applied", "unchanged", "refused", "restored", "failed")
)


class Losses(NamedTuple):
    """What telemetry itself has lost so far."""

    events: int
    spans: int
    log_lines: int


class HistogramValue(NamedTuple):
    """A histogram's state; bucket `i` holds values in (base ** i, base ** (i + 1)]."""

    samples: int
    total: float
    smallest: float
    largest: float
    zeros: int
    buckets: Mapping[int, int]


class ExponentialHistogram:
    """Counts values in buckets that grow by 2 ** (1 / 2 ** SCALE)."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._zeros = 0
        self._total = 0.0
        self._smallest = math.inf
        self._largest = 0.0

    def add(self, value: float) -> None:
        """Count a value, not negative."""
        if value > 0:
            self._buckets[math.ceil(math.log2(value) * 2**SCALE) - 1] += 1
        else:
            self._zeros += 1
        self._total += value
        self._smallest = min(self._smallest, value)
        self._largest = max(self._largest, value)

    def value(self) -> HistogramValue:
        """Return the state; safe beside a thread that adds."""
        buckets, zeros = dict(self._buckets), self._zeros
        count = sum(buckets.values()) + zeros
        smallest = self._smallest if count else 0.0
        return HistogramValue(count, self._total, smallest, self._largest, zeros, buckets)


Labels = tuple[str, ...]
Points = Mapping[Labels, int | float | HistogramValue]
"""Values by their labels' values, in the order of `Metric.labels`."""


class MetricsRecorder:
    """Turns events into figures; one thread adds, any may read."""

    def __init__(self, clock: Clock, losses: Callable[[], Losses]) -> None:
        self.start_ns = clock.now_ns()
        self._clock = clock
        self._losses = losses
        self._device = ""
        self._read_sensors: Callable[[], DeviceReadings | None] = _no_readings
        self._requests: Counter[Labels] = Counter()
        self._misses: Counter[Labels] = Counter()
        self._overruns: Counter[Labels] = Counter()
        self._reloads: Counter[Labels] = Counter()
        self._queue_depth = 0
        self._busy_ns: Counter[int] = Counter()
        self._planned: dict[Labels, int] = {}
        self._placed: Counter[str] = Counter()
        """Per pool, how many tensors have their place in it."""
        self._ends: dict[tuple[str, str], int] = {}
        """Per model and pool, the highest end of a tensor."""
        self._durations: dict[Labels, ExponentialHistogram] = {}
        self._waits: dict[Labels, ExponentialHistogram] = {}
        self._executions: dict[Labels, ExponentialHistogram] = {}

    def add(self, event: Event) -> None:
        """Take note of an event."""
        match event:
            case RequestFinished():
                self._add_finished(event)
            case SegmentFinished() | CopyFinished():
                self._busy_ns[event.stream] += event.end_ns - event.start_ns
            case RequestSubmitted():
                self._queue_depth = event.queue_depth
            case DecisionMade():
                leaves = event.kind in ("start", "expire")
                self._queue_depth = max(0, event.queue_depth - leaves)
            case ProfileOverrun():
                self._overruns[event.model,] += 1
            case RuntimeStarted():
                self._busy_ns.update(dict.fromkeys(range(event.streams), 0))
                self._reloads.update(dict.fromkeys(_RELOADS, 0))
            case ManifestReloaded():
                self._add_reload(event)
            case ModelLoaded():
                self._planned[event.model, "weights"] = event.weights_bytes
                self._planned[event.model, "arena"] = event.arena_bytes
                # From 0: of a counter that first shows as 1, nobody sees the rise.
                self._overruns[event.model,] += 0
                self._misses[event.model,] += 0
            case MemoryAllocated():
                if not self._placed[event.pool]:
                    # Filled anew: what lay in it before a reload has no say any more.
                    for key in [key for key in self._ends if key[1] == event.pool]:
                        del self._ends[key]
                self._placed[event.pool] += 1
                key, end = (event.model, event.pool), event.offset_bytes + event.size_bytes
                self._ends[key] = max(self._ends.get(key, 0), end)
            case MemoryReleased():
                self._placed[event.pool] -= 1
            case _:
                pass

    def _add_reload(self, event: ManifestReloaded) -> None:
        self._reloads[event.outcome,] += 1
        if event.outcome == "applied":
            for key in [key for key in self._planned if key[0] in event.models_removed]:
                del self._planned[key]

    def observe_device(
        self, device: str, read_sensors: Callable[[], DeviceReadings | None]
    ) -> None:
        """Have a device's sensors asked whenever metrics are read, on the reader's thread."""
        self._device, self._read_sensors = device, read_sensors

    def _add_finished(self, event: RequestFinished) -> None:
        self._requests[event.model, event.outcome, event.reason] += 1
        self._misses[event.model,] += event.deadline_missed
        labels = (event.model, event.outcome)
        _add(self._durations, labels, event.at_ns - event.arrival_ns)
        if event.start_ns:
            _add(self._waits, (event.model,), event.start_ns - event.arrival_ns)
        if event.outcome == "completed":
            _add(self._executions, (event.model,), event.at_ns - event.start_ns)

    def read(self) -> dict[str, Points]:
        """Return every metric's values so far, by name, in the order of `METRICS`."""
        # A copy of a dict is made in one step, whatever another thread adds meanwhile.
        busy = dict(self._busy_ns)
        elapsed_ns = max(1, self._clock.now_ns() - self.start_ns)
        peaks: Counter[Labels] = Counter()
        reserved: dict[Labels, int] = {}
        for (model, pool), end in dict(self._ends).items():
            peaks[model,] += end
            in_use = end if self._placed[pool] > 0 else 0
            reserved[pool,] = max(reserved.get((pool,), 0), in_use)
        losses = self._losses()
        values: dict[str, Points] = {
            "aegis.requests": dict(self._requests),
            "aegis.deadline.misses": dict(self._misses),
            "aegis.request.duration": _values(self._durations),
            "aegis.queue.wait": _values(self._waits),
            "aegis.execution.duration": _values(self._executions),
            "aegis.profile.overruns": dict(self._overruns),
            "aegis.reloads": dict(self._reloads),
            "aegis.queue.depth": {(): self._queue_depth},
            "aegis.stream.busy": {(str(stream),): ns / 1e9 for stream, ns in busy.items()},
            "aegis.stream.utilisation": {
                (str(stream),): min(1.0, ns / elapsed_ns) for stream, ns in busy.items()
            },
            "aegis.memory.planned": dict(self._planned),
            "aegis.memory.reserved": reserved,
            "aegis.memory.peak": peaks,
            **self._device_points(),
            "aegis.telemetry.dropped": {(what,): count for what, count in losses._asdict().items()},
        }
        assert values.keys() == METRICS.keys()
        return values

    def _device_points(self) -> dict[str, Points]:
        readings, device = self._read_sensors(), self._device
        temperatures: dict[Labels, int] = {}
        clocks: dict[Labels, int] = {}
        if readings is not None:
            if readings.temperature_celsius is not None:
                temperatures[device,] = readings.temperature_celsius
            clocks = {(device, domain): hertz for domain, hertz in readings.clocks_hertz}
        return {"aegis.device.temperature": temperatures, "aegis.device.clock": clocks}


def _no_readings() -> None:
    return None


def _add(histograms: dict[Labels, ExponentialHistogram], labels: Labels, duration_ns: int) -> None:
    histogram = histograms.get(labels)
    if histogram is None:
        histogram = histograms[labels] = ExponentialHistogram()
    histogram.add(max(0, duration_ns) / 1e9)


def _values(histograms: dict[Labels, ExponentialHistogram]) -> Points:
    return {labels: histogram.value() for labels, histogram in dict(histograms).items()}
