"""Metrics to any reader written for the OpenTelemetry SDK.

A reader asks whoever collects for it, at its own times and on its own thread; to it we stand where
the SDK's MeterProvider would. The SDK is imported late: a run without such a reader needs none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aegis_pipe.clock import Clock
from aegis_pipe.telemetry.metrics import METRICS, SCALE, HistogramValue, MetricsRecorder, Points
from aegis_pipe.telemetry.resources import SCOPE_NAME, Resources

if TYPE_CHECKING:
    # With `as`: others that are handed readers name the type from here.
    from opentelemetry.sdk.metrics.export import Metric, MetricReader as MetricReader, MetricsData

_log = logging.getLogger(__name__)


class SdkMetrics:
    """Serves the SDK's readers; owns them and shuts them down. Values are cumulative."""

    def __init__(
        self,
        readers: Sequence[MetricReader],
        recorder: MetricsRecorder,
        resources: Resources,
        clock: Clock,
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._recorder = recorder
        self._readers = readers
        self._resource = Resource(resources.host)
        self._scope = InstrumentationScope(SCOPE_NAME)
        self._clock = clock
        self._start_unix_ns = clock.to_unix_ns(recorder.start_ns)
        for reader in readers:
            # What a MeterProvider does with its readers; there is no public way in.
            reader._set_collect_callback(self._collect)

    def close(self, timeout_s: float) -> None:
        """Have the readers report a last time, and shut them down; raises nothing."""
        for reader in self._readers:
            try:
                reader.shutdown(timeout_millis=max(1.0, timeout_s * 1e3 / len(self._readers)))
            except Exception:
                # Foreign code: its fault must neither end the run nor stay unheard.
                _log.exception("%r could not be shut down; going on", reader)

    def _collect(self, reader: MetricReader, timeout_millis: float = 0) -> MetricsData:
        from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics

        now_ns = self._clock.to_unix_ns(self._clock.now_ns())
        metrics = [
            self._metric(name, points, now_ns)
            for name, points in self._recorder.read().items()
            if points
        ]
        scope = ScopeMetrics(self._scope, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [scope], "")])

    def _metric(self, name: str, points: Points, now_ns: int) -> Metric:
        from opentelemetry.sdk.metrics import export

        metric = METRICS[name]
        cumulative = export.AggregationTemporality.CUMULATIVE
        data: Any
        if metric.kind == "histogram":
            data = export.ExponentialHistogram([], cumulative)
        elif metric.kind == "counter":
            data = export.Sum([], cumulative, is_monotonic=True)
        else:
            data = export.Gauge([])
        for labels, value in points.items():
            attributes = dict(zip(metric.labels, labels, strict=True))
            data.data_points.append(
                self._histogram(attributes, value, now_ns)
                if isinstance(value, HistogramValue)
                else export.NumberDataPoint(attributes, self._start_unix_ns, now_ns, value)
            )
        return export.Metric(name, metric.meaning, metric.unit, data)

    def _histogram(self, attributes: dict[str, str], value: HistogramValue, now_ns: int) -> Any:
        from opentelemetry.sdk.metrics.export import Buckets, ExponentialHistogramDataPoint

        first, last = min(value.buckets, default=0), max(value.buckets, default=-1)
        counts = [value.buckets.get(index, 0) for index in range(first, last + 1)]
        return ExponentialHistogramDataPoint(
            attributes,
            self._start_unix_ns,
            now_ns,
            value.samples,
            value.total,
            SCALE,
            value.zeros,
            Buckets(first, counts),
            Buckets(0, []),
            0,
            value.smallest,
            value.largest,
        )
