import collections
import gc
import sys
import threading

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.errors import (
    DeadlineExceededError,
    DeviceLostError,
    FatalError,
    KernelError,
    QueueFullError,
    RequestCancelledError,
    RuntimeStoppedError,
)
from aegis_pipe.events import DecisionMade, EventHub, RequestFinished, RequestSubmitted
from aegis_pipe.scheduling import (
    ExecutionRequest,
    OrchestrationLoop,
    Scheduler,
    SegmentCompletion,
    StreamPool,
    make_policy,
)
from aegis_pipe.testing.simulated_launcher import SimulatedLauncher, durations_by_model
from aegis_pipe.testing.virtual_clock import VirtualClock

DURATIONS = durations_by_model({"m": [10], "long": [10, 10, 10], "for ever": [10**12]})


class Bench:
    """A loop over simulated segments, stepped by hand."""

    def __init__(self, *, streams=1, queue_capacity=8, launcher=SimulatedLauncher):
        self.clock = VirtualClock()
        self.events = []
        self.scheduler = Scheduler(
            make_policy("fifo"), StreamPool(streams), queue_capacity=queue_capacity
        )
        self.launcher = launcher(self.clock, DURATIONS)
        hub = EventHub(self.events.append)
        self.loop = OrchestrationLoop(self.scheduler, self.launcher, self.clock, hub)
        self.launcher.notify = self.loop.wake

    def submit(self, number, model="m", **options):
        segments = 3 if model == "long" else 1
        request = ExecutionRequest(
            number, model, self.clock.now_ns(), segment_count=segments, **options
        )
        self.loop.submit(request)
        return request

    def run_for(self, duration_ns):
        end_ns = self.clock.now_ns() + duration_ns
        self.loop.step()
        while self.clock.wait_until(
            min(end_ns, self.scheduler.next_deadline_ns() or end_ns), self.loop._wake
        ) or (self.clock.now_ns() < end_ns):
            self.loop.step()

    def outcomes(self):
        return [(request.request_id, str(state)) for request, state, _ in self.launcher.finished]

    def error_of(self, number):
        [error] = [
            error for request, _, error in self.launcher.finished if request.request_id == number
        ]
        return error


def test_runs_requests_to_their_end_and_tells_the_launcher():
    bench = Bench()
    bench.submit(1, "long")
    bench.submit(2)
    assert bench.loop.stop()
    assert bench.outcomes() == [(1, "completed"), (2, "completed")]
    assert bench.error_of(1) is None
    assert bench.clock.now_ns() == 40


def test_the_story_of_a_request_in_events():
    bench = Bench()
    bench.submit(1, "long", priority=3, traceparent="00-ab-cd-01", deadline_ns=100)
    bench.loop.stop()
    submitted, *decisions, finished = bench.events
    assert submitted == RequestSubmitted(0, 1, "long", 3, 100, 1, "00-ab-cd-01")
    assert [(each.start_ns, each.kind, each.sequence) for each in decisions] == [
        (0, "start", 0),
        (10, "continue", 1),
        (20, "continue", 2),
    ]
    assert decisions[0] == DecisionMade(
        0, 0, 0, "start", 1, "long", "fifo", "only_candidate", 0, 1, ((1, 0.0),), ()
    )
    assert finished == RequestFinished(30, 1, "long", "completed", "", "", 0, 0, 100, False)


def test_a_request_is_pending_from_when_it_is_handed_in_until_its_end_is_told():
    bench = Bench()
    seen = []

    def look(name):
        original = getattr(bench.launcher, name)

        def look_and_go_on(*operands):
            seen.append((name, bench.loop.pending("m"), bench.loop.pending("long")))
            return original(*operands)

        setattr(bench.launcher, name, look_and_go_on)

    look("launch")
    look("finish")
    bench.submit(1)
    assert bench.loop.pending("m") == 1
    assert bench.loop.stop()
    assert seen == [("launch", 1, 0), ("finish", 0, 0)]


def test_nothing_is_built_for_nobody():
    bench = Bench()
    loop = OrchestrationLoop(bench.scheduler, bench.launcher, bench.clock, EventHub())
    bench.launcher.notify = loop.wake
    loop.submit(ExecutionRequest(1, "m", 0))
    assert loop.stop()
    assert bench.events == []
    assert bench.outcomes() == [(1, "completed")]


def test_it_is_told_when_nothing_is_open():
    bench = Bench()
    idle_since = []
    loop = OrchestrationLoop(
        bench.scheduler,
        bench.launcher,
        bench.clock,
        EventHub(),
        when_idle=lambda: idle_since.append(loop.idle_since_ns()),
    )
    bench.launcher.notify = loop.wake
    loop.submit(ExecutionRequest(1, "long", 0, segment_count=3))
    loop.submit(ExecutionRequest(2, "m", 0))
    loop.step()
    assert loop.idle_since_ns() is None
    assert loop.stop()
    assert idle_since
    assert set(idle_since) == {40}


def test_a_full_queue_is_an_error_at_once():
    bench = Bench(queue_capacity=2)
    bench.submit(1)
    bench.submit(2)
    with pytest.raises(QueueFullError, match=r"2 requests wait\n.*hint: submit again later"):
        bench.submit(3)
    decision, finished = bench.events
    assert (decision.kind, decision.reason, decision.request_id) == ("reject", "queue_full", 3)
    assert (finished.outcome, finished.reason) == ("rejected", "queue_full")
    bench.loop.step()
    bench.submit(4)
    bench.loop.stop()
    assert bench.outcomes() == [(1, "completed"), (2, "completed"), (4, "completed")]


def test_deadlines_expire_on_time_while_a_long_segment_runs():
    bench = Bench()
    bench.submit(1, "for ever")
    for number, deadline_ns in ((2, 300), (3, 100), (4, 200)):
        bench.submit(number, deadline_ns=deadline_ns)
    bench.run_for(1000)
    assert [(each.request_id, each.finished_ns) for each, _, _ in bench.launcher.finished] == [
        (3, 100),
        (4, 200),
        (2, 300),
    ]
    assert isinstance(bench.error_of(3), DeadlineExceededError)
    assert "while it waited in the queue" in str(bench.error_of(3))
    assert bench.loop.stop(drain=False, timeout_ns=0) is False


def test_the_thread_is_woken_by_the_clock_at_the_deadline_while_a_segment_runs():
    """On the machine's clock, with a real thread: nothing but its timer can end the request."""
    waits, answered = [], threading.Event()

    class WatchedClock(SystemClock):
        def wait_until(self, instant_ns, wake):
            waits.append(instant_ns)
            return super().wait_until(instant_ns, wake)

    class Endless(SimulatedLauncher):
        def launch(self, request, segment, stream):
            pass

        def finish(self, request, state, error):
            super().finish(request, state, error)
            answered.set()

    clock = WatchedClock()
    launcher = Endless(VirtualClock(), DURATIONS)
    scheduler = Scheduler(make_policy("fifo"), StreamPool(1), queue_capacity=4)
    loop = OrchestrationLoop(scheduler, launcher, clock, EventHub())
    loop.start()
    loop.submit(ExecutionRequest(1, "for ever", clock.now_ns()))
    deadline_ns = clock.now_ns() + 20_000_000
    loop.submit(ExecutionRequest(2, "m", clock.now_ns(), deadline_ns=deadline_ns))
    assert answered.wait(60)
    [(expired, state, error)] = launcher.finished
    assert (expired.request_id, str(state)) == (2, "expired")
    assert isinstance(error, DeadlineExceededError)
    assert expired.finished_ns >= deadline_ns
    assert {each for each in waits if each is not None} == {deadline_ns}
    loop.stop(drain=False, timeout_ns=0)


@pytest.mark.parametrize("at_ns", [5, 10, 15])
def test_a_cancellation_takes_effect_before_the_next_segment(at_ns):
    """Of segments of 10 ns each, those that began before it are all that run."""
    bench = Bench()
    launched = []
    launch = bench.launcher.launch
    bench.launcher.launch = lambda request, segment, stream: (
        launched.append(segment),
        launch(request, segment, stream),
    )
    request = bench.submit(1, "long")
    bench.clock.call_at(at_ns, lambda: bench.loop.cancel(1))
    bench.run_for(100)
    ends_ns = -(-at_ns // 10) * 10
    assert launched == list(range(ends_ns // 10))
    assert (bench.outcomes(), request.finished_ns) == ([(1, "cancelled")], ends_ns)
    assert bench.loop.is_idle


def test_cancel_from_outside():
    bench = Bench()
    bench.submit(1, "long")
    bench.submit(2)
    bench.loop.step()
    assert bench.loop.cancel(1)
    assert bench.loop.cancel(1)
    assert bench.loop.cancel(2)
    assert not bench.loop.cancel(3)
    bench.loop.stop()
    assert bench.outcomes() == [(2, "cancelled"), (1, "cancelled")]
    assert isinstance(bench.error_of(1), RequestCancelledError)
    assert bench.clock.now_ns() == 10
    assert not bench.loop.cancel(1)


def test_a_cancellation_that_overtakes_its_submission_is_not_lost():
    bench = Bench()
    request = ExecutionRequest(1, "m", 0)
    assert bench.scheduler.admit(request, 0) is None
    bench.loop._open[1] = request
    bench.loop.cancel(1)
    bench.loop.step()
    bench.loop._inbox.append(request)
    bench.loop.step()
    assert bench.outcomes() == [(1, "cancelled")]


class FailingLauncher(SimulatedLauncher):
    """Raises on launching requests whose payload is an error."""

    def launch(self, request, segment, stream):
        if request.payload is not None:
            raise request.payload
        super().launch(request, segment, stream)


@pytest.mark.parametrize("end", ["completed", "cancelled", "failed"])
def test_what_comes_while_a_step_is_under_way_does_not_end_before_it_came(end):
    bench = Bench()
    bench.submit(1, "long")
    bench.loop.step()
    policy = bench.scheduler.queue.policy
    push = policy.push

    def another_threads_turn(request, now_ns):
        push(request, now_ns)
        if request.request_id == 2:
            bench.clock.advance(5)
            bench.submit(3)
            if end == "cancelled":
                bench.loop.cancel(3)
            elif end == "failed":
                raise ZeroDivisionError("in the policy")

    policy.push = another_threads_turn
    bench.submit(2)
    bench.loop.step()
    bench.loop.stop()
    finished = {each.request_id: each for each in bench.events if isinstance(each, RequestFinished)}
    assert finished[3].outcome == end
    assert finished[3].at_ns >= finished[3].arrival_ns == 5


def test_a_request_ends_after_its_last_segment_however_long_looking_takes():
    bench = Bench()
    poll = bench.launcher.poll

    def slow_look():
        bench.clock.advance(3)
        return poll()

    bench.launcher.poll = slow_look
    bench.submit(1)
    assert bench.loop.stop()
    (finished,) = (each for each in bench.events if isinstance(each, RequestFinished))
    assert finished.start_ns == 3
    assert finished.at_ns == 16


def test_a_launch_that_raises_fails_that_request_alone():
    bench = Bench(launcher=FailingLauncher)
    error = KernelError("index out of range")
    bench.submit(1, payload=error)
    bench.submit(2)
    bench.submit(3, payload=ValueError("not one of ours"))
    bench.submit(4)
    assert bench.loop.stop()
    assert bench.outcomes() == [
        (1, "failed"),
        (2, "completed"),
        (3, "failed"),
        (4, "completed"),
    ]
    assert bench.error_of(1) is error


def test_a_fatal_error_fails_everybody_and_stops_the_loop():
    bench = Bench(streams=2, launcher=FailingLauncher)
    error = DeviceLostError("the device fell off the bus")
    bench.submit(1)
    bench.submit(2, payload=error)
    bench.submit(3)
    bench.loop.run()
    assert bench.outcomes() == [(1, "failed"), (2, "failed"), (3, "failed")]
    assert {id(bench.error_of(number)) for number in (1, 2, 3)} == {id(error)}
    assert bench.loop.fatal_error is error
    assert [each.kind for each in bench.events if isinstance(each, DecisionMade)] == [
        "start",
        "start",
    ]
    with pytest.raises(RuntimeStoppedError, match="fell off the bus"):
        bench.submit(4)
    assert bench.loop.stop() is False


def test_a_fatal_completion_stops_the_loop():
    bench = Bench()
    error = DeviceLostError("gone")
    bench.submit(1)
    bench.loop.step()
    bench.launcher._ended.append(SegmentCompletion(1, 0, error))
    bench.loop.step()
    assert bench.loop.fatal_error is error
    assert bench.error_of(1) is error


def test_a_defect_in_the_policy_reaches_every_caller():
    bench = Bench()
    bench.submit(1)
    bench.loop.step()
    bench.submit(2)
    bench.submit(3)

    def push(request, now_ns):
        raise ZeroDivisionError("in the policy")

    bench.scheduler.queue.policy.push = push
    bench.loop.run()
    assert bench.outcomes() == [(1, "failed"), (2, "failed"), (3, "failed")]
    assert isinstance(bench.loop.fatal_error, FatalError)
    assert isinstance(bench.loop.fatal_error.__cause__, ZeroDivisionError)


def test_a_callback_that_raises_does_not_stop_the_loop(caplog):
    class Raises(SimulatedLauncher):
        def finish(self, request, state, error):
            super().finish(request, state, error)
            raise RuntimeError("in the callback")

    bench = Bench(launcher=Raises)
    bench.submit(1)
    bench.submit(2)
    assert bench.loop.stop()
    assert bench.outcomes() == [(1, "completed"), (2, "completed")]
    assert [record.message for record in caplog.records] == [
        "finishing request 1 raised; going on",
        "finishing request 2 raised; going on",
    ]


def test_stop_without_draining_finishes_the_segment_and_cancels_the_rest():
    bench = Bench()
    bench.submit(1, "long")
    bench.submit(2)
    bench.run_for(5)
    assert bench.loop.stop(drain=False) is False
    assert bench.outcomes() == [(2, "cancelled"), (1, "cancelled")]
    assert isinstance(bench.error_of(1), RuntimeStoppedError)
    assert bench.clock.now_ns() == 10
    with pytest.raises(RuntimeStoppedError, match="the runtime is stopping"):
        bench.submit(3)


def test_draining_has_a_time_limit():
    bench = Bench()
    bench.submit(1, "for ever")
    bench.submit(2)
    bench.loop.step()
    assert bench.loop.stop(drain=True, timeout_ns=100) is False
    assert bench.outcomes() == [(1, "cancelled"), (2, "cancelled")]
    assert bench.clock.now_ns() == 100
    assert [each.reason for each in bench.events[-4:-2]] == ["runtime_stopping"] * 2


def test_a_launcher_that_does_not_notify_is_polled():
    bench = Bench()
    bench.launcher.notifies = False
    bench.launcher.notify = lambda: None
    bench.submit(1)
    assert bench.loop.stop()
    assert bench.outcomes() == [(1, "completed")]
    assert bench.clock.now_ns() == 20_000


class StagingLauncher(SimulatedLauncher):
    """Notes which requests it was told to prepare, and when."""

    stages_ahead = True

    def __init__(self, clock, durations):
        super().__init__(clock, durations)
        self.staged = []

    def stage(self, request):
        if request.request_id not in [number for _, number in self.staged]:
            self.staged.append((self._clock.now_ns(), request.request_id))


def test_the_next_request_is_prepared_while_the_streams_are_busy():
    bench = Bench(launcher=StagingLauncher)
    bench.submit(1, "long")
    bench.submit(2)
    bench.submit(3)
    assert bench.loop.stop()
    # The first started at once, the others when their predecessors did.
    assert bench.launcher.staged == [(0, 2), (30, 3)]
    bench = Bench(streams=2, launcher=StagingLauncher)
    bench.submit(1)
    bench.submit(2)
    assert bench.loop.stop()
    assert bench.launcher.staged == []


class InstantLauncher:
    """Finishes every segment as it is launched, and checks that streams are not shared."""

    notifies = True
    stages_ahead = False

    def __init__(self):
        self.done = []
        self.states = collections.Counter()
        self.finished = collections.Counter()
        self.wake = None
        self.busy = set()

    def launch(self, request, segment, stream):
        assert stream not in self.busy
        self.busy.add(stream)
        self.done.append(SegmentCompletion(request.request_id, stream))
        self.wake()

    def poll(self):
        done, self.done = self.done, []
        self.busy.clear()
        return done

    def finish(self, request, state, error):
        self.states[state] += 1
        self.finished[request.request_id] += 1


def make_threaded_loop(launcher, queue_capacity=100_000):
    scheduler = Scheduler(make_policy("priority"), StreamPool(4), queue_capacity=queue_capacity)
    loop = OrchestrationLoop(scheduler, launcher, SystemClock(), EventHub())
    launcher.wake = loop.wake
    return loop


@pytest.fixture
def quick_switching():
    """Make races likely: threads take turns after microseconds."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def submit_from_threads(loop, threads, count):
    """Submit `count` requests from each thread; return the threads and the list of refusals."""
    barrier = threading.Barrier(threads)
    refused = []

    def work(offset):
        barrier.wait()
        for number in range(offset, offset + count):
            try:
                loop.submit(ExecutionRequest(number, "m", 0, priority=number % 3))
            except (QueueFullError, RuntimeStoppedError) as error:
                refused.append(error)

    workers = [threading.Thread(target=work, args=(index * count,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    return workers, refused


@pytest.mark.usefixtures("quick_switching")
def test_ten_thousand_requests_from_four_threads_each_end_once():
    launcher = InstantLauncher()
    loop = make_threaded_loop(launcher)
    loop.start()
    workers, refused = submit_from_threads(loop, 4, 2500)
    for worker in workers:
        worker.join()
    assert loop.stop()
    assert refused == []
    assert launcher.states == {"completed": 10_000}
    assert set(launcher.finished.values()) == {1}
    assert loop.is_idle


@pytest.mark.usefixtures("quick_switching")
@pytest.mark.parametrize("drain", [True, False])
@pytest.mark.parametrize("queue_capacity", [3, 100_000])
def test_stopping_while_busy_loses_nobody(drain, queue_capacity):
    launcher = InstantLauncher()
    loop = make_threaded_loop(launcher, queue_capacity)
    loop.start()
    workers, refused = submit_from_threads(loop, 4, 500)
    loop.stop(drain=drain)
    for worker in workers:
        worker.join()
    assert sum(launcher.states.values()) + len(refused) == 2000
    assert set(launcher.finished.values()) <= {1}
    assert loop.is_idle
    if drain:
        assert set(launcher.states) <= {"completed"}


@pytest.mark.usefixtures("quick_switching")
def test_a_fatal_error_while_busy_loses_nobody():
    class Breaks(InstantLauncher):
        def launch(self, request, segment, stream):
            if request.request_id == 300:
                raise DeviceLostError("gone")
            super().launch(request, segment, stream)

    launcher = Breaks()
    loop = make_threaded_loop(launcher)
    loop.start()
    workers, refused = submit_from_threads(loop, 4, 500)
    for worker in workers:
        worker.join()
    loop.stop()
    assert isinstance(loop.fatal_error, DeviceLostError)
    assert sum(launcher.states.values()) + len(refused) == 2000
    assert {type(error) for error in refused} <= {RuntimeStoppedError}
    assert set(launcher.finished.values()) <= {1}


def test_a_callback_may_submit_cancel_and_stop():
    class Again(InstantLauncher):
        def finish(self, request, state, error):
            super().finish(request, state, error)
            if request.request_id < 5:
                loop.submit(ExecutionRequest(request.request_id + 1, "m", 0))
                loop.cancel(request.request_id)
            else:
                loop.stop()

    launcher = Again()
    loop = make_threaded_loop(launcher)
    loop.start()
    loop.submit(ExecutionRequest(1, "m", 0))
    loop._thread.join(timeout=60)
    assert not loop._thread.is_alive()
    assert launcher.states == {"completed": 5}


def test_the_thread_has_a_name_and_ends_with_the_context():
    launcher = InstantLauncher()
    with make_threaded_loop(launcher) as loop:
        assert "aegis-orchestration" in {thread.name for thread in threading.enumerate()}
        loop.submit(ExecutionRequest(1, "m", 0))
    assert "aegis-orchestration" not in {thread.name for thread in threading.enumerate()}
    assert sum(launcher.states.values()) == 1


def test_a_finished_request_is_let_go():
    bench = Bench()
    bench.submit(987_654_321)
    bench.loop.stop()

    def is_alive():
        gc.collect()
        objects = [each for each in gc.get_objects() if isinstance(each, ExecutionRequest)]
        return 987_654_321 in [each.request_id for each in objects]

    assert is_alive()
    bench.launcher.finished.clear()
    assert not is_alive()
