import itertools
import random

import numpy as np
import pytest

from aegis_pipe.memory import MemoryPlanner, TensorLifetime, check_lifetimes
from aegis_pipe.memory.canonical_search import PythonCanonicalAttempt, make_canonical_attempt
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

compiled = pytest.mark.skipif(LIBRARY is None, reason="the search is not compiled")


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


@pytest.mark.parametrize("make", [make_attempt, make_canonical_attempt])
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


@compiled
@pytest.mark.parametrize(
    ("compiled_one", "python_one"),
    [
        ("aegis_exact_search", PythonAttempt),
        ("aegis_canonical_search", PythonCanonicalAttempt),
    ],
)
@pytest.mark.parametrize("seed", range(12))
def test_compiled_and_python_search_are_the_same(seed, compiled_one, python_one):
    problem = random_problem(seed, 30, alignment=(1, 4)[seed % 2], moments=20)
    attempts = [python_one(problem), NativeAttempt(problem, getattr(LIBRARY, compiled_one))]
    searches = [Restarts(problem, attempt=attempt) for attempt in attempts]
    for _ in range(4):
        outcomes = [search.run(problem.lower_bound_bytes) for search in searches]
        assert outcomes[0] == outcomes[1]
        assert searches[0].offsets == searches[1].offsets
        assert searches[0].work == searches[1].work > 0
        for name in ("moment_weights", "buffer_weights"):
            np.testing.assert_array_equal(*(getattr(each, name) for each in attempts))


def test_no_plan_is_the_same_without_the_compiled_search(monkeypatch):
    lifetimes = random_problem(3, 40, moments=20).lifetimes
    plan = MemoryPlanner(time_limit_s=0.2).plan(lifetimes)
    for module in ("exact_search", "canonical_search"):
        monkeypatch.setattr(f"aegis_pipe.memory.{module}.LIBRARY", None)
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
