"""What every scheduling policy has to hold; run it on your own.

    @pytest.mark.parametrize("check", POLICY_CHECKS.values(), ids=POLICY_CHECKS)
    def test_my_policy(check):
        check(MyPolicy)

Each check takes a function that makes a new, empty policy, and raises AssertionError.
"""

from __future__ import annotations

import itertools
import math
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from aegis_pipe.scheduling.policy import SchedulingPolicy
from aegis_pipe.scheduling.request import ExecutionRequest

MakePolicy = Callable[[], SchedulingPolicy]

MODELS = ("detector", "segmenter", "tracker")
NOW_NS = 1_000_000


def sample_requests(count: int, seed: int) -> list[ExecutionRequest]:
    """Make requests in order of arrival, with many equal priorities, arrivals and deadlines."""
    dice = random.Random(seed)
    arrivals = sorted(dice.randrange(count * 2) for _ in range(count))
    return [
        ExecutionRequest(
            request_id=request_id,
            model=dice.choice(MODELS),
            arrival_ns=arrival_ns,
            priority=dice.randrange(5),
            deadline_ns=dice.choice((None, arrival_ns + dice.randrange(1000))),
        )
        for request_id, arrival_ns in enumerate(arrivals)
    ]


def check_is_policy(make: MakePolicy) -> None:
    """Check that it has the methods and starts empty, and that an empty one offers nobody."""
    policy = make()
    assert isinstance(policy, SchedulingPolicy)
    assert policy.name
    assert len(policy) == 0
    assert policy.peek(NOW_NS) is None
    assert policy.candidates(NOW_NS, 4) == ()


def check_total_order(make: MakePolicy) -> None:
    """Check that requests which differ in nothing but their number come out in its order."""
    policy = make()
    for request_id in range(50):
        policy.push(ExecutionRequest(request_id, MODELS[0], arrival_ns=7), NOW_NS)
    assert _drain(policy) == list(range(50))


def check_nothing_lost(make: MakePolicy) -> None:
    """Check that what is pushed comes out once, by `pop` or `remove`, in any mixture of calls."""
    for seed in range(5):
        dice, policy = random.Random(seed), make()
        inside: dict[int, ExecutionRequest] = {}
        for request in sample_requests(300, seed):
            policy.push(request, request.arrival_ns)
            inside[request.request_id] = request
            while inside and dice.random() < 0.45:
                if dice.random() < 0.5:
                    out = policy.pop(request.arrival_ns)[0]
                else:
                    out = dice.choice(list(inside.values()))
                    policy.remove(out)
                assert inside.pop(out.request_id, None) is out, f"seed {seed}: {out} came twice"
            assert len(policy) == len(inside)
        assert sorted(_drain(policy)) == sorted(inside), f"seed {seed}"


def check_remove(make: MakePolicy) -> None:
    """Check that a removed request is not seen again, until it is pushed again."""
    policy, requests = make(), sample_requests(60, seed=1)
    for request in requests:
        policy.push(request, request.arrival_ns)
    best = policy.peek(NOW_NS)
    assert best is not None
    policy.remove(best)
    gone = {best.request_id}
    for request in requests[::3]:
        if request is not best:
            policy.remove(request)
            gone.add(request.request_id)
    assert gone.isdisjoint(request_id for request_id, _ in policy.candidates(NOW_NS, 60))
    policy.push(best, NOW_NS)
    left = {request.request_id for request in requests} - gone | {best.request_id}
    assert sorted(_drain(policy)) == sorted(left)


def check_deterministic(make: MakePolicy) -> None:
    """Check that the same calls give the same answers, and that looking changes nothing."""

    def run(*, look: bool) -> list[tuple[int, str]]:
        policy = make()
        out = []
        for request in sample_requests(200, seed=2):
            policy.push(request, request.arrival_ns)
            if look:
                policy.peek(request.arrival_ns)
                policy.candidates(request.arrival_ns, 3)
            if request.request_id % 3 == 0:
                winner, reason = policy.pop(request.arrival_ns)
                policy.served(winner, 10)
                out.append((winner.request_id, str(reason)))
        return out + [(request_id, "") for request_id in _drain(policy)]

    assert run(look=False) == run(look=False)
    assert run(look=False) == run(look=True), "peek or candidates changed the order"


def check_candidates(make: MakePolicy) -> None:
    """Check that the first candidate is the next to be popped, and that scores never rise."""
    policy = make()
    for request in sample_requests(100, seed=3):
        policy.push(request, request.arrival_ns)
    while len(policy):
        candidates = policy.candidates(NOW_NS, 4)
        best = policy.peek(NOW_NS)
        assert best is not None
        assert len(candidates) == min(4, len(policy))
        assert len({request_id for request_id, _ in candidates}) == len(candidates)
        scores = [score for _, score in candidates]
        assert all(math.isfinite(score) for score in scores)
        for better, worse in itertools.pairwise(scores):
            assert better >= worse or math.isclose(better, worse), "scores contradict the order"
        popped = policy.pop(NOW_NS)[0]
        assert candidates[0][0] == best.request_id == popped.request_id


def check_skip(make: MakePolicy) -> None:
    """Check that models without a stream are passed over, and lose nothing by it."""
    policy, requests = make(), sample_requests(90, seed=4)
    for request in requests:
        policy.push(request, request.arrival_ns)
    skip = frozenset(MODELS[:2])
    offered = policy.candidates(NOW_NS, 90, skip)
    assert {request_id for request_id, _ in offered} == {
        request.request_id for request in requests if request.model not in skip
    }
    assert [request_id for request_id, _ in offered] == [
        policy.pop(NOW_NS, skip)[0].request_id for _ in offered
    ]
    assert policy.peek(NOW_NS, skip) is None
    assert policy.candidates(NOW_NS, 4, skip) == ()
    assert len(_drain(policy)) == len(requests) - len(offered)


def check_preemption_is_one_way(make: MakePolicy) -> None:
    """Check that of two requests at most one may preempt the other, now and later."""
    policy, requests = make(), sample_requests(25, seed=5)
    for one, other in itertools.product(requests, requests):
        forth = any(policy.preempts(one, other, now_ns) for now_ns in (50, NOW_NS))
        back = any(policy.preempts(other, one, now_ns) for now_ns in (50, NOW_NS))
        assert not (forth and back), f"{one} and {other} could alternate for ever"


def check_service(make: MakePolicy) -> None:
    """Check that service told in any legal way loses nobody and is taken for what it is.

    Segments of several requests overlap, some requests end early, and some that are served were
    taken out by `remove`, as those are that go along in a batch.
    """
    dice, policy = random.Random(7), make()
    running: list[ExecutionRequest] = []
    seen: list[int] = []
    requests = sample_requests(300, seed=7)
    for request in requests:
        policy.push(request, request.arrival_ns)
        while len(policy) and len(running) < 3 and dice.random() < 0.8:
            started = policy.pop(request.arrival_ns)[0]
            running.append(started)
            companion = policy.peek(request.arrival_ns)
            if companion is not None and companion.model == started.model and dice.random() < 0.3:
                policy.remove(companion)
                running.append(companion)
        while running and dice.random() < 0.7:
            served = dice.choice(running)
            policy.served(served, dice.choice((0, 1, 50)))
            if dice.random() < 0.5:
                running.remove(served)
                policy.ended(served)
                seen.append(served.request_id)
    seen += [request.request_id for request in running] + _drain(policy)
    assert sorted(seen) == [request.request_id for request in requests]


def check_logarithmic(make: MakePolicy) -> None:
    """Check that no method's cost grows faster than the logarithm of how many wait.

    Costs are counted, not timed: comparisons of the requests' numbers and of the requests
    themselves, and lines of Python executed. From 1,000 to 100,000 waiting requests the logarithm
    grows by 5/3; any walk through them grows by 100.
    """
    small, large = _costs(make(), 1_000), _costs(make(), 100_000)
    for method, cost in large.items():
        assert cost <= 3 * small[method] + 64, (
            f"{method} takes {cost:.0f} steps among 100,000 requests, {small[method]:.0f} "
            "among 1,000"
        )


POLICY_CHECKS: dict[str, Callable[[MakePolicy], None]] = {
    "is_policy": check_is_policy,
    "total_order": check_total_order,
    "nothing_lost": check_nothing_lost,
    "remove": check_remove,
    "deterministic": check_deterministic,
    "candidates": check_candidates,
    "skip": check_skip,
    "preemption_is_one_way": check_preemption_is_one_way,
    "service": check_service,
    "logarithmic": check_logarithmic,
}


def _drain(policy: SchedulingPolicy) -> list[int]:
    return [policy.pop(NOW_NS)[0].request_id for _ in range(len(policy))]


class _Steps:
    """Counts steps while a call runs."""

    def __init__(self) -> None:
        self.count = 0

    def during(self, call: Callable[[], object]) -> int:
        before, tracer = self.count, sys.gettrace()
        sys.settrace(self._trace)
        try:
            call()
        finally:
            sys.settrace(tracer)
        return self.count - before

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        self.count += event == "line"
        return self._trace


def _counting_number(steps: _Steps) -> Callable[[int], int]:
    """Make a type of integers whose comparisons, and those of their sums, are counted."""

    def counted(name: str) -> Callable[[int, int], Any]:
        original = getattr(int, name)

        def compare(self: int, other: int) -> Any:
            steps.count += 1
            return original(self, other)

        return compare

    def closed(name: str) -> Callable[..., Any]:
        original = getattr(int, name)

        def calculate(self: int, *others: int) -> Any:
            result = original(self, *others)
            return number(result) if isinstance(result, int) else result

        return calculate

    comparisons = ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__")
    sums = ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__neg__")
    methods: dict[str, Any] = {name: counted(name) for name in comparisons}
    methods |= {name: closed(name) for name in sums}
    methods["__hash__"] = int.__hash__
    number: Callable[[int], int] = type("CountingNumber", (int,), methods)
    return number


def _counting_request(steps: _Steps) -> type[ExecutionRequest]:
    """Make a request type that notices being searched for in a list."""

    class CountingRequest(ExecutionRequest):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            steps.count += 1
            return self is other

        __hash__ = object.__hash__

    return CountingRequest


def _costs(policy: SchedulingPolicy, waiting: int, calls: int = 50) -> dict[str, float]:
    """Return the mean number of steps of each method among so many waiting requests."""
    steps, dice = _Steps(), random.Random(6)
    number, make_request = _counting_number(steps), _counting_request(steps)
    requests = [
        make_request(
            request_id=number(request_id),
            model=dice.choice(MODELS),
            arrival_ns=number(request_id * 10),
            priority=number(dice.randrange(100)),
            deadline_ns=number(request_id * 10 + dice.randrange(10_000)),
        )
        for request_id in range(waiting + calls)
    ]
    for request in requests[:waiting]:
        policy.push(request, request.arrival_ns)
    now_ns = waiting * 10
    started: list[ExecutionRequest] = []
    # Removing first, so that what it leaves behind is paid for by the others.
    methods: dict[str, Callable[[int], object]] = {
        "remove": lambda call: policy.remove(requests[call * (waiting // calls)]),
        "push": lambda call: policy.push(requests[waiting + call], now_ns),
        "peek": lambda call: policy.peek(now_ns),
        "candidates": lambda call: policy.candidates(now_ns, 4),
        "preempts": lambda call: policy.preempts(requests[-1], requests[-2], now_ns),
        "pop": lambda call: started.append(policy.pop(now_ns)[0]),
        "served": lambda call: policy.served(started[call], 10),
        "ended": lambda call: policy.ended(started[call]),
    }
    return {
        name: steps.during(lambda method=method: [method(call) for call in range(calls)]) / calls  # type: ignore[misc]  # a lambda's default has no annotation
        for name, method in methods.items()
    }
