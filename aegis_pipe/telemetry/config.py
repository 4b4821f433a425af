"""What can be set about telemetry: plain values, filled in by whoever starts the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from aegis_pipe.errors import PermanentError
from aegis_pipe.http_headers import header_problem

PROTOCOLS: Final = ("grpc", "http")
KERNEL_MODES: Final = ("sampled", "always", "never")
ALWAYS_CAUSES: Final = ("error", "deadline_miss")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryConfig:
    """Where telemetry goes and how much of it; empty destinations switch it off.

    Raises a PermanentError naming the first value that can not be used.
    """

    service_name: str = "aegis-pipe"
    """Service of host spans; device spans carry `<service_name>/<device>`."""
    device: str = "cpu"
    otlp_endpoint: str = ""
    """URL of a collector, empty for none; `/v1/traces` is added for http if it has no path."""
    otlp_protocol: str = "grpc"
    otlp_headers: tuple[tuple[str, str], ...] = ()
    otlp_timeout_ns: int = 750_000_000
    """How long a batch may take; it is tried once."""
    otlp_json_path: Path | None = None
    """File for traces as OTLP JSON lines, which Jaeger's upload takes; replaced at start."""
    log_path: Path | None = None
    """File for every event as a JSON line; replaced at start."""
    log_max_bytes: int = 64 * 2**20
    """Size at which the log is continued in a new file."""
    log_keep: int = 4
    """Older files of the log that are kept, as `<path>.1` (the latest) and so on."""
    prometheus: str = ""
    """`host:port` on which a Prometheus finds the metrics; empty for none."""
    ratio: float = 0.05
    """Share of the requests that are kept although nothing is special about them, 0 to 1."""
    always: tuple[str, ...] = ALWAYS_CAUSES
    """What is kept whatever the ratio says: `error`, `deadline_miss`."""
    slow_ns: int = 0
    """Requests that take at least this long are kept too; 0 for no such rule."""
    kernels: str = "sampled"
    """Whose kernels are stamped: `sampled` (by the ratio), `always` or `never`."""
    max_spans: int = 2_000
    """Kernel spans of a request; above, they are aggregated by operator."""
    ring_capacity: int = 65_536
    """Events that wait for the exporter; above, the oldest are dropped and counted."""
    queue_capacity: int = 131_072
    """Spans that wait for a destination; above, the oldest traces are dropped and counted."""

    @property
    def has_destination(self) -> bool:
        """Return whether telemetry goes anywhere."""
        places = (self.otlp_endpoint, self.otlp_json_path, self.log_path, self.prometheus)
        return any(places)

    def __post_init__(self) -> None:
        _check_choice("telemetry.otlp.protocol", self.otlp_protocol, PROTOCOLS)
        _check_choice("telemetry.traces.kernels", self.kernels, KERNEL_MODES)
        for cause in self.always:
            _check_choice("telemetry.traces.always", cause, ALWAYS_CAUSES)
        _check(0 <= self.ratio <= 1, "telemetry.traces.ratio", "is not between 0 and 1")
        for key, value in (
            ("telemetry.otlp.timeout", self.otlp_timeout_ns),
            ("telemetry.traces.max_spans", self.max_spans),
            ("telemetry.ring_capacity", self.ring_capacity),
            ("telemetry.queue_capacity", self.queue_capacity),
            ("telemetry.log.max_size", self.log_max_bytes),
        ):
            _check(value > 0, key, "is not above 0")
        for name, text in self.otlp_headers:
            problem = header_problem(name, text)
            _check(not problem, f"telemetry.otlp.headers.{name}", f"can not be sent: {problem}")
        usable = not self.otlp_endpoint or _is_url(self.otlp_endpoint)
        _check(usable, "telemetry.otlp.endpoint", f"`{self.otlp_endpoint}` is not a URL")


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        # A port that is none is only found out when it is asked for.
        return url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        return False


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    listed = ", ".join(choices)
    _check(value in choices, key, f"`{value}` is not one of {listed}")


def _check(holds: bool, key: str, problem: str) -> None:
    if not holds:
        raise PermanentError(
            f"`{key}` {problem}",
            context="telemetry",
            hint="correct it in the manifest, e.g. "
            '`otlp = { endpoint = "http://127.0.0.1:4317", protocol = "grpc" }`, `ratio = 0.05`',
        )
