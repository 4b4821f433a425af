"""Random sequences of facts, checked against a model that knows only the rules."""

from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aegis_pipe.scheduling import (
    ExecutionRequest,
    RequestState,
    Scheduler,
    StreamPool,
    make_policy,
)
from aegis_pipe.testing.simulated_launcher import simulate

MODELS = ("a", "b", "confined", "late")
CAPACITY = 5


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from([("priority", {}), ("priority", {"ageing_ns": 20}), ("fifo", {})]),
        streams=st.integers(1, 3),
        preemption=st.booleans(),
    )
    def build(self, policy, streams, preemption):
        name, options = policy
        self.preemption = preemption
        self.scheduler = Scheduler(
            make_policy(name, **options),
            StreamPool(streams, allowed={"confined": [0]}),
            queue_capacity=CAPACITY,
            model_capacity={"b": 2},
            late={"late": "run"},
            preemption=preemption,
        )
        self.now_ns = 0
        self.requests = []
        self.waiting = set()
        self.on_stream = {}
        self.next_segment = {}
        self.stacks = [[] for _ in range(streams)]
        self.cancelled = set()
        self.final = {}
        self.sequence = 0

    @rule(
        model=st.sampled_from(MODELS),
        priority=st.integers(0, 5),
        deadline=st.none() | st.integers(-1, 60),
        segments=st.integers(1, 3),
    )
    def submit(self, model, priority, deadline, segments):
        request = ExecutionRequest(
            request_id=len(self.requests),
            model=model,
            arrival_ns=self.now_ns,
            segment_count=segments,
            priority=priority,
            deadline_ns=None if deadline is None else self.now_ns + deadline,
        )
        self.requests.append(request)
        waiting_b = sum(self.requests[number].model == "b" for number in self.waiting)
        is_full = len(self.waiting) == CAPACITY or (model == "b" and waiting_b == 2)
        refusal = self.scheduler.submit(request, self.now_ns)
        assert (refusal is not None) == is_full
        if refusal is None:
            self.waiting.add(request.request_id)
        else:
            assert refusal.sequence == self.sequence
            self.sequence += 1
            self.final[request.request_id] = RequestState.REJECTED

    @rule(data=st.data())
    def cancel(self, data):
        if self.requests:
            number = data.draw(st.integers(0, len(self.requests) - 1))
            assert self.scheduler.cancel(number) == (number not in self.final)
            self.cancelled.add(number)

    @rule(data=st.data(), error=st.sampled_from([None, None, None, ValueError("segment")]))
    def finish_a_segment(self, data, error):
        if self.on_stream:
            stream = data.draw(st.sampled_from(sorted(self.on_stream)))
            number = self.on_stream.pop(stream)
            self.scheduler.segment_finished(number, self.now_ns, error)
            self.note_finished()

    @rule()
    def finish_all_segments(self):
        for stream in sorted(self.on_stream):
            self.scheduler.segment_finished(self.on_stream.pop(stream), self.now_ns)
        self.note_finished()

    @rule(duration_ns=st.integers(0, 9))
    def decide(self, duration_ns):
        self.now_ns += duration_ns
        for decision in self.scheduler.decide(self.now_ns):
            assert decision.sequence == self.sequence
            self.sequence += 1
            self.obey(decision)
        self.note_finished()
        for number in self.waiting:
            self.check_had_to_wait(self.requests[number])

    def obey(self, decision):
        number, stream = decision.request_id, decision.stream
        if decision.kind in ("expire", "cancel") and stream >= 0:
            self.stacks[stream].remove(number)
        if decision.kind == "start":
            assert decision.queue_depth >= len(decision.candidates)
            assert decision.candidates[0][0] == number
            self.waiting.remove(number)
            self.stacks[stream].append(number)
            self.next_segment[number] = 0
            self.check_models_apart(stream)
        if decision.segment >= 0:
            assert stream not in self.on_stream, "two requests on one stream"
            assert self.stacks[stream][-1] == number, "not the one whose turn it is"
            assert decision.segment == self.next_segment[number]
            assert stream == 0 or self.requests[number].model != "confined"
            self.next_segment[number] += 1
            self.on_stream[stream] = number

    def check_models_apart(self, stream):
        models = [self.requests[number].model for number in self.stacks[stream]]
        assert len(set(models)) == len(models), "two requests of a model share its memory"
        assert self.preemption or len(models) == 1

    def check_had_to_wait(self, request):
        usable = self.stacks[:1] if request.model == "confined" else self.stacks
        assert all(usable), "waits beside a free stream"
        if request.deadline_ns is not None and request.model != "late":
            assert self.now_ns < request.deadline_ns, "should have expired"

    def note_finished(self):
        for request in self.scheduler.take_finished():
            assert request.state.is_final
            assert request.request_id not in self.final, "finished twice"
            if request.request_id in self.cancelled:
                assert request.state is not RequestState.COMPLETED
            self.final[request.request_id] = request.state
            self.waiting.discard(request.request_id)
            for stack in self.stacks:
                if request.request_id in stack:
                    stack.remove(request.request_id)

    @invariant()
    def adds_up(self):
        statistics = self.scheduler.statistics()
        open_now = statistics.waiting + statistics.running + statistics.paused
        assert open_now + statistics.suspended + len(self.final) == len(self.requests)
        assert statistics.waiting <= CAPACITY
        assert statistics.running == len(self.on_stream)

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10 * len(self.requests) + 1):
            self.finish_all_segments()
            self.decide(1)
        assert self.scheduler.is_idle
        for request in self.requests:
            assert self.final[request.request_id] is request.state
            if request.state is RequestState.COMPLETED:
                assert self.next_segment[request.request_id] == request.segment_count


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)


@settings(max_examples=150, deadline=None)
@given(
    ageing_ns=st.integers(1, 50),
    streams=st.integers(1, 3),
    requests=st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 6), st.integers(1, 40)), max_size=40
    ),
)
def test_ageing_bounds_who_can_go_before(ageing_ns, streams, requests):
    """Only requests that arrive within `ageing_ns` per level of difference can go first."""
    arrivals = [
        ExecutionRequest(number, "m", arrival_ns, priority=priority)
        for number, (arrival_ns, priority, _) in enumerate(requests)
    ]
    scheduler = Scheduler(
        make_policy("priority", ageing_ns=ageing_ns), StreamPool(streams), queue_capacity=100
    )
    result = simulate(scheduler, arrivals, lambda request, _: requests[request.request_id][2])
    assert len(result.finished) == len(arrivals)
    for decision in result.decisions:
        winner = arrivals[decision.request_id]
        for loser in arrivals:
            if loser.arrival_ns <= decision.at_ns < loser.started_ns:
                levels = winner.priority - loser.priority
                assert winner.arrival_ns <= loser.arrival_ns + ageing_ns * levels
