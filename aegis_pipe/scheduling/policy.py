"""What a scheduling policy is: an order of the waiting requests, and nothing else.

The scheduler asks it who is next; streams, deadlines and capacity are the scheduler's. A policy
whose order is a key that is known when a request arrives derives from `KeyedPolicy` and is a few
lines; any other class with the methods of `SchedulingPolicy` will do. Each has to pass
`aegis_pipe.testing.check_policy`.
"""

from __future__ import annotations

import abc
from heapq import heapify, heappop, heappush, heapreplace
from typing import ClassVar, Protocol, runtime_checkable

from aegis_pipe.scheduling.decision import Reason
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.request_heap import Entry, Key, RequestHeap

NO_MODELS: frozenset[str] = frozenset()
_ONLY_CANDIDATE = Reason.ONLY_CANDIDATE
Candidates = tuple[tuple[int, float], ...]
"""Requests as (request_id, score), best first; higher scores are better, units are the policy's."""


@runtime_checkable
class SchedulingPolicy(Protocol):
    """An order of the waiting requests; every method is O(log n) in their number, amortised.

    `skip` names models that have no stream to go to just now: their requests do not compete.
    The order must be total and must depend on nothing but what the methods were given.
    """

    @property
    def name(self) -> str:
        """The name under which decisions of this policy are reported."""
        ...

    def __len__(self) -> int:
        """Return how many requests wait."""
        ...

    def push(self, request: ExecutionRequest, now_ns: int) -> None:
        """Add a waiting request."""
        ...

    def peek(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> ExecutionRequest | None:
        """Return the best request, which stays; None if nobody competes."""
        ...

    def pop(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> tuple[ExecutionRequest, Reason]:
        """Take the best request, and say which rule set it apart from the runner-up."""
        ...

    def remove(self, request: ExecutionRequest) -> None:
        """Take out a waiting request that expired or was cancelled."""
        ...

    def candidates(self, now_ns: int, limit: int, skip: frozenset[str] = NO_MODELS) -> Candidates:
        """Return the best few; the first is the one that `pop` would take."""
        ...

    def preempts(self, waiting: ExecutionRequest, paused: ExecutionRequest, now_ns: int) -> bool:
        """Return whether the waiting one may take the stream of the other at a segment boundary.

        Must not hold both ways round, at any time: otherwise two requests could alternate.
        """
        ...

    def served(self, request: ExecutionRequest, service_ns: int) -> None:
        """Take note that one of the request's segments held a stream for this long.

        The stream's time is told once, whoever shares it: requests that joined a batch were
        taken out by `remove`, and only the one that leads the batch is told of here.
        """
        ...

    def ended(self, request: ExecutionRequest) -> None:
        """Take note that a request which had started is over, whatever became of it."""
        ...


class KeyedPolicy(abc.ABC):
    """Base of policies whose order between two requests never changes while they wait.

    One heap per model, so that models without a free stream are passed over without looking at
    their requests: O(models + log n).
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self._lanes: dict[str, RequestHeap] = {}
        self._size = 0
        # Where the latest request was put: the only one that waits is mostly that one.
        self._latest = RequestHeap()
        # What `candidates` has just seen, and for whom: `pop` mostly follows, and needs the same.
        self._seen: tuple[frozenset[str], list[Entry]] | None = None

    @abc.abstractmethod
    def key(self, request: ExecutionRequest, now_ns: int) -> Key:
        """Return what orders the request from now on: smallest first, ends in request_id."""

    @abc.abstractmethod
    def score(self, request: ExecutionRequest, now_ns: int) -> float:
        """Return how good the request is, for display: higher is better, in the key's order."""

    def reason(self, winner: ExecutionRequest, runner_up: ExecutionRequest) -> Reason:
        """Return the rule that puts one request before the next."""
        return Reason.POLICY

    def preempts(self, waiting: ExecutionRequest, paused: ExecutionRequest, now_ns: int) -> bool:
        """Never; override to allow it."""
        return False

    def served(self, request: ExecutionRequest, service_ns: int) -> None:
        """Ignore it: keys are known on arrival."""
        return

    def ended(self, request: ExecutionRequest) -> None:
        """Ignore it."""
        return

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        waiting = {model: len(lane) for model, lane in sorted(self._lanes.items()) if lane}
        return f"<{type(self).__name__}: {self._size} waiting {waiting}>"

    def push(self, request: ExecutionRequest, now_ns: int) -> None:
        """Add a waiting request."""
        lane = self._lanes.get(request.model)
        if lane is None:
            lane = self._lanes[request.model] = RequestHeap()
        lane.push(self.key(request, now_ns), request)
        self._latest = lane
        self._size += 1
        self._seen = None

    def peek(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> ExecutionRequest | None:
        """Return the best request, which stays; None if nobody competes."""
        best = self._first(skip)
        return None if best is None else best[-1]

    def pop(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> tuple[ExecutionRequest, Reason]:
        """Take the best request; its reason comes from comparing it with the next best."""
        seen, self._seen = self._seen, None
        runner_up: Entry | None
        if seen is not None and seen[0] is skip:
            best = seen[1][0]
            winner: ExecutionRequest = best[-1]
            self._lanes[winner.model].pop()
            runner_up = seen[1][1] if len(seen[1]) > 1 else None
        elif self._size == 1 and not skip and self._latest.heap and self._latest.is_clean:
            self._size = 0
            return self._latest.pop(), _ONLY_CANDIDATE
        else:
            lane, runner_up = self._first_two(skip)
            winner = lane.pop()
            # What stood behind it in its own lane competes with the heads of the others.
            if lane.heap:
                head = lane.heap[0] if lane.is_clean else lane.head()
                if head is not None and (runner_up is None or head < runner_up):
                    runner_up = head
        self._size -= 1
        if runner_up is None:
            return winner, _ONLY_CANDIDATE
        return winner, self.reason(winner, runner_up[-1])

    def remove(self, request: ExecutionRequest) -> None:
        """Take out a waiting request."""
        lane = self._lanes.get(request.model)
        found = lane is not None and lane.discard(request)
        assert found, f"request {request.request_id} does not wait here"
        self._size -= 1
        self._seen = None

    def candidates(self, now_ns: int, limit: int, skip: frozenset[str] = NO_MODELS) -> Candidates:
        """Return the best few, in the order in which `pop` would take them."""
        best = self._smallest(skip, limit)
        if limit > 1 and best:
            self._seen = (skip, best)
        score = self.score
        return tuple([(entry[-1].request_id, float(score(entry[-1], now_ns))) for entry in best])

    def _first(self, skip: frozenset[str]) -> Entry | None:
        best = None
        for model, lane in self._lanes.items():
            if lane.heap and model not in skip:
                head = lane.heap[0] if lane.is_clean else lane.head()
                # No two entries are equal, so comparing never gets to the requests.
                if head is not None and (best is None or head < best):
                    best = head
        return best

    def _first_two(self, skip: frozenset[str]) -> tuple[RequestHeap, Entry | None]:
        """Return the lane with the best head, and the best head of the other lanes."""
        best: Entry | None = None
        second: Entry | None = None
        best_lane: RequestHeap | None = None
        for model, lane in self._lanes.items():
            if lane.heap and model not in skip:
                head = lane.heap[0] if lane.is_clean else lane.head()
                if head is None:
                    continue
                if best is None or head < best:
                    best, best_lane, second = head, lane, best
                elif second is None or head < second:
                    second = head
        assert best_lane is not None, "pop, but nobody competes"
        return best_lane, second

    def _smallest(self, skip: frozenset[str], limit: int) -> list[Entry]:
        lanes = [lane for model, lane in self._lanes.items() if lane.heap and model not in skip]
        for lane in lanes:
            if not lane.is_clean:
                return _lifted(lanes, limit)
        return _smallest([lane.heap for lane in lanes], limit)


def _smallest(heaps: list[list[Entry]], limit: int) -> list[Entry]:
    """Find the smallest entries without moving any: what comes next is below what came before."""
    found: list[Entry] = []
    # No two entries are equal, so comparing never gets beyond them.
    frontier = [(heap[0], 0, heap) for heap in heaps]
    heapify(frontier)
    while frontier:
        entry, position, heap = frontier[0]
        found.append(entry)
        if len(found) == limit:
            break
        below = 2 * position + 1
        if below < len(heap):
            heapreplace(frontier, (heap[below], below, heap))
            if below + 1 < len(heap):
                heappush(frontier, (heap[below + 1], below + 1, heap))
        else:
            heappop(frontier)
    return found


def _lifted(lanes: list[RequestHeap], limit: int) -> list[Entry]:
    """Lift the smallest entries out, which clears removed ones on the way, and put them back."""
    heads = [(head, lane) for lane in lanes if (head := lane.head()) is not None]
    heapify(heads)
    lifted: list[tuple[Entry, RequestHeap]] = []
    while heads and len(lifted) < limit:
        lane = heads[0][1]
        lifted.append((lane.lift(), lane))
        head = lane.head()
        if head is None:
            heappop(heads)
        else:
            heapreplace(heads, (head, lane))
    for entry, lane in lifted:
        lane.put_back(entry)
    return [entry for entry, _ in lifted]
