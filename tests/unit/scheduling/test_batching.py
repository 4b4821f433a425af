"""Batches in the scheduler: who goes along, how long one waits for company, and who leads."""

import pytest

from aegis_pipe.scheduling import (
    Batching,
    ExecutionRequest,
    Reason,
    Scheduler,
    StreamPool,
    make_policy,
)
from aegis_pipe.scheduling.batching import variant_name

SIZES = {1: 1, 2: 2, 4: 3}


def make_scheduler(*, window_ns=0, policy="priority", **options):
    return Scheduler(
        make_policy(policy),
        StreamPool(1),
        queue_capacity=16,
        batching={"m": Batching(SIZES, window_ns)},
        **options,
    )


def submit(scheduler, *numbers, model="m", at_ns=0, **options):
    requests = [ExecutionRequest(number, model, at_ns, **options) for number in numbers]
    for request in requests:
        assert scheduler.submit(request, at_ns) is None
    return requests


def brief(decisions):
    return [(str(each.kind), each.request_id, each.segment, str(each.reason)) for each in decisions]


def outcomes(scheduler):
    return [(each.request_id, str(each.state)) for each in scheduler.take_finished()]


def test_those_who_wait_go_along_in_the_smallest_variant_that_takes_them():
    scheduler = make_scheduler()
    requests = submit(scheduler, 1, 2, 3)
    submit(scheduler, 4, model="other")
    decisions = scheduler.decide(0)
    assert brief(decisions) == [
        ("start", 1, 0, "first_arrival"),
        ("start", 2, -1, "batched"),
        ("start", 3, -1, "batched"),
    ]
    assert [each.queue_depth for each in decisions] == [4, 3, 2]
    assert [(each.batch_size, each.segment_count) for each in requests] == [(4, 3)] * 3
    for now_ns in (10, 20):
        scheduler.segment_finished(1, now_ns)
        assert brief(scheduler.decide(now_ns))[0][:2] == ("continue", 1)
    scheduler.segment_finished(1, 30)
    assert outcomes(scheduler) == [(1, "completed"), (2, "completed"), (3, "completed")]
    assert scheduler.statistics().batched == 2
    assert brief(scheduler.decide(30)) == [("start", 4, 0, "only_candidate")]


def test_one_waits_for_others_until_the_window_is_over():
    scheduler = make_scheduler(window_ns=50)
    submit(scheduler, 1, at_ns=5)
    assert scheduler.decide(5) == ()
    assert scheduler.next_deadline_ns() == 55
    submit(scheduler, 2, at_ns=30)
    assert scheduler.decide(54) == ()
    assert [each.request_id for each in scheduler.decide(55)] == [1, 2]
    submit(scheduler, 3, at_ns=60)
    # It is past 110, but no stream is free: time alone changes nothing.
    assert scheduler.decide(120) == ()
    assert scheduler.next_deadline_ns() is None
    scheduler.segment_finished(1, 130)
    scheduler.decide(130)
    scheduler.segment_finished(1, 140)
    assert [each.request_id for each in scheduler.decide(140)] == [3]


def test_nobody_waits_once_the_largest_variant_is_full():
    scheduler = make_scheduler(window_ns=50)
    submit(scheduler, 1, 2, 3, 4, 5)
    assert [each.request_id for each in scheduler.decide(0)] == [1, 2, 3, 4]


def test_a_held_model_does_not_keep_others_from_a_stream():
    scheduler = make_scheduler(window_ns=50)
    submit(scheduler, 1, priority=9)
    submit(scheduler, 2, model="other")
    assert [each.request_id for each in scheduler.decide(0)] == [2]


@pytest.mark.parametrize(
    ("needed_ns", "held_until_ns"), [({}, None), ({"m": 10}, 30), ({"m": 1, "m@4": 25}, 15)]
)
def test_one_with_a_deadline_waits_only_as_long_as_it_leaves_time_to_run(needed_ns, held_until_ns):
    scheduler = make_scheduler(window_ns=50, needed_ns=needed_ns)
    submit(scheduler, 1, deadline_ns=40)
    if held_until_ns is None:
        assert len(scheduler.decide(0)) == 1
    else:
        assert scheduler.decide(held_until_ns - 1) == ()
        assert scheduler.next_deadline_ns() == held_until_ns
        assert len(scheduler.decide(held_until_ns)) == 1


def test_nobody_joins_at_the_price_of_a_deadline():
    scheduler = make_scheduler(needed_ns={"m": 10, "m@2": 20, "m@4": 40})
    submit(scheduler, 1, 2, 3, deadline_ns=30)
    assert [each.request_id for each in scheduler.decide(0)] == [1, 2]


def started_batch(scheduler, *numbers, **options):
    requests = submit(scheduler, *numbers, **options)
    scheduler.decide(0)
    return requests


def test_one_that_is_cancelled_leaves_the_others_alone():
    scheduler = make_scheduler()
    started_batch(scheduler, 1, 2)
    scheduler.cancel(2)
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [
        ("cancel", 2, -1, "caller_cancelled"),
        ("continue", 1, 1, "next_segment"),
    ]
    scheduler.segment_finished(1, 20)
    assert outcomes(scheduler) == [(2, "cancelled"), (1, "completed")]


def test_the_next_one_leads_when_the_leader_is_cancelled():
    scheduler = make_scheduler()
    started_batch(scheduler, 1, 2, 3)
    scheduler.cancel(1)
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [
        ("cancel", 1, -1, "caller_cancelled"),
        ("continue", 2, 1, "next_segment"),
    ]
    for now_ns in (20, 30):
        scheduler.segment_finished(2, now_ns)
        scheduler.decide(now_ns)
    assert outcomes(scheduler) == [(1, "cancelled"), (2, "completed"), (3, "completed")]
    assert scheduler.is_idle


def test_the_lead_passes_on_while_the_batch_is_suspended():
    scheduler = make_scheduler(preemption=True)
    started_batch(scheduler, 1, 2)
    submit(scheduler, 9, model="urgent", priority=9)
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10))[0][:2] == ("start", 9)
    statistics = scheduler.statistics()
    assert (statistics.running, statistics.paused, statistics.suspended) == (1, 0, 2)
    scheduler.cancel(1)
    scheduler.decide(11)
    scheduler.segment_finished(9, 20)
    assert brief(scheduler.decide(20)) == [("continue", 2, 1, "next_segment")]


def test_a_result_that_comes_too_late_for_one_is_in_time_for_another():
    scheduler = make_scheduler()
    requests = [ExecutionRequest(1, "m", 0, deadline_ns=15), ExecutionRequest(2, "m", 0)]
    for request in requests:
        scheduler.submit(request, 0)
    scheduler.decide(0)
    scheduler.segment_finished(1, 10)
    scheduler.decide(10)
    scheduler.segment_finished(1, 20)
    assert brief(scheduler.decide(20)) == [("expire", 1, -1, "deadline_passed")]
    assert outcomes(scheduler) == [(2, "completed"), (1, "expired")]
    assert scheduler.is_idle


def test_an_error_is_everybodys():
    scheduler = make_scheduler()
    requests = started_batch(scheduler, 1, 2)
    error = ValueError("kernel")
    scheduler.segment_finished(1, 10, error)
    assert outcomes(scheduler) == [(1, "failed"), (2, "failed")]
    assert all(each.error is error and each.reason is Reason.SEGMENT_FAILED for each in requests)


def test_a_batch_counts_once_against_the_limit_and_for_fairness():
    scheduler = make_scheduler(policy="fairness", concurrency={"m": 1})
    started_batch(scheduler, 1, 2)
    submit(scheduler, 3, model="other")
    scheduler.segment_finished(1, 10)
    scheduler.decide(10)
    scheduler.segment_finished(1, 20)
    submit(scheduler, 4, at_ns=20)
    # `m` has had 20 and `other` nothing.
    assert [each.request_id for each in scheduler.decide(20)] == [3]
    scheduler.segment_finished(3, 21)
    assert [each.request_id for each in scheduler.decide(21)] == [4]


def test_variants_have_names():
    assert [variant_name("m", size) for size in SIZES] == ["m", "m@2", "m@4"]
