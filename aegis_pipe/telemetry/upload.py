"""Sends recorded traces to a collector, after the fact."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.otlp import OtlpSink
from aegis_pipe.telemetry.sinks import BATCH_SPANS
from aegis_pipe.telemetry.spans import Span
from aegis_pipe.telemetry.trace_file import RecordedRun

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class UploadReport(NamedTuple):
    """What became of an upload; spans."""

    sent: int
    total: int
    problem: str
    """What stopped it; empty if all arrived."""


def upload(
    runs: Sequence[RecordedRun],
    *,
    endpoint: str,
    protocol: str,
    timeout_ns: int,
    headers: Mapping[str, str] = NO_HEADERS,
) -> UploadReport:
    """Send every trace whole, batch by batch, each with these headers, until one fails.

    Raises a PermanentError if endpoint, protocol or headers can not be used.
    """
    config = TelemetryConfig(
        otlp_endpoint=endpoint,
        otlp_protocol=protocol,
        otlp_headers=tuple(headers.items()),
        otlp_timeout_ns=timeout_ns,
    )
    total = sum(len(trace) for run in runs for trace in run.traces)
    sent = 0
    for run in runs:
        sink = OtlpSink(config, run.resources)
        sink.open()
        try:
            for batch in _batches(run.traces):
                if not sink.export(batch):
                    return UploadReport(sent, total, sink.problem)
                sent += len(batch)
        finally:
            sink.close()
    return UploadReport(sent, total, "")


def _batches(traces: Iterable[Sequence[Span]]) -> Iterator[list[Span]]:
    batch: list[Span] = []
    for trace in traces:
        if batch and len(batch) + len(trace) > BATCH_SPANS:
            yield batch
            batch = []
        batch = [*batch, *trace]
    if batch:
        yield batch
