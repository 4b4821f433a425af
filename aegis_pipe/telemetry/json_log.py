"""Every event as one JSON line, for offline analysis.

    {"event": "schedule_decision", "request_id": "req-123", "policy": "priority", "priority": 10,
     "queue_depth": 5, "stream_id": "stream-2", ..., "timestamp": 1234567890}

`event` names the kind; `timestamp` (and every `*_ns`) is in nanoseconds since the Unix epoch;
what there is none of is null. The other fields are the event's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np

from aegis_pipe.events import (
    DecisionMade,
    Event,
    RequestFinished,
    RequestSubmitted,
    StageFinished,
    instant_ns,
)
from aegis_pipe.telemetry.bounded import BoundedDict
from aegis_pipe.telemetry.numbers import json_number

_REQUESTS_MAX: Final = 16_384
NONE_IF_ZERO: Final = (
    (RequestSubmitted, "deadline_ns"),
    (RequestFinished, "deadline_ns"),
    (RequestFinished, "start_ns"),
    (StageFinished, "request_id"),
)
"""Fields in which 0 says that there is none."""
_RENAMED: Final[Mapping[type[Event], str]] = {DecisionMade: "schedule_decision"}


def event_name(kind: type[Event]) -> str:
    """Return the name under which a kind of event is logged."""
    return _RENAMED.get(kind) or re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


class JsonLogFormat:
    """Formats events; remembers priorities of open requests, to log decisions with them."""

    def __init__(self, to_unix_ns: Callable[[int], int]) -> None:
        self._to_unix_ns = to_unix_ns
        self._priorities = BoundedDict[int, int](_REQUESTS_MAX)

    def line(self, event: Event) -> str:
        """Return an event as ASCII JSON, without the line's end."""
        return json.dumps(self.values(event), separators=(",", ":"), allow_nan=False)

    def values(self, event: Event) -> dict[str, Any]:
        """Return what an event's line says."""
        values: dict[str, Any] = {"event": event_name(type(event))}
        for key, value in zip(event._fields, event, strict=True):
            is_none = not value and (type(event), key) in NONE_IF_ZERO
            values |= {key: None} if is_none else self._field(key, value)
        if isinstance(event, RequestSubmitted):
            self._priorities[event.request_id] = event.priority
        if isinstance(event, DecisionMade):
            values["priority"] = self._priorities.get(event.request_id)
        if isinstance(event, RequestFinished):
            self._priorities.pop(event.request_id, None)
        values["timestamp"] = self._to_unix_ns(instant_ns(event))
        return values

    def _field(self, key: str, value: Any) -> dict[str, Any]:
        if key == "at_ns":
            return {}  # The timestamp.
        if key.endswith("_ns"):
            return {key: self._to_unix_ns(value)}
        if key == "kernel_times":
            return {key: self._kernel_times(value)}
        if key == "request_id":
            return {key: request_name(value)}
        if key == "stream" or key.endswith("_stream"):
            return {f"{key}_id": stream_name(value) if value >= 0 else None}
        if key == "blocked_by":
            return {key: [request_name(other) for other in value]}
        if key == "candidates":
            return {key: [[request_name(other), json_number(score)] for other, score in value]}
        return {key: _plain(value)}

    def _kernel_times(self, stamps: bytes) -> list[list[int]]:
        times = np.frombuffer(stamps, dtype=np.int64) + self._to_unix_ns(0)
        result: list[list[int]] = times.reshape(-1, 2).tolist()
        return result


def request_name(request_id: int) -> str:
    """Return what the log calls a request."""
    return f"req-{request_id}"


def stream_name(stream: int) -> str:
    """Return what the log calls a stream."""
    return f"stream-{stream}"


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    match value:
        case float():
            return json_number(value)
        case Mapping():
            return {str(key): _plain(part) for key, part in value.items()}
        case str():
            return value
        case Iterable():
            return [_plain(part) for part in value]
        case _:
            return value
