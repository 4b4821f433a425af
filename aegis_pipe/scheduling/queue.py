"""The bounded queue: a policy's order behind a gate with a fixed number of places."""

from __future__ import annotations

import threading
from collections import deque
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

    Free places are tokens in a deque: taking one and giving it back are atomic, without a lock.
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
        self.refusals = 0
        """How many requests were rejected."""
        self._places = deque((None,) * capacity)
        self._places_of = {
            model: deque((None,) * places) for model, places in (model_capacity or {}).items()
        }
        self._counting = threading.Lock()
        self._is_closed = False

    def __len__(self) -> int:
        return self.waiting

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return (
            f"<BoundedQueue: {len(self)} waiting, {self.places_taken} of {self.capacity} places "
            f"taken, {state}>"
        )

    @property
    def places_taken(self) -> int:
        """Requests waiting or about to be pushed; never more than the capacity."""
        return self.capacity - len(self._places)

    @property
    def is_full(self) -> bool:
        """Whether there is no place for anybody; from any thread, and only for a moment."""
        return not self._places

    def close(self) -> None:
        """Refuse everyone from now on; those inside stay. From any thread."""
        self._is_closed = True

    def reserve(self, model: str) -> Reason | None:
        """Take a place and return None, or return why there is none. From any thread."""
        reason = Reason.RUNTIME_STOPPING
        if not self._is_closed:
            reason = Reason.QUEUE_FULL
            # The model's own first: when the common ones run out, they do for everybody.
            if not self._places_of or self._take_place_of(model):
                try:
                    self._places.pop()
                except IndexError:
                    self._give_place_of(model)
                else:
                    # Looked at again with the place in hand: who has closed the queue and then
                    # sees no place taken can rely on nobody coming after.
                    if not self._is_closed:
                        return None
                    reason = Reason.RUNTIME_STOPPING
                    self.release(model)
        return reason

    def count_refusal(self) -> None:
        """Count a request that was rejected. From any thread."""
        with self._counting:
            self.refusals += 1

    def release(self, model: str) -> None:
        """Give a reserved place back."""
        assert len(self._places) < self.capacity, "more places released than reserved"
        self._places.append(None)
        self._give_place_of(model)

    def push(self, request: ExecutionRequest, now_ns: int) -> None:
        """Fill the place that was reserved for this request."""
        self.policy.push(request, now_ns)
        self.waiting += 1
        assert self.waiting + len(self._places) <= self.capacity, "pushed without a reserved place"

    def pop(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> tuple[ExecutionRequest, Reason]:
        """Take the policy's best request, and free its place."""
        best = self.policy.pop(now_ns, skip)
        self.waiting -= 1
        # `release`, without the call: every request comes through here.
        self._places.append(None)
        if self._places_of:
            self._give_place_of(best[0].model)
        return best

    def remove(self, request: ExecutionRequest) -> None:
        """Take out a waiting request, and free its place."""
        self.policy.remove(request)
        self.waiting -= 1
        self.release(request.model)

    def move(self, request: ExecutionRequest, model: str, now_ns: int) -> bool:
        """Have a waiting request wait for another model; return False if that has no place."""
        if not self._take_place_of(model):
            return False
        self._give_place_of(request.model)
        self.policy.remove(request)
        request.model = model
        self.policy.push(request, now_ns)
        return True

    def _take_place_of(self, model: str) -> bool:
        """Take a place among the model's own, if those are limited; False if there is none."""
        if model in self._places_of:
            try:
                self._places_of[model].pop()
            except IndexError:
                return False
        return True

    def _give_place_of(self, model: str) -> None:
        if model in self._places_of:
            self._places_of[model].append(None)
