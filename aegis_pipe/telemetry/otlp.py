"""Spans to an OpenTelemetry collector, by OTLP over gRPC or HTTP.

Not through the OpenTelemetry SDK's exporters: they encode slowly (see `otlp_proto.py`), retry with
sleeps in between, and tell only their logs why something failed. The transports are imported
late: gRPC takes longer to import than some runs last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from aegis_pipe.telemetry.config import TelemetryConfig
from aegis_pipe.telemetry.otlp_tape import OtlpEncoder
from aegis_pipe.telemetry.resources import Resources
from aegis_pipe.telemetry.spans import Trace

if TYPE_CHECKING:
    import grpc
    import urllib3

_EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class OtlpSink:
    """Sends spans to a collector, each batch once, within the configured timeout."""

    def __init__(self, config: TelemetryConfig, resources: Resources) -> None:
        self._config = config
        self._encoder = OtlpEncoder(resources)
        self._transport: _Transport | None = None
        self.where = f"{config.otlp_endpoint} (OTLP over {config.otlp_protocol})"
        self.problem = ""
        """What the transport said of the last failed batch."""

    def open(self) -> None:
        """Import the transport and make it; it connects at the first batch."""
        make = _GrpcTransport if self._config.otlp_protocol == "grpc" else _HttpTransport
        self._transport = make(self._config)

    def export(self, batch: Trace) -> bool:
        """Send a batch; return whether the collector took it."""
        assert self._transport is not None
        self.problem = self._transport.send(self._encoder.encode(batch))
        return not self.problem

    def close(self) -> None:
        """Let go of the connection; a batch on its way is cancelled or abandoned."""
        if self._transport is not None:
            self._transport.close()


class _Transport(Protocol):
    """Carries encoded requests."""

    def send(self, request: bytes) -> str:
        """Send a request and wait for the answer; return what went wrong, empty for nothing."""
        ...

    def close(self) -> None: ...


class _GrpcTransport:
    def __init__(self, config: TelemetryConfig) -> None:
        import grpc

        url = urlsplit(config.otlp_endpoint)
        self._channel: grpc.Channel = (
            grpc.secure_channel(url.netloc, grpc.ssl_channel_credentials())
            if url.scheme == "https"
            else grpc.insecure_channel(url.netloc)
        )
        # Without serialisers bytes go in and come out.
        self._export = self._channel.unary_unary(_EXPORT_METHOD)
        self._timeout_s = config.otlp_timeout_ns / 1e9
        # gRPC refuses metadata with upper-case keys.
        self._metadata = [(key.lower(), value) for key, value in config.otlp_headers]

    def send(self, request: bytes) -> str:
        import grpc

        try:
            self._export(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        except ValueError as error:  # How gRPC says that the channel has been closed.
            return str(error)
        return ""

    def close(self) -> None:
        self._channel.close()


class _HttpTransport:
    def __init__(self, config: TelemetryConfig) -> None:
        import urllib3

        url = urlsplit(config.otlp_endpoint)
        is_bare = url.path in ("", "/")
        self._url = url._replace(path="/v1/traces").geturl() if is_bare else url.geturl()
        self._pool: urllib3.PoolManager = urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(total=config.otlp_timeout_ns / 1e9),
            headers={**dict(config.otlp_headers), "Content-Type": "application/x-protobuf"},
        )

    def send(self, request: bytes) -> str:
        import urllib3

        try:
            response = self._pool.request("POST", self._url, body=request)
        except urllib3.exceptions.HTTPError as error:
            return str(error)
        return "" if response.status < 300 else f"HTTP {response.status} {response.reason}"

    def close(self) -> None:
        self._pool.clear()
