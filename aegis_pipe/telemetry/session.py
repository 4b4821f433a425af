"""Telemetry as the composition root sees it: a listener, a start and a bounded end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from aegis_pipe.clock import Clock
from aegis_pipe.device.protocols import DeviceReadings
from aegis_pipe.events import Listener
from aegis_pipe.telemetry.assembler import TraceAssembler
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.exporter import Exporter, JsonLog
from aegis_pipe.telemetry.files import LineFile
from aegis_pipe.telemetry.ids import Identifiers
from aegis_pipe.telemetry.json_log import JsonLogFormat
from aegis_pipe.telemetry.lull import Lull
from aegis_pipe.telemetry.metrics import Losses, MetricsRecorder
from aegis_pipe.telemetry.otlp_json import OtlpJsonSink
from aegis_pipe.telemetry.resources import make_resources
from aegis_pipe.telemetry.ring import EventRing
from aegis_pipe.telemetry.sdk_metrics import SdkMetrics
from aegis_pipe.telemetry.sdk_sink import SdkSink
from aegis_pipe.telemetry.sinks import SinkFeeder, SinkReport, SpanSink

if TYPE_CHECKING:
    from aegis_pipe.telemetry.prometheus import PrometheusEndpoint
    from aegis_pipe.telemetry.sdk_metrics import MetricReader
    from aegis_pipe.telemetry.sdk_sink import SpanExporter

CLOSE_TIMEOUT_S: Final = 2.0

_log = logging.getLogger(__name__)


class TelemetryReport(NamedTuple):
    """What became of a run's telemetry; spans are summed over the destinations."""

    exported_spans: int
    dropped_events: int
    """Events that found no room in the ring or were left there at the end."""
    dropped_spans: int
    """Spans that reached no destination: no room in its queue, a failed export, or no time."""
    failed_exports: int
    lost_log_lines: int
    abandoned_traces: int
    """Requests, items and phases whose end was never heard of."""
    where: tuple[str, ...]
    sinks: tuple[SinkReport, ...]


class Telemetry:
    """One run's telemetry. Add `listener` to the EventHub, `start`, run, `close`.

    `run_id` fixes the trace ids, for tests and for comparing runs; made up if it is not given.
    `span_exporters` and `metric_readers` are OpenTelemetry's; they get spans and metrics too, and
    are shut down by `close`.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        clock: Clock,
        *,
        run_id: bytes = b"",
        span_exporters: Sequence[SpanExporter] = (),
        metric_readers: Sequence[MetricReader] = (),
    ) -> None:
        self._config = config
        self._span_exporters = tuple(span_exporters)
        self._metric_readers = tuple(metric_readers)
        self._clock = clock
        self.run_id = run_id or os.urandom(16)
        self._ring = EventRing(config.ring_capacity)
        self._assembler = TraceAssembler(config, Identifiers(self.run_id), clock.to_unix_ns)
        self.lull = Lull(clock)
        """To be told when no request runs: spans are exported then, as far as that is to be had."""
        self._feeders: list[SinkFeeder] = []
        self._json_log: JsonLog | None = None
        self._prometheus: PrometheusEndpoint | None = None
        self._sdk_metrics: SdkMetrics | None = None
        self._metrics: MetricsRecorder | None = None
        self._exporter: Exporter | None = None

    @property
    def listener(self) -> Listener:
        """The function to give to the EventHub: appends to a ring, and nothing else."""
        return self._ring.append

    def is_stamped(self, request_id: int) -> bool:
        """Return whether a request's kernels are to be stamped, before it is known how it ends."""
        if self._config.kernels == "sampled":
            return self._assembler.is_in_ratio(request_id)
        return self._config.kernels == "always"

    def traceparent(self, request_id: int, caller: str) -> str:
        """Return the W3C `traceparent` of a request's span, given its caller's or an empty text.

        The flag says whether it is certain to be kept; others may be, for how they end.
        """
        return self._assembler.traceparent(request_id, caller)

    def start(self) -> None:
        """Open the files and start the threads; connects to nobody yet.

        Raises a PermanentError if a file can not be written or an address not be listened on.
        """
        assert self._exporter is None, "telemetry is started once"
        config = self._config
        if config.log_path is not None:
            line_format = JsonLogFormat(self._clock.to_unix_ns)
            file = LineFile(config.log_path, max_bytes=config.log_max_bytes, keep=config.log_keep)
            self._json_log = JsonLog(file, line_format)
        sinks: list[SpanSink] = []
        try:
            self._make_sinks(sinks)
            metrics = self._metrics = self._start_metrics()
        except BaseException:
            self._close_log()
            for sink in sinks:
                sink.close()
            raise
        self._feeders = [SinkFeeder(sink, config.queue_capacity, self.lull) for sink in sinks]
        self._exporter = Exporter(
            self._ring,
            self._assembler,
            self._feeders,
            self._json_log,
            metrics,
            self._clock,
            self.lull,
        )
        for feeder in self._feeders:
            feeder.start()
        self._exporter.start()

    def observe_device(
        self, device: str, read_sensors: Callable[[], DeviceReadings | None]
    ) -> None:
        """Show a device's sensors among the metrics, if anybody reads those; after `start`.

        They are asked at each reading, on the reader's thread, also while the device closes.
        """
        if self._metrics is not None:
            self._metrics.observe_device(device, read_sensors)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> TelemetryReport:
        """Export what there is, for no longer than that, and report; once, and after `start`."""
        assert self._exporter is not None
        deadline_ns = self._clock.now_ns() + round(timeout_s * 1e9)
        self.lull.end()
        self._exporter.close(timeout_s)
        for feeder in self._feeders:
            feeder.finish()
        sinks = tuple(feeder.close(self._left_s(deadline_ns)) for feeder in self._feeders)
        if self._sdk_metrics is not None:
            self._sdk_metrics.close(self._left_s(deadline_ns))
        if self._prometheus is not None:
            self._prometheus.close()
        # Even if the exporter still writes: its time is over, and the file must not stay open.
        self._close_log()
        report = self._report(sinks)
        if report.dropped_events:
            _log.warning(
                "%d events of the run's telemetry were lost: raise `telemetry.ring_capacity`",
                report.dropped_events,
            )
        return report

    def _start_metrics(self) -> MetricsRecorder | None:
        """Return what events are to be handed to, if anybody reads metrics."""
        if not (self._config.prometheus or self._metric_readers):
            return None
        recorder = MetricsRecorder(self._clock, self._losses)
        if self._metric_readers:
            self._sdk_metrics = SdkMetrics(
                self._metric_readers,
                recorder,
                make_resources(self._config, self.run_id),
                self._clock,
            )
        if self._config.prometheus:
            # It brings Python's HTTP along, which is long to import: for those who ask for it.
            from aegis_pipe.telemetry.prometheus import PrometheusEndpoint

            self._prometheus = PrometheusEndpoint(self._config.prometheus, recorder)
            self._prometheus.start()
        return recorder

    def _losses(self) -> Losses:
        log = self._json_log
        return Losses(
            events=self._ring.dropped_count(),
            spans=sum(feeder.lost_spans for feeder in self._feeders),
            log_lines=0 if log is None else log.lost_lines,
        )

    def _make_sinks(self, sinks: list[SpanSink]) -> None:
        resources = make_resources(self._config, self.run_id)
        if self._config.otlp_json_path is not None:
            sinks.append(OtlpJsonSink(self._config.otlp_json_path, resources))
        if self._config.otlp_endpoint:
            # It brings HTTP and TLS along, which are long to import: for those who ask for it.
            from aegis_pipe.telemetry.otlp import OtlpSink

            sinks.append(OtlpSink(self._config, resources))
        sinks += [SdkSink(exporter, resources) for exporter in self._span_exporters]

    def _left_s(self, deadline_ns: int) -> float:
        return max(0, deadline_ns - self._clock.now_ns()) / 1e9

    def _close_log(self) -> None:
        if self._json_log is not None:
            self._json_log.close()

    def _report(self, sinks: tuple[SinkReport, ...]) -> TelemetryReport:
        log = self._json_log
        log_where = () if log is None else (log.where,)
        prometheus_where = () if self._prometheus is None else (self._prometheus.where,)
        return TelemetryReport(
            exported_spans=sum(sink.exported_spans for sink in sinks),
            dropped_events=self._ring.dropped_count() + len(self._ring),
            dropped_spans=sum(sink.dropped_spans for sink in sinks),
            failed_exports=sum(sink.failed_exports for sink in sinks),
            lost_log_lines=0 if log is None else log.lost_lines,
            abandoned_traces=self._assembler.abandoned,
            where=(*(sink.where for sink in sinks), *log_where, *prometheus_where),
            sinks=sinks,
        )
