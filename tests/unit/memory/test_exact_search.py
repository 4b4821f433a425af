import dataclasses
import functools
import itertools
import random

import numpy as np
import pytest

from aegis_pipe.memory import AllocationPlan, MemoryPlanner, TensorLifetime, check_lifetimes, native
from aegis_pipe.memory.canonical_search import (
    NativeCanonicalAttempt,
    PythonCanonicalAttempt,
    make_canonical_attempt,
)
from aegis_pipe.memory.exact_search import (
    NativeAttempt,
    Outcome,
    PythonAttempt,
    Restarts,
    luby,
    make_attempt,
)
from aegis_pipe.memory.native import LIBRARY
from aegis_pipe.memory.packing import NeighbourPlacer, PackingProblem
from aegis_pipe.memory.sections import Sections

compiled = pytest.mark.skipif(LIBRARY is None, reason="the search is not compiled")


def canonical(problem, *, totals_lead=False):
    return make_canonical_attempt(Sections(problem), totals_lead=totals_lead)


def interpreted_canonical(problem, *, totals_lead=False):
    return PythonCanonicalAttempt(Sections(problem), totals_lead=totals_lead)


def random_problem(seed, count, *, alignment=1, moments=12):
    generator = random.Random(seed)
    lifetimes = []
    for number in range(count):
        first = generator.randrange(moments)
        size = generator.randrange(1, 40)
        end = first + generator.randrange(1, moments // 2)
        lifetimes.append(TensorLifetime(number, size, first, end, alignment))
    return PackingProblem.build(lifetimes)


def optimum(problem):
    placer = NeighbourPlacer(problem)
    return min(
        max(map(int.__add__, placer.place(order, None), problem.sizes.tolist()))
        for order in itertools.permutations(range(len(problem)))
    )


def run_to_the_end(problem, capacity, make):
    restarts = Restarts(problem, attempt=make(problem))
    while (outcome := restarts.run(capacity)) is Outcome.GAVE_UP:
        pass
    return outcome, restarts.offsets


@pytest.mark.parametrize("make", [make_attempt, canonical])
@pytest.mark.parametrize("alignment", [1, 8])
@pytest.mark.parametrize("seed", range(60))
def test_it_finds_the_optimum_and_proves_that_less_is_impossible(seed, alignment, make):
    problem = random_problem(seed, 6, alignment=alignment)
    best = optimum(problem)
    outcome, offsets = run_to_the_end(problem, best, make)
    assert outcome is Outcome.FOUND
    assert max(map(int.__add__, offsets, problem.sizes.tolist())) <= best
    assert all(offset % alignment == 0 for offset in offsets)
    assert run_to_the_end(problem, best - 1, make)[0] is Outcome.NONE


def pairs(problem):
    """Every search, interpreted and compiled."""
    sections = Sections(problem)
    return {
        "exact": (PythonAttempt(problem), NativeAttempt(problem)),
        "canonical": (PythonCanonicalAttempt(sections), NativeCanonicalAttempt(sections)),
        "canonical, totals lead": (
            PythonCanonicalAttempt(sections, totals_lead=True),
            NativeCanonicalAttempt(sections, totals_lead=True),
        ),
    }


def assert_alike(problem, attempts, limit, capacity):
    searches = [Restarts(problem, attempt=each, first_limit=limit) for each in attempts]
    for _ in range(4):
        outcomes = [search.run(capacity) for search in searches]
        assert outcomes[0] == outcomes[1]
        assert searches[0].work == searches[1].work > 0
        assert outcomes[0] is not Outcome.FOUND or searches[0].offsets == searches[1].offsets
        for name in ("moment_weights", "buffer_weights"):
            np.testing.assert_array_equal(*(getattr(each, name) for each in attempts))


@compiled
@pytest.mark.parametrize("name", ["exact", "canonical", "canonical, totals lead"])
@pytest.mark.parametrize("seed", range(12))
def test_compiled_and_python_search_are_the_same(seed, name):
    problem = random_problem(seed, 30, alignment=(1, 4)[seed % 2], moments=20)
    limit = 500 if name == "exact" else 20_000
    assert_alike(problem, pairs(problem)[name], limit, problem.lower_bound_bytes)


@compiled
@pytest.mark.parametrize("name", ["canonical", "canonical, totals lead"])
@pytest.mark.parametrize("seed", range(12))
def test_they_are_the_same_with_gaps_and_fixed_offsets(seed, name):
    problem = gapped_problem(seed, 24)
    for slack in (0, 20):
        attempts = pairs(problem)[name]
        assert_alike(problem, attempts, 20_000, problem.lower_bound_bytes + slack)


def gapped_problem(seed, count, *, moments=20, fixed=3):
    """Buffers with gaps, some of them fixed where a plan has them."""
    generator = random.Random(seed)
    alignment = generator.choice([1, 4])
    lifetimes = []
    for number in range(count):
        first = generator.randrange(moments)
        edges = sorted(generator.sample(range(first + 1, first + 10), generator.choice([1, 3, 5])))
        gaps = tuple(zip(edges[:-1:2], edges[1:-1:2], strict=True))
        size = generator.randrange(1, 40)
        lifetimes.append(TensorLifetime(number, size, first, edges[-1], alignment, gaps))
    offsets = MemoryPlanner(time_limit_s=0.02).plan(lifetimes).offsets
    for number in generator.sample(range(count), fixed):
        lifetimes[number] = dataclasses.replace(lifetimes[number], offset_bytes=offsets[number])
    return PackingProblem.build(lifetimes)


def placed_in_turn(problem, order):
    """The lowest places in an order, by definition: byte by byte, step by step."""
    taken = {}
    for buffer in sorted(order, key=lambda each: problem.lifetimes[each].offset_bytes is None):
        lifetime = problem.lifetimes[buffer]
        steps = [
            step
            for step in range(lifetime.first, lifetime.end)
            if not any(first <= step < end for first, end in lifetime.gaps)
        ]
        offset = lifetime.offset_bytes or 0
        while any(
            byte in taken.get(step, ())
            for step in steps
            for byte in range(offset, offset + lifetime.size_bytes)
        ):
            offset += lifetime.alignment_bytes
        for step in steps:
            taken.setdefault(step, set()).update(range(offset, offset + lifetime.size_bytes))
    return max(max(each) for each in taken.values()) + 1


@pytest.mark.parametrize("make", [canonical, interpreted_canonical])
@pytest.mark.parametrize("seed", range(25))
def test_the_optimum_with_gaps_and_fixed_offsets(seed, make):
    problem = gapped_problem(seed, 5, moments=4, fixed=seed % 3)
    orders = itertools.permutations(range(len(problem)))
    best = min(placed_in_turn(problem, order) for order in orders)
    for totals_lead in (False, True):
        outcome, offsets = run_to_the_end(
            problem, best, functools.partial(make, totals_lead=totals_lead)
        )
        assert outcome is Outcome.FOUND
        plan = AllocationPlan(
            {
                each.tensor_id: offset
                for each, offset in zip(problem.lifetimes, offsets, strict=True)
            },
            best,
            best,
            "",
        )
        assert check_lifetimes(problem.lifetimes, plan) == []
        outcome, _ = run_to_the_end(
            problem, best - 1, functools.partial(make, totals_lead=totals_lead)
        )
        assert outcome is Outcome.NONE


def test_no_plan_is_the_same_without_the_compiled_search(monkeypatch):
    lifetimes = random_problem(3, 40, moments=20).lifetimes
    plan = MemoryPlanner(time_limit_s=0.2).plan(lifetimes)
    monkeypatch.setattr(native, "LIBRARY", None)
    assert MemoryPlanner(time_limit_s=60).plan(lifetimes).offsets == plan.offsets


def sliced(seed, capacity, count, moments):
    """Cut a full rectangle into buffers: it can be packed without any waste."""
    generator = random.Random(seed)
    pieces = [(0, moments, 0, capacity)]
    while len(pieces) < count:
        piece = generator.choice(pieces)
        first, end, low, high = piece
        across = generator.random() < 0.5
        if (end - first if across else high - low) < 2:
            continue
        pieces.remove(piece)
        if across:
            cut = generator.randrange(first + 1, end)
            pieces += [(first, cut, low, high), (cut, end, low, high)]
        else:
            cut = generator.randrange(low + 1, high)
            pieces += [(first, end, low, cut), (first, end, cut, high)]
    generator.shuffle(pieces)
    return [
        TensorLifetime(number, high - low, first, end)
        for number, (first, end, low, high) in enumerate(pieces)
    ]


@compiled
@pytest.mark.parametrize("seed", range(10))
def test_packings_without_waste_are_found(seed):
    lifetimes = sliced(seed, 1 << 20, 60, 40)
    plan = MemoryPlanner(capacity_bytes=1 << 20, time_limit_s=5).plan(lifetimes)
    assert check_lifetimes(lifetimes, plan) == []
    assert plan.peak_bytes == plan.lower_bound_bytes == 1 << 20


def test_luby():
    assert [luby(index) for index in range(1, 16)] == [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]
