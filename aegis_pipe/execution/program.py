"""What one run of a bound model does, as a short list of work: copy in, segments, copy out.

Everything a run needs stands in the program at fixed addresses, with its events made beforehand:
running it allocates nothing, looks nothing up by name, and decides nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aegis_pipe.device.protocols import DeviceContext, DeviceEvent, DeviceGraph, Region
from aegis_pipe.execution.dependency_tracker import (
    Dependency,
    DependencyTracker,
    Synchronisation,
)
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId, TensorSpec

COMPUTE_LANE = 0


class WorkKind(enum.Enum):
    """What a piece of work is."""

    COPY_IN = "copy_in"
    SEGMENT = "segment"
    COPY_OUT = "copy_out"


@record()
class BoundTensor:
    """A model's input or output with its place on the device."""

    name: str
    spec: TensorSpec
    region: Region


@record()
class Work:
    """A piece of work on one lane, with the events around it."""

    kind: WorkKind
    lane: int
    graph: DeviceGraph | None
    """What a segment launches; None for copies."""
    waits: tuple[DeviceEvent, ...]
    """Reached on other lanes before this may start."""
    begin: DeviceEvent
    """`done` of the work before it, if the two are always launched together on one lane."""
    done: DeviceEvent
    awaited: bool = False
    """Whether another lane waits for `done`."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundModel:
    """One model in one stream slot, ready to run."""

    name: str
    inputs: tuple[BoundTensor, ...]
    outputs: tuple[BoundTensor, ...]
    work: tuple[Work, ...]
    """Copy in, every segment, copy out."""
    synchronisations: tuple[Synchronisation, ...]
    """Where lanes wait for each other; positions are those of `work`."""
    lengths: Mapping[TensorId, Mapping[int, TensorId]] = field(default_factory=dict)
    """Outputs as long as the data says: by axis, the output that holds the true length."""
    first_update: int | None = None
    """The first segment that writes over what the model keeps from request to request."""

    @property
    def segment_count(self) -> int:
        """Number of segments."""
        return len(self.work) - 2

    @property
    def results(self) -> tuple[BoundTensor, ...]:
        """What a request returns: the outputs without those that hold lengths."""
        names = result_names([TensorId(tensor.name) for tensor in self.outputs], self.lengths)
        return tuple([tensor for tensor in self.outputs if tensor.name in names])

    def named_results(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Return the results by name, each as long as it truly is."""
        named = {tensor.name: a for tensor, a in zip(self.outputs, arrays, strict=True)}
        if not self.lengths:
            return named
        return {
            tensor.name: self._as_long_as_it_is(TensorId(tensor.name), named)
            for tensor in self.results
        }

    def _as_long_as_it_is(self, name: TensorId, named: Mapping[str, np.ndarray]) -> np.ndarray:
        array = named[name]
        if name not in self.lengths:
            return array
        part: list[slice] = [slice(None)] * array.ndim
        for axis, length in self.lengths[name].items():
            part[axis] = slice(int(named[length].item()))
        # A copy, so that a short result does not hold the memory of a long one.
        return array[tuple(part)].copy()

    def close(self) -> None:
        """Release graphs and events."""
        for piece in self.work:
            if piece.graph is not None:
                piece.graph.close()
            piece.begin.close()
            piece.done.close()


def result_names(
    outputs: Sequence[TensorId], lengths: Mapping[TensorId, Mapping[int, TensorId]]
) -> tuple[TensorId, ...]:
    """Return what a request gets: the outputs without those that hold lengths of others."""
    counts = {length for axes in lengths.values() for length in axes.values()}
    return tuple([name for name in outputs if name not in counts])


def build_program(
    context: DeviceContext,
    name: str,
    inputs: Sequence[BoundTensor],
    outputs: Sequence[BoundTensor],
    segments: Sequence[DeviceGraph],
    *,
    copy_lane: int = COMPUTE_LANE,
    lengths: Mapping[TensorId, Mapping[int, TensorId]] | None = None,
    first_update: int | None = None,
) -> BoundModel:
    """Line up a model's work; `copy_lane` puts its copies on a stream of their own."""
    kinds = [WorkKind.COPY_IN, *[WorkKind.SEGMENT] * len(segments), WorkKind.COPY_OUT]
    lanes = [COMPUTE_LANE if kind is WorkKind.SEGMENT else copy_lane for kind in kinds]
    waits = DependencyTracker(lanes, _chain(len(kinds))).synchronisations()
    # What ends a segment (`Executor.last_work`) wakes the scheduler; the others are for whoever
    # asks for times, and for lanes, which wait by themselves.
    ends_segment = [i == len(kinds) - 1 or 0 < i < len(segments) for i in range(len(kinds))]
    done = [context.create_event(is_announced=ends) for ends in ends_segment]
    graphs: list[DeviceGraph | None] = [None, *segments, None]

    def follows(i: int) -> bool:
        """Return whether it is always launched right behind the one before it, on its lane."""
        return i in (1, len(kinds) - 1) and lanes[i] == lanes[i - 1]

    work = tuple(
        [
            Work(
                kind=kinds[i],
                lane=lanes[i],
                graph=graphs[i],
                waits=tuple([done[wait.record_after] for wait in waits if wait.wait_before == i]),
                begin=done[i - 1] if follows(i) else context.create_event(is_announced=False),
                done=done[i],
                awaited=any(wait.record_after == i for wait in waits),
            )
            for i in range(len(kinds))
        ]
    )
    return BoundModel(name, tuple(inputs), tuple(outputs), work, waits, lengths or {}, first_update)


def _chain(length: int) -> list[Dependency]:
    """Each piece of work reads what the one before it wrote into the arena."""
    return [Dependency(i, i + 1, "arena") for i in range(length - 1)]
