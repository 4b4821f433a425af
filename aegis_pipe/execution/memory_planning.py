"""Plans the memory of one run of a model: the arena, and what of its states is updated in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from aegis_pipe.device.protocols import Fork
from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.aliasing import joins_of, parts_of
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.recurrence import KEEP, Producer, States, heirs_of, kept_name, without
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.memory import (
    AllocationPlan,
    LifetimeAnalyser,
    MemoryAnalysis,
    MemoryPlanner,
    MemoryStep,
    assert_plan_is_sound,
)
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId


@record()
class CompiledStep:
    """One operator with the kernel that will run it."""

    node: str
    operator: str
    request: KernelRequest
    choice: KernelChoice
    operands: tuple[TensorId, ...]
    """Data operands in the request's order; empty where left out."""
    results: tuple[TensorId, ...]
    weights: Mapping[int, str]
    """Key of the weight for each constant operand, by position."""
    in_place: bool = False
    """The plan has its bytes where they have to come to: no kernel runs."""

    @property
    def is_launched(self) -> bool:
        """Whether a kernel runs; views have none."""
        return self.choice.view is None and not self.in_place

    @property
    def is_keep(self) -> bool:
        """Whether it stands for no operator, but brings an output to where a state lies."""
        return self.operator == KEEP


def plan_memory(
    graph: ExecutionGraph,
    compiled_steps: Sequence[CompiledStep],
    alignment_bytes: int,
    guard_bytes: int,
    states: States,
    forks: Sequence[Fork] = (),
) -> tuple[MemoryAnalysis, AllocationPlan]:
    """Return where everything lies during a run, checked by who shares no code with the planner.

    Branches of `forks` (positions of steps) have nothing in common that one of them writes.
    `guard_bytes` (a multiple of the alignment) are left free before and after everything planned.
    Raises InvalidModelError for a state that is wanted after it was replaced.
    """
    steps = _in_branches(tuple(map(_memory_step, compiled_steps)), forks)
    heirs = _heirs(compiled_steps, states)
    if guard_bytes:
        # A part that lies in place has no guard of its own, and what is in no arena has none.
        steps = tuple([replace(step, parts=(), joins=()) for step in steps])
        heirs = dict.fromkeys(states, frozenset())
    sizes_bytes = sizes_of(graph, states)
    inputs = without(graph.inputs, states)
    outputs = without(graph.outputs, {*graph.constants, *states.values()})
    analysis = _analysewith_states(
        LifetimeAnalyser(alignment_bytes), steps, sizes_bytes, inputs, outputs, states, heirs
    )
    _check_states(analysis, states, outputs)
    lifetimes = analysis.lifetimes
    if guard_bytes:
        lifetimes = tuple(
            [replace(x, size_bytes=x.size_bytes + 2 * guard_bytes) for x in lifetimes]
        )
    plan = MemoryPlanner().plan(lifetimes)
    offsets = {storage: offset + guard_bytes for storage, offset in plan.offsets.items()}
    plan = replace(plan, offsets=MappingProxyType(offsets))
    assert_plan_is_sound(
        analysis.steps,
        sizes_bytes,
        inputs=(*inputs, *states),
        outputs=(*outputs, *map(kept_name, states)),
        storage_of=analysis.storage_of,
        offset_of=analysis.offset_of,
        plan=with_states(plan, sizes_bytes, states, alignment_bytes),
        alignment_bytes=alignment_bytes,
    )
    return analysis, plan


def _in_branches(steps: tuple[MemoryStep, ...], forks: Sequence[Fork]) -> tuple[MemoryStep, ...]:
    branch_of = {
        step: (fork_number, branch_number)
        for fork_number, fork in enumerate(forks)
        for branch_number, branch in enumerate(fork)
        for step in branch
    }
    if not branch_of:
        return steps
    return tuple([replace(step, branch=branch_of.get(at)) for at, step in enumerate(steps)])


def _analysewith_states(
    analyser: LifetimeAnalyser,
    steps: Sequence[MemoryStep],
    sizes_bytes: Mapping[str, int],
    inputs: Sequence[str],
    outputs: Collection[str],
    states: States,
    heirs: Mapping[TensorId, frozenset[str]],
) -> MemoryAnalysis:
    """Analyse with as many states updated in place as may be; the others' outputs are copied."""
    in_place = {name: heirs[name] for name in states if heirs[name]}
    while True:
        kept: dict[str, set[str]] = {
            name: {*in_place.get(name, ()), kept_name(name)} for name in states
        }
        views = {
            kept_name(name): ((output, kept_name(name)),)
            for name, output in states.items()
            if name in in_place
        }
        analysis = analyser.analyse(
            [
                replace(step, views=views[step.writes[0]], workspace_bytes=0)
                if step.writes and step.writes[0] in views
                else step
                for step in steps
            ],
            sizes_bytes,
            inputs=inputs,
            outputs=outputs,
            kept=kept,
        )
        elsewhere = [name for name in in_place if analysis.storage_of[kept_name(name)] != name]
        if not elsewhere:
            return analysis
        for name in elsewhere:
            del in_place[name]


def _heirs(steps: Sequence[CompiledStep], states: States) -> dict[TensorId, frozenset[str]]:
    producers: dict[TensorId, Producer] = {}
    for step in steps:
        for position, result in enumerate(step.results):
            view = step.choice.view
            over = [operand for operand, target in step.choice.in_place if target == position]
            producers[result] = Producer(
                step.request.operator,
                step.operands[view[0]] if view is not None and view[1] == position else None,
                tuple([step.operands[operand] for operand in over if step.operands[operand]]),
            )
    for name in states:
        producers.pop(name, None)  # the step that keeps it
    return {name: heirs_of(name, output, producers) for name, output in states.items()}


def _check_states(analysis: MemoryAnalysis, states: States, outputs: Sequence[str]) -> None:
    """Raise InvalidModelError where an old state would still be wanted when it is replaced."""
    storage_of = analysis.storage_of
    in_place = {
        step.views[0][0]
        for step in analysis.steps
        if step.views and step.views[0][1] in map(kept_name, states)
    }
    for name, output in states.items():
        if storage_of.get(output) in states and output not in in_place:
            raise InvalidModelError(
                "its next value is a state as it was", context=f"`state`, input `{name}`"
            )
        if storage_of[kept_name(name)] != name:
            views = [each for each in outputs if storage_of.get(each) == name]
            raise InvalidModelError(
                f"output `{views[0]}` is this state as it was",
                context=f"`state`, input `{name}`",
                hint="take the output out of the model, or the state out of the manifest",
            )


def with_states(
    plan: AllocationPlan, sizes_bytes: Mapping[str, int], states: States, alignment_bytes: int
) -> AllocationPlan:
    """Return the plan with the states behind the arena, as if they lay there: for the checker."""
    offsets, end = dict(plan.offsets), plan.peak_bytes
    for name in states:
        offsets[name] = -(-end // alignment_bytes) * alignment_bytes
        end = offsets[name] + sizes_bytes[name]
    return replace(plan, offsets=MappingProxyType(offsets), peak_bytes=end)


def sizes_of(graph: ExecutionGraph, states: States) -> dict[str, int]:
    """Return the bytes of every tensor but constants, and of the states' next values."""
    sizes_bytes: dict[str, int] = {
        tensor: spec.size_bytes
        for tensor, spec in graph.specs.items()
        if tensor not in graph.constants
    }
    return sizes_bytes | {kept_name(name): sizes_bytes[name] for name in states}


def _memory_step(step: CompiledStep) -> MemoryStep:
    if step.is_keep:
        kept = kept_name(step.results[0])
        return MemoryStep(step.node, step.operands, (kept,), step.choice.workspace_bytes)
    view = [step.choice.view] if step.choice.view else []

    def pairs(positions: Sequence[tuple[int, int]]) -> tuple[tuple[str, str], ...]:
        return tuple(
            [
                (step.operands[source], step.results[target])
                for source, target in positions
                if step.operands[source] and step.results[target]
            ]
        )

    return MemoryStep(
        name=step.node,
        reads=tuple(filter(None, step.operands)),
        writes=tuple(filter(None, step.results)),
        workspace_bytes=step.choice.workspace_bytes,
        in_place=pairs(step.choice.in_place),
        views=pairs(view),
        parts=() if view else parts_of(step.request, step.operands, step.results),
        joins=() if view else joins_of(step.request, step.operands, step.results),
    )
