"""Simulated loads: whole runs pinned by their journals, and what makes a prediction true."""

import json
from pathlib import Path

import pytest

from aegis_pipe.analysis.execution_times import MeasuredTimes, ModelTimes
from aegis_pipe.analysis.simulation import (
    Load,
    Loads,
    StageLoad,
    Tally,
    fixed_times,
    periodic,
    poisson,
    run,
)
from aegis_pipe.scheduling import Batching, ExecutionRequest, Scheduler, StreamPool, make_policy
from aegis_pipe.scheduling.recording import Journal

GOLDEN = Path(__file__).parents[1] / "golden" / "simulated_runs.json"
MS = 1_000_000
MODELS = ("urgent", "pair", "bulk")
SEGMENTS = {"urgent": 1, "pair": 2, "bulk": 3}
SCENARIOS = {
    "fifo": ("fifo", {}, {"streams": 2}),
    "fairness": ("fairness", {"weights": {"urgent": 3.0}}, {"streams": 2}),
    "edf": ("edf", {}, {"streams": 1, "preemption": True}),
    "priority": ("priority", {"ageing_ns": 5 * MS}, {"streams": 1, "preemption": True}),
    "confined": (
        "priority",
        {},
        {"streams": 3, "preemption": True, "allowed": {"bulk": [0]}, "concurrency": {"pair": 1}},
    ),
    "batching": (
        "edf",
        {},
        {"streams": 2, "in_flight": 2, "batching": {"pair": Batching({1: 2, 2: 2, 4: 2}, MS)}},
    ),
    "early refusals": ("fifo", {}, {"streams": 1, "needed_ns": {"urgent": MS // 4}}),
}  # fmt: skip


def scheduler_of(scenario, explains=True):
    policy, options, settings = SCENARIOS[scenario]
    settings = dict(settings)
    streams = StreamPool(settings.pop("streams"), allowed=settings.pop("allowed", None))
    return Scheduler(
        make_policy(policy, **options), streams, queue_capacity=8, explains=explains, **settings
    )


def loads():
    """An urgent model, a pipeline of two stages behind a bounded edge, and a bulk load."""
    urgent = StageLoad("urgent", "urgent", 1, 3, deadline_ns=2 * MS, wakes_ns=(15_000, 40_000))
    first = StageLoad("first", "pair", 2, 1, wakes_ns=(20_000,))
    second = StageLoad("second", "urgent", 1, 2, after=("first",), host_ns=(90_000, 120_000))
    bulk = StageLoad("bulk", "bulk", 3, 0)
    return [
        Load("urgent", (urgent,), poisson(600.0, 5)),
        Load("pipeline", (first, second), periodic(3 * MS), window=3, deadline_ns=12 * MS),
        Load("bulk", (bulk,), poisson(250.0, 7), window=2, drops=True),
    ]


def times():
    medians_ns = {"urgent": (400_000,), "pair": (300_000, 500_000), "bulk": (500_000,) * 3}
    return MeasuredTimes(
        {
            model: ModelTimes(
                each,
                tuple(range(sum(each) * 9 // 10, sum(each) * 13 // 10, 997)),
                tuple(range(sum(each), sum(each) * 2, 1999)) if model == "urgent" else (),
                (),
                {"bulk": tuple(range(sum(each), sum(each) * 2, 2999))} if model == "pair" else {},
            )
            for model, each in medians_ns.items()
        },
        seed=3,
    )


def simulated(scenario, explains=True):
    journal, tally, refused, decided = Journal(), Tally(MODELS), [], []
    scheduler = scheduler_of(scenario, explains)
    admit = scheduler.admit

    def note_refusals(request, now_ns):
        refusal = admit(request, now_ns)
        if refusal is not None:
            refused.append(refusal)
        return refusal

    scheduler.admit = note_refusals
    run(
        scheduler,
        Loads(loads(), 1),
        times(),
        until_ns=400 * MS,
        on_decisions=decided.extend,
        on_finished=tally,
    )
    journal.add([*decided, *refused])
    return {
        "journal": journal.digest().hex(),
        "models": {
            each.model: [
                each.submitted, each.completed, each.misses, each.p50_ns, each.p99_ns,
                each.longest_ns,
            ]
            for each in tally.predictions()
        },
    }  # fmt: skip


def test_whole_runs_are_decided_as_ever(rewrite_golden):
    runs = {scenario: simulated(scenario) for scenario in SCENARIOS}
    if rewrite_golden:
        GOLDEN.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
    assert runs == json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert len({each["journal"] for each in runs.values()}) == len(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_decided_does_not_hang_on_whether_it_is_explained(scenario):
    explained, plain = simulated(scenario), simulated(scenario, explains=False)
    assert explained["journal"] != plain["journal"]
    assert explained["models"] == plain["models"]


@pytest.mark.parametrize("drops", [False, True])
def test_an_item_neither_begins_nor_is_dropped_before_it_arrives(drops):
    """The one before leaves in time, so that the bounded edge never matters."""
    load = Load("m", (StageLoad("m", "m", 1, 0),), periodic(1000), window=1, drops=drops)
    workload, spans = Loads([load], 1), []
    run(
        Scheduler(make_policy("fifo"), StreamPool(1), queue_capacity=4),
        workload,
        fixed_times({"m": (500,)}),
        until_ns=4_600,
        on_finished=lambda request: spans.append((request.arrival_ns, request.finished_ns)),
    )
    assert spans == [(start_ns, start_ns + 500) for start_ns in range(0, 5_000, 1_000)]
    assert workload.dropped == {"m": 0}


def test_an_item_that_finds_no_room_waits_for_one_to_leave_or_is_dropped():
    spans = {}
    for drops in (False, True):
        load = Load("m", (StageLoad("m", "m", 1, 0),), periodic(1000), window=1, drops=drops)
        workload, spans[drops] = Loads([load], 1), []
        run(
            Scheduler(make_policy("fifo"), StreamPool(1), queue_capacity=4),
            workload,
            fixed_times({"m": (1_500,)}),
            until_ns=4_600,
            on_finished=lambda request, seen=spans[drops]: seen.append(request.arrival_ns),
        )
    assert spans == {False: [0, 1_500, 3_000], True: [0, 2_000]}


def test_a_stage_inherits_what_is_left_of_its_items_deadline():
    first = StageLoad("first", "a", 1, 0, deadline_ns=9)
    second = StageLoad("second", "b", 1, 0, after=("first",), host_ns=(30,))
    load = Load("items", (first, second), periodic(1_000), deadline_ns=400)
    ended = []
    run(
        Scheduler(make_policy("fifo"), StreamPool(1), queue_capacity=4),
        Loads([load], 1),
        fixed_times({"a": (250,), "b": (200,)}),
        until_ns=1_600,
        on_finished=lambda request: ended.append(
            (request.model, request.arrival_ns, request.deadline_ns, str(request.state))
        ),
    )
    assert ended == [
        ("a", 0, 400, "completed"),
        ("b", 280, 400, "expired"),
        ("a", 1_000, 1_400, "completed"),
        ("b", 1_280, 1_400, "expired"),
    ]


def test_a_batch_keeps_its_luck_when_its_leader_leaves_it():
    times_ns = MeasuredTimes({"m": ModelTimes((100, 300), tuple(range(400, 4_000, 7)))}, seed=2)
    leader, other = (ExecutionRequest(n, "m", 0, 2, stream=0, batch_size=2) for n in (1, 2))
    leader.companions, other.leader = (other,), leader
    first_ns = times_ns(leader, 0, ())
    leader.companions, other.leader = (), None
    other.launched_ns = first_ns
    assert times_ns(other, 1, ()) == pytest.approx(3 * first_ns, abs=2)
