import json

from aegis_pipe.scheduling import (
    Decision,
    DecisionKind,
    ExecutionRequest,
    Reason,
    RequestState,
    Scheduler,
    StandIn,
    StreamPool,
    format_decision,
    make_policy,
)


def make_scheduler(policy="priority", streams=1, *, allowed=None, queue_capacity=16, **options):
    pool = StreamPool(streams, allowed=allowed)
    return Scheduler(make_policy(policy), pool, queue_capacity=queue_capacity, **options)


def submit(scheduler, number, *, model="m", at_ns=0, segments=1, **options):
    request = ExecutionRequest(number, model, at_ns, segment_count=segments, **options)
    return request, scheduler.submit(request, at_ns)


def brief(decisions):
    return [(str(each.kind), each.request_id, each.stream) for each in decisions]


def outcomes(scheduler):
    return [(each.request_id, str(each.state)) for each in scheduler.take_finished()]


def test_starts_the_best_on_the_lowest_stream_and_says_why():
    scheduler = make_scheduler(streams=2)
    for number, priority in ((1, 0), (2, 5), (3, 5)):
        submit(scheduler, number, priority=priority)
    assert scheduler.decide(10) == (
        Decision(0, 10, DecisionKind.START, 2, "m", 0, 0, Reason.FIRST_ARRIVAL, 3,
                 ((2, 5.0), (3, 5.0), (1, 0.0)), ()),
        Decision(1, 10, DecisionKind.START, 3, "m", 0, 1, Reason.HIGHEST_PRIORITY, 2,
                 ((3, 5.0), (1, 0.0)), (2,)),
    )  # fmt: skip
    assert scheduler.decide(11) == ()
    scheduler.segment_finished(3, 20)
    [start] = scheduler.decide(20)
    assert (start.request_id, start.stream, start.reason) == (1, 1, Reason.ONLY_CANDIDATE)
    assert start.blocked_by == (2, 3)


def test_blockers_are_those_at_arrival_and_those_that_went_before():
    scheduler = make_scheduler()
    submit(scheduler, 1)
    scheduler.decide(0)
    waiting, _ = submit(scheduler, 2, at_ns=5)
    assert waiting.blocked_by == (1,)
    submit(scheduler, 3, at_ns=6, priority=9)
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [("start", 3, 0)]
    scheduler.segment_finished(3, 20)
    [start] = scheduler.decide(20)
    assert (start.request_id, start.blocked_by) == (2, (1, 3))


def test_segments_run_in_order_on_the_same_stream():
    scheduler = make_scheduler(streams=2)
    request, _ = submit(scheduler, 1, segments=3)
    launched = []
    for now_ns in range(3):
        [decision] = scheduler.decide(now_ns)
        launched.append((str(decision.kind), decision.segment, decision.stream))
        assert request.state is RequestState.RUNNING
        scheduler.segment_finished(1, now_ns)
    assert launched == [("start", 0, 0), ("continue", 1, 0), ("continue", 2, 0)]
    assert outcomes(scheduler) == [(1, "completed")]
    assert scheduler.is_idle


def test_rejects_at_once_when_full_or_closed():
    scheduler = make_scheduler(queue_capacity=1)
    submit(scheduler, 1)
    request, refusal = submit(scheduler, 2, at_ns=3)
    assert (refusal.kind, refusal.reason, refusal.queue_depth) == ("reject", "queue_full", 1)
    assert (request.state, request.reason, request.finished_ns) == ("rejected", "queue_full", 3)
    scheduler.decide(4)
    scheduler.queue.close()
    assert submit(scheduler, 3)[1].reason is Reason.RUNTIME_STOPPING
    assert scheduler.statistics().rejected == 2


def test_a_waiting_request_expires_at_its_deadline_and_not_before():
    scheduler = make_scheduler()
    submit(scheduler, 1)
    submit(scheduler, 2, deadline_ns=50)
    scheduler.decide(0)
    assert scheduler.next_deadline_ns() == 50
    assert scheduler.decide(49) == ()
    [expiry] = scheduler.decide(50)
    assert (expiry.kind, expiry.request_id, expiry.reason) == ("expire", 2, "deadline_passed")
    assert expiry.blocked_by == (1,)
    assert expiry.candidates == ((2, 0.0),)
    assert outcomes(scheduler) == [(2, "expired")]
    assert scheduler.next_deadline_ns() is None


def test_a_running_request_expires_at_the_end_of_its_segment():
    scheduler = make_scheduler()
    submit(scheduler, 1, segments=2, deadline_ns=50)
    scheduler.decide(0)
    assert scheduler.next_deadline_ns() is None
    assert scheduler.decide(60) == ()
    scheduler.segment_finished(1, 70)
    assert brief(scheduler.decide(70)) == [("expire", 1, 0)]
    assert scheduler.statistics().deadline_missed == 1


def test_a_result_on_the_dot_is_in_time_and_one_later_is_not():
    for end_ns, outcome in ((50, "completed"), (51, "expired")):
        scheduler = make_scheduler()
        submit(scheduler, 1, deadline_ns=50)
        scheduler.decide(0)
        scheduler.segment_finished(1, end_ns)
        scheduler.decide(end_ns)
        assert outcomes(scheduler) == [(1, outcome)]


def test_late_run_goes_on_and_counts_the_miss():
    scheduler = make_scheduler(late={"m": "run"})
    submit(scheduler, 1, segments=2, deadline_ns=5)
    assert scheduler.next_deadline_ns() is None
    assert brief(scheduler.decide(10)) == [("start", 1, 0)]
    scheduler.segment_finished(1, 20)
    assert brief(scheduler.decide(20)) == [("continue", 1, 0)]
    scheduler.segment_finished(1, 30)
    assert outcomes(scheduler) == [(1, "completed")]
    assert scheduler.statistics().deadline_missed == 1


def test_cancels_waiting_at_once_and_running_at_the_end_of_the_segment():
    scheduler = make_scheduler()
    for number in (1, 2):
        submit(scheduler, number)
    scheduler.decide(0)
    assert scheduler.cancel(1)
    assert scheduler.cancel(2)
    assert not scheduler.cancel(3)
    assert brief(scheduler.decide(1)) == [("cancel", 2, -1)]
    scheduler.segment_finished(1, 2)
    assert brief(scheduler.decide(2)) == [("cancel", 1, 0)]
    assert outcomes(scheduler) == [(2, "cancelled"), (1, "cancelled")]
    assert not scheduler.cancel(1)


def test_an_error_fails_its_request_alone():
    scheduler = make_scheduler()
    request, _ = submit(scheduler, 1, segments=3)
    submit(scheduler, 2)
    scheduler.decide(0)
    error = ValueError("broken")
    scheduler.segment_finished(1, 5, error)
    assert brief(scheduler.decide(5)) == [("start", 2, 0)]
    assert (request.state, request.reason, request.error) == ("failed", "segment_failed", error)


def test_without_preemption_a_started_request_keeps_its_stream():
    scheduler = make_scheduler()
    submit(scheduler, 1, segments=2)
    scheduler.decide(0)
    submit(scheduler, 2, priority=9)
    scheduler.segment_finished(1, 5)
    [decision] = scheduler.decide(5)
    assert brief([decision]) == [("continue", 1, 0)]
    assert decision.candidates == ((2, 9.0),)


def test_preemption_nests_and_goes_back_in_order():
    scheduler = make_scheduler(preemption=True)
    submit(scheduler, 1, model="low", segments=2)
    scheduler.decide(0)
    submit(scheduler, 2, model="middle", segments=2, priority=5)
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [("start", 2, 0)]
    submit(scheduler, 3, model="high", priority=9)
    scheduler.segment_finished(2, 20)
    assert brief(scheduler.decide(20)) == [("start", 3, 0)]
    assert scheduler.statistics().suspended == 2
    assert scheduler.statistics().preempted == 2
    back = []
    for number in (3, 2):
        scheduler.segment_finished(number, 30)
        back += scheduler.decide(30)
    assert brief(back) == [("continue", 2, 0), ("continue", 1, 0)]
    assert [each.blocked_by for each in back] == [(3,), (2, 3)]
    scheduler.segment_finished(1, 40)
    assert outcomes(scheduler) == [(3, "completed"), (2, "completed"), (1, "completed")]
    assert scheduler.is_idle


def test_nobody_preempts_its_own_model_or_takes_a_stream_it_may_not_use():
    scheduler = make_scheduler(streams=2, allowed={"left": [0]}, preemption=True)
    submit(scheduler, 1, model="left", segments=2)
    submit(scheduler, 2, model="right", segments=2)
    scheduler.decide(0)
    submit(scheduler, 3, model="left", priority=9)
    scheduler.segment_finished(1, 5)
    scheduler.segment_finished(2, 5)
    assert brief(scheduler.decide(5)) == [("continue", 1, 0), ("continue", 2, 1)]


def test_nobody_preempts_a_suspended_request_of_its_own_model():
    scheduler = make_scheduler(preemption=True)
    submit(scheduler, 1, model="a", segments=2)
    scheduler.decide(0)
    submit(scheduler, 2, model="b", segments=2, priority=1)
    scheduler.segment_finished(1, 5)
    scheduler.decide(5)
    submit(scheduler, 3, model="a", priority=9)
    scheduler.segment_finished(2, 10)
    assert brief(scheduler.decide(10)) == [("continue", 2, 0)]


def test_starting_on_a_free_stream_is_preferred_to_preempting():
    scheduler = make_scheduler(streams=2, preemption=True)
    submit(scheduler, 1, segments=2)
    scheduler.decide(0)
    submit(scheduler, 2, model="other", priority=9)
    scheduler.segment_finished(1, 5)
    assert brief(scheduler.decide(5)) == [("start", 2, 1), ("continue", 1, 0)]


def test_a_suspended_request_can_expire_and_be_cancelled():
    scheduler = make_scheduler(preemption=True)
    submit(scheduler, 1, model="a", segments=2, deadline_ns=50)
    scheduler.decide(0)
    submit(scheduler, 2, model="b", segments=2, priority=1)
    scheduler.segment_finished(1, 10)
    scheduler.decide(10)
    submit(scheduler, 3, model="c", priority=2)
    scheduler.segment_finished(2, 20)
    scheduler.decide(20)
    assert scheduler.next_deadline_ns() == 50
    scheduler.cancel(2)
    assert brief(scheduler.decide(50)) == [("cancel", 2, 0), ("expire", 1, 0)]
    assert scheduler.statistics().suspended == 0
    scheduler.segment_finished(3, 60)
    assert scheduler.is_idle
    assert repr(scheduler).endswith("<StreamPool: 1 of 1 free [-]>>")


def test_a_confined_model_does_not_hold_up_the_others():
    scheduler = make_scheduler("fifo", streams=2, allowed={"confined": [0]})
    for number in (1, 2, 3):
        submit(scheduler, number, model="confined")
    submit(scheduler, 4, model="free", at_ns=5)
    assert brief(scheduler.decide(5)) == [("start", 1, 0), ("start", 4, 1)]


def test_abandon_leaves_nobody_open():
    scheduler = make_scheduler()
    for number in (1, 2):
        submit(scheduler, number)
    scheduler.decide(0)
    extra = ExecutionRequest(3, "m", 0)
    assert scheduler.admit(extra, 0) is None
    error = RuntimeError("lost")
    assert scheduler.abandon(9, error, admitted=[extra]) == ()
    assert outcomes(scheduler) == [(1, "failed"), (2, "failed"), (3, "failed")]
    assert extra.error is error
    assert scheduler.is_idle
    assert scheduler.statistics().waiting == 0


def test_abandon_without_an_error_cancels_with_a_reason():
    scheduler = make_scheduler()
    request, _ = submit(scheduler, 1)
    scheduler.decide(0)
    [decision] = scheduler.abandon(9)
    assert (decision.kind, decision.reason, decision.stream) == ("cancel", "runtime_stopping", 0)
    assert request.state is RequestState.CANCELLED


def test_format_is_one_line_of_json_with_the_fields_in_order():
    scheduler = make_scheduler()
    submit(scheduler, 1, model='a "model"\nof two lines')
    [decision] = scheduler.decide(7)
    line = format_decision(decision)
    assert "\n" not in line
    assert list(json.loads(line)) == list(Decision._fields)
    assert json.loads(line)["candidates"] == [[1, 0.0]]


def test_repr_is_for_support():
    scheduler = make_scheduler()
    submit(scheduler, 7)
    scheduler.decide(0)
    assert repr(scheduler) == (
        "<Scheduler priority: <BoundedQueue: 0 waiting, 0 of 16 places taken, open> "
        "<StreamPool: 0 of 1 free [7]>>"
    )


def test_segments_go_out_ahead_and_an_urgent_one_waits_for_no_more_than_those():
    scheduler = make_scheduler(in_flight=2, preemption=True)
    submit(scheduler, 1, segments=5)
    assert [each.segment for each in scheduler.decide(0)] == [0, 1]
    scheduler.segment_finished(1, 10)
    assert [each.segment for each in scheduler.decide(10)] == [2]
    submit(scheduler, 2, model="urgent", at_ns=11, priority=9)
    assert scheduler.decide(11) == ()
    # As soon as there is room it goes out, behind what is still in flight.
    scheduler.segment_finished(1, 20)
    assert brief(scheduler.decide(20)) == [("start", 2, 0)]
    assert scheduler.statistics().suspended == 0
    # Behind the urgent one, who needs nothing more, the stream goes on with the one preempted.
    scheduler.segment_finished(1, 30)
    assert scheduler.statistics().suspended == 1
    assert brief(scheduler.decide(30)) == [("continue", 1, 0)]
    scheduler.segment_finished(2, 40)
    assert [each.segment for each in scheduler.decide(40)] == [4]
    for at_ns in (50, 60):
        scheduler.segment_finished(1, at_ns)
    assert outcomes(scheduler) == [(2, "completed"), (1, "completed")]


def preempted_in_flight():
    """Return a scheduler whose request 1 has a segment in flight, with urgent 2 behind it."""
    scheduler = make_scheduler(in_flight=2, preemption=True)
    submit(scheduler, 1, segments=5)
    scheduler.decide(0)
    submit(scheduler, 2, model="urgent", at_ns=1, segments=3, priority=9)
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [("start", 2, 0)]
    return scheduler


def test_one_preempted_in_flight_fails_or_is_cancelled_by_itself():
    for error in (ValueError("segment"), None):
        scheduler = preempted_in_flight()
        if error is None:
            scheduler.cancel(1)
        scheduler.segment_finished(1, 20, error)
        decisions = scheduler.decide(20)
        assert outcomes(scheduler) == [(1, "failed" if error else "cancelled")]
        assert brief(decisions)[-1] == ("continue", 2, 0)
        for at_ns in (30, 40):
            scheduler.segment_finished(2, at_ns)
            scheduler.decide(at_ns)
        scheduler.segment_finished(2, 50)
        assert outcomes(scheduler) == [(2, "completed")]
        assert scheduler.is_idle


def test_one_preempted_in_flight_goes_on_if_the_urgent_one_can_not_be_launched():
    scheduler = preempted_in_flight()
    scheduler.segment_finished(2, 11, ValueError("launch"))
    assert outcomes(scheduler) == [(2, "failed")]
    assert [(each.request_id, each.segment) for each in scheduler.decide(11)] == [(1, 2)]
    for at_ns in (20, 30, 40, 50):
        scheduler.segment_finished(1, at_ns)
        scheduler.decide(at_ns)
    assert outcomes(scheduler) == [(1, "completed")]
    assert scheduler.is_idle


def test_the_next_request_starts_while_the_last_segment_of_the_one_before_is_in_flight():
    scheduler = make_scheduler(in_flight=2)
    for number in (1, 2, 3, 4):
        submit(scheduler, number, segments=3 if number == 1 else 1)
    assert [each.segment for each in scheduler.decide(0)] == [0, 1]
    scheduler.segment_finished(1, 10)
    assert [each.segment for each in scheduler.decide(10)] == [2]
    scheduler.segment_finished(1, 20)
    assert brief(scheduler.decide(20)) == [("start", 2, 0)]
    # The window is full: whoever comes now waits for these two segments and no more.
    assert scheduler.decide(21) == ()
    scheduler.segment_finished(1, 30)
    assert outcomes(scheduler) == [(1, "completed")]
    assert brief(scheduler.decide(30)) == [("start", 3, 0)]
    scheduler.segment_finished(2, 40)
    assert outcomes(scheduler) == [(2, "completed")]


def test_with_one_segment_in_flight_a_stream_is_given_on_only_when_its_holder_is_over():
    scheduler = make_scheduler()
    for number in (1, 2):
        submit(scheduler, number)
    assert brief(scheduler.decide(0)) == [("start", 1, 0)]
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [("start", 2, 0)]


def test_one_that_comes_while_the_last_segment_runs_starts_behind_it():
    scheduler = make_scheduler(in_flight=3)
    submit(scheduler, 1)
    scheduler.decide(0)
    submit(scheduler, 2, at_ns=5)
    assert brief(scheduler.decide(5)) == [("start", 2, 0)]
    # Two requests are on the stream, whatever room there is.
    submit(scheduler, 3, at_ns=6)
    assert scheduler.decide(6) == ()
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [("start", 3, 0)]


def test_a_free_stream_is_taken_before_one_behind_a_last_segment():
    scheduler = make_scheduler(streams=2, in_flight=2)
    submit(scheduler, 1)
    scheduler.decide(0)
    submit(scheduler, 2, at_ns=5)
    assert brief(scheduler.decide(5)) == [("start", 2, 1)]


def test_whoever_leaves_fails_or_is_cancelled_by_itself():
    for error in (ValueError("segment"), None):
        scheduler = make_scheduler(in_flight=2)
        for number in (1, 2, 3):
            submit(scheduler, number)
        assert brief(scheduler.decide(0)) == [("start", 1, 0), ("start", 2, 0)]
        if error is None:
            scheduler.cancel(1)
        scheduler.segment_finished(1, 10, error)
        decisions = scheduler.decide(10)
        assert outcomes(scheduler) == [(1, "failed" if error else "cancelled")]
        assert brief(decisions)[-1] == ("start", 3, 0)
        scheduler.segment_finished(2, 20)
        scheduler.segment_finished(3, 30)
        assert outcomes(scheduler) == [(2, "completed"), (3, "completed")]
        scheduler.decide(30)
        assert scheduler.is_idle


def test_a_follower_that_can_not_be_launched_leaves_the_one_before_alone():
    scheduler = make_scheduler(in_flight=2)
    for number in (1, 2, 3):
        submit(scheduler, number)
    scheduler.decide(0)
    scheduler.segment_finished(2, 1, ValueError("launch"))
    assert outcomes(scheduler) == [(2, "failed")]
    assert brief(scheduler.decide(1)) == [("start", 3, 0)]
    scheduler.segment_finished(1, 10)
    scheduler.segment_finished(3, 20)
    assert outcomes(scheduler) == [(1, "completed"), (3, "completed")]
    assert scheduler.is_idle


def test_service_of_a_follower_counts_from_the_end_of_the_one_before():
    scheduler = make_scheduler("fairness", in_flight=2)
    served = []
    scheduler._policy.served = lambda request, ns: served.append((request.request_id, ns))
    submit(scheduler, 1, segments=2)
    submit(scheduler, 2, segments=2)
    scheduler.decide(0)
    scheduler.segment_finished(1, 10)
    scheduler.decide(10)
    scheduler.segment_finished(1, 25)
    scheduler.decide(25)
    scheduler.segment_finished(2, 31)
    assert served == [(1, 10), (1, 15), (2, 6)]


def test_a_model_at_its_limit_does_not_follow_itself():
    scheduler = make_scheduler(in_flight=2, concurrency={"m": 1})
    submit(scheduler, 1)
    submit(scheduler, 2)
    submit(scheduler, 3, model="other")
    assert brief(scheduler.decide(0)) == [("start", 1, 0), ("start", 3, 0)]
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [("start", 2, 0)]


def test_what_is_in_flight_is_awaited_before_a_request_fails_or_is_cancelled():
    for error in (ValueError("segment"), None):
        scheduler = make_scheduler(in_flight=2)
        request, _ = submit(scheduler, 1, segments=5)
        scheduler.decide(0)
        if error is None:
            scheduler.cancel(1)
        scheduler.segment_finished(1, 10, error)
        assert scheduler.decide(10) == ()
        assert request.state is RequestState.RUNNING
        scheduler.segment_finished(1, 20)
        scheduler.decide(20)
        assert outcomes(scheduler) == [(1, "failed" if error else "cancelled")]
        assert scheduler.is_idle


def test_a_model_runs_no_more_requests_at_once_than_its_limit():
    scheduler = make_scheduler(streams=3, concurrency={"m": 2})
    for number in (1, 2, 3):
        submit(scheduler, number, priority=9)
    submit(scheduler, 4, model="other")
    assert brief(scheduler.decide(0)) == [("start", 1, 0), ("start", 2, 1), ("start", 4, 2)]
    scheduler.segment_finished(4, 5)
    assert scheduler.decide(5) == ()
    scheduler.segment_finished(1, 6)
    assert brief(scheduler.decide(6)) == [("start", 3, 0)]


def test_one_that_would_be_late_is_refused_at_once():
    scheduler = make_scheduler(needed_ns={"m": 30})
    request, refusal = submit(scheduler, 1, at_ns=10, deadline_ns=39)
    assert (refusal.kind, refusal.reason) == ("reject", "would_be_late")
    assert request.state is RequestState.REJECTED
    assert submit(scheduler, 2, at_ns=10, deadline_ns=40)[1] is None
    assert scheduler.statistics().rejected == 1
    assert scheduler.queue.places_taken == 1


def test_one_that_waits_is_dropped_when_too_little_time_is_left():
    scheduler = make_scheduler(needed_ns={"m": 30})
    submit(scheduler, 1, deadline_ns=100)
    scheduler.decide(0)
    submit(scheduler, 2, deadline_ns=100)
    assert scheduler.decide(70) == ()
    [expiry] = scheduler.decide(71)
    assert (expiry.kind, expiry.request_id, expiry.reason) == ("expire", 2, "would_be_late")


def degrading(**options):
    return make_scheduler(late={"m": "degrade"}, stand_ins={"m": StandIn("small", 2)}, **options)


def test_a_late_one_waits_on_for_the_stand_in_and_runs_however_late():
    scheduler = degrading()
    submit(scheduler, 1, deadline_ns=10)
    scheduler.decide(0)
    request, _ = submit(scheduler, 2, deadline_ns=50)
    [degradation] = scheduler.decide(50)
    assert (degradation.kind, degradation.model, degradation.reason) == (
        "degrade", "small", "deadline_passed",
    )  # fmt: skip
    assert (request.model, request.asked_model, request.segment_count) == ("small", "m", 2)
    # The first is late, too, but has started: its result is as good as there.
    scheduler.segment_finished(1, 60)
    assert outcomes(scheduler) == [(1, "completed")]
    for now_ns in (60, 70):
        assert len(scheduler.decide(now_ns)) == 1
        scheduler.segment_finished(2, now_ns + 5)
    assert outcomes(scheduler) == [(2, "completed")]
    assert (request.reason, request.deadline_missed) == (Reason.DEGRADED, True)
    assert scheduler.statistics().degraded == 1


def test_one_degrades_while_there_is_time_if_its_needs_are_known():
    scheduler = degrading(needed_ns={"m": 30})
    submit(scheduler, 1)
    scheduler.decide(0)
    assert submit(scheduler, 2, deadline_ns=50)[1] is None
    assert scheduler.decide(20) == ()
    assert brief(scheduler.decide(21)) == [("degrade", 2, -1)]


def test_without_a_place_for_the_stand_in_a_late_one_is_dropped():
    scheduler = degrading(model_capacity={"small": 1})
    submit(scheduler, 1)
    scheduler.decide(0)
    submit(scheduler, 2, model="small")
    submit(scheduler, 3, deadline_ns=50)
    assert brief(scheduler.decide(50)) == [("expire", 3, -1)]
    assert scheduler.queue.places_taken == 1


def test_a_request_that_starts_at_once_leaves_no_timer_and_one_late_on_arrival_does_not_start():
    scheduler = make_scheduler()
    submit(scheduler, 1, deadline_ns=50)
    submit(scheduler, 2, deadline_ns=60)
    assert brief(scheduler.decide(0)) == [("start", 1, 0)]
    assert [timer[0] for timer in scheduler.timers] == [60]
    scheduler.segment_finished(1, 10)
    assert brief(scheduler.decide(10)) == [("start", 2, 0)]
    scheduler.segment_finished(2, 20)
    submit(scheduler, 3, at_ns=20, deadline_ns=20)
    assert brief(scheduler.decide(20)) == [("expire", 3, -1)]
    assert scheduler.timers == []
