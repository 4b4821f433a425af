"""A pipeline's shape, worked out once: which stage runs in which leg, and what it reads.

A model stage is submitted and not waited for: its result is awaited by the first stage that needs
it. A pipeline is therefore cut into *legs*: leg 0 is the source's side up to and including the
submissions that need no model's result; leg n needs results of models submitted in leg n-1. Each
leg has a thread, each edge between legs a bounded queue, so that several items are under way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aegis_pipe.errors import PipelineError
from aegis_pipe.pipeline.parts import Sink, Source, Transform

SOURCE = "source"


@dataclass(frozen=True, slots=True, eq=False)
class StagePlan:
    """One stage: either a transform or a model."""

    name: str
    inputs: Mapping[str, str]
    """Operand -> value, as `<stage>.<output>` or `source.<output>`."""
    outputs: tuple[str, ...]
    transform: Transform | None = None
    model: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class SinkPlan:
    """A sink with the values it takes."""

    name: str
    sink: Sink
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class PipelinePlan:
    """A whole pipeline, its stages in topological order."""

    name: str
    source: Source
    source_kind: str
    stages: tuple[StagePlan, ...]
    sinks: tuple[SinkPlan, ...]
    queue_capacity: int = 4
    drop_when_full: bool = False
    priority: int | None = None
    deadline_ns: int | None = None
    legs: tuple[tuple[StagePlan, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Order the stages and cut them into legs."""
        ordered = order_stages(self.name, self.stages)
        object.__setattr__(self, "stages", tuple(ordered))
        object.__setattr__(self, "legs", _cut(ordered, self.sinks))


def order_stages(pipeline: str, stages: Sequence[StagePlan]) -> list[StagePlan]:
    """Sort so that every stage follows those it reads; given order otherwise.

    Raises PipelineError for a cycle. (The manifest's loader has told the user before, with line
    numbers; this guards pipelines made in code.)
    """
    ordered: list[StagePlan] = []
    done = {SOURCE}
    left = list(stages)
    while left:
        ready = next((s for s in left if _read_stages(s) <= done), None)
        if ready is None:
            raise PipelineError(
                f"stage `{left[0].name}` waits for itself or for a stage that does not exist",
                context=f"pipeline `{pipeline}`",
                hint="stages form a directed acyclic graph",
            )
        left.remove(ready)
        ordered.append(ready)
        done.add(ready.name)
    return ordered


def _read_stages(stage: StagePlan) -> set[str]:
    return {value.partition(".")[0] for value in stage.inputs.values()}


def _cut(
    stages: Sequence[StagePlan], sinks: Sequence[SinkPlan]
) -> tuple[tuple[StagePlan, ...], ...]:
    """Group stages by leg; the last leg, where the sinks are, may have none."""
    available = {SOURCE: 0}
    leg_of: dict[str, int] = {}
    for stage in stages:
        leg_of[stage.name] = max((available[name] for name in _read_stages(stage)), default=0)
        available[stage.name] = leg_of[stage.name] + (1 if stage.model else 0)
    # Sinks stand behind everything, so that an item is over when its last leg is.
    last = max(available.values())
    return tuple(
        tuple(stage for stage in stages if leg_of[stage.name] == leg) for leg in range(last + 1)
    )
