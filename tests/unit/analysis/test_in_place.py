"""Times taken from a running deployment: who held a stream for how long, and in which order."""

import itertools
import json
from dataclasses import replace

import pytest

from aegis_pipe.analysis.execution_times import (
    RUN_OF_LUCK,
    MeasuredTimes,
    ModelTimes,
    ranks_in_runs,
)
from aegis_pipe.analysis.in_place import (
    ENOUGH,
    IDLE,
    IDLE_NS,
    REST_NS,
    RESTED,
    UPON,
    Hold,
    RequestTrace,
    holds_of,
    in_place_times,
)
from aegis_pipe.analysis.profile import (
    FORMAT,
    Fingerprint,
    Profile,
    covering,
    model_profile,
    profile_text,
    read_profile,
)
from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling import ExecutionRequest

FINGERPRINT = Fingerprint({}, "cpu", {}, 1, 1, 1_000_000)


def trace(model, *edges_ns, stream=0, complete=True):
    return RequestTrace(model, stream, tuple(edges_ns[:-1]), edges_ns[-1], complete)


def measured(*totals_ns):
    rows = [(each // 4, each - each // 4) for each in totals_ns]
    return model_profile("m", rows, rows, rows, [1], (1,), (5, 5), 0.9, 0.9)


def test_a_request_holds_its_stream_but_not_while_an_urgent_one_is_let_in():
    long = trace("long", 100, 140, 260, 300)
    urgent = trace("urgent", 180, 210, 260)
    holds = holds_of([urgent, long])
    assert [(each.hold, each.segments_ns) for each in holds] == [
        (Hold("long", IDLE, 120), (40, 40, 40)),
        (Hold("urgent", RESTED, 80), (30, 50)),
    ]


def test_what_a_stream_did_before_is_told_apart():
    first_ns = [0]
    for rest_ns in (0, REST_NS - 1, REST_NS, IDLE_NS):
        first_ns.append(first_ns[-1] + 50 + rest_ns)
    traces = [trace("m", start_ns, start_ns + 50) for start_ns in first_ns]
    traces.append(trace("other", first_ns[-1] + 50, first_ns[-1] + 60))
    assert [each.hold.before for each in holds_of(traces)] == [
        IDLE, UPON, UPON, RESTED, IDLE, RESTED,
    ]  # fmt: skip


def test_requests_that_failed_are_not_counted_though_they_held_the_stream():
    traces = [trace("m", 0, 40), trace("bad", 40, 90, complete=False), trace("m", 90, 120)]
    assert [each.hold for each in holds_of(traces)] == [
        Hold("m", IDLE, 40),
        Hold("m", RESTED, 30),
    ]


def test_requests_beside_another_streams_are_told():
    traces = [
        trace("a", 0, 100),
        trace("a", 100, 200),
        trace("b", 100, 120, stream=1),
        trace("b", 220, 240, stream=1),
    ]
    assert [each.was_beside for each in holds_of(traces)] == [False, True, True, False]


def test_distributions_in_place_need_enough_times():
    idle = [Hold("m", IDLE, 1_000 + number) for number in range(ENOUGH - 2)]
    assert in_place_times(idle) == ({}, ())
    # Of rests there are too few alone, so that all count for them.
    rested = [Hold("m", RESTED, 10), Hold("m", RESTED, 20)]
    totals_ns = in_place_times([*idle, *rested]).totals_ns["m"]
    every = tuple(sorted(hold.total_ns for hold in [*idle, *rested]))
    assert totals_ns == (every, every, every)
    more = [Hold("m", RESTED, 30)] * ENOUGH
    totals_ns = in_place_times([*idle, *rested, *more]).totals_ns["m"]
    assert totals_ns[RESTED] == (10, 20, *[30] * ENOUGH)
    assert len(totals_ns[IDLE]) == len(idle) + len(rested) + len(more)


def test_ranks_are_those_of_requests_in_their_own_distribution_in_order():
    slow = [Hold("slow", IDLE, 1_000 * (number % 4 + 1)) for number in range(ENOUGH)]
    quick = [Hold("quick", IDLE, number) for number in reversed(range(ENOUGH))]
    rare = [Hold("rare", IDLE, 5)] * 3
    mixed = [*itertools.chain(*zip(slow, quick, strict=True)), *rare]
    ranks = in_place_times(mixed).ranks
    assert len(ranks) == 2 * ENOUGH
    assert ranks[1::2] == tuple(number / ENOUGH for number in reversed(range(ENOUGH)))
    assert ranks[:8:2] == (0.0, 0.25, 0.5, 0.75)


def test_luck_lasts_as_long_as_it_was_measured_to():
    ranks = [number / 1_000 for number in range(1_000)]
    places = iter([0.9, 0.1])
    drawn = list(itertools.islice(ranks_in_runs(ranks, lambda: next(places)), 2 * RUN_OF_LUCK))
    assert drawn == [
        *[number % 1_000 / 1_000 for number in range(900, 900 + RUN_OF_LUCK)],
        *[number / 1_000 for number in range(100, 100 + RUN_OF_LUCK)],
    ]


def test_simulated_requests_take_measured_times_in_their_order():
    totals_ns = [300, 310, 500, 510, 520, 305] * ENOUGH
    times = in_place_times(Hold("m", UPON, total_ns) for total_ns in totals_ns)
    drawn_from = MeasuredTimes({"m": ModelTimes((1,), *times.totals_ns["m"])}, 3, times.ranks)
    lasted = [
        drawn_from(ExecutionRequest(number, "m", 0, 1, stream=0, launched_ns=0), 0, ())
        for number in range(RUN_OF_LUCK)
    ]
    starts = [totals_ns[shift:] for shift in range(6)]
    assert lasted in [start[:RUN_OF_LUCK] for start in starts]


def test_bounds_cover_what_was_slower_in_place_and_claim_no_more_than_before():
    profile = measured(*range(400, 1_400, 10))
    slower = covering(profile, [(1_000, 300), (90, 2_000)])
    assert [each.bound_ns for each in slower.segments] == [1_000, 2_000]
    assert slower.total == profile.total._replace(bound_ns=2_090)
    assert covering(profile, [(1, 2)]) == profile
    assert covering(profile, []) == profile


def test_a_profile_is_read_as_it_was_written_and_an_older_one_is_refused():
    holds = (Hold("m", IDLE, 700), Hold("m", UPON, 500))
    profile = Profile(FINGERPRINT, 0.9, 0.9, {"m": measured(500, 900)}, in_place=holds)
    text = profile_text(profile)
    assert read_profile(text, "here") == profile
    assert read_profile(profile_text(replace(profile, in_place=())), "here").in_place == ()
    older = json.loads(text) | {"format": FORMAT - 1}
    with pytest.raises(PermanentError, match="of another version") as caught:
        read_profile(json.dumps(older), "here")
    assert "aegis-pipe profile" in str(caught.value.hint)
