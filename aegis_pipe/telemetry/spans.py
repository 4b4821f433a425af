"""Spans as plain values, and the tree they are cut from.

A trace is first built as a tree of `SpanNode`s on the runtime's clock, which knows true times
only. `flatten` then gives each node its id and its place on the wall clock, and makes the tree
one that viewers draw right: no end before its start, children inside their parents, and
neighbours apart by the whole microseconds that viewers compute with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Final, NamedTuple

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.ids import SpanReference, span_id_at

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


Trace = Sequence[Span]
"""The spans of one trace that this process made, parents first."""


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
) -> list[Span]:
    """Return the tree's spans, parents first; `parent` is a span of the caller, if any.

    Changes the tree's times as the module describes; each span's `aegis.duration_ns` stays true.
    """
    _place(root, to_unix_ns)
    _enclose(root)
    _separate(root)
    spans: list[Span] = []

    def visit(node: SpanNode, parent_id: int, span_ids: Iterator[int]) -> None:
        if node.own_span_id:
            span_ids = _span_ids(node.own_span_id)
        span_id = next(span_ids)
        is_remote = node is root and parent is not None
        spans.append(_to_span(node, reference.trace_id, span_id, parent_id, is_remote))
        for child in node.children:
            visit(child, span_id, span_ids)

    visit(root, parent.span_id if parent else 0, _span_ids(reference.span_id))
    return spans


def _span_ids(root_span_id: int) -> Iterator[int]:
    return (span_id_at(root_span_id, position) for position in count())


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


def _place(node: SpanNode, to_unix_ns: Callable[[int], int]) -> None:
    """Move a tree to the wall clock, and cut off the events that are too many."""
    node.start_ns, node.end_ns = to_unix_ns(node.start_ns), to_unix_ns(node.end_ns)
    if len(node.events) > EVENTS_MAX:
        node.attributes[names.EVENTS_OMITTED] = len(node.events) - EVENTS_MAX
    node.events = [
        event._replace(at_ns=to_unix_ns(event.at_ns)) for event in node.events[:EVENTS_MAX]
    ]
    for child in node.children:
        _place(child, to_unix_ns)


def _enclose(node: SpanNode) -> None:
    """Widen parents to their children: device stamps may stray over the host's by a little."""
    for child in node.children:
        _enclose(child)
    node.children.sort(key=lambda child: (child.start_ns, child.end_ns))
    if node.children:
        node.start_ns = min(node.start_ns, node.children[0].start_ns)
        node.end_ns = max(node.end_ns, *(child.end_ns for child in node.children))


def _separate(node: SpanNode) -> None:
    """Shorten a span that seems to end in the microsecond in which its successor begins.

    Viewers that compute a critical path in whole microseconds (start and duration each rounded
    down) take the two for overlapping and leave out the first. Spans too short to give way stay.
    """
    for child, successor in pairwise(node.children):
        start_us, successor_us = child.start_ns // 1000, successor.start_ns // 1000
        shown_end_us = start_us + (child.end_ns - child.start_ns) // 1000
        if child.end_ns <= successor.start_ns and start_us < successor_us <= shown_end_us:
            child.end_ns = child.start_ns + (successor_us - 1 - start_us) * 1000
    for child in node.children:
        child.start_ns = min(child.start_ns, node.end_ns)
        child.end_ns = min(child.end_ns, node.end_ns)
        _separate(child)
