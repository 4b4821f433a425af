"""Metrics for a Prometheus to fetch: a page of text on loopback, or wherever the manifest says.

Histograms are shown with the buckets of every run alike: half powers of two from 8 us to 64 s.
Ours are finer by a whole factor, so these counts are exact.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import urlsplit

from aegis_pipe.errors import PermanentError
from aegis_pipe.telemetry.metrics import METRICS, SCALE, HistogramValue, MetricsRecorder, Points

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PER_OCTAVE: Final = 2
_BOUNDS: Final = range(-17 * _PER_OCTAVE, 6 * _PER_OCTAVE + 1)
"""Exponents of 2 ** (1 / _PER_OCTAVE), in seconds."""
_UNITS: Final = {"s": "_seconds", "By": "_bytes", "Cel": "_celsius", "Hz": "_hertz", "": ""}


def prometheus_name(name: str) -> str:
    """Return a metric's name as Prometheus has it, with unit and `_total`."""
    metric = METRICS[name]
    total = "_total" if metric.kind == "counter" else ""
    return name.replace(".", "_") + _UNITS[metric.unit] + total


def render(metrics: dict[str, Points]) -> str:
    """Return the page (prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4)."""
    lines: list[str] = []
    for name, points in metrics.items():
        if not points:
            continue
        shown = prometheus_name(name)
        lines.append(f"# HELP {shown} {METRICS[name].meaning}")
        lines.append(f"# TYPE {shown} {METRICS[name].kind}")
        for values, value in points.items():
            labels = dict(zip(METRICS[name].labels, values, strict=True))
            if isinstance(value, HistogramValue):
                lines += _histogram(shown, labels, value)
            else:
                lines.append(f"{shown}{_labels(labels)} {value}")
    return "\n".join(lines) + "\n"


def _histogram(name: str, labels: dict[str, str], value: HistogramValue) -> Iterator[str]:
    seen = value.zeros
    remaining = sorted(value.buckets.items(), reverse=True)
    step = 2**SCALE // _PER_OCTAVE
    for bound in _BOUNDS:
        # The bucket `index` ends at 2 ** ((index + 1) / 2 ** SCALE).
        while remaining and remaining[-1][0] + 1 <= bound * step:
            seen += remaining.pop()[1]
        edge = f"{2 ** (bound / _PER_OCTAVE):.6g}"
        yield f"{name}_bucket{_labels({**labels, 'le': edge})} {seen}"
    yield f"{name}_bucket{_labels({**labels, 'le': '+Inf'})} {value.samples}"
    yield f"{name}_sum{_labels(labels)} {value.total}"
    yield f"{name}_count{_labels(labels)} {value.samples}"


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class PrometheusEndpoint:
    """Answers `GET /metrics` on a thread of its own.

    Making it raises a PermanentError if the address can not be listened on.
    """

    def __init__(self, address: str, recorder: MetricsRecorder) -> None:
        url = urlsplit(f"//{address}")
        try:
            self._server = _Server((url.hostname or "", url.port or 0), recorder)
        except (OSError, OverflowError, ValueError) as error:
            raise PermanentError(
                f"can not listen on `{address}`: {error}",
                context="telemetry.metrics.prometheus",
                hint="choose a free port of this machine, such as 127.0.0.1:9464",
            ) from error
        host, port = self._server.server_address[:2]
        self.where = f"http://{host!s}:{port}/metrics"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="aegis-telemetry prometheus",
            daemon=True,
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; answers on their way are cut off."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A client that hangs must not hold up the end.
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], recorder: MetricsRecorder) -> None:
        self.recorder = recorder
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the base class's look-up of the host's name, which may take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        host, port = self.socket.getsockname()[:2]
        self.server_address = (host, port)
        self.server_name, self.server_port = host, port


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0

    def do_GET(self) -> None:
        """Answer with the metrics, or say where they are."""
        is_known = urlsplit(self.path).path in ("/metrics", "/")
        text = render(self.server.recorder.read()) if is_known else "see /metrics\n"
        body = text.encode()
        self.send_response(200 if is_known else 404)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Say nothing: a Prometheus comes by every few seconds."""
