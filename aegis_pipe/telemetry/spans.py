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
from typing import Final, NamedTuple

import numpy as np

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.ids import SpanReference, span_id_at, span_ids_from

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


class SpanBlock(NamedTuple):
    """The kernel spans of one segment; times are nanoseconds since the Unix epoch."""

    trace_id: int
    parent_id: int
    calls: SegmentCalls
    stream: int
    span_ids: np.ndarray
    """uint64[calls]"""
    starts_ns: np.ndarray
    """int64[calls]"""
    ends_ns: np.ndarray
    durations_ns: np.ndarray
    """The true ones; `ends_ns` may have given way to a successor."""

    def spans(self) -> Iterator[Span]:
        """Yield the single spans."""
        columns = (self.span_ids, self.starts_ns, self.ends_ns, self.durations_ns)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        for call, (span_id, start_ns, end_ns, duration_ns) in enumerate(rows):
            yield Span(
                self.trace_id,
                span_id,
                self.parent_id,
                False,
                self.calls.calls[call][0],
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
    return sum(1 if isinstance(part, Span) else len(part.span_ids) for part in trace)


def expand(trace: Trace) -> Iterator[Span]:
    """Yield every single span of a trace."""
    for part in trace:
        if isinstance(part, Span):
            yield part
        else:
            yield from part.spans()


class KernelBlock:
    """A segment's kernels before they have ids; times are on the runtime's clock until placed."""

    __slots__ = ("calls", "durations_ns", "end_ns", "ends_ns", "start_ns", "starts_ns", "stream")

    def __init__(self, calls: SegmentCalls, stream: int, times_ns: np.ndarray) -> None:
        """Take int64[calls, 2], start and end per call, in the order of the calls."""
        self.calls = calls
        self.stream = stream
        self.starts_ns = times_ns[:, 0]
        self.ends_ns = np.maximum(times_ns[:, 1], self.starts_ns)
        self.durations_ns = self.ends_ns - self.starts_ns
        self.start_ns = int(self.starts_ns.min())
        self.end_ns = int(self.ends_ns.max())

    def move(self, offset_ns: int) -> None:
        """Add the same to all times."""
        self.starts_ns = self.starts_ns + offset_ns
        self.ends_ns += offset_ns
        self.start_ns += offset_ns
        self.end_ns += offset_ns

    def separate(self) -> None:
        """Do for the kernels what `_separate` does for nodes."""
        starts, ends = self.starts_ns, self.ends_ns
        starts_us = starts // 1000
        shown_end_us = starts_us + self.durations_ns // 1000
        here_us, next_us = starts_us[:-1], starts_us[1:]
        gives_way = (shown_end_us[:-1] >= next_us) & (here_us < next_us) & (ends[:-1] <= starts[1:])
        if gives_way.any():
            shorter = starts[:-1] + (next_us - 1 - here_us) * 1000
            ends[:-1] = np.where(gives_way, shorter, ends[:-1])

    def give_way(self, successor_ns: int) -> None:
        """Shorten the last kernel for what comes after the block."""
        end_ns = _given_way(int(self.starts_ns[-1]), int(self.ends_ns[-1]), successor_ns)
        self.ends_ns[-1] = end_ns


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
    _place(root, to_unix_ns)
    _enclose(root)
    _separate(root)
    trace: list[Span | SpanBlock] = []

    def visit(node: SpanNode, parent_id: int, ids: _Ids) -> None:
        if node.own_span_id:
            ids = _Ids(node.own_span_id)
        span_id = ids.take(1)
        is_remote = node is root and parent is not None
        trace.append(_to_span(node, reference.trace_id, span_id_at(*span_id), parent_id, is_remote))
        own_id = trace[-1].span_id  # type: ignore[union-attr]  # just appended
        for child in _in_order(node):
            if isinstance(child, KernelBlock):
                trace.append(_to_block(child, reference.trace_id, own_id, ids))
            else:
                visit(child, own_id, ids)

    visit(root, parent.span_id if parent else 0, _Ids(reference.span_id))
    return trace


class _Ids:
    """Positions below a root's span id, handed out in order."""

    def __init__(self, root_span_id: int) -> None:
        self._root = root_span_id
        self._position = 0

    def take(self, count: int) -> tuple[int, int]:
        """Return (root's id, first position) of as many."""
        position = self._position
        self._position += count
        return self._root, position


def _in_order(node: SpanNode) -> Sequence[SpanNode | KernelBlock]:
    if not node.blocks:
        return node.children
    parts: list[SpanNode | KernelBlock] = [*node.children, *node.blocks]
    return sorted(parts, key=_by_time)


def _to_span(
    node: SpanNode, trace_id: int, span_id: int, parent_id: int, parent_is_remote: bool
) -> Span:
    return Span(
        trace_id,
        span_id,
        parent_id,
        parent_is_remote,
        node.name,
        node.start_ns,
        node.end_ns,
        node.attributes,
        node.error,
        node.on_device,
        tuple(node.links[:LINKS_MAX]),
        tuple(node.events),
    )


def _to_block(block: KernelBlock, trace_id: int, parent_id: int, ids: _Ids) -> SpanBlock:
    count = len(block.starts_ns)
    return SpanBlock(
        trace_id,
        parent_id,
        block.calls,
        block.stream,
        span_ids_from(*ids.take(count), count),
        block.starts_ns,
        block.ends_ns,
        block.durations_ns,
    )


def _place(node: SpanNode, to_unix_ns: Callable[[int], int]) -> None:
    """Move a tree to the wall clock, and cut off the events that are too many."""
    node.start_ns, node.end_ns = to_unix_ns(node.start_ns), to_unix_ns(node.end_ns)
    if node.events:
        if len(node.events) > EVENTS_MAX:
            node.attributes[names.EVENTS_OMITTED] = len(node.events) - EVENTS_MAX
        node.events = [
            SpanEvent(to_unix_ns(event.at_ns), event.name, event.attributes)
            for event in node.events[:EVENTS_MAX]
        ]
    for block in node.blocks:
        # The same for all of a segment's kernels, which so stay in order.
        block.move(to_unix_ns(block.start_ns) - block.start_ns)
    for child in node.children:
        _place(child, to_unix_ns)


def _enclose(node: SpanNode) -> None:
    """Widen parents to their children: device stamps may stray over the host's by a little."""
    for child in node.children:
        if child.children or child.blocks:
            _enclose(child)
    if len(node.children) > 1:
        node.children.sort(key=_by_time)
    parts: list[SpanNode | KernelBlock] = [*node.children, *node.blocks]
    for part in parts:
        if part.start_ns < node.start_ns:
            node.start_ns = part.start_ns
        if part.end_ns > node.end_ns:
            node.end_ns = part.end_ns


def _by_time(part: SpanNode | KernelBlock) -> tuple[int, int]:
    return part.start_ns, part.end_ns


def _separate(node: SpanNode) -> None:
    """Shorten a span that seems to end in the microsecond in which its successor begins.

    Viewers that compute a critical path in whole microseconds (start and duration each rounded
    down) take the two for overlapping and leave out the first. Spans too short to give way stay.
    """
    for block in node.blocks:
        block.separate()
    for child, successor in pairwise(_in_order(node)):
        if isinstance(child, KernelBlock):
            child.give_way(successor.start_ns)
        else:
            child.end_ns = _given_way(child.start_ns, child.end_ns, successor.start_ns)
    for child in node.children:
        child.start_ns = min(child.start_ns, node.end_ns)
        child.end_ns = min(child.end_ns, node.end_ns)
        if child.children or child.blocks:
            _separate(child)
    for block in node.blocks:
        if block.end_ns > node.end_ns:
            np.minimum(block.starts_ns, node.end_ns, out=block.starts_ns)
            np.minimum(block.ends_ns, node.end_ns, out=block.ends_ns)


def _given_way(start_ns: int, end_ns: int, successor_ns: int) -> int:
    """Return the end of a span before its successor, which is either its own or a little less."""
    start_us, successor_us = start_ns // 1000, successor_ns // 1000
    shown_end_us = start_us + (end_ns - start_ns) // 1000
    if end_ns <= successor_ns and start_us < successor_us <= shown_end_us:
        return start_ns + (successor_us - 1 - start_us) * 1000
    return end_ns
