"""Telemetry as the composition root sees it: a listener, a start and a bounded end."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from aegis_pipe.clock import Clock
from aegis_pipe.events import Listener
from aegis_pipe.telemetry.assembler import TraceAssembler
from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.exporter import Exporter, JsonLog
from aegis_pipe.telemetry.files import LineFile
from aegis_pipe.telemetry.ids import Identifiers
from aegis_pipe.telemetry.json_log import JsonLogFormat
from aegis_pipe.telemetry.otlp import OtlpSink
from aegis_pipe.telemetry.otlp_json import OtlpJsonSink
from aegis_pipe.telemetry.resources import make_resources
from aegis_pipe.telemetry.ring import EventRing
from aegis_pipe.telemetry.sdk_sink import SdkSink
from aegis_pipe.telemetry.sinks import SinkFeeder, SinkReport, SpanSink

if TYPE_CHECKING:
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
    `span_exporters` are OpenTelemetry's; they get the spans too and are shut down by `close`.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        clock: Clock,
        *,
        run_id: bytes = b"",
        span_exporters: Sequence[SpanExporter] = (),
    ) -> None:
        self._config = config
        self._span_exporters = tuple(span_exporters)
        self._clock = clock
        self.run_id = run_id or os.urandom(16)
        self._ring = EventRing(config.ring_capacity)
        self._assembler = TraceAssembler(config, Identifiers(self.run_id), clock.to_unix_ns)
        self._feeders: list[SinkFeeder] = []
        self._json_log: JsonLog | None = None
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

    def start(self) -> None:
        """Open the files and start the threads; connects to nobody yet.

        Raises a PermanentError if a file can not be written.
        """
        assert self._exporter is None, "telemetry is started once"
        config = self._config
        if config.log_path is not None:
            line_format = JsonLogFormat(self._clock.to_unix_ns)
            self._json_log = JsonLog(LineFile(config.log_path), line_format)
        try:
            sinks = self._make_sinks()
        except BaseException:
            self._close_log()
            raise
        self._feeders = [SinkFeeder(sink, config.queue_capacity) for sink in sinks]
        self._exporter = Exporter(
            self._ring, self._assembler, self._feeders, self._json_log, self._clock
        )
        for feeder in self._feeders:
            feeder.start()
        self._exporter.start()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> TelemetryReport:
        """Export what there is, for no longer than that, and report; once, and after `start`."""
        assert self._exporter is not None
        deadline_ns = self._clock.now_ns() + round(timeout_s * 1e9)
        self._exporter.close(timeout_s)
        for feeder in self._feeders:
            feeder.finish()
        sinks = tuple(feeder.close(self._left_s(deadline_ns)) for feeder in self._feeders)
        # Even if the exporter still writes: its time is over, and the file must not stay open.
        self._close_log()
        report = self._report(sinks)
        if report.dropped_events:
            _log.warning(
                "%d events of the run's telemetry were lost: raise `telemetry.ring_capacity`",
                report.dropped_events,
            )
        return report

    def _make_sinks(self) -> list[SpanSink]:
        resources = make_resources(self._config, self.run_id)
        sinks: list[SpanSink] = []
        if self._config.otlp_json_path is not None:
            sinks.append(OtlpJsonSink(self._config.otlp_json_path, resources))
        if self._config.otlp_endpoint:
            sinks.append(OtlpSink(self._config, resources))
        sinks += [SdkSink(exporter, resources) for exporter in self._span_exporters]
        return sinks

    def _left_s(self, deadline_ns: int) -> float:
        return max(0, deadline_ns - self._clock.now_ns()) / 1e9

    def _close_log(self) -> None:
        if self._json_log is not None:
            self._json_log.close()

    def _report(self, sinks: tuple[SinkReport, ...]) -> TelemetryReport:
        log = self._json_log
        log_where = () if log is None else (log.where,)
        return TelemetryReport(
            exported_spans=sum(sink.exported_spans for sink in sinks),
            dropped_events=self._ring.dropped_count() + len(self._ring),
            dropped_spans=sum(sink.dropped_spans for sink in sinks),
            failed_exports=sum(sink.failed_exports for sink in sinks),
            lost_log_lines=0 if log is None else log.lost_lines,
            abandoned_traces=self._assembler.abandoned,
            where=(*(sink.where for sink in sinks), *log_where),
            sinks=sinks,
        )
