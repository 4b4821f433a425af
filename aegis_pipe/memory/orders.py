"""The greedy orders: which buffer to place first.

Big, long-lived and contended buffers are hard to place late. No order is best for all graphs, so
the planner tries them one after the other, in this order, until the lower bound is reached.
Greedy by size: Pisarchyk & Lee, "Efficient Memory Management for Deep Neural Net Inference"
(2020). By contention (how full the fullest moment of the buffer's life is): after the "breadth"
order of the same paper, with intervals in place of operators.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aegis_pipe.memory.packing import Integers, PackingProblem

Keys = tuple[np.ndarray, ...]


def _by_size(problem: PackingProblem) -> Keys:
    return -problem.sizes, problem.firsts


def _by_contention_then_end(problem: PackingProblem) -> Keys:
    return -contention(problem), problem.ends


def _by_contention_then_start(problem: PackingProblem) -> Keys:
    return -contention(problem), problem.firsts


def _by_contention_then_duration(problem: PackingProblem) -> Keys:
    return -contention(problem), -_durations(problem)


def _by_area(problem: PackingProblem) -> Keys:
    # In floating point, because bytes times steps can leave 64 bits.
    return (-problem.sizes.astype(np.float64) * _durations(problem),)


def _outwards_from_peak(problem: PackingProblem) -> Keys:
    peak = int(problem.live_bytes.argmax())
    distance = np.maximum(problem.firsts - peak, peak + 1 - problem.ends)
    return np.maximum(distance, 0), problem.ends


def _by_size_class(problem: PackingProblem) -> Keys:
    return -np.frexp(problem.sizes.astype(np.float64))[1], -problem.ends


def _by_duration(problem: PackingProblem) -> Keys:
    return -_durations(problem), -problem.sizes


def _by_conflict_weight(problem: PackingProblem) -> Keys:
    return -conflict_weight(problem), -problem.sizes


def _by_start(problem: PackingProblem) -> Keys:
    return problem.firsts, -problem.sizes


def _by_end(problem: PackingProblem) -> Keys:
    return -problem.ends, -problem.sizes


GREEDY_ORDERS: dict[str, Callable[[PackingProblem], Keys]] = {
    "by size": _by_size,
    "by contention, then end": _by_contention_then_end,
    "by contention, then start": _by_contention_then_start,
    "by contention, then duration": _by_contention_then_duration,
    "by area": _by_area,
    "outwards from the peak": _outwards_from_peak,
    "by size class": _by_size_class,
    "by duration": _by_duration,
    "by conflict weight": _by_conflict_weight,
    "by start": _by_start,
    "by end": _by_end,
}
"""Sort keys by name, the most important key first; ties go to the smaller buffer number."""


def greedy_order(problem: PackingProblem, name: str) -> list[int]:
    """Return the buffers' numbers in one of the `GREEDY_ORDERS`."""
    keys = GREEDY_ORDERS[name](problem)
    order: list[int] = np.lexsort(keys[::-1]).tolist()  # lexsort is stable, its last key leads
    return order


def contention(problem: PackingProblem) -> Integers:
    """Return per buffer the largest sum of live bytes during its life.

    A range maximum per buffer, answered by a sparse table (Bender & Farach-Colton 2000).
    """
    level = np.frexp(_durations(problem).astype(np.float64))[1] - 1
    result = np.empty_like(problem.sizes)
    table = problem.live_bytes
    for power in range(int(level.max(initial=0)) + 1):
        mine = np.flatnonzero(level == power)
        left, right = problem.firsts[mine], problem.ends[mine] - (1 << power)
        result[mine] = np.maximum(table[left], table[right])
        table = np.maximum(table[: -(1 << power)], table[1 << power :])
    return result


def conflict_weight(problem: PackingProblem) -> Integers:
    """Return per buffer the bytes of all buffers alive at some moment of its life, itself too."""
    moments = len(problem.live_bytes) + 1
    born = np.zeros(moments, dtype=np.int64)
    died = np.zeros(moments, dtype=np.int64)
    np.add.at(born, problem.firsts, problem.sizes)
    np.add.at(died, problem.ends, problem.sizes)
    return np.cumsum(born)[problem.ends - 1] - np.cumsum(died)[problem.firsts]


def _durations(problem: PackingProblem) -> Integers:
    return problem.ends - problem.firsts
