"""Whole decision logs, compared byte for byte.

Run with --rewrite-golden to write them anew; then read the difference.
"""

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from aegis_pipe.errors import QueueFullError
from aegis_pipe.events import DecisionMade, EventHub
from aegis_pipe.scheduling import (
    ExecutionRequest,
    OrchestrationLoop,
    Scheduler,
    StreamPool,
    format_decision,
    make_policy,
)
from aegis_pipe.testing.simulated_launcher import (
    SimulatedLauncher,
    durations_by_model,
    simulate,
)
from aegis_pipe.testing.virtual_clock import VirtualClock

GOLDEN = Path(__file__).parents[1] / "golden" / "decisions"
MS = 1_000_000
DURATIONS = durations_by_model(
    {"detector": [2 * MS, 3 * MS], "tracker": [1 * MS], "report": [4 * MS, 4 * MS, 4 * MS]}
)
SEGMENTS = {"detector": 2, "tracker": 1, "report": 3}
PRIORITIES = {"detector": 5, "tracker": 9, "report": 0}

SCENARIOS = {
    "fifo": ("fifo", {}, {"streams": 2}),
    "priority": ("priority", {}, {"streams": 2}),
    "priority_ageing": ("priority", {"ageing_ns": 2 * MS}, {"streams": 1}),
    "priority_preemption": ("priority", {}, {"streams": 1, "preemption": True}),
    "confined_and_late": (
        "priority",
        {},
        {"streams": 2, "allowed": {"report": [1]}, "late": {"detector": "run"}},
    ),
}


def make_scheduler(scenario):
    policy, options, settings = SCENARIOS[scenario]
    settings = dict(settings)
    streams = StreamPool(settings.pop("streams"), allowed=settings.pop("allowed", None))
    return Scheduler(make_policy(policy, **options), streams, queue_capacity=6, **settings)


def make_arrivals(count=24, seed=7):
    dice, now_ns, arrivals = random.Random(seed), 0, []
    for number in range(count):
        now_ns += dice.randrange(3 * MS)
        model = dice.choice(sorted(SEGMENTS))
        arrivals.append(
            ExecutionRequest(
                number,
                model,
                now_ns,
                segment_count=SEGMENTS[model],
                priority=PRIORITIES[model],
                deadline_ns=now_ns + 9 * MS if model != "report" else None,
            )
        )
    return arrivals


def decision_log(scenario):
    result = simulate(make_scheduler(scenario), make_arrivals(), DURATIONS)
    return "".join(f"{format_decision(decision)}\n" for decision in result.decisions)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_golden_decision_log(scenario, rewrite_golden):
    path = GOLDEN / f"{scenario}.jsonl"
    log = decision_log(scenario)
    if rewrite_golden:
        path.write_text(log, encoding="utf-8")
    assert log == path.read_text(encoding="utf-8")


def test_every_golden_log_has_a_scenario_and_together_they_show_every_kind():
    logs = {path.stem: path.read_text(encoding="utf-8") for path in GOLDEN.glob("*.jsonl")}
    assert set(logs) == set(SCENARIOS)
    for kind in ("start", "continue", "expire", "reject"):
        assert any(f'"kind":"{kind}"' in log for log in logs.values()), kind


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_loop_decides_what_the_simulation_decides(scenario):
    """The thread's own code, on a virtual clock, gives the same decisions at the same times."""
    clock, seen = VirtualClock(), []
    launcher = SimulatedLauncher(clock, DURATIONS)

    def note(event):
        if isinstance(event, DecisionMade):
            seen.append((event.sequence, event.start_ns, *event[3:6], *event[7:]))

    loop = OrchestrationLoop(make_scheduler(scenario), launcher, clock, EventHub(note))
    launcher.notify = loop.wake
    arrivals = make_arrivals()

    def submit(request):
        # The queue lets one in when it has a place, whatever the loop is about to take out; in
        # the simulation, too, arrivals come before decisions.
        with contextlib.suppress(QueueFullError):
            loop.submit(request)

    for request in arrivals:
        clock.call_at(request.arrival_ns, lambda request=request: submit(request))
    clock.call_at(arrivals[-1].arrival_ns, loop._scheduler.queue.close)
    while not (clock.next_call_ns() is None and loop.is_idle):
        loop.step()
        if not (clock.next_call_ns() is None and loop.is_idle):
            clock.wait_until(loop._next_wake_ns(), loop._wake)
    expected = simulate(make_scheduler(scenario), make_arrivals(), DURATIONS).decisions
    assert seen == [
        (each.sequence, each.at_ns, each.kind, each.request_id, each.model, each.reason,
         each.stream, each.queue_depth, each.candidates, each.blocked_by)
        for each in expected
    ]  # fmt: skip


_PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
import test_golden_decisions as golden
sys.stdout.write("".join(golden.decision_log(scenario) for scenario in golden.SCENARIOS))
"""


def test_logs_are_the_same_bytes_in_twenty_processes():
    """Whatever the seed of Python's hashes."""
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    logs = {
        subprocess.run(
            [sys.executable, "-c", _PROGRAM, *paths],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in range(20)
    }
    assert logs == {"".join(map(decision_log, SCENARIOS)).encode()}


def test_a_run_can_be_stopped_in_time():
    scheduler = make_scheduler("fifo")
    result = simulate(scheduler, make_arrivals(), DURATIONS, until_ns=10 * MS)
    assert result.end_ns <= 10 * MS
    assert not scheduler.is_idle
    assert all(decision.at_ns <= 10 * MS for decision in result.decisions)
