"""The bounded queue: a policy's order behind a gate with a fixed number of places."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling.decision import Reason
from aegis_pipe.scheduling.policy import NO_MODELS, SchedulingPolicy
from aegis_pipe.scheduling.request import ExecutionRequest


class BoundedQueue:
    """Waiting requests, at most `capacity` of them and `model_capacity` of each model.

    Entering takes two steps. `reserve` may be called from any thread and says at once whether
    there is a place; `push` then fills it. All other methods belong to the scheduler's thread.
    A place is free again when its request leaves through `pop` or `remove`, or by `release`.
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
        self.waiting = 0
        """How many requests wait, without those reserved and not yet pushed."""
        self.places_taken = 0
        """Requests waiting or about to be pushed; never more than the capacity."""
        self.refusals = 0
        """How often `reserve` said no, or somebody else did."""
        self._model_capacity = dict(model_capacity or {})
        self._gate = threading.Lock()
        self._places_taken_by = dict.fromkeys(self._model_capacity, 0)
        self._is_closed = False

    def __len__(self) -> int:
        return self.waiting

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return (
            f"<BoundedQueue: {len(self)} waiting, {self.places_taken} of {self.capacity} places "
            f"taken, {state}>"
        )

    def close(self) -> None:
        """Refuse everyone from now on; those inside stay. From any thread."""
        with self._gate:
            self._is_closed = True

    def reserve(self, model: str) -> Reason | None:
        """Take a place and return None, or return why there is none. From any thread."""
        with self._gate:
            if self._is_closed:
                reason = Reason.RUNTIME_STOPPING
            elif self.places_taken < self.capacity and (
                model not in self._model_capacity or self._has_place_of(model)
            ):
                # `_take`, without the call: every submission comes through here.
                self.places_taken += 1
                if model in self._places_taken_by:
                    self._places_taken_by[model] += 1
                return None
            else:
                reason = Reason.QUEUE_FULL
            self.refusals += 1
            return reason

    def count_refusal(self) -> None:
        """Count a request that was refused for another reason. From any thread."""
        with self._gate:
            self.refusals += 1

    def release(self, model: str) -> None:
        """Give a reserved place back."""
        with self._gate:
            self._give_back(model)

    def push(self, request: ExecutionRequest, now_ns: int) -> None:
        """Fill the place that was reserved for this request."""
        self.policy.push(request, now_ns)
        self.waiting += 1
        assert self.waiting <= self.places_taken, "pushed without a reserved place"

    def pop(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> tuple[ExecutionRequest, Reason]:
        """Take the policy's best request, and free its place."""
        best = self.policy.pop(now_ns, skip)
        self.waiting -= 1
        self.release(best[0].model)
        return best

    def remove(self, request: ExecutionRequest) -> None:
        """Take out a waiting request, and free its place."""
        self.policy.remove(request)
        self.waiting -= 1
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

    def _has_place_of(self, model: str) -> bool:
        limit = self._model_capacity.get(model)
        return limit is None or self._places_taken_by[model] < limit

    def _take(self, model: str) -> None:
        self.places_taken += 1
        if model in self._places_taken_by:
            self._places_taken_by[model] += 1

    def _give_back(self, model: str) -> None:
        assert self.places_taken, "more places released than reserved"
        self.places_taken -= 1
        if model in self._places_taken_by:
            self._places_taken_by[model] -= 1
