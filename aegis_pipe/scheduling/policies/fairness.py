"""Device time shared between models by weight: start-time fair queueing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling.decision import Reason
from aegis_pipe.scheduling.policy import NO_MODELS, Candidates
from aegis_pipe.scheduling.request import ExecutionRequest
from aegis_pipe.scheduling.request_heap import Entry, RequestHeap

_WEIGHT_UNIT = 1_000_000
"""Weights are kept in millionths, so that all reckoning is in whole numbers and exact."""
_TAG_UNIT = 1_000_000
"""Tags are nanoseconds times this, for a weight of 1."""


class FairnessPolicy:
    """Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) of models by weight.

    A model's *tag* is the service it has had, divided by its weight; the model with the smallest
    tag is next, and within a model who arrived first. *Virtual time* is the tag of whoever
    started last: a model that had nothing to do begins there, so that idling saves up nothing.

    How long a request will take is not known when it starts. It is charged what its model's last
    one took, and the difference as soon as it is known. So with one stream, over any time in
    which models f and m both have requests waiting,

        | service_f / weight_f - service_m / weight_m |  <=  longest_f / weight_f
                                                             + longest_m / weight_m

    where `longest` is that model's longest request; with k > 1 streams, at most 2 k times as much:
    k requests of either may be charged wrongly when the interval begins and when it ends.

    Never preempts, so that models share their memory on a stream. Scores are how far a model is
    behind virtual time, in nanoseconds of service at weight 1.
    """

    name = "fairness"

    def __init__(self, *, weights: Mapping[str, float] | None = None) -> None:
        for model, weight in (weights or {}).items():
            if not weight * _WEIGHT_UNIT >= 1:
                raise PermanentError(
                    f"model `{model}` has a weight of {weight}",
                    context="policy `fairness`",
                    hint="give it a weight of 0.000001 or more",
                )
        self._weights = dict(weights or {})
        self._flows: dict[str, _Flow] = {}
        self._charges: dict[int, _Charge] = {}
        self._virtual_time = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        waiting = {model: len(flow.lane) for model, flow in sorted(self._flows.items())}
        return f"<FairnessPolicy: {self._size} waiting {waiting}>"

    def push(self, request: ExecutionRequest, now_ns: int) -> None:
        """Add a waiting request."""
        flow = self._flow(request.model)
        if not len(flow.lane):
            flow.tag = max(flow.tag, self._virtual_time)
        flow.lane.push((request.arrival_ns, request.request_id), request)
        self._size += 1

    def peek(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> ExecutionRequest | None:
        """Return the best request, which stays; None if nobody competes."""
        heads = self._heads(skip)
        return min(heads)[1][-1] if heads else None

    def pop(self, now_ns: int, skip: frozenset[str] = NO_MODELS) -> tuple[ExecutionRequest, Reason]:
        """Take the best request, and charge its model what the one before took."""
        heads = self._heads(skip)
        best = min(heads)
        tag, _, flow = best
        request = flow.lane.pop()
        self._size -= 1
        self._virtual_time = max(self._virtual_time, tag)
        self._charges[request.request_id] = _Charge(flow.expected_ns)
        flow.tag += flow.tags_for(flow.expected_ns)
        heads.remove(best)
        if (head := flow.lane.head()) is not None:
            heads.append((flow.tag, head, flow))
        return request, self._reason(request, tag, min(heads) if heads else None)

    def remove(self, request: ExecutionRequest) -> None:
        """Take out a waiting request."""
        found = self._flow(request.model).lane.discard(request)
        assert found, f"request {request.request_id} does not wait here"
        self._size -= 1

    def candidates(self, now_ns: int, limit: int, skip: frozenset[str] = NO_MODELS) -> Candidates:
        """Return the best few: lifted out one after the other, each charged, and put back."""
        heads = self._heads(skip)
        heapify(heads)
        lifted: list[tuple[int, Entry, _Flow]] = []
        while heads and len(lifted) < limit:
            tag, entry, flow = heads[0]
            flow.lane.lift()
            lifted.append((tag, entry, flow))
            head = flow.lane.head()
            if head is None:
                heappop(heads)
            else:
                heapreplace(heads, (tag + flow.tags_for(flow.expected_ns), head, flow))
        for _, entry, flow in lifted:
            flow.lane.put_back(entry)
        return tuple(
            (entry[-1].request_id, (self._virtual_time - tag) / _TAG_UNIT)
            for tag, entry, _ in lifted
        )

    def preempts(self, waiting: ExecutionRequest, paused: ExecutionRequest, now_ns: int) -> bool:
        """Never: requests are served whole."""
        return False

    def served(self, request: ExecutionRequest, service_ns: int) -> None:
        """Charge what goes beyond the advance."""
        charge = self._charges.setdefault(request.request_id, _Charge(0))
        charge.served_ns += service_ns
        if charge.served_ns > charge.charged_ns:
            flow = self._flow(request.model)
            flow.tag += flow.tags_for(charge.served_ns - charge.charged_ns)
            charge.charged_ns = charge.served_ns

    def ended(self, request: ExecutionRequest) -> None:
        """Give back what was charged too much."""
        charge = self._charges.pop(request.request_id, None)
        if charge is None:
            return
        flow = self._flow(request.model)
        flow.tag -= flow.tags_for(charge.charged_ns - charge.served_ns)
        flow.expected_ns = charge.served_ns or flow.expected_ns

    def _flow(self, model: str) -> _Flow:
        flow = self._flows.get(model)
        if flow is None:
            flow = self._flows[model] = _Flow(self._weights.get(model, 1.0))
        return flow

    def _heads(self, skip: frozenset[str]) -> list[tuple[int, Entry, _Flow]]:
        # No two entries are equal, so comparing never gets to the flows.
        return [
            (flow.tag, head, flow)
            for model, flow in self._flows.items()
            if flow.lane.heap
            and model not in skip
            and (head := flow.lane.heap[0] if flow.lane.is_clean else flow.lane.head()) is not None
        ]

    @staticmethod
    def _reason(
        winner: ExecutionRequest, tag: int, runner_up: tuple[int, Entry, _Flow] | None
    ) -> Reason:
        if runner_up is None:
            return Reason.ONLY_CANDIDATE
        is_other_model = runner_up[1][-1].model != winner.model
        return (
            Reason.LEAST_SERVICE
            if is_other_model and tag < runner_up[0]
            else (Reason.FIRST_ARRIVAL)
        )


class _Flow:
    """One model's requests and account."""

    __slots__ = ("_weight", "expected_ns", "lane", "tag")

    def __init__(self, weight: float) -> None:
        self.lane = RequestHeap()
        self.tag = 0
        self.expected_ns = 0
        """What its last request took."""
        self._weight = round(weight * _WEIGHT_UNIT)

    def tags_for(self, service_ns: int) -> int:
        """Return by how much so much service moves the tag."""
        return service_ns * _TAG_UNIT * _WEIGHT_UNIT // self._weight


@dataclass(slots=True)
class _Charge:
    """A started request's account."""

    charged_ns: int
    served_ns: int = 0
