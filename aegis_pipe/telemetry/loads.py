"""Load traces: phases of start-up, each root with what lies below it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from aegis_pipe.events import MemoryAllocated, ModelLoaded, PhaseFinished
from aegis_pipe.telemetry.bounded import BoundedDict
from aegis_pipe.telemetry.ids import Identifiers, SpanReference
from aegis_pipe.telemetry.spans import SegmentCalls, Trace, flatten
from aegis_pipe.telemetry.traces import KernelTable, phase_tree

_PHASES_MAX: Final = 65_536
_ALLOCATIONS_MAX: Final = 65_536


class LoadTraces:
    """Collects phases until their root ends. Every load is kept: there are few."""

    def __init__(self, identifiers: Identifiers, to_unix_ns: Callable[[int], int]) -> None:
        self._identifiers = identifiers
        self._to_unix_ns = to_unix_ns
        self._phases = BoundedDict[int, PhaseFinished](_PHASES_MAX)
        self._allocations = BoundedDict[int, MemoryAllocated](_ALLOCATIONS_MAX)
        self._loaded: dict[str, ModelLoaded] = {}
        self._kernels: dict[str, KernelTable] = {}
        self._model_spans: dict[str, SpanReference] = {}
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
        self._loaded[event.model] = event
        self._kernels[event.model] = [
            SegmentCalls(calls, segment) for segment, calls in enumerate(event.kernels)
        ]

    def add_allocation(self, event: MemoryAllocated) -> None:
        """Take note of a tensor's place, for the `pool.reserve` phase around it."""
        self._allocations[self._allocation_count] = event
        self._allocation_count += 1

    def kernels(self, model: str) -> KernelTable:
        """Return what a model's segments call; empty if it is not known."""
        return self._kernels.get(model, ())

    def span_of(self, model: str) -> SpanReference | None:
        """Return the span in which a model was loaded, once its trace is built."""
        return self._model_spans.get(model)

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
        by_phase = {event.phase_id: event for event in self._loaded.values()}
        tree, nodes = phase_tree(root, below, by_phase, self._take_allocations(root))
        reference = self._identifiers.root("phase", root.phase_id)
        for phase_id in sorted(nodes.keys() & by_phase.keys()):
            span_id = self._identifiers.root("phase", phase_id).span_id
            nodes[phase_id].own_span_id = span_id
            self._model_spans[by_phase[phase_id].model] = reference._replace(span_id=span_id)
        return flatten(tree, reference, self._to_unix_ns)

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
