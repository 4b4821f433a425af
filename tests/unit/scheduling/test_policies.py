from functools import partial

import pytest
from hypothesis import given, strategies as st

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling import (
    POLICIES,
    ExecutionRequest,
    KeyedPolicy,
    Reason,
    Scheduler,
    StreamPool,
    make_policy,
)
from aegis_pipe.testing.check_policy import POLICY_CHECKS, check_logarithmic
from aegis_pipe.testing.simulated_launcher import durations_by_model, simulate

VARIANTS = {
    "fifo": partial(make_policy, "fifo"),
    "priority": partial(make_policy, "priority"),
    "priority, ageing": partial(make_policy, "priority", ageing_ns=70),
    "fairness": partial(make_policy, "fairness"),
    "fairness, weights": partial(make_policy, "fairness", weights={"detector": 3, "tracker": 0.5}),
    "edf": partial(make_policy, "edf"),
}


def request(number, arrival_ns=0, *, priority=0, model="m"):
    return ExecutionRequest(number, model, arrival_ns=arrival_ns, priority=priority)


def order(policy, *requests):
    for each in requests:
        policy.push(each, each.arrival_ns)
    return [(winner.request_id, reason) for winner, reason in pop_all(policy)]


def pop_all(policy):
    while len(policy):
        yield policy.pop(1000)


@pytest.mark.parametrize("check", POLICY_CHECKS.values(), ids=POLICY_CHECKS)
@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_conforms(make, check):
    check(make)


def test_every_policy_of_the_table_is_checked():
    assert {make().name for make in VARIANTS.values()} == set(POLICIES)


def test_fifo_is_the_order_of_arrival_whatever_the_priority():
    assert order(make_policy("fifo"), request(1, 20, priority=9), request(2, 10)) == [
        (2, Reason.FIRST_ARRIVAL),
        (1, Reason.ONLY_CANDIDATE),
    ]


def test_strict_priority_says_what_set_the_winner_apart():
    requests = (request(1, 0), request(2, 5, priority=3), request(3, 9, priority=3))
    assert order(make_policy("priority"), *requests) == [
        (2, Reason.FIRST_ARRIVAL),
        (3, Reason.HIGHEST_PRIORITY),
        (1, Reason.ONLY_CANDIDATE),
    ]


def test_ageing_lets_the_one_who_waited_win():
    policy = make_policy("priority", ageing_ns=10)
    assert order(policy, request(1, 0), request(2, 31, priority=3)) == [
        (1, Reason.AGED_PRIORITY),
        (2, Reason.ONLY_CANDIDATE),
    ]


@given(
    ageing_ns=st.integers(1, 1000),
    requests=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(-20, 20)), min_size=2, max_size=2
    ),
    now_ns=st.integers(10_000, 10**7),
)
def test_the_static_key_is_the_order_of_effective_priorities(ageing_ns, requests, now_ns):
    """The proof in the docstring, in exact arithmetic."""
    policy = make_policy("priority", ageing_ns=ageing_ns)
    (arrival_0, priority_0), (arrival_1, priority_1) = requests
    # Effective priorities times ageing_ns, which makes them integers.
    effective_0 = priority_0 * ageing_ns + now_ns - arrival_0
    effective_1 = priority_1 * ageing_ns + now_ns - arrival_1
    for number, (arrival_ns, priority) in enumerate(requests):
        policy.push(request(number, arrival_ns, priority=priority), arrival_ns)
    winner = policy.pop(now_ns)[0].request_id
    if effective_0 != effective_1:
        assert winner == (0 if effective_0 > effective_1 else 1)
    else:
        assert winner == min((arrival_0, 0), (arrival_1, 1))[1]


def test_only_priority_preempts_and_only_strictly():
    low, high = request(1, 0, priority=1), request(2, 5, priority=2)
    assert not make_policy("fifo").preempts(high, low, 9)
    policy = make_policy("priority")
    assert policy.preempts(high, low, 9)
    assert not policy.preempts(low, high, 9)
    assert not policy.preempts(request(3, 0, priority=1), low, 9)
    # With so much ageing the one that waited longer is worth more, whatever its priority.
    assert not make_policy("priority", ageing_ns=1).preempts(high, low, 9)


def test_edf_is_the_order_of_deadlines_and_those_without_come_last():
    def due(number, arrival_ns, deadline_ns):
        return ExecutionRequest(number, "m", arrival_ns, deadline_ns=deadline_ns)

    requests = (due(1, 0, None), due(2, 5, 90), due(3, 9, 50), due(4, 3, 90), due(5, 1, None))
    assert order(make_policy("edf"), *requests) == [
        (3, Reason.EARLIEST_DEADLINE),
        (4, Reason.FIRST_ARRIVAL),
        (2, Reason.EARLIEST_DEADLINE),
        (1, Reason.FIRST_ARRIVAL),
        (5, Reason.ONLY_CANDIDATE),
    ]
    policy = make_policy("edf")
    assert policy.preempts(due(1, 0, 7), due(2, 0, 8), 5)
    assert not policy.preempts(due(1, 0, 8), due(2, 0, 8), 5)
    assert not policy.preempts(due(1, 0, None), due(2, 0, None), 5)


def test_fairness_gives_the_turn_to_the_model_that_had_least_for_its_weight():
    policy = make_policy("fairness", weights={"heavy": 2.0})
    turns = []
    for number in range(12):
        model = "heavy" if number % 2 else "light"
        policy.push(request(number, number, model=model), number)
    for _ in range(9):
        winner, reason = policy.pop(100)
        policy.served(winner, 10)
        policy.ended(winner)
        turns.append((winner.model[0], str(reason)))
    assert "".join(model for model, _ in turns) == "lhhlhhlhh"
    assert turns[2] == ("h", "least_service")


def test_under_fairness_idling_saves_up_nothing():
    policy = make_policy("fairness")
    for number in range(20):
        policy.push(request(number, number, model="busy"), number)
    for _ in range(10):
        winner, _ = policy.pop(100)
        policy.served(winner, 10)
        policy.ended(winner)
    for number in range(20, 30):
        policy.push(request(number, 100, model="late"), 100)
    models = []
    for _ in range(6):
        winner, _ = policy.pop(100)
        policy.served(winner, 10)
        policy.ended(winner)
        models.append(winner.model)
    assert models.count("late") == 3


def test_fairness_charges_what_was_used_and_not_what_was_expected():
    policy = make_policy("fairness")
    for number in range(8):
        policy.push(request(number, number, model="ab"[number % 2]), number)
    first, _ = policy.pop(100)
    policy.served(first, 1000)
    policy.ended(first)
    second, _ = policy.pop(100)
    assert (first.model, second.model) == ("a", "b")
    policy.served(second, 10)
    policy.ended(second)
    # Two more of b, each charged 10: a has had 1000.
    assert [policy.pop(100)[0].model for _ in range(3)] == ["b", "b", "b"]


def test_fairness_gives_back_what_was_not_used():
    policy = make_policy("fairness")
    for number in range(8):
        policy.push(request(number, number, model="ab"[number % 2]), number)
    for service_ns in (100, 200, 0):
        winner, _ = policy.pop(100)
        policy.served(winner, service_ns)
        policy.ended(winner)
    # The last one, of a, was charged 100 in advance and used nothing: it is a's turn again.
    assert winner.model == "a"
    assert policy.pop(100)[0].model == "a"


class ShortestName(KeyedPolicy):
    name = "shortest_name"

    def key(self, request, now_ns):
        return (len(request.model), request.request_id)

    def score(self, request, now_ns):
        return -len(request.model)


class EverythingInAList:
    """Wrong in two ways: offers models that are skipped, and lets equals preempt each other."""

    name = "list"

    def __init__(self):
        self.waiting = []

    def __len__(self):
        return len(self.waiting)

    def push(self, request, now_ns):
        self.waiting.append(request)

    def peek(self, now_ns, skip=frozenset()):
        best = sorted(self.waiting, key=lambda each: (each.arrival_ns, each.request_id))
        return next((each for each in best if each.model not in skip), None)

    def pop(self, now_ns, skip=frozenset()):
        best = self.peek(now_ns, skip)
        self.waiting.remove(best)
        return best, Reason.POLICY

    def remove(self, request):
        self.waiting.remove(request)

    def candidates(self, now_ns, limit, skip=frozenset()):
        best = sorted((each.arrival_ns, each.request_id) for each in self.waiting)
        return tuple((number, float(-arrival)) for arrival, number in best[:limit])

    def preempts(self, waiting, paused, now_ns):
        return waiting.priority >= paused.priority

    def served(self, request, service_ns):
        pass

    def ended(self, request):
        pass


@pytest.mark.parametrize("check", POLICY_CHECKS.values(), ids=POLICY_CHECKS)
def test_one_of_your_own_conforms_by_giving_a_key(check):
    check(ShortestName)


def test_adding_a_policy_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setitem(POLICIES, "shortest_name", ShortestName)
    scheduler = Scheduler(make_policy("shortest_name"), StreamPool(1), queue_capacity=9)
    arrivals = [request(1, model="mmm"), request(2, model="mm"), request(3, model="m")]
    result = simulate(scheduler, arrivals, durations_by_model({"m": [1], "mm": [1], "mmm": [1]}))
    assert [done.request_id for done in result.finished] == [3, 2, 1]
    assert {decision.reason for decision in result.decisions} == {"policy", "only_candidate"}


@pytest.mark.parametrize("name", ["skip", "preemption_is_one_way"])
def test_the_checks_can_fail(name):
    with pytest.raises(AssertionError):
        POLICY_CHECKS[name](EverythingInAList)


def test_a_search_in_a_list_is_noticed():
    class SlowRemove(type(make_policy("fifo"))):
        def __init__(self):
            super().__init__()
            self.copy = []

        def push(self, request, now_ns):
            super().push(request, now_ns)
            self.copy.append(request)

        def remove(self, request):
            super().remove(request)
            self.copy.remove(request)

    with pytest.raises(AssertionError, match=r"remove takes \d+ steps among 100,000 requests"):
        check_logarithmic(SlowRemove)


def test_loads_module_and_class():
    policy = make_policy("aegis_pipe.scheduling.policies.priority:PriorityPolicy", ageing_ns=5)
    assert policy.name == "priority"


class NotAPolicy:
    name = "no"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("prioritty", {}, "is not known.*\n.*did you mean `priority`"),
        ("no_such_module:Policy", {}, "can not be imported"),
        (":Policy", {}, "can not be imported"),
        ("aegis_pipe.scheduling.policies.fifo:FifoPolic", {}, "did you mean .*:FifoPolicy"),
        (f"{__name__}:NotAPolicy", {}, "it lacks `__len__`, `push`, `peek`"),
        ("fifo", {"ageing_ns": 3}, "does not take these options.*'ageing_ns'.*\n.*takes none"),
        ("priority", {"agein_ns": 3}, "\n.*it takes `ageing_ns`"),
        ("priority", {"ageing_ns": -3}, "less than nothing"),
        ("fairness", {"weights": {"m": 0.0}}, "`m` has a weight of 0.0"),
    ],
)
def test_says_what_is_wrong_with_a_policy(name, options, message):
    with pytest.raises(PermanentError, match=message):
        make_policy(name, **options)
