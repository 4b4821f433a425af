"""Which requests of a model run together, and how long one may wait for company.

A model that batches is loaded several times, for growing numbers of rows; which of these variants
runs is settled when a batch starts. Nothing is made to measure then: rows that are left over
repeat the first request's inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.request_heap import RequestHeap


@dataclass(frozen=True, slots=True)
class Batching:
    """How one model batches."""

    segments: Mapping[int, int]
    """Segments of each variant by the number of requests it takes; 1 is among them."""
    window_ns: int = 0
    """Longest time that a request waits for others; 0: it takes along only who waits already."""

    @property
    def size_max(self) -> int:
        """Most requests that run together."""
        return max(self.segments)

    def size_for(self, count: int) -> int:
        """Return the size of the smallest variant that takes so many requests."""
        return min(size for size in self.segments if size >= count)


def variant_name(model: str, size: int) -> str:
    """Return what the variant of a model for `size` requests is called; 1 is the model itself."""
    return model if size == 1 else f"{model}@{size}"


class BatchLine:
    """The waiting requests of one model, by the instant until which they wait for others.

    A request waits for the window, but no longer than its deadline leaves time to run; if nobody
    knows how long running takes (`needed_ns`), one with a deadline does not wait at all.
    """

    def __init__(self, model: str, batching: Batching, needed_ns: Mapping[str, int]) -> None:
        self.batching = batching
        self._size_max = batching.size_max
        self._needed_ns = {
            size: needed_ns.get(variant_name(model, size), needed_ns.get(model))
            for size in batching.segments
        }
        self._heap = RequestHeap()

    def push(self, request: ExecutionRequest, now_ns: int) -> None:
        """Add a waiting request."""
        self._heap.push((self._until_ns(request, now_ns), request.request_id), request)

    def discard(self, request: ExecutionRequest) -> None:
        """Take out a request that no longer waits."""
        self._heap.discard(request)

    def is_held(self, now_ns: int) -> bool:
        """Return whether those who wait should go on waiting for others."""
        head = self._heap.head()
        return head is not None and len(self._heap) < self._size_max and bool(head[0] > now_ns)

    def held_until_ns(self) -> int | None:
        """Return when the first of them has waited long enough; None if nobody waits."""
        head = self._heap.head()
        return None if head is None else head[0]

    def companions(self, leader: ExecutionRequest, now_ns: int) -> Iterator[ExecutionRequest]:
        """Take out those who go along with a request, most pressing first.

        As many as fit, except that nobody joins or is joined at the price of a deadline that
        `needed_ns` says would be missed by it.
        """
        due_ns = _due_ns(leader)
        for count in range(2, self._size_max + 1):
            head = self._heap.head()
            if head is None:
                return
            due_ns = min(due_ns, _due_ns(head[-1]))
            needed_ns = self._needed_ns[self.batching.size_for(count)]
            if needed_ns is not None and now_ns + needed_ns > due_ns:
                return
            yield self._heap.pop()

    def _until_ns(self, request: ExecutionRequest, now_ns: int) -> int:
        until_ns = request.arrival_ns + self.batching.window_ns
        if request.deadline_ns is None:
            return until_ns
        needed_ns = self._needed_ns[self._size_max]
        if needed_ns is None:
            return now_ns
        return min(until_ns, request.deadline_ns - needed_ns)


def _due_ns(request: ExecutionRequest) -> float:
    return float("inf") if request.deadline_ns is None else request.deadline_ns


def hand_lead_over(leader: ExecutionRequest) -> ExecutionRequest:
    """Let the next request lead a batch that its leader leaves at a boundary; return that one."""
    successor, *others = leader.companions
    leader.companions = ()
    successor.leader = None
    successor.companions = tuple(others)
    for member in others:
        member.leader = successor
    successor.next_segment = leader.next_segment
    successor.launched_segments = leader.launched_segments
    return successor
