"""Load traces: phases of start-up, each root with what lies below it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from aegis_pipe.events import MemoryAllocated, ModelLoaded, PhaseFinished
from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.bounded import BoundedDict
from aegis_pipe.telemetry.ids import Identifiers, SpanReference
from aegis_pipe.telemetry.spans import SegmentCalls, SpanLink, SpanNode, Trace, flatten
from aegis_pipe.telemetry.traces import KernelTable, phase_tree

_PHASES_MAX: Final = 65_536
_ALLOCATIONS_MAX: Final = 65_536
_LOADS_MAX: Final = 16
"""Loads of one model that are remembered: requests of before a reload are told of after it."""


class _Load(NamedTuple):
    event: ModelLoaded
    kernels: KernelTable


class LoadTraces:
    """Collects phases until their root ends. Every load is kept: there are few."""

    def __init__(self, identifiers: Identifiers, to_unix_ns: Callable[[int], int]) -> None:
        self._identifiers = identifiers
        self._to_unix_ns = to_unix_ns
        self._phases = BoundedDict[int, PhaseFinished](_PHASES_MAX)
        self._allocations = BoundedDict[int, MemoryAllocated](_ALLOCATIONS_MAX)
        self._loads: dict[str, deque[_Load]] = {}
        self._spans = BoundedDict[int, SpanReference](_PHASES_MAX)
        """Of `model.load` phases whose trace is built."""
        self._previous_start: SpanReference | None = None
        """The start or reload that what runs now came from."""
        self._allocation_count = 0

    @property
    def abandoned(self) -> int:
        """Phases whose root never ended, as far as that is known."""
        return self._phases.evicted

    def add_phase(self, event: PhaseFinished) -> None:
        """Take note of a phase; children end before their parents."""
        self._phases[event.phase_id] = event

    def add_loaded(self, event: ModelLoaded) -> None:
        """Take note of a model's kernels and sizes."""
        kernels = [SegmentCalls(calls, segment) for segment, calls in enumerate(event.kernels)]
        self._loads.setdefault(event.model, deque(maxlen=_LOADS_MAX)).append(_Load(event, kernels))

    def add_allocation(self, event: MemoryAllocated) -> None:
        """Take note of a tensor's place, for the `pool.reserve` phase around it."""
        self._allocations[self._allocation_count] = event
        self._allocation_count += 1

    def kernels(self, model: str, at_ns: int) -> KernelTable:
        """Return what a model's segments called at an instant; empty if it is not known."""
        load = self._load_at(model, at_ns)
        return () if load is None else load.kernels

    def span_of(self, model: str, at_ns: int) -> SpanReference | None:
        """Return the span that loaded a model as it was at an instant, once its trace is built."""
        load = self._load_at(model, at_ns)
        return None if load is None else self._spans.get(load.event.phase_id)

    def _load_at(self, model: str, at_ns: int) -> _Load | None:
        loads = self._loads.get(model, ())
        return next((load for load in reversed(loads) if load.event.at_ns <= at_ns), None)

    def settle(self, settled_ns: int) -> list[Trace]:
        """Return the traces whose root ended by then."""
        roots = [
            phase
            for phase in self._phases.values()
            if not phase.parent_id and phase.end_ns <= settled_ns
        ]
        return [self._build(root) for root in roots]

    def flush(self) -> int:
        """Give up what is still open; return how many phases that were."""
        count = len(self._phases)
        self._phases.clear()
        return count

    def _build(self, root: PhaseFinished) -> Trace:
        below = self._take_below(root)
        events = [load.event for loads in self._loads.values() for load in loads]
        by_phase = {event.phase_id: event for event in events}
        tree, nodes = phase_tree(root, below, by_phase, self._take_allocations(root))
        reference = self._identifiers.root("phase", root.phase_id)
        for phase_id in sorted(nodes.keys() & by_phase.keys()):
            span_id = self._identifiers.root("phase", phase_id).span_id
            nodes[phase_id].own_span_id = span_id
            self._spans[phase_id] = reference._replace(span_id=span_id)
        self._link(root, tree, reference)
        return flatten(tree, reference, self._to_unix_ns)

    def _link(self, root: PhaseFinished, tree: SpanNode, own: SpanReference) -> None:
        """Have a reload point to the start or reload whose manifest ran before it."""
        if root.name == names.RELOAD and self._previous_start is not None:
            tree.links.append(SpanLink(self._previous_start, names.LINK_PREVIOUS_START))
        outcome = root.attributes.get(names.RELOAD_OUTCOME)
        if root.name == names.RUNTIME_START or outcome in ("applied", "restored"):
            self._previous_start = own

    def _take_below(self, root: PhaseFinished) -> list[PhaseFinished]:
        """Remove a root and its descendants; return the descendants, parents first."""
        del self._phases[root.phase_id]
        below: list[PhaseFinished] = []
        members = {root.phase_id}
        # Parents end after their children, so backwards a parent comes before what is in it.
        for phase in sorted(self._phases.values(), key=_ended_last_first):
            if phase.parent_id in members:
                members.add(phase.phase_id)
                below.append(self._phases.pop(phase.phase_id))
        return below

    def _take_allocations(self, root: PhaseFinished) -> list[MemoryAllocated]:
        keys = [
            key
            for key, event in self._allocations.items()
            if root.start_ns <= event.at_ns <= root.end_ns
        ]
        return [self._allocations.pop(key) for key in keys]


def _ended_last_first(phase: PhaseFinished) -> tuple[int, int, int]:
    return -phase.end_ns, phase.start_ns, phase.phase_id
