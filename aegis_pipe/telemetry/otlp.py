"""Spans to an OpenTelemetry collector, by OTLP over gRPC or HTTP.

Not through the OpenTelemetry SDK's exporters: they encode slowly (see `otlp_proto.py`), retry with
sleeps in between, and tell only their logs why something failed. How bytes get there is in
`otlp_transport.py`.
"""

from __future__ import annotations

from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.otlp_tape import OtlpEncoder
from aegis_pipe.telemetry.otlp_transport import GrpcTransport, HttpTransport, Transport
from aegis_pipe.telemetry.resources import Resources
from aegis_pipe.telemetry.spans import Trace


class OtlpSink:
    """Sends spans to a collector, each batch once, within the configured timeout."""

    def __init__(self, config: TelemetryConfig, resources: Resources) -> None:
        self._config = config
        self._encoder = OtlpEncoder(resources)
        self._transport: Transport | None = None
        self.where = f"{config.otlp_endpoint} (OTLP over {config.otlp_protocol})"
        self.problem = ""
        """What the transport said of the last failed batch."""

    def open(self) -> None:
        """Import the transport and make it; it connects at the first batch."""
        make = GrpcTransport if self._config.otlp_protocol == "grpc" else HttpTransport
        self._transport = make(self._config)

    def export(self, batch: Trace) -> bool:
        """Send a batch; return whether the collector took all of it."""
        assert self._transport is not None
        self.problem = self._transport.send(self._encoder.encode(batch))
        return not self.problem

    def close(self) -> None:
        """Let go of the connection; a batch on its way is cancelled or abandoned."""
        if self._transport is not None:
            self._transport.close()
