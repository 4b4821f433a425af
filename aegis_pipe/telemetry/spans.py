"""Spans as plain values, and the tree they are cut from.

A trace is first built as a tree of `SpanNode`s on the runtime's clock, which knows true times
only. `flatten` then gives each node its id and its place on the wall clock, and makes the tree
one that viewers draw right: no end before its start, children inside their parents, and
neighbours apart by the whole microseconds that viewers compute with.

Kernels, of which a request has hundreds, are no nodes: a segment's kernels stay one block of times
all the way to the destination, where they are written from a template or, at last, become spans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.ids import SpanReference, span_id_at, span_ids_from
from aegis_pipe.telemetry.kernel_times import kernel_bounds, place_kernels

AttributeValue = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]
Attributes = Mapping[str, AttributeValue]

EVENTS_MAX: Final = 128
"""Events of one span; more are counted in `aegis.events.omitted`. Viewers cut off there."""
LINKS_MAX: Final = 128


class SpanEvent(NamedTuple):
    """Something that happened within a span."""

    at_ns: int
    name: str
    attributes: Attributes


class SpanLink(NamedTuple):
    """A pointer to a span of another trace, and why."""

    target: SpanReference
    reason: str


class Span(NamedTuple):
    """A finished span; times are nanoseconds since the Unix epoch."""

    trace_id: int
    span_id: int
    parent_id: int
    """0 for a root."""
    parent_is_remote: bool
    """The parent lives in the caller's process."""
    name: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    error: str
    """Description of the ERROR status; empty for none."""
    on_device: bool
    """Belongs to the device's service, not the host's."""
    links: tuple[SpanLink, ...]
    events: tuple[SpanEvent, ...]


class SegmentCalls:
    """What a segment of a model calls: made once when it is loaded, compared by identity."""

    def __init__(self, calls: Sequence[tuple[str, str, str]], segment: int) -> None:
        self.calls = tuple(calls)
        """Per call (operator, node, kernel)."""
        self.segment = segment
        self.names = tuple(kernel_name(operator) for operator, _, _ in self.calls)
        """What the spans are called."""
        self.operators = tuple(dict.fromkeys(operator for operator, _, _ in self.calls))
        places = {operator: place for place, operator in enumerate(self.operators)}
        self.operator_of = np.array([places[operator] for operator, _, _ in self.calls], np.intp)
        """Per call, the place of its operator among `operators`."""

    def attributes(self, call: int, stream: int, duration_ns: int) -> dict[str, AttributeValue]:
        """Return the attributes of one call's span."""
        operator, node, kernel = self.calls[call]
        return {
            names.OPERATOR: operator,
            names.NODE: node,
            names.KERNEL: kernel,
            names.SEGMENT: self.segment,
            names.STREAM: stream,
            names.DURATION_NS: duration_ns,
        }


def kernel_name(operator: str) -> str:
    """Return what spans of an operator are called: viewers have little room, so not the domain."""
    return operator.rpartition(".")[2]


class SpanBlock(NamedTuple):
    """The kernel spans of one segment; times are nanoseconds since the Unix epoch."""

    trace_id: int
    parent_id: int
    calls: SegmentCalls
    stream: int
    first_id: int
    """The first span's id; the others follow from it, see `span_ids_from`."""
    columns: np.ndarray
    """int64[3, calls]: starts, ends, and the true durations (an end may have given way)."""

    @property
    def kernels(self) -> int:
        """Return how many spans there are."""
        return len(self.calls.calls)

    @property
    def span_ids(self) -> np.ndarray:
        """Return uint64[calls]."""
        return span_ids_from(self.first_id, self.kernels)

    def spans(self) -> Iterator[Span]:
        """Yield the single spans."""
        rows = zip(self.span_ids.tolist(), *self.columns.tolist(), strict=True)
        for call, (span_id, start_ns, end_ns, duration_ns) in enumerate(rows):
            yield Span(
                self.trace_id,
                span_id,
                self.parent_id,
                False,
                self.calls.names[call],
                start_ns,
                end_ns,
                self.calls.attributes(call, self.stream, duration_ns),
                "",
                True,
                (),
                (),
            )


Trace = Sequence[Span | SpanBlock]
"""What one trace has of this process's spans, parents first."""


def span_count(trace: Trace) -> int:
    """Return how many spans a trace has, those of blocks included."""
    return sum(1 if isinstance(part, Span) else part.kernels for part in trace)


def expand(trace: Trace) -> Iterator[Span]:
    """Yield every single span of a trace."""
    for part in trace:
        if isinstance(part, Span):
            yield part
        else:
            yield from part.spans()


class KernelBlock:
    """A segment's kernels before they have ids; times are on the runtime's clock until placed."""

    __slots__ = ("calls", "columns", "end_ns", "stamps", "start_ns", "stream")

    def __init__(self, calls: SegmentCalls, stream: int, stamps: bytes) -> None:
        """Take the bytes of int64[calls, 2], start and end per call, in the order of the calls."""
        self.calls = calls
        self.stream = stream
        self.stamps = stamps
        self.start_ns, self.end_ns = kernel_bounds(stamps)
        self.columns = _NOT_PLACED
        """int64[3, calls], set by `place`: starts, ends, durations."""

    def place(self, offset_ns: int) -> None:
        """Add the same to all times; do for the kernels what `_separate` does for nodes."""
        self.columns = place_kernels(self.stamps, offset_ns)
        self.start_ns += offset_ns
        self.end_ns += offset_ns

    def give_way(self, successor_ns: int) -> None:
        """Shorten the last kernel for what comes after the block."""
        starts, ends, _ = self.columns
        ends[-1] = _given_way(int(starts[-1]), int(ends[-1]), successor_ns)


_NOT_PLACED: Final = np.empty((3, 0), np.int64)


@dataclass(slots=True, eq=False)
class SpanNode:
    """A span before it has ids; times are on the runtime's clock."""

    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, AttributeValue] = field(default_factory=dict)
    error: str = ""
    on_device: bool = False
    links: list[SpanLink] = field(default_factory=list)
    events: list[SpanEvent] = field(default_factory=list)
    children: list[SpanNode] = field(default_factory=list)
    blocks: list[KernelBlock] = field(default_factory=list)
    """Kernels directly below; a node with blocks has only leaves besides."""
    own_span_id: int = 0
    """Set where others have to know it in advance; 0 for one that follows from the position."""

    def __post_init__(self) -> None:
        self.end_ns = max(self.start_ns, self.end_ns)
        self.attributes.setdefault(names.DURATION_NS, self.end_ns - self.start_ns)


def flatten(
    root: SpanNode,
    reference: SpanReference,
    to_unix_ns: Callable[[int], int],
    *,
    parent: SpanReference | None = None,
) -> list[Span | SpanBlock]:
    """Return the tree's spans, parents first; `parent` is a span of the caller, if any.

    Changes the tree's times as the module describes; each span's `aegis.duration_ns` stays true.
    """
    # One offset for the whole trace: its spans keep their distances.
    _place(root, to_unix_ns(root.start_ns) - root.start_ns)
    trace: list[Span | SpanBlock] = []
    trace_id = reference.trace_id

    def visit(node: SpanNode, parent_id: int, ids: _Ids) -> None:
        if node.own_span_id:
            ids = _Ids(node.own_span_id)
        own_id = ids.take(1)
        trace.append(
            Span(
                trace_id,
                own_id,
                parent_id,
                node is root and parent is not None,
                node.name,
                node.start_ns,
                node.end_ns,
                node.attributes,
                node.error,
                node.on_device,
                tuple(node.links[:LINKS_MAX]),
                tuple(node.events),
            )
        )
        parts: list[SpanNode | KernelBlock] = [*node.children, *node.blocks]
        if not parts:
            return
        parts.sort(key=_by_time)
        _separate(node, parts)
        for part in parts:
            if type(part) is KernelBlock:
                calls, columns = part.calls, part.columns
                first_id = ids.take(len(calls.calls))
                trace.append(SpanBlock(trace_id, own_id, calls, part.stream, first_id, columns))
            else:
                visit(part, own_id, ids)  # type: ignore[arg-type]  # what is no block is a node

    visit(root, parent.span_id if parent else 0, _Ids(reference.span_id))
    return trace


class _Ids:
    """Positions below a root's span id, handed out in order."""

    def __init__(self, root_span_id: int) -> None:
        self._root = root_span_id
        self._position = 0

    def take(self, count: int) -> int:
        """Return the first id of as many in a row."""
        position = self._position
        self._position += count
        return span_id_at(self._root, position)


def _place(node: SpanNode, offset_ns: int) -> None:
    """Move a tree to the wall clock, and cut off the events that are too many.

    Widens parents to their children: device stamps may stray over the host's by a little.
    """
    start_ns, end_ns = node.start_ns + offset_ns, node.end_ns + offset_ns
    if node.events:
        if len(node.events) > EVENTS_MAX:
            node.attributes[names.EVENTS_OMITTED] = len(node.events) - EVENTS_MAX
        node.events = [
            SpanEvent(event.at_ns + offset_ns, event.name, event.attributes)
            for event in node.events[:EVENTS_MAX]
        ]
    for child in node.children:
        if child.children or child.blocks or child.events:
            _place(child, offset_ns)
        else:
            child.start_ns += offset_ns
            child.end_ns += offset_ns
        start_ns, end_ns = min(start_ns, child.start_ns), max(end_ns, child.end_ns)
    for block in node.blocks:
        block.place(offset_ns)
        start_ns, end_ns = min(start_ns, block.start_ns), max(end_ns, block.end_ns)
    node.start_ns, node.end_ns = start_ns, end_ns


_by_time = attrgetter("start_ns", "end_ns")


def _separate(node: SpanNode, parts: Sequence[SpanNode | KernelBlock]) -> None:
    """Shorten a span that seems to end in the microsecond in which its successor begins.

    Viewers that compute a critical path in whole microseconds (start and duration each rounded
    down) take the two for overlapping and leave out the first. Spans too short to give way stay.
    `parts` are what lies directly below the node, in the order of their times.
    """
    for part, successor in pairwise(parts):
        if type(part) is KernelBlock:
            part.give_way(successor.start_ns)
        else:
            part.end_ns = _given_way(part.start_ns, part.end_ns, successor.start_ns)
    end_ns = node.end_ns
    for child in node.children:
        if child.end_ns > end_ns:
            child.start_ns, child.end_ns = min(child.start_ns, end_ns), end_ns
    for block in node.blocks:
        if block.end_ns > end_ns:
            np.minimum(block.columns[:2], end_ns, out=block.columns[:2])


def _given_way(start_ns: int, end_ns: int, successor_ns: int) -> int:
    """Return the end of a span before its successor, which is either its own or a little less."""
    start_us, successor_us = start_ns // 1000, successor_ns // 1000
    shown_end_us = start_us + (end_ns - start_ns) // 1000
    if end_ns <= successor_ns and start_us < successor_us <= shown_end_us:
        return start_ns + (successor_us - 1 - start_us) * 1000
    return end_ns
