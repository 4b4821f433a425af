"""How OTLP requests reach a collector: over gRPC or HTTP, each once, within a time limit.

gRPC is imported late: that takes longer than some runs last.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from aegis_pipe.telemetry.config import TelemetryConfig

if TYPE_CHECKING:
    import grpc

_EXPORT_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_MALFORMED: Final = "what it answers is not OTLP"


class Transport(Protocol):
    """Carries encoded requests."""

    def send(self, request: bytes) -> str:
        """Send a request and wait for the answer; return what went wrong, empty for nothing."""
        ...

    def close(self) -> None:
        """Let go of the connection; may be called while another thread is in `send`."""
        ...


class GrpcTransport:
    """OTLP over gRPC; connects at the first request."""

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
        """Send a request; return what went wrong, empty for nothing."""
        import grpc

        try:
            answer: bytes = self._export(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        except ValueError as error:  # How gRPC says that the channel has been closed.
            return str(error)
        return refusal(answer)

    def close(self) -> None:
        """Close the channel; a request on its way is cancelled."""
        self._channel.close()


class HttpTransport:
    """OTLP over HTTP/1.1 on one connection, made at the first request and kept alive."""

    def __init__(self, config: TelemetryConfig) -> None:
        url = urlsplit(config.otlp_endpoint)
        self._path = "/v1/traces" if url.path in ("", "/") else url.path
        self._path += f"?{url.query}" if url.query else ""
        self._headers = {**dict(config.otlp_headers), "Content-Type": "application/x-protobuf"}
        self._timeout_s = config.otlp_timeout_ns / 1e9
        connect = HTTPSConnection if url.scheme == "https" else HTTPConnection
        self._connection = connect(url.hostname or "", url.port, timeout=self._timeout_s)
        self._socket: socket.socket | None = None
        """Of the present connection; its own is gone while the last answer is read."""
        self._sending = threading.Lock()
        self._is_closed = False

    def send(self, request: bytes) -> str:
        """Send a request; return what went wrong, empty for nothing."""
        # A socket's own limit is for each read, and a byte now and then would satisfy it.
        is_late = threading.Event()
        watchdog = threading.Timer(self._timeout_s, self._cut, [is_late])
        watchdog.start()
        try:
            with self._sending:
                return self._exchange(request, is_late)
        finally:
            watchdog.cancel()
            self._discard()

    def _exchange(self, request: bytes, is_late: threading.Event) -> str:
        try:
            self._connect()
            self._connection.request("POST", self._path, request, self._headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, HTTPException, ValueError) as error:
            self._connection.close()
            is_late_now = is_late.is_set() or isinstance(error, TimeoutError)
            return self._too_late() if is_late_now else str(error) or type(error).__name__
        if is_late.is_set():
            # Cut within its headers, an answer looks like a whole one.
            self._connection.close()
            return self._too_late()
        if response.status >= 300:
            return f"HTTP {response.status} {response.reason}"
        is_json = response.headers.get_content_type() == "application/json"
        return _json_refusal(answer) if is_json else refusal(answer)

    def _too_late(self) -> str:
        return f"timed out: no answer within {self._timeout_s:g} s"

    def _connect(self) -> None:
        """Connect, unless the last connection is still there."""
        if self._connection.sock is not None and not _is_idle(self._connection.sock):
            self._connection.close()
        if self._connection.sock is None:
            self._connection.connect()
            self._socket = self._connection.sock
        self._connection.sock.settimeout(self._timeout_s)

    def _cut(self, is_late: threading.Event) -> None:
        is_late.set()
        self._shut_down()

    def close(self) -> None:
        """Cut the connection; a request on its way fails at once."""
        self._is_closed = True
        self._shut_down()
        self._discard()

    def _discard(self) -> None:
        """Free the socket once closed: by whoever is the last to use it."""
        if self._is_closed and self._sending.acquire(blocking=False):
            self._connection.close()
            self._sending.release()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # Gone already.
                self._socket.shutdown(socket.SHUT_RDWR)


def _is_idle(connected: socket.socket) -> bool:
    """Return whether nothing has come since the last answer, not even the end."""
    connected.settimeout(0)
    try:
        connected.recv(1)
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False
    return False


def refusal(answer: bytes) -> str:
    """Return what an `ExportTraceServiceResponse` says was not taken; empty for all taken.

    Of its fields only `partial_success` = 1 counts, and of that `rejected_spans` = 1 and
    `error_message` = 2 (opentelemetry-proto, `trace_service.proto`).
    """
    try:
        partial = dict(_fields(answer)).get(1, b"")
        told = dict(_fields(partial)) if isinstance(partial, bytes) else {}
        count, message = told.get(1, 0), told.get(2, b"")
        if not isinstance(count, int) or not isinstance(message, bytes):
            return _MALFORMED
        reason = message.decode()
    except (IndexError, ValueError):
        return _MALFORMED
    return _told(count, reason)


def _json_refusal(answer: bytes) -> str:
    """Return the same of the answer of a collector that speaks JSON whatever it is asked."""
    try:
        partial = json.loads(answer or b"{}").get("partialSuccess") or {}
        return _told(int(partial.get("rejectedSpans") or 0), partial.get("errorMessage") or "")
    except (AttributeError, TypeError, ValueError):
        return _MALFORMED


def _told(count: int, reason: str) -> str:
    if not count:
        return ""
    return f"it refused {count} of the batch's spans" + (f": {reason}" if reason else "")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield a protobuf message's varints and strings by field number (protobuf.dev, "Encoding").

    Raises an IndexError or a ValueError if it is none.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at) if tag & 7 in (0, 2) else (0, at)
        match tag & 7:
            case 0:
                yield tag >> 3, value
            case 1 | 5 as width:
                at += 8 if width == 1 else 4
            case 2:
                yield tag >> 3, message[at : at + value]
                at += value
            case _:
                raise ValueError(tag)
    if at != len(message):
        raise IndexError(at)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
