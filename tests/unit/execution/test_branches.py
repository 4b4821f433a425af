"""Forks of a model, and that its memory plan lets their branches run side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from aegis_pipe.execution.branches import BRANCHES_MAX, STEPS_MAX, Work, find_forks
from aegis_pipe.memory import LifetimeAnalyser, MemoryPlanner, check_lifetimes, check_plan
from tests.unit.memory.instances import programs, run_apart, run_in_arena


def work(reads: str, writes: str, launch_ns: float = 10, busy_ns: float = 0) -> Work:
    """Return a step of tensors named by single letters."""
    return Work(tuple(reads), tuple(writes), launch_ns, busy_ns)


INCEPTION = [
    work("x", "s"),
    work("s", "a"),
    *[work("s", "b"), work("b", "c")],
    *[work("s", "d"), work("d", "e")],
    work("ace", "j"),
    work("j", "y"),
]


def test_branches_begin_where_one_ends_and_end_where_all_meet() -> None:
    assert find_forks(INCEPTION, 1) == (((1,), (2, 3), (4, 5)),)


def test_a_chain_has_none() -> None:
    assert find_forks([work("x", "a"), work("a", "b"), work("b", "y")], 0) == ()
    assert find_forks([], 0) == ()


def test_a_residual_goes_past_a_branch_and_is_none() -> None:
    assert find_forks([work("x", "a"), work("a", "b"), work("xb", "y")], 0) == ()


def test_a_fork_that_costs_more_than_it_saves_is_none() -> None:
    pair = [work("x", "a"), work("x", "b"), work("ab", "y")]
    assert find_forks(pair, 9) == (((0,), (1,)),)
    assert find_forks(pair, 10) == ()


def test_steps_that_keep_the_device_busy_save_nothing_beside_each_other() -> None:
    pair = [work("x", "a", 10, 100), work("x", "b", 10, 100), work("ab", "y")]
    assert find_forks(pair, 9) == (((0,), (1,)),)
    assert find_forks(pair, 10) == ()
    # What is left is the launch of one.
    uneven = [work("x", "a", 10, 100), work("x", "b", 50, 0), work("ab", "y")]
    assert find_forks(uneven, 49) == (((0,), (1,)),)
    assert find_forks(uneven, 50) == ()


def test_forks_follow_each_other_and_lie_behind_one_another() -> None:
    twice = [
        *[work("x", "a"), work("x", "b"), work("ab", "c")],
        *[work("c", "d"), work("c", "e"), work("de", "y")],
    ]
    assert find_forks(twice, 1) == (((0,), (1,)), ((3,), (4,)))
    ladder = [work("x", "a"), work("x", "b"), work("a", "c"), work("b", "d")]
    assert find_forks(ladder, 1) == (((0, 2), (1, 3)),)


def test_heads_that_begin_at_different_depths_run_beside_each_other() -> None:
    heads = [
        *[work("x", "a"), work("a", "b"), work("b", "c")],
        *[work("a", "d"), work("b", "e"), work("c", "f"), work("def", "y")],
    ]
    assert find_forks(heads, 1) == (((3,), (4,), (5,)),)


def test_views_join_what_they_stand_between_and_are_in_no_branch() -> None:
    steps = [
        *[work("x", "a"), work("a", "v", 0), work("v", "b")],
        *[work("x", "w", 0), work("w", "c"), work("c", "d"), work("bd", "y")],
    ]
    assert find_forks(steps, 1) == (((0, 2), (4, 5)),)


def test_a_step_apart_is_in_no_fork() -> None:
    steps = [work("x", "a"), work("x", "b")._replace(apart=True), work("x", "c"), work("x", "d")]
    assert find_forks(steps, 1) == (((2,), (3,)),)


def test_more_parts_than_run_at_once_share_branches() -> None:
    steps = [Work(("x",), (f"r{at}",), 10, 0) for at in range(2 * BRANCHES_MAX)]
    (fork,) = find_forks(steps, 1)
    assert [len(branch) for branch in fork] == [2] * BRANCHES_MAX
    assert sorted(step for branch in fork for step in branch) == list(range(2 * BRANCHES_MAX))
    assert all(list(branch) == sorted(branch) for branch in fork)


def test_a_fork_has_an_end() -> None:
    count = 3 * STEPS_MAX
    steps = [Work((f"{at % 2}.{at - 2}",), (f"{at % 2}.{at}",), 10, 0) for at in range(count)]
    forks = find_forks(steps, 1)
    assert [len(branch) for fork in forks for branch in fork] == [STEPS_MAX // 2] * 6


def shuffled(steps, pick):
    """Return an order that keeps every branch's; `pick` says which one goes on."""
    order: list[int] = []
    at = 0
    while at < len(steps):
        if steps[at].branch is None:
            order.append(at)
            at += 1
            continue
        fork = steps[at].branch[0]
        members = [n for n, step in enumerate(steps) if step.branch and step.branch[0] == fork]
        lanes: dict[int, list[int]] = {}
        for n in members:
            lanes.setdefault(steps[n].branch[1], []).append(n)
        while lanes:
            lane = pick(sorted(lanes))
            order.append(lanes[lane].pop(0))
            if not lanes[lane]:
                del lanes[lane]
        at = members[-1] + 1
    return order


@settings(max_examples=400, deadline=None)
@given(programs(), st.data())
def test_branches_in_any_order_give_the_same_bits(program, data) -> None:
    works = [
        Work(step.reads, step.writes, 0 if step.views else data.draw(st.integers(1, 3)), 0)
        for step in program.steps
    ]
    branch_of = {
        step: (number, lane)
        for number, fork in enumerate(find_forks(works, 0))
        for lane, branch in enumerate(fork)
        for step in branch
    }
    steps = tuple(replace(step, branch=branch_of.get(at)) for at, step in enumerate(program.steps))
    facts = {"inputs": program.inputs, "outputs": program.outputs}
    analysis = LifetimeAnalyser(8).analyse(steps, program.sizes, **facts)
    plan = MemoryPlanner(time_limit_s=0.01).plan(analysis.lifetimes)
    assert check_lifetimes(analysis.lifetimes, plan) == []
    violations = check_plan(
        analysis.steps,
        program.sizes,
        **facts,
        storage_of=analysis.storage_of,
        offset_of=analysis.offset_of,
        plan=plan,
        alignment_bytes=8,
    )
    assert violations == []
    wanted = run_apart(program)
    for pick in (max, lambda lanes: data.draw(st.sampled_from(lanes))):
        order = shuffled(analysis.steps, pick)
        assert run_in_arena(program, analysis, plan.offsets, plan.peak_bytes, order) == wanted


@pytest.mark.parametrize("count", [2, 5])
def test_what_branches_use_is_alive_for_all_of_the_fork(count: int) -> None:
    from aegis_pipe.memory import MemoryStep, WorkspaceId

    steps = [
        MemoryStep("first", ("x",), ("s",)),
        *[
            MemoryStep(f"branch {at}", ("s",), (f"r{at}",), workspace_bytes=4, branch=(0, at))
            for at in range(count)
        ],
        MemoryStep("meet", tuple(f"r{at}" for at in range(count)), ("y",)),
    ]
    sizes = dict.fromkeys(["x", "s", "y", *(f"r{at}" for at in range(count))], 8)
    analysis = LifetimeAnalyser().analyse(steps, sizes, inputs=["x"], outputs=["y"])
    lives = {each.tensor_id: (each.first, each.end) for each in analysis.lifetimes}
    assert lives["x"] == (0, 1)
    assert lives["s"] == (0, count + 1)
    assert {lives[f"r{at}"] for at in range(count)} == {(1, count + 2)}
    assert {lives[WorkspaceId(at + 1)] for at in range(count)} == {(1, count + 1)}
    # Behind the fork all is as without.
    assert lives["y"] == (count + 1, count + 2)
