"""Bounds against published examples, by hand, and against what the real scheduler does."""

from __future__ import annotations

import random

import pytest

from aegis_pipe.analysis.certificate import Verdict, certify
from aegis_pipe.analysis.random_task_sets import (
    acceptance,
    draw_task_set,
    simulated_responses,
    small_set,
)
from aegis_pipe.analysis.response_time import ResponseBound, Unbounded, response_bounds
from aegis_pipe.analysis.task_set import Task, TaskSet

MS = 1_000_000


def task(name, segments_ms, period_ms=None, deadline_ms=None, **options):
    return Task(
        name=name,
        model=name,
        source=name,
        segments_ns=tuple(round(each * MS) for each in segments_ms),
        period_ns=None if period_ms is None else round(period_ms * MS),
        deadline_ns=None if deadline_ms is None else round(deadline_ms * MS),
        memory=options.pop("memory", name),
        **options,
    )


def responses_ms(task_set):
    return {
        name: round(bound.response_ns / MS, 5) if isinstance(bound, ResponseBound) else bound
        for name, bound in response_bounds(task_set).items()
    }


@pytest.mark.parametrize("policy", ["priority", "edf", "fifo", "fairness"])
def test_what_utilisation_bounds_pass_is_refused_for_its_blocking(policy):
    # U = 0.783 passes the bound of Liu and Layland and EDF's; not preempted, it misses.
    tasks = (task("a", [1], 3, 3, priority=2), task("b", [4.5], 10, 10, priority=1))
    certificate = certify(TaskSet(tasks, policy))
    assert not certificate.is_proven
    assert [proof.task.name for proof in certificate.refused] == ["a"]


def test_cut_finely_enough_the_same_set_passes():
    tasks = (task("a", [1], 3, 3, priority=2), task("b", [0.75] * 6, 10, 10, priority=1))
    certificate = certify(TaskSet(tasks, "priority"))
    assert certificate.is_proven
    bound = certificate.proof("a").bound
    assert (bound.blocking_ns, bound.blocked_by) == (750_000 - 1, "b")


def test_every_instance_of_the_busy_period_counts_and_not_only_the_first():
    # The CAN example of Davis, Burns, Bril and Lukkien (2007, table 1): the third message's first
    # instance answers in 3.0, its second in 3.5 and misses its deadline of 3.25.
    tasks = (
        task("a", [1], 2.5, 2.5, priority=3),
        task("b", [1], 3.5, 3.25, priority=2),
        task("c", [1], 3.5, 3.25, priority=1),
    )
    assert responses_ms(TaskSet(tasks, "priority")) == {"a": 2.0, "b": 3.0, "c": 3.5}


def test_the_parts_of_a_bound_add_up():
    dice = random.Random(3)
    for _ in range(60):
        for bound in response_bounds(draw_task_set(dice)).values():
            if isinstance(bound, ResponseBound):
                parts = bound.before_ns + bound.execution_ns + bound.blocking_ns
                parts += sum(bound.interference_ns.values()) - bound.shared_ns
                assert parts == bound.response_ns


def test_best_effort_below_only_blocks_and_beside_it_is_refused():
    def bounds(policy, priority, **options):
        tasks = (task("a", [1], 10, 10, priority=2), task("b", [2, 3], priority=priority))
        return response_bounds(TaskSet(tasks, policy, **options))["a"]

    assert bounds("priority", 1).response_ns == 4 * MS - 1
    assert bounds("edf", 1).response_ns == 4 * MS - 1
    for bound in (
        bounds("priority", 2),
        bounds("priority", 1, ageing_ns=MS),
        bounds("fifo", 1),
        bounds("fairness", 1),
    ):
        assert isinstance(bound, Unbounded)
        assert bound.culprit == "b"


def test_a_stage_inherits_the_variation_of_those_before_it():
    first = task("p/a", [1], 10, 10, is_from_origin=True, host_ns=MS)
    second = task(
        "p/b", [2], 10, 10, is_from_origin=True, before=("p/a",), host_ns=MS, memory="p/a"
    )
    bounds = response_bounds(TaskSet((first, second), "fifo"))
    # One waits for the other's request at most, and the host takes its time before each.
    assert bounds["p/a"].response_ns == (1 + 2 + 1) * MS
    assert bounds["p/b"].before_ns == bounds["p/a"].response_ns + MS
    assert bounds["p/b"].response_ns >= (4 + 1 + 2) * MS


def test_memory_that_is_shared_holds_off_who_would_preempt():
    def response(memory):
        tasks = (
            task("high", [1], 20, 20, priority=3, memory=memory),
            task("middle", [4], 20, 20, priority=2),
            task("low", [1] * 5, 20, 20, priority=1, memory="shared"),
        )
        return responses_ms(TaskSet(tasks, "priority"))["high"]

    assert response("own") == 1 + 4
    # It may have to wait for all of `low`, and for `middle` that preempts that one meanwhile.
    assert response("shared") >= 1 + 5 + 4


PLANS = {
    "priority": {},
    "edf": {},
    "fifo": {"load": (0.1, 0.6), "spread": 4},
    "fairness": {"load": (0.05, 0.3), "spread": 2},
    "ageing": {"policy": "priority", "ageing_ns": 20 * MS, "load": (0.1, 0.8)},
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("streams", [1, 2])
def test_no_response_of_the_real_scheduler_is_over_its_bound(plan, streams):
    dice, compared = random.Random(f"{plan} {streams}"), 0
    options = {"policy": plan} | PLANS[plan]
    if streams > 1:
        options |= {"load": (0.05, 0.3), "spread": 2}
    for _ in range(40):
        task_set = draw_task_set(dice, streams=streams, **options)
        certificate = certify(task_set)
        if not certificate.is_proven:
            continue
        worst = simulated_responses(task_set, dice.randrange(1 << 30), until_ns=2_000 * MS)
        for name, response_ns in worst.items():
            proof = certificate.proof(name)
            assert proof.verdict is Verdict.PROVEN
            assert response_ns <= proof.bound.response_ns, (task_set, name)
            compared += 1
    assert compared > 20


def test_on_one_stream_each_the_proof_is_stream_by_stream():
    tasks = (
        task("a", [1], 3, 3, streams=frozenset((0,))),
        task("b", [4.5], 10, 10, streams=frozenset((1,))),
    )
    assert responses_ms(TaskSet(tasks, "priority", stream_count=2)) == {"a": 1.0, "b": 4.5}


def test_a_refusal_names_changes_that_pass_and_the_smallest_first():
    tasks = (
        task("a", [1], 4, 4, priority=2, memory="a"),
        task("b", [2], 8, 8, priority=1, memory="b"),
        task("c", [1] * 5, 12, 9, priority=0, memory="c"),
    )
    certificate = certify(TaskSet(tasks, "priority"))
    assert not certificate.is_proven
    sizes = [change.size for change in certificate.changes]
    assert sizes == sorted(sizes)
    assert {change.what for change in certificate.changes} >= {"rate", "stream", "drop"}
    # `c` keeps its deadline once `a` comes twice instead of three times before its last segment.
    assert certificate.changes[0].subject == "a"
    assert "every 7.0" in certificate.changes[0].text


def test_a_shorter_segment_is_found_where_kernels_allow_it():
    tasks = (task("a", [1], 4, 4, priority=2), task("b", [4.5], 10, 10, priority=1))

    def recut(longest_ns):
        pieces = -(-4_500_000 // longest_ns)
        return {"b": tuple([-(-4_500_000 // pieces)] * pieces)}

    change = certify(TaskSet(tasks, "priority"), recut).changes[0]
    assert change.what == "segment"


def test_acceptance_is_close_to_what_exhaustive_simulation_finds_feasible():
    accepted, feasible = acceptance(small_set(random.Random(seed)) for seed in range(12))
    assert feasible >= 3
    assert accepted >= 0.9 * feasible
