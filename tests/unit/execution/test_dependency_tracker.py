"""The waits are enough (checked by closure) and none is superfluous."""

from __future__ import annotations

from hypothesis import given, strategies as st

from aegis_pipe.execution.dependency_tracker import (
    Dependency,
    DependencyTracker,
    Synchronisation,
)


def test_work_on_one_lane_needs_no_wait() -> None:
    tracker = DependencyTracker([0, 0, 0], [Dependency(0, 1, "a"), Dependency(0, 2, "a")])
    assert tracker.synchronisations() == ()


def test_an_edge_between_lanes_is_one_wait() -> None:
    tracker = DependencyTracker([0, 1], [Dependency(0, 1, "a")])
    assert tracker.synchronisations() == (Synchronisation(0, 1, 0, 1, "a"),)


def test_a_wait_implied_by_another_is_left_out() -> None:
    # 0 and 1 on lane 0; 2 on lane 1 reads both: waiting for 1 covers 0.
    tracker = DependencyTracker([0, 0, 1], [Dependency(0, 2, "a"), Dependency(1, 2, "b")])
    assert tracker.synchronisations() == (Synchronisation(1, 2, 0, 1, "b"),)


def test_a_wait_implied_through_a_third_lane_is_left_out() -> None:
    edges = [Dependency(0, 1, "a"), Dependency(1, 2, "b"), Dependency(0, 2, "a")]
    waits = DependencyTracker([0, 1, 2], edges).synchronisations()
    assert [(w.record_after, w.wait_before) for w in waits] == [(0, 1), (1, 2)]


@st.composite
def programs(draw: st.DrawFn) -> tuple[list[int], list[Dependency]]:
    lanes = draw(st.lists(st.integers(0, 3), min_size=1, max_size=12))
    pairs = st.tuples(st.integers(0, len(lanes) - 1), st.integers(0, len(lanes) - 1))
    drawn = draw(st.lists(pairs, max_size=25))
    return lanes, [Dependency(min(p), max(p), "t") for p in drawn if p[0] != p[1]]


def ordered_pairs(lanes: list[int], waits: tuple[Synchronisation, ...]) -> set[tuple[int, int]]:
    """All (earlier, later) that lane order and waits guarantee, by plain closure."""
    count = len(lanes)
    before = {(i, j) for j in range(count) for i in range(j) if lanes[i] == lanes[j]}
    before |= {(wait.record_after, wait.wait_before) for wait in waits}
    for middle in range(count):
        before |= {
            (i, j)
            for i in range(count)
            for j in range(count)
            if (i, middle) in before and (middle, j) in before
        }
    return before


@given(programs())
def test_every_dependency_is_kept_and_no_wait_is_superfluous(
    program: tuple[list[int], list[Dependency]],
) -> None:
    lanes, dependencies = program
    waits = DependencyTracker(lanes, dependencies).synchronisations()
    wanted = {(edge.producer, edge.consumer) for edge in dependencies}
    assert wanted <= ordered_pairs(lanes, waits)
    for leave_out in range(len(waits)):
        fewer = waits[:leave_out] + waits[leave_out + 1 :]
        assert not wanted <= ordered_pairs(lanes, fewer)
