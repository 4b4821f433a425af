"""How long requests of a running deployment held their streams, and after what.

A model that runs again and again with nothing else running is faster than in its deployment. And
what slows a machine down lasts longer than a request, so that slow ones come together and queues
behind them are longer than independent times would make them. Both are kept by taking times in
place, in the order in which they came.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

REST_NS = 1_000_000
"""A stream that has done nothing for so long has rested."""
IDLE_NS = 10_000_000
"""And one that has for so long is idle."""
UPON, RESTED, IDLE = range(3)
"""What a stream did before a request: one of the same model just now; rested, or ran another
model; was idle."""
ENOUGH = 100
"""Fewer times say too little about the slowest of a hundred."""


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """A request that has run."""

    model: str
    stream: int
    starts_ns: tuple[int, ...]
    """When each segment was begun; the first one with the decision to start the request."""
    end_ns: int
    is_complete: bool


class Hold(NamedTuple):
    """How a request that ran to its end held its stream."""

    model: str
    before: int
    """`UPON`, `RESTED` or `IDLE`."""
    total_ns: int
    """How long its segments held the stream, without those of others in between."""


class RequestHolds(NamedTuple):
    """The same, segment by segment."""

    hold: Hold
    segments_ns: tuple[int, ...]
    was_beside: bool
    """Whether other streams ran anything meanwhile."""


class _Held(NamedTuple):
    start_ns: int
    end_ns: int
    request: int


def before(rest_ns: int, *, same_model: bool) -> int:
    """Return what a stream did before a request: `UPON`, `RESTED` or `IDLE`."""
    if rest_ns >= IDLE_NS:
        return IDLE
    return RESTED if rest_ns >= REST_NS or not same_model else UPON


def holds_of(traces: Sequence[RequestTrace]) -> list[RequestHolds]:
    """Return how requests held their streams, in the order of their starts.

    A segment holds its stream until the next one begins there, of whichever request; a request's
    last one until the end of the request.
    """
    by_stream = _held_by_stream(traces)
    segments: defaultdict[int, list[int]] = defaultdict(list)
    first: dict[int, tuple[int, int]] = {}
    disturbed: set[int] = set()
    for stream, held in by_stream.items():
        last_end_ns, last_model = None, ""
        for piece in held:
            model = traces[piece.request].model
            if piece.request not in first:
                rest_ns = IDLE_NS if last_end_ns is None else piece.start_ns - last_end_ns
                first[piece.request] = (
                    piece.start_ns,
                    before(rest_ns, same_model=model == last_model),
                )
            last_end_ns, last_model = piece.end_ns, model
            segments[piece.request].append(piece.end_ns - piece.start_ns)
            if any(_overlaps(piece, by_stream[other]) for other in by_stream if other != stream):
                disturbed.add(piece.request)
    return [
        RequestHolds(
            Hold(traces[number].model, what, sum(segments[number])),
            tuple(segments[number]),
            number in disturbed,
        )
        for number, (_, what) in sorted(first.items(), key=lambda each: (each[1][0], each[0]))
        if traces[number].is_complete
    ]


def _held_by_stream(traces: Sequence[RequestTrace]) -> dict[int, list[_Held]]:
    begun: defaultdict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for number, trace in enumerate(traces):
        for segment, start_ns in enumerate(trace.starts_ns):
            begun[trace.stream].append((start_ns, number, segment))
    by_stream = {}
    for stream, starts in sorted(begun.items()):
        starts.sort()
        ends_ns = [next_ns for next_ns, _, _ in starts[1:]]
        ends_ns.append(traces[starts[-1][1]].end_ns)
        by_stream[stream] = [
            _Held(
                start_ns,
                traces[number].end_ns if segment == len(traces[number].starts_ns) - 1 else end_ns,
                number,
            )
            for (start_ns, number, segment), end_ns in zip(starts, ends_ns, strict=True)
        ]
    return by_stream


def _overlaps(piece: _Held, others: Sequence[_Held]) -> bool:
    """Return whether a stream, of which `others` are in order, was busy meanwhile."""
    number = bisect_left(others, piece.end_ns, key=lambda other: other.start_ns)
    return number > 0 and others[number - 1].end_ns > piece.start_ns


_Times = tuple[int, ...]


class InPlaceTimes(NamedTuple):
    """Distributions in place, and how requests were placed in them, one after the other."""

    totals_ns: dict[str, tuple[_Times, _Times, _Times]]
    """Per model with `ENOUGH` times: ascending totals `UPON`, `RESTED` and `IDLE`."""
    ranks: tuple[float, ...]
    """Of each request in its distribution, 0 to 1, in the order of their starts."""


def in_place_times(holds: Iterable[Hold]) -> InPlaceTimes:
    """Make distributions of times in place.

    What a stream did before is told apart where there are `ENOUGH` times of it; otherwise all of
    the model's count.
    """
    # By value first; requests that took equally long are in the order in which they ran.
    placed = sorted((hold.total_ns, number, hold) for number, hold in enumerate(holds))
    own: defaultdict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    pooled: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for total_ns, number, hold in placed:
        own[hold.model, hold.before].append((total_ns, number))
        pooled[hold.model].append((total_ns, number))
    totals_ns: dict[str, tuple[_Times, _Times, _Times]] = {}
    ranks: dict[int, float] = {}
    for model, every in pooled.items():
        if len(every) < ENOUGH:
            continue
        chosen = []
        for what in (UPON, RESTED, IDLE):
            mine = own[model, what]
            chosen.append(mine if len(mine) >= ENOUGH else every)
            ordered = {number: place for place, (_, number) in enumerate(chosen[-1])}
            ranks |= {number: ordered[number] / len(chosen[-1]) for _, number in mine}
        upon, rested, idle = (tuple(total_ns for total_ns, _ in each) for each in chosen)
        totals_ns[model] = (upon, rested, idle)
    return InPlaceTimes(totals_ns, tuple(rank for _, rank in sorted(ranks.items())))
