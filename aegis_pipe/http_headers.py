"""Headers that go along with telemetry: how they are written, and which can be sent.

What is wrong is told without the value: it may be a password.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

_NAME: Final = re.compile("[A-Za-z0-9_.-]+")
"""What HTTP (RFC 9110, 5.6.2) and gRPC ("gRPC over HTTP2", Custom-Metadata) both take."""
_VALUE: Final = re.compile("[\x20-\x7e]*")
_TAKEN: Final = frozenset(
    ("connection", "content-length", "content-type", "host", "te", "transfer-encoding")
)


def header_problem(name: str, value: str) -> str:
    """Return why a header can not be sent, without its value; empty if it can."""
    if not _NAME.fullmatch(name):
        return "a header's name has letters, digits, `-`, `_` and `.` only"
    lower = name.lower()
    if lower in _TAKEN or lower.startswith("grpc-") or lower.endswith("-bin"):
        return "this header belongs to the protocol and can not be set"
    if not _VALUE.fullmatch(value):
        return "its value has a character that no header can have: only printable ASCII can be sent"
    return ""


def parse_header(text: str) -> tuple[str, str]:
    """Return name, in lower case, and value of `NAME=VALUE`.

    ValueError says what is wrong, without the value.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise ValueError("expected NAME=VALUE, such as `authorization=Bearer TOKEN`")
    problem = header_problem(name, value.strip())
    if problem:
        raise ValueError(f"`{name}`: {problem}" if _NAME.fullmatch(name) else problem)
    return name.lower(), value.strip()


def parse_environment(text: str) -> dict[str, str]:
    """Return headers written as `OTEL_EXPORTER_OTLP_HEADERS` has them: `a=1,b=2`, percent-encoded.

    That is the format of W3C Baggage (OpenTelemetry specification, "OTLP exporter").
    """
    return dict(parse_header(unquote(each)) for each in text.split(",") if each.strip())
