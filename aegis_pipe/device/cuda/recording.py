"""What a recorded graph is to look like: which calls follow which, and who waits for whom.

Calls are recorded one behind the other on one stream; the edges across branches are then replaced.
So every kernel is recorded as its library wants it, and the graph says who waits for whom.

A *strand* is a list of calls that run one behind the other. Strands without a fork alternate with
the branches of forks: all branches follow the strand before, and the strand behind follows all.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from aegis_pipe.device.cuda.early_starts import RecordedKernel, Span, to_be_ordered
from aegis_pipe.device.protocols import Fork


@dataclass(frozen=True, slots=True)
class Strand:
    """Calls that run one behind the other."""

    calls: tuple[int, ...]
    after: tuple[int, ...] = ()
    """The strands that have to end before it begins."""
    is_stamped: bool = True
    """A stamp is taken before its first call; branches begin where the strand before ended."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A launch or a stamp that was recorded."""

    strand: int
    node_count: int
    waits: bool = False
    """Of a kernel of our own that waits for the one before it, and lets the next begin then."""
    unwaited: tuple[Span, ...] = ()
    """What it may read without waiting, and that is not constant."""
    written: tuple[Span, ...] = ()
    """What the call it belongs to writes."""


class Edge(NamedTuple):
    """A recorded node that waits for another one."""

    source: int
    target: int
    kind: Any = None
    """What the driver says of the edge; None: of a plain one, across which nothing begins early."""

    @property
    def key(self) -> tuple[int, int, bool]:
        """What makes it another edge than others."""
        return self.source, self.target, self.kind is not None


def strands_of(count: int, forks: Sequence[Fork]) -> tuple[Strand, ...]:
    """Return the strands of so many calls: one, unless there are forks."""
    strands: list[Strand] = []
    begin = 0
    after: tuple[int, ...] = ()
    for fork in forks:
        members = sorted(call for branch in fork for call in branch)
        first, end = members[0], members[-1] + 1
        assert first >= begin, "forks are ascending"
        assert members == list(range(first, end)), "a fork is a stretch of calls"
        strands.append(Strand(tuple(range(begin, first)), after))
        before = (len(strands) - 1,)
        after = tuple(range(len(strands), len(strands) + len(fork)))
        strands += [Strand(tuple(branch), before, is_stamped=False) for branch in fork]
        begin = end
    return (*strands, Strand(tuple(range(begin, count)), after))


def stamp_rows(strands: Sequence[Strand], is_busy: Sequence[bool]) -> tuple[np.ndarray, int]:
    """Return int64[calls, 2], the stamps at which each call begins and ends, and their number.

    Stamps are counted strand by strand: where it begins, if it is stamped there, and behind every
    call that launches anything. One that does not begins and ends where the call after it begins.
    """
    rows = np.zeros((len(is_busy), 2), np.int64)
    lasts: list[int] = []
    count = 0
    for strand in strands:
        last = count if strand.is_stamped else lasts[strand.after[0]]
        count += strand.is_stamped
        for call in strand.calls:
            rows[call] = last
            if is_busy[call]:
                rows[call, 1] = last = count
                count += 1
        lasts.append(last)
    return rows, count


def wanted_edges(
    nodes: Sequence[int],
    edges: Sequence[Edge],
    launches: Sequence[Recorded],
    strands: Sequence[Strand],
) -> list[Edge]:
    """Return the edges that a graph is to have, recorded as one list of launches in this order.

    Within a launch they stay as recorded, and so does the one to the next launch of its strand. Who
    waits for several, or is one of several that wait for one, begins when all has ended that it
    waits for; and so does who reads too much too early (`early_starts`). What was recorded beyond
    is implied: a kernel that began early has not ended before the one that it waits for.
    """
    ordered = _in_order(nodes, edges)
    assert len(ordered) == sum(each.node_count for each in launches), "every node is of a launch"
    position = {node: at for at, node in enumerate(ordered)}
    bounds = list(itertools.accumulate((each.node_count for each in launches), initial=0))
    owner = [at for at, each in enumerate(launches) for _ in range(each.node_count)]
    within: list[Edge] = []
    across: dict[tuple[int, int], Edge] = {}
    for edge in edges:
        source, target = position[edge.source], position[edge.target]
        if owner[source] == owner[target]:
            within.append(edge)
        else:
            across[source, target] = edge
    has_before = {position[edge.target] for edge in within}
    has_behind = {position[edge.source] for edge in within}

    wanted = list(within)
    tails: list[list[int]] = []
    """Of each strand the nodes that have to end before what follows it begins."""
    members: list[list[int]] = [[] for _ in strands]
    for at, each in enumerate(launches):
        members[each.strand].append(at)
    for strand, own in zip(strands, members, strict=True):
        before = [node for each in strand.after for node in tails[each]]
        for number, at in enumerate(own):
            span = range(bounds[at], bounds[at + 1])
            heads = [node for node in span if node not in has_before]
            if heads:
                may_be_early = number > 0 and len(heads) == len(before) == 1
                wanted += [
                    (across.get((source, target)) if may_be_early else None)
                    or Edge(ordered[source], ordered[target])
                    for source in before
                    for target in heads
                ]
                before = [node for node in span if node not in has_behind]
        tails.append(before)
    return _without_unsafe(wanted, ordered, bounds, launches, members)


def difference(edges: Sequence[Edge], others: Sequence[Edge]) -> list[Edge]:
    """Return the edges that are not among the others."""
    there = {edge.key for edge in others}
    return [edge for edge in edges if edge.key not in there]


def _without_unsafe(
    edges: Sequence[Edge],
    ordered: Sequence[int],
    bounds: Sequence[int],
    launches: Sequence[Recorded],
    members: Sequence[Sequence[int]],
) -> list[Edge]:
    """Return the edges, with plain ones to those that have to begin when all before has ended."""
    early = {edge.target for edge in edges if edge.kind is not None}
    later: set[int] = set()
    for own in members:
        chain = [(launches[at], ordered[n]) for at in own for n in range(*bounds[at : at + 2])]
        kernels = [
            RecordedKernel(node in early, each.waits, each.unwaited, each.written)
            for each, node in chain
        ]
        later.update(chain[at][1] for at in to_be_ordered(kernels))
    return [edge._replace(kind=None) if edge.target in later else edge for edge in edges]


def _in_order(nodes: Sequence[int], edges: Sequence[Edge]) -> list[int]:
    """Return the nodes so that each comes behind those it waits for."""
    waits = dict.fromkeys(nodes, 0)
    followers: dict[int, list[int]] = {node: [] for node in nodes}
    for edge in edges:
        waits[edge.target] += 1
        followers[edge.source].append(edge.target)
    ordered = [node for node in nodes if not waits[node]]
    for node in ordered:
        for follower in followers[node]:
            waits[follower] -= 1
            if not waits[follower]:
                ordered.append(follower)
    return ordered
