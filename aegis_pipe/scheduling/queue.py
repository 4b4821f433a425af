"""The bounded queue: a policy's order behind a gate with a fixed number of places."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling.decision import Reason
from aegis_pipe.scheduling.policy import NO_MODELS, SchedulingPolicy
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.request_heap import RequestHeap


class BoundedQueue:
    """Waiting requests, at most `capacity` of them and `model_capacity` of each model.

    Entering takes two steps. `reserve` may be called from any thread and says at once whether
    there is a place; `push` then fills it. All other methods belong to the scheduler's thread.
    A place is free again when its request leaves through `pop` or `remove`, or by `release`.

    The queue also keeps the deadline timers of everything that waits, in a heap of their own.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        capacity: int,
        model_capacity: Mapping[str, int] | None = None,
    ) -> None:
        smallest = min((capacity, *(model_capacity or {}).values()))
        if smallest < 1:
            raise PermanentError(
                f"a queue of {smallest} places can hold nothing",
                context="scheduler.queue_capacity",
                hint="give it at least one place",
            )
        self.policy = policy
        self.capacity = capacity
        self._model_capacity = dict(model_capacity or {})
        self._gate = threading.Lock()
        self._places_taken = 0
        self._places_taken_by = dict.fromkeys(self._model_capacity, 0)
        self._refusals = 0
        self._is_closed = False
        self._timers = RequestHeap()

    def __len__(self) -> int:
        """Return how many requests wait, without those reserved and not yet pushed."""
        return len(self.policy)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return (
            f"<BoundedQueue: {len(self)} waiting, {self._places_taken} of {self.capacity} places "
            f"taken, {state}>"
        )

    @property
    def places_taken(self) -> int:
        """Requests waiting or about to be pushed; never more than the capacity."""
        return self._places_taken

    @property
    def refusals(self) -> int:
        """How often `reserve` said no, or somebody else did."""
        return self._refusals

    def close(self) -> None:
        """Refuse everyone from now on; those inside stay. From any thread."""
        with self._gate:
            self._is_closed = True

    def reserve(self, model: str) -> Reason | None:
        """Take a place and return None, or return why there is none. From any thread."""
        with self._gate:
            reason = self._refusal(model)
            if reason is not None:
                self._refusals += 1
                return reason
            # `_take`, without the call: every submission comes through here.
            self._places_taken += 1
            if model in self._places_taken_by:
                self._places_taken_by[model] += 1
            return None

    def count_refusal(self) -> None:
        """Count a request that was refused for another reason. From any thread."""
        with self._gate:
            self._refusals += 1

    def release(self, model: str) -> None:
        """Give a reserved place back."""
        with self._gate:
            self._give_back(model)

    def push(self, request: ExecutionRequest, now_ns: int) -> None:
        """Fill the place that was reserved for this request."""
        self.policy.push(request, now_ns)
        assert len(self) <= self._places_taken, "pushed without a reserved place"

    def pop(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> tuple[ExecutionRequest, Reason]:
        """Take the policy's best request, and free its place."""
        request, reason = self.policy.pop(now_ns, skip)
        self.release(request.model)
        return request, reason

    def remove(self, request: ExecutionRequest) -> None:
        """Take out a waiting request, and free its place."""
        self.policy.remove(request)
        self.release(request.model)

    def move(self, request: ExecutionRequest, model: str, now_ns: int) -> bool:
        """Have a waiting request wait for another model; return False if that has no place."""
        with self._gate:
            if not self._has_place_of(model):
                return False
            self._take(model)
            self._give_back(request.model)
        self.policy.remove(request)
        request.model = model
        self.policy.push(request, now_ns)
        return True

    def set_timer(self, request: ExecutionRequest, at_ns: int) -> None:
        """Have `pop_due` report a waiting request once an instant has come."""
        self._timers.push((at_ns, request.request_id), request)

    def clear_timer(self, request: ExecutionRequest) -> None:
        """Forget the request's timer, if it has one."""
        self._timers.discard(request)

    def next_timer_ns(self) -> int | None:
        """Return when the earliest timer is due."""
        head = self._timers.head()
        return None if head is None else head[0]

    def pop_due(self, now_ns: int) -> ExecutionRequest | None:
        """Take the earliest request whose timer is due, and its timer; the request stays."""
        due_ns = self.next_timer_ns()
        return self._timers.pop() if due_ns is not None and due_ns <= now_ns else None

    def _refusal(self, model: str) -> Reason | None:
        if self._is_closed:
            return Reason.RUNTIME_STOPPING
        if self._places_taken >= self.capacity:
            return Reason.QUEUE_FULL
        if model in self._model_capacity and not self._has_place_of(model):
            return Reason.QUEUE_FULL
        return None

    def _has_place_of(self, model: str) -> bool:
        limit = self._model_capacity.get(model)
        return limit is None or self._places_taken_by[model] < limit

    def _take(self, model: str) -> None:
        self._places_taken += 1
        if model in self._places_taken_by:
            self._places_taken_by[model] += 1

    def _give_back(self, model: str) -> None:
        assert self._places_taken, "more places released than reserved"
        self._places_taken -= 1
        if model in self._places_taken_by:
            self._places_taken_by[model] -= 1
