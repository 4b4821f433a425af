"""What lies on a request's way from its submission to its result, and what does not."""

import threading

import pytest

from aegis_pipe.errors import DeviceLostError, RuntimeStoppedError
from aegis_pipe.events import DecisionMade, EventHub, RequestFinished, RequestSubmitted
from aegis_pipe.scheduling import (
    ExecutionRequest,
    OrchestrationLoop,
    Scheduler,
    StreamPool,
    make_policy,
)
from aegis_pipe.scheduling.loop import MANNERS_NS
from aegis_pipe.scheduling.statistics import RequestStatistics
from aegis_pipe.testing.simulated_launcher import SimulatedLauncher, durations_by_model
from aegis_pipe.testing.virtual_clock import VirtualClock

DURATIONS = durations_by_model({"m": [100_000]})


class NotingLauncher(SimulatedLauncher):
    """Notes what is asked of it."""

    def __init__(self, clock, notes):
        super().__init__(clock, DURATIONS)
        self.notes = notes
        self.polls = 0
        self.untold = []

    def launch(self, request, segment, stream):
        # As one does whose events the next launch records anew.
        self.tell()
        super().launch(request, segment, stream)
        self.notes.append(("launch", request.request_id))

    def poll(self):
        self.polls += 1
        ended = super().poll()
        self.untold = [each.request_id for each in ended]
        return ended

    def tell(self):
        self.notes += [("segment", number) for number in self.untold]
        self.untold = []

    def finish(self, request, state, error):
        super().finish(request, state, error)
        self.notes.append(("finish", request.request_id))


class Bench:
    """A loop stepped by hand, whose launcher and listener note things in one list."""

    def __init__(self, *, notifies=True):
        self.notes = []
        self.clock = VirtualClock()
        self.scheduler = Scheduler(make_policy("fifo"), StreamPool(1), queue_capacity=8)
        self.launcher = NotingLauncher(self.clock, self.notes)
        self.statistics = RequestStatistics(("m",))
        hub = EventHub(self.listen, counters=(self.statistics,))
        self.loop = OrchestrationLoop(self.scheduler, self.launcher, self.clock, hub)
        self.launcher.notifies = notifies
        if notifies:
            self.launcher.notify = self.loop.wake

    def listen(self, event):
        names = {RequestSubmitted: "came", DecisionMade: "decided", RequestFinished: "over"}
        self.notes.append((names[type(event)], event.request_id))

    def submit(self, number):
        self.loop.submit(ExecutionRequest(number, "m", self.clock.now_ns()))


def test_listeners_are_told_once_the_device_is_at_work_and_the_result_is_delivered():
    bench = Bench()
    bench.submit(1)
    assert bench.loop.stop()
    # Each in its order, and none of them in the way.
    told = ["launch", "came", "decided", "finish", "segment", "over"]
    assert bench.notes == [(what, 1) for what in told]


def test_who_waits_for_the_stream_comes_before_results():
    bench = Bench()
    bench.submit(1)
    bench.submit(2)
    assert bench.loop.stop()
    assert bench.notes.index(("segment", 1)) < bench.notes.index(("launch", 2))
    assert bench.notes.index(("launch", 2)) < bench.notes.index(("finish", 1))
    for number in (1, 2):
        own = [what for what, whose in bench.notes if whose == number]
        story = [what for what in own if what not in ("launch", "finish")]
        assert story == ["came", "decided", "segment", "over"]


def test_figures_include_a_request_as_soon_as_it_is_delivered():
    bench = Bench()
    seen = []
    finish = bench.launcher.finish

    def look(request, state, error):
        finish(request, state, error)
        seen.append(bench.statistics.snapshot()[0].completed)
        assert bench.statistics.pending("m") == 2 - len(seen)

    bench.launcher.finish = look
    bench.submit(1)
    bench.submit(2)
    assert bench.loop.stop()
    assert seen == [1, 2]


def test_noted_events_are_counted_without_anybody_asking():
    bench = Bench()
    for number in range(1, 6):
        bench.submit(number)
        bench.loop.step()
        bench.clock.advance(100_000)
        bench.loop.step()
    assert not bench.statistics._noted
    assert bench.statistics.snapshot()[0].completed == 5


def test_looking_for_completions_is_no_step():
    bench = Bench(notifies=False)
    steps = []
    work = bench.loop._work
    bench.loop._work = lambda: (steps.append(bench.clock.now_ns()), work())
    bench.submit(1)
    assert bench.loop.stop()
    # One to start it and one to end it, however often was looked; only the second one looks itself.
    assert steps == [0, 100_000]
    assert bench.launcher.polls == 100_000 // bench.loop._poll_interval_ns + 1


def test_deadlines_and_arrivals_end_the_wait_for_completions():
    bench = Bench(notifies=False)
    steps = []
    work = bench.loop._work
    bench.loop._work = lambda: (steps.append(bench.clock.now_ns()), work())
    bench.submit(1)
    waiting = ExecutionRequest(2, "m", 0, deadline_ns=12_345)
    bench.loop.submit(waiting)
    bench.clock.call_at(50_001, bench.loop.wake)
    assert bench.loop.stop()
    assert steps == [0, 12_345, 50_001, 100_001]
    assert waiting.state == "expired"


def test_what_a_look_raises_reaches_every_caller():
    bench = Bench(notifies=False)
    error = DeviceLostError("the device fell off the bus")
    bench.submit(1)
    bench.submit(2)
    poll = bench.launcher.poll

    def breaks():
        if bench.clock.now_ns() >= 20_000 and bench.loop.fatal_error is None:
            raise error
        return poll()

    bench.launcher.poll = breaks
    bench.loop.run()
    assert bench.loop.fatal_error is error
    assert [(request.request_id, state) for request, state, _ in bench.launcher.finished] == [
        (1, "failed"),
        (2, "failed"),
    ]
    assert bench.clock.now_ns() == 20_000


@pytest.mark.parametrize("error", [DeviceLostError("gone"), ValueError("not one of ours")])
def test_times_that_can_not_be_read_stop_the_loop(error):
    bench = Bench()
    tell = bench.launcher.tell

    def breaks():
        if bench.launcher.untold:
            bench.launcher.untold = []
            raise error
        tell()

    bench.launcher.tell = breaks
    bench.submit(1)
    bench.loop._thread = type("Here", (), {"ident": threading.get_ident()})()
    bench.loop.run()
    # The first has its result; but what is gone is gone for all that come.
    assert bench.notes == [(what, 1) for what in ("launch", "came", "decided", "finish", "over")]
    fatal = bench.loop.fatal_error
    assert error in (fatal, fatal.__cause__)
    with pytest.raises(RuntimeStoppedError, match="has failed"):
        bench.submit(2)


class Waker:
    """Submits the next request a while after each result, from outside the loop."""

    def __init__(self, bench, after_ns, count):
        self.bench, self.left = bench, count
        finish = bench.launcher.finish

        def then(request, state, error):
            finish(request, state, error)
            self.left -= 1
            number = request.request_id + 1
            act = bench.loop.stop if not self.left else lambda: bench.submit(number)
            bench.clock.call_at(bench.clock.now_ns() + after_ns, act)

        bench.launcher.finish = then


@pytest.mark.parametrize(("after_ns", "is_told_between"), [(10_000, False), (1_000_000, True)])
def test_who_got_a_result_has_the_interpreter_first(after_ns, is_told_between):
    bench = Bench()
    Waker(bench, after_ns, 3)
    told = []
    listen = bench.listen
    bench.loop._hub.remove(bench.listen)
    bench.loop._hub.add(lambda event: (told.append((bench.clock.now_ns(), event)), listen(event)))
    bench.loop._thread = type("Here", (), {"ident": threading.get_ident()})()
    bench.submit(1)
    bench.loop.run()
    ends = [at_ns for at_ns, event in told if type(event) is RequestFinished]
    finished = [event.at_ns for _, event in told if type(event) is RequestFinished]
    # At once only at the end of the run, when nobody is kept waiting.
    late = [at_ns - finished_ns for at_ns, finished_ns in zip(ends, finished, strict=True)]
    assert late[:2] == [MANNERS_NS if is_told_between else after_ns] * 2
    for number in (1, 2):
        own = [what for what, whose in bench.notes if whose == number]
        assert own == ["launch", "came", "decided", "finish", "segment", "over"]
        assert bench.notes.index(("segment", number)) < bench.notes.index(("launch", number + 1))
