"""From a manifest's `telemetry` section to the terms of telemetry itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis_pipe.manifest.model import LogSection, Manifest
from aegis_pipe.pipeline_builder import written_path
from aegis_pipe.telemetry import TelemetryConfig

if TYPE_CHECKING:
    pass


def telemetry_config(manifest: Manifest) -> TelemetryConfig:
    """Return where a manifest's telemetry goes, and how much of it."""
    section, otlp = manifest.telemetry, manifest.telemetry.otlp
    traces = section.traces
    return TelemetryConfig(
        service_name=manifest.service_name,
        device=manifest.device.kind,
        otlp_endpoint=otlp.endpoint if otlp else "",
        otlp_protocol=otlp.protocol if otlp else "grpc",
        otlp_headers=tuple(otlp.headers.items()) if otlp else (),
        otlp_timeout_ns=otlp.timeout_ns if otlp else 750_000_000,
        otlp_json_path=written_path(manifest, section.file) if section.file else None,
        log_path=written_path(manifest, section.log.path) if section.log else None,
        log_max_bytes=(section.log or LogSection("")).max_size_bytes,
        log_keep=(section.log or LogSection("")).keep,
        prometheus=section.metrics.prometheus or "",
        ratio=traces.ratio,
        always=traces.always,
        slow_ns=traces.slow_ns or 0,
        kernels=traces.kernels,
        max_spans=traces.max_spans,
        ring_capacity=section.ring_capacity,
    )
