from aegis_pipe.scheduling import ExecutionRequest, StreamPool
from aegis_pipe.scheduling.deadlines import Deadlines
from aegis_pipe.scheduling.model_rules import RuleBook


def make_deadlines(**rules):
    names = ("late", "stand_ins", "needed_ns", "concurrency", "batching", "memory_of")
    return Deadlines(RuleBook(StreamPool(1), **({name: {} for name in names} | rules)))


def request(number, deadline_ns, model="m"):
    return ExecutionRequest(number, model, arrival_ns=number, deadline_ns=deadline_ns)


def test_timers_are_due_at_their_instant_in_order():
    deadlines = make_deadlines()
    late, soon, cleared = request(1, 90), request(2, 50), request(3, 10)
    for each in (late, soon, cleared):
        deadlines.watch_waiting(each)
    deadlines.clear(cleared)
    assert deadlines.next_ns() == 50
    assert deadlines.pop_due(49) is None
    assert [deadlines.pop_due(90), deadlines.pop_due(90), deadlines.pop_due(90)] == [
        soon, late, None,
    ]  # fmt: skip
    assert deadlines.next_ns() is None


def test_who_waits_is_late_when_less_is_left_than_it_needs_and_who_stands_when_time_is_up():
    deadlines = make_deadlines(needed_ns={"m": 30})
    waiting, paused = request(1, 100), request(2, 100)
    deadlines.watch_waiting(waiting)
    deadlines.watch_paused(paused)
    assert [deadlines.pop_due(70), deadlines.pop_due(71), deadlines.pop_due(99)] == [
        None, waiting, None,
    ]  # fmt: skip
    assert deadlines.pop_due(100) is paused


def test_models_whose_late_requests_run_have_no_timers():
    deadlines = make_deadlines(late={"m": "run", "d": "degrade"})
    deadlines.watch_waiting(request(1, 100))
    deadlines.watch_paused(request(2, 100))
    deadlines.watch_paused(request(3, 100, "d"))
    assert deadlines.next_ns() is None
    deadlines.watch_waiting(request(4, 100, "d"))
    assert deadlines.next_ns() == 100


def test_a_timer_set_anew_counts_once_and_cleared_ones_are_dropped():
    deadlines = make_deadlines()
    first, again = request(1, 10), request(2, 50)
    for each in (first, again):
        deadlines.watch_waiting(each)
    deadlines.clear(again)
    deadlines.watch_paused(again)
    for number in range(3, 2_000):
        cleared = request(number, 1_000 + number)
        deadlines.watch_waiting(cleared)
        deadlines.settle()
        deadlines.clear(cleared)
        assert len(deadlines.entries) < 200
    assert [deadlines.pop_due(60), deadlines.pop_due(60), deadlines.pop_due(10**9)] == [
        first, again, None,
    ]  # fmt: skip
    assert deadlines.entries == []


def test_only_timers_still_needed_get_into_the_heap():
    deadlines = make_deadlines()
    started, waiting = request(1, 10), request(2, 50)
    for each in (started, waiting):
        deadlines.watch_waiting(each)
    assert (deadlines.newest, deadlines.newest_ns) == ([started, waiting], 10)
    deadlines.clear(started)
    deadlines.settle()
    assert deadlines.newest == []
    assert [entry[-1] for entry in deadlines.entries] == [waiting]
    assert deadlines.newest_ns > 10**15
