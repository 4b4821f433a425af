"""Who took which stream, as far back as anybody asks: where `blocked_by` comes from."""

from __future__ import annotations

from collections import deque

from aegis_pipe.scheduling.request import ExecutionRequest

BLOCKERS_MAX = 8


class Takeovers:
    """The latest times a stream changed hands."""

    def __init__(self, stream_count: int) -> None:
        # (instant, stream, request_id), oldest first.
        self._latest: deque[tuple[int, int, int]] = deque(maxlen=BLOCKERS_MAX * stream_count)

    def add(self, now_ns: int, stream: int, request_id: int) -> None:
        """Note that a request has taken a stream, or has got it back."""
        self._latest.append((now_ns, stream, request_id))

    def blockers(self, request: ExecutionRequest, streams: int) -> tuple[int, ...]:
        """Return who held its streams at arrival, then the latest few to take one since.

        `streams` is the bit mask of those it may use.
        """
        own, arrival_ns, latest = request.request_id, request.arrival_ns, self._latest
        if not latest or latest[-1][0] < arrival_ns:
            return request.blocked_by
        since = [
            request_id
            for at_ns, stream, request_id in latest
            if at_ns >= arrival_ns and streams >> stream & 1 and request_id != own
        ]
        return tuple(dict.fromkeys((*request.blocked_by, *since[-BLOCKERS_MAX:])))

    def preemptors(self, request: ExecutionRequest, stream: int) -> tuple[int, ...]:
        """Return the latest few that took its stream since it last had it."""
        latest: list[int] = []
        own = request.request_id
        for _, taken, request_id in reversed(self._latest):
            if request_id == own or len(latest) == BLOCKERS_MAX:
                break
            if taken == stream:
                latest.append(request_id)
        latest.reverse()
        return tuple(dict.fromkeys(latest))
