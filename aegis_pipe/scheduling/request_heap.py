"""A heap of requests from which any one can be removed."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

from aegis_pipe.scheduling.request import ExecutionRequest

Key = tuple[Any, ...]
"""Orders requests, smallest first; ends in the request_id, so that no two are equal."""
Entry = tuple[Any, ...]
"""A key with the request at its end; flat, because comparing is what a heap does most."""

_SLACK = 64


class RequestHeap:
    """Binary heap with lazy deletion; each operation is O(log n), removal amortised.

    A removed entry stays where it is until it reaches the top. When more than half of the heap
    is removed entries (and a little slack), it is rebuilt: that costs O(n) after at least n / 2
    removals, and keeps memory in proportion to the requests that are there.
    """

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._entries: dict[int, Entry] = {}
        self._removed = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, key: Key, request: ExecutionRequest) -> None:
        """Add a request that is not in the heap; all keys have the same length."""
        assert request.request_id not in self._entries, f"request {request.request_id} is here"
        entry = (*key, request)
        self._entries[request.request_id] = entry
        heappush(self._heap, entry)

    def head(self) -> Entry | None:
        """Return the smallest entry without taking it; None if empty."""
        heap = self._heap
        # Identity, because the same request may have been removed and pushed again.
        while self._removed and self._entries.get(heap[0][-1].request_id) is not heap[0]:
            heappop(heap)
            self._removed -= 1
        return heap[0] if heap else None

    def pop(self) -> ExecutionRequest:
        """Take the smallest request; the heap must not be empty."""
        entry = self.lift()
        request: ExecutionRequest = entry[-1]
        del self._entries[request.request_id]
        return request

    def lift(self) -> Entry:
        """Take the smallest entry for a moment, to see what is below; `put_back` has to follow."""
        entry = self.head()
        assert entry is not None, "the heap is empty"
        heappop(self._heap)
        return entry

    def put_back(self, entry: Entry) -> None:
        """Return what was lifted."""
        heappush(self._heap, entry)

    def in_place(self) -> list[Entry] | None:
        """Return the heap's own list, to be looked at; None if removed entries are among it.

        The entries below position i are at 2 i + 1 and 2 i + 2.
        """
        return None if self._removed else self._heap

    def discard(self, request: ExecutionRequest) -> bool:
        """Remove a request; return whether it was here."""
        if self._entries.pop(request.request_id, None) is None:
            return False
        self._removed += 1
        if self._removed > len(self._entries) + _SLACK:
            self._heap = list(self._entries.values())
            heapify(self._heap)
            self._removed = 0
        return True
