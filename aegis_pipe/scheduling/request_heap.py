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

    __slots__ = ("_entries", "_removed", "heap", "is_clean")

    def __init__(self) -> None:
        self.heap: list[Entry] = []
        """The entries, with removed ones among them; always this very list. Only to be looked at:
        none is smaller than the first, and those below position i are at 2 i + 1 and 2 i + 2."""
        self._entries: dict[int, Entry] = {}
        self._removed = 0
        self.is_clean = True
        """Whether no removed entries are in `heap`."""

    def __len__(self) -> int:
        return len(self._entries)

    def push(self, key: Key, request: ExecutionRequest) -> None:
        """Add a request that is not in the heap; all keys have the same length."""
        entries, request_id = self._entries, request.request_id
        assert request_id not in entries, f"request {request_id} is here"
        entry = entries[request_id] = (*key, request)
        heappush(self.heap, entry)

    def head(self) -> Entry | None:
        """Return the smallest entry without taking it; None if empty."""
        heap = self.heap
        # Identity, because the same request may have been removed and pushed again.
        while self._removed and self._entries.get(heap[0][-1].request_id) is not heap[0]:
            heappop(heap)
            self._removed -= 1
            self.is_clean = not self._removed
        return heap[0] if heap else None

    def pop(self) -> ExecutionRequest:
        """Take the smallest request; the heap must not be empty."""
        if not self.is_clean:
            self.head()
        assert self.heap, "the heap is empty"
        request: ExecutionRequest = heappop(self.heap)[-1]
        del self._entries[request.request_id]
        return request

    def lift(self) -> Entry:
        """Take the smallest entry for a moment, to see what is below; `put_back` has to follow."""
        if not self.is_clean:
            self.head()
        assert self.heap, "the heap is empty"
        return heappop(self.heap)

    def put_back(self, entry: Entry) -> None:
        """Return what was lifted."""
        heappush(self.heap, entry)

    def discard(self, request: ExecutionRequest) -> bool:
        """Remove a request; return whether it was here."""
        entry = self._entries.pop(request.request_id, None)
        if entry is None:
            return False
        if self.heap[0] is entry:
            heappop(self.heap)
            return True
        self._removed += 1
        self.is_clean = False
        if self._removed > len(self._entries) + _SLACK:
            self.heap[:] = self._entries.values()
            heapify(self.heap)
            self._removed = 0
            self.is_clean = True
        return True
