"""Telemetry: listens to events and turns them into traces and a log.

    EventHub -> ring -> exporter thread -> assembler -> sinks (OTLP, OTLP JSON file, SDK exporters)
                                        -> JSON-lines log

See docs/telemetry.md for every event, span and attribute.
"""

from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.session import Telemetry, TelemetryReport

__all__ = ["Telemetry", "TelemetryConfig", "TelemetryReport"]
