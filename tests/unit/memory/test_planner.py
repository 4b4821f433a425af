import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings, strategies as st

from aegis_pipe.errors import InvalidLifetimeError, PermanentError
from aegis_pipe.memory import MemoryPlanner, TensorLifetime, check_lifetimes, search
from aegis_pipe.memory.native import LIBRARY
from aegis_pipe.memory.orders import GREEDY_ORDERS, conflict_weight, contention, greedy_order
from aegis_pipe.memory.packing import (
    NativePlacer,
    NeighbourPlacer,
    PackingProblem,
    SweepPlacer,
)
from aegis_pipe.testing.virtual_clock import VirtualClock
from tests.unit.memory.instances import lifetimes


def planner(**options):
    """Count work only: a clock that stands still cuts nothing off."""
    return MemoryPlanner(**{"time_limit_s": 0.02, "clock": VirtualClock(), **options})


@given(lifetimes())
def test_every_plan_is_valid_and_not_below_the_bound(tensors):
    plan = planner().plan(tensors)
    assert check_lifetimes(tensors, plan) == []
    assert list(plan.offsets) == [each.tensor_id for each in tensors]
    ends = [plan.offsets[each.tensor_id] + each.size_bytes for each in tensors if each.size_bytes]
    assert plan.peak_bytes == max(ends, default=0)
    assert plan.lower_bound_bytes <= plan.peak_bytes
    assert plan.optimal == (plan.gap == 0.0)


@given(lifetimes(max_count=5))
def test_the_bound_is_a_bound(tensors):
    # First fit over all orders finds an optimum: place by offset in an optimal plan.
    problem = PackingProblem.build(tensors)
    placer = NeighbourPlacer(problem)
    optimum = min(
        max(map(int.__add__, placer.place(order, None), problem.sizes.tolist()), default=0)
        for order in itertools.permutations(range(len(problem)))
    )
    plan = planner().plan(tensors)
    assert plan.lower_bound_bytes <= optimum <= plan.peak_bytes


@given(lifetimes(), st.randoms(use_true_random=False), st.integers(-50, 50), st.integers(1, 3))
def test_the_peak_depends_on_nothing_but_the_problem(tensors, shuffler, shift, stretch):
    shuffled = [
        TensorLifetime(
            ("renamed", each.tensor_id),
            each.size_bytes,
            each.first * stretch + shift,
            each.end * stretch + shift,
            each.alignment_bytes,
        )
        for each in tensors
    ]
    shuffler.shuffle(shuffled)
    plan, other = planner().plan(tensors), planner().plan(shuffled)
    assert (plan.peak_bytes, plan.lower_bound_bytes) == (other.peak_bytes, other.lower_bound_bytes)
    assert sorted(plan.offsets.values()) == sorted(other.offsets.values())


def placers(problem):
    made = [NeighbourPlacer(problem), SweepPlacer(problem)]
    return made if LIBRARY is None else [*made, NativePlacer(problem, LIBRARY)]


@given(lifetimes())
def test_all_placers_agree_in_every_order_and_count_alike(tensors):
    problem = PackingProblem.build(tensors)
    for name in GREEDY_ORDERS if len(problem) else ():
        order = greedy_order(problem, name)
        assert sorted(order) == list(range(len(problem)))
        expected = NeighbourPlacer(problem).place(order, None)
        peak = max(map(int.__add__, expected, problem.sizes.tolist()))
        for placer in placers(problem):
            assert placer.place(order, None) == expected
            assert placer.place(order, peak) == expected
            assert placer.place(order, peak - 1) is None
        assert len({placer.work for placer in placers(problem)}) == 1


@pytest.mark.skipif(LIBRARY is None, reason="the placer is not compiled")
@given(lifetimes(), st.data())
def test_the_compiled_placer_leaves_fixed_tensors_where_they_are(tensors, data):
    tensors = [
        dataclasses.replace(each, offset_bytes=4096 * number * each.alignment_bytes)
        if data.draw(st.booleans())
        else each
        for number, each in enumerate(tensors)
    ]
    problem = PackingProblem.build(tensors)
    order = list(range(len(problem)))
    expected = NeighbourPlacer(problem).place(order, None)
    assert NativePlacer(problem, LIBRARY).place(order, None) == expected


@given(lifetimes())
def test_figures_of_a_problem_match_their_definitions(tensors):
    problem = PackingProblem.build(tensors)

    def together(one, other):
        return one.first < other.end and other.first < one.end

    pairs = itertools.combinations(problem.lifetimes, 2)
    assert problem.neighbour_count == sum(together(*pair) for pair in pairs)
    moments = sorted({each.first for each in problem.lifetimes})
    live = {
        moment: sum(x.size_bytes for x in problem.lifetimes if x.first <= moment < x.end)
        for moment in moments
    }
    assert problem.live_bytes.tolist() == [live[moment] for moment in moments]
    assert contention(problem).tolist() == [
        max(live[moment] for moment in moments if x.first <= moment < x.end)
        for x in problem.lifetimes
    ]
    assert conflict_weight(problem).tolist() == [
        sum(y.size_bytes for y in problem.lifetimes if together(x, y)) for x in problem.lifetimes
    ]


def test_padding_that_alignment_forces_is_part_of_the_bound():
    tensors = [TensorLifetime(name, 100, 0, 1, 64) for name in "abc"]
    plan = planner().plan(tensors)
    assert plan.lower_bound_bytes == 128 + 128 + 100
    assert plan.optimal


def test_padding_of_what_is_no_longer_alive_does_not_weaken_the_bound():
    tensors = [TensorLifetime("dead", 1, 0, 1, 64)]
    tensors += [TensorLifetime(name, 120, 1, 2, 64) for name in "ab"]
    plan = planner().plan(tensors)
    assert plan.lower_bound_bytes == 128 + 120
    assert plan.optimal


def test_a_gap_below_the_first_buffer_is_used():
    tensors = [
        TensorLifetime("wide", 50, 0, 2),
        TensorLifetime("tall", 100, 1, 3),
        TensorLifetime("late", 50, 2, 4),
    ]
    assert planner().plan(tensors).peak_bytes == 150


NEEDS_SEARCH = [  # size, first, end: no greedy order packs these into the bound
    (8, 8, 15), (9, 11, 20), (11, 5, 11), (12, 13, 14), (6, 10, 17),
    (9, 10, 12), (19, 0, 9), (10, 3, 7), (5, 2, 4),
]  # fmt: skip


def needing_search():
    return [TensorLifetime(str(i), *each) for i, each in enumerate(NEEDS_SEARCH)]


def test_searching_improves_what_greedy_finds(monkeypatch):
    plan = MemoryPlanner().plan(needing_search())
    assert (plan.optimal, plan.algorithm) == (True, "exact search")
    monkeypatch.setattr("aegis_pipe.memory.planner.STRATEGIES", (search.greedy, search.hill_climb))
    plan = MemoryPlanner().plan(needing_search())
    assert (plan.optimal, plan.algorithm) == (True, "hill climbing")
    monkeypatch.setattr("aegis_pipe.memory.planner.STRATEGIES", (search.greedy,))
    assert MemoryPlanner().plan(needing_search()).gap == pytest.approx(0.1)


def test_a_plan_that_is_only_as_good_replaces_nothing_unless_asked_to():
    problem = PackingProblem.build([TensorLifetime("a", 4, 0, 1), TensorLifetime("b", 4, 0, 1)])
    searching = search.Search(problem, target_bytes=0, work=1000)
    assert searching.try_order([0, 1], "first")
    assert not searching.try_order([1, 0], "second")
    assert searching.offsets == [0, 4]
    assert searching.try_order([1, 0], "second", keep_ties=True)
    assert (searching.offsets, searching.algorithm) == ([4, 0], "first")


def test_without_time_there_is_still_a_plan():
    plan = planner(time_limit_s=0).plan(needing_search())
    assert check_lifetimes(needing_search(), plan) == []
    assert plan.algorithm == "greedy by size"


def test_it_stops_at_the_first_plan_that_fits():
    first = planner(time_limit_s=0).plan(needing_search())
    roomy = MemoryPlanner(capacity_bytes=first.peak_bytes).plan(needing_search())
    assert roomy == first
    tight = MemoryPlanner(capacity_bytes=1).plan(needing_search())
    assert tight.peak_bytes == MemoryPlanner().plan(needing_search()).peak_bytes


def test_a_strategy_may_prove_a_better_bound(monkeypatch):
    def prove(searching):
        searching.lower_bound_bytes = searching.peak_bytes

    monkeypatch.setattr("aegis_pipe.memory.planner.STRATEGIES", (search.greedy, prove))
    assert MemoryPlanner().plan(needing_search()).optimal


class HurryingClock(VirtualClock):
    def now_ns(self):
        self.advance(1_000_000)
        return super().now_ns()


def test_a_plan_says_when_the_clock_cut_it_off():
    hard = needing_search()
    hurried = MemoryPlanner(time_limit_s=0.0045, clock=HurryingClock()).plan(hard)
    assert (hurried.cut_off, hurried.optimal) == (True, False)
    assert check_lifetimes(hard, hurried) == []
    assert not planner().plan(hard).cut_off


@given(lifetimes(gaps=True))
def test_gaps_are_kept_free_and_used(tensors):
    plan = planner().plan(tensors)
    assert check_lifetimes(tensors, plan) == []
    steps = range(-3, 40)

    def live(step):
        return sum(
            x.size_bytes
            for x in tensors
            if x.first <= step < x.end and not any(a <= step < b for a, b in x.gaps)
        )

    assert plan.lower_bound_bytes >= max((live(step) for step in steps), default=0)


def test_a_gap_is_room_for_another():
    kept = TensorLifetime("kept", 100, 0, 6, gaps=((2, 4),))
    guest = TensorLifetime("guest", 100, 2, 4)
    plan = planner().plan([kept, guest])
    assert (plan.peak_bytes, plan.optimal) == (100, True)
    longer = planner().plan([kept, TensorLifetime("guest", 100, 2, 5)])
    assert longer.peak_bytes == 200


@given(lifetimes(), st.data())
def test_fixed_offsets_stay(tensors, data):
    free = planner().plan(tensors)
    chosen = data.draw(st.sets(st.sampled_from([x.tensor_id for x in tensors]))) if tensors else ()
    fixed = [
        dataclasses.replace(x, offset_bytes=free.offsets[x.tensor_id])
        if x.tensor_id in chosen
        else x
        for x in tensors
    ]
    plan = planner().plan(fixed)
    assert check_lifetimes(fixed, plan) == []
    assert all(plan.offsets[each] == free.offsets[each] for each in chosen)


def test_fixed_offsets_that_clash_are_refused():
    with pytest.raises(InvalidLifetimeError, match="two fixed offsets clash"):
        planner().plan(
            [
                TensorLifetime("a", 10, 0, 2, offset_bytes=0),
                TensorLifetime("b", 10, 1, 3, offset_bytes=5),
            ]
        )


def test_nothing_needs_no_memory():
    plan = planner().plan([])
    assert (dict(plan.offsets), plan.peak_bytes, plan.optimal, plan.gap) == ({}, 0, True, 0.0)
    empty = planner().plan([TensorLifetime("scalar-less", 0, 3, 4)])
    assert (empty.offsets["scalar-less"], empty.peak_bytes, empty.optimal) == (0, 0, True)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (TensorLifetime("x", -1, 0, 1), "size_bytes is -1"),
        (TensorLifetime("x", 1, 2, 2), r"interval \[2, 2\) is empty"),
        (TensorLifetime("x", 1, 3, 2), r"interval \[3, 2\) is empty"),
        (TensorLifetime("x", 1, 0, 1, 0), "alignment_bytes is 0"),
        (TensorLifetime("x", 1, 0, 4, gaps=((0, 2),)), "do not ascend strictly inside"),
        (TensorLifetime("x", 1, 0, 4, 4, offset_bytes=6), "offset_bytes is 6"),
        (TensorLifetime("y", 1, 0, 1), "`y` has two lifetimes"),
        (TensorLifetime("x", 1 << 62, 0, 1), "more than 4 EiB"),
    ],
)
def test_impossible_lifetimes_are_refused_by_name(tensor, words):
    with pytest.raises(InvalidLifetimeError, match=words) as caught:
        planner().plan([TensorLifetime("y", 1, 0, 1), tensor])
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PermanentError)


HASH_SEED_SCRIPT = """
import json, random
from aegis_pipe.testing.virtual_clock import VirtualClock
from aegis_pipe.memory import MemoryPlanner, TensorLifetime
generator = random.Random(5)
tensors = []
for number in range(60):
    first = int(generator.random() * 40)
    size = int(generator.random() * 90) + 1
    tensors.append(TensorLifetime(f"t{number}", size, first, first + 1 + number % 9))
plan = MemoryPlanner(time_limit_s=0.05, clock=VirtualClock()).plan(tensors)
print(json.dumps([plan.peak_bytes, plan.algorithm, plan.offsets.copy()]))
"""


def test_the_same_plan_in_every_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", HASH_SEED_SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(outputs) == 1
    assert len(json.loads(outputs.pop())[2]) == 60


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_thousands_of_buffers(seed):
    generator = random.Random(seed)
    tensors = [
        TensorLifetime(
            i,
            generator.randrange(1, 10**6),
            first := generator.randrange(4000),
            first + generator.randrange(1, 900),
        )
        for i in range(3000)
    ]
    plan = planner().plan(tensors)
    assert check_lifetimes(tensors, plan) == []
    # A loose net, not the aim: greedy by size stays far below this on dense random instances.
    assert plan.gap < 0.2


def test_a_plan_says_what_it_is():
    assert str(planner().plan([TensorLifetime("x", 2048, 0, 1)])) == (
        "1 tensors in 2 KiB (optimal, greedy by size)"
    )


def test_sections_are_searched_one_by_one_whatever_they_are_together():
    # A hard section, many times over, each beside the next: too many buffers for one search.
    generator = random.Random(11)
    hard = [
        (generator.randrange(1, 40), first := generator.randrange(12), first + 1 + number % 5)
        for number in range(60)
    ]
    tensors = [
        TensorLifetime((copy, number), size, 20 * copy + first, 20 * copy + end)
        for copy in range(30)
        for number, (size, first, end) in enumerate(hard)
    ]
    problem = PackingProblem.build(tensors)
    assert [len(section) for section in problem.sections()] == [60] * 30
    alone = planner().plan(tensors[:60])
    together = planner().plan(tensors)
    assert check_lifetimes(tensors, together) == []
    assert alone.optimal
    assert together.peak_bytes == alone.peak_bytes
