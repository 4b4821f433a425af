"""From a graph to a plan: asks the device for kernels, plans memory, binds kernels to addresses.

Compiling (`compile_model`) touches no device memory: `aegis-pipe plan` stops there. Binding
(`bind_model`) happens once per stream slot, after the pools are reserved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from aegis_pipe.device.protocols import DeviceContext, DeviceDescription, Fork, KernelCall, Region
from aegis_pipe.events import PhaseRecorder
from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, OperatorNode
from aegis_pipe.execution.lowering import ReferenceFactory, lower_node
from aegis_pipe.execution.memory_planning import (
    CompiledStep,
    plan_memory,
    sizes_of,
    with_states,
)
from aegis_pipe.execution.operators.table import OperatorTable
from aegis_pipe.execution.passes import PassReport
from aegis_pipe.execution.program import BoundTensor
from aegis_pipe.execution.recurrence import (
    KEEP,
    States,
    keeping,
    kept_name,
    states_of,
    without,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.memory import (
    AllocationPlan,
    MemoryAnalysis,
    ModelMemory,
    PlanViolation,
    WorkspaceId,
    check_lifetimes,
    check_plan,
    content_digest,
    live_at_peak,
)
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorId
from aegis_pipe.units import format_size

_NAMED_MAX = 3
"""So many tensors are named where an arena is fullest."""


@record()
class Weight:
    """A constant in the layout a kernel wants; stored once per device, whoever uses it."""

    key: str
    """Digest of content and layout: equal keys are the same bytes."""
    tensor: TensorId
    """The first tensor that needs it, for messages."""
    size_bytes: int
    array: np.ndarray
    packed: PackedConstant | None

    def content(self) -> np.ndarray | Callable[[np.ndarray], None]:
        """Return the bytes to store, or who writes them where they shall be."""
        if self.packed is None:
            return np.ascontiguousarray(self.array)
        if self.packed.fill is None:
            return self.packed.pack(self.array)
        return partial(self.packed.fill, self.array)

    def is_same(self, other: Weight) -> bool:
        """Return whether it is the other one, compared byte by byte."""
        mine, theirs = (np.ascontiguousarray(one.array).reshape(-1) for one in (self, other))
        return np.array_equal(mine.view(np.uint8), theirs.view(np.uint8))


@record(eq=True)
class Branching:
    """What was decided about a model's branches on a device that runs them side by side."""

    possible: int
    """How many forks may pay, by what the steps have to do."""
    taken: int
    """How many were measured to pay, and the arena may grow for."""
    chain_ns: int = 0
    """How long the kernels take one behind the other; 0 if the arena may grow for no fork."""
    forked_ns: int = 0
    """And with the forks that pay by themselves, taken or not; 0 if none does."""
    grown_bytes: int = 0
    """By how much the arena is larger for the forks that are taken."""
    given_up: str = ""
    """Why forks that pay were not taken after all."""


@dataclass(frozen=True, slots=True, eq=False)
class CompiledModel:
    """A model with chosen kernels and planned memory, not yet on the device."""

    name: str
    graph: ExecutionGraph
    steps: tuple[CompiledStep, ...]
    weights: Mapping[str, Weight]
    constant_outputs: Mapping[TensorId, str]
    """Weight keys of graph outputs that are constants."""
    analysis: MemoryAnalysis
    plan: AllocationPlan
    passes: tuple[PassReport, ...] = ()
    """What was done to the graph before, in order."""
    guard_bytes: int = 0
    """Bytes left free before and after everything planned, for `memory_debug`."""
    states: States = field(default_factory=dict)
    """Inputs that stay from request to request, and the output that each becomes."""
    forks: tuple[Fork, ...] = ()
    """Stretches of launched steps whose branches run side by side."""
    branching: Branching | None = None
    """Why these; None where nothing may run side by side."""
    chain: CompiledModel | None = None
    """The same without forks, if it has any."""
    plain: CompiledModel | None = None
    """The same without alternatives, if it has taken any."""
    plain_because: str = ""
    """Why alternatives that pay were not taken after all."""
    variant_of: str = ""
    """The model that it runs several requests of; empty for a model itself."""
    rows: int = 1
    """How many requests: their inputs and outputs are copied one by one."""

    @property
    def inputs(self) -> tuple[TensorId, ...]:
        """What a request gives."""
        return without(self.graph.inputs, self.states)

    @property
    def outputs(self) -> tuple[TensorId, ...]:
        """What a request returns, and the lengths of those that are as long as the data says."""
        return without(self.graph.outputs, self.states.values())

    @property
    def state_bytes(self) -> dict[str, int]:
        """Bytes of each state."""
        return {str(name): self.graph.spec(name).size_bytes for name in self.states}

    @property
    def updated_in_place(self) -> tuple[TensorId, ...]:
        """States whose next value is written where they lie, and not copied there at the end."""
        return tuple([step.results[0] for step in self.steps if step.is_keep and step.in_place])

    @property
    def first_update(self) -> int | None:
        """The first of the launched steps that writes over a state; None if it is a copy.

        From there on, a request that does not reach its end leaves states half-written.
        """
        places = [
            any(self.analysis.storage_of.get(result) in self.states for result in step.results)
            for step in self.steps
            if step.is_launched and not step.is_keep
        ]
        return places.index(True) if True in places else None

    def violations(self, alignment_bytes: int) -> list[PlanViolation]:
        """Return what the independent checker finds wrong with the plan of the arena."""
        analysis, plan = self.analysis, self.plan
        sizes_bytes = sizes_of(self.graph, self.states)
        return [
            *check_lifetimes(analysis.lifetimes, plan),
            *check_plan(
                analysis.steps,
                sizes_bytes,
                inputs=(*self.inputs, *self.states),
                outputs=[
                    *(tensor for tensor in self.outputs if tensor in analysis.storage_of),
                    *map(kept_name, self.states),
                ],
                storage_of=analysis.storage_of,
                offset_of=analysis.offset_of,
                plan=with_states(plan, sizes_bytes, self.states, alignment_bytes),
                alignment_bytes=alignment_bytes,
            ),
        ]

    @property
    def weight_bytes(self) -> int:
        """Bytes of this model's weights, each counted once."""
        return sum(weight.size_bytes for weight in self.weights.values())

    def staging_bytes(self, device: DeviceDescription) -> int:
        """Return the host memory that one run's inputs and outputs pass through."""
        sizes = [self.graph.spec(x).size_bytes for x in (*self.inputs, *self.outputs)]
        return sum(self.rows * device.staged_bytes(size // self.rows) for size in sizes)

    def staging_ahead_bytes(self, device: DeviceDescription) -> int:
        """Return the host memory for staging one request's inputs ahead.

        0 if they are too small to be worth it, and for a variant, whose requests are the model's.
        """
        if self.variant_of:
            return 0
        sizes = (device.staged_bytes(self.graph.spec(name).size_bytes) for name in self.inputs)
        size_bytes = sum(sizes)
        return size_bytes if size_bytes >= device.staged_ahead_min_bytes else 0

    def memory(
        self, device: DeviceDescription, arena_group: int = 0, streams_max: int | None = None
    ) -> ModelMemory:
        """Return what it needs on the device, sharing arenas with the other models of a group."""
        sizes = {key: weight.size_bytes for key, weight in self.weights.items()}
        return ModelMemory(
            self.name,
            sizes,
            self.plan.peak_bytes,
            staging_bytes=self.staging_bytes(device),
            staging_ahead_bytes=self.staging_ahead_bytes(device),
            arena_group=arena_group,
            streams_max=streams_max,
            states=self.state_bytes,
            fullest=self._fullest(),
            variant_of=self.variant_of,
            rows=self.rows,
        )

    def _fullest(self) -> str:
        step, alive = live_at_peak(self.analysis.lifetimes)
        name = f" (`{self.steps[step].node}`)" if step < len(self.steps) else ""
        largest = sorted(alive, key=lambda each: -each.size_bytes)
        tensors = [f"`{x.tensor_id}` {format_size(x.size_bytes)}" for x in largest[:_NAMED_MAX]]
        more = len(largest) - _NAMED_MAX
        return f"step {step}{name} with {' + '.join(tensors)}" + (f" + {more} more" * (more > 0))

    @property
    def reference_steps(self) -> tuple[CompiledStep, ...]:
        """Steps that run as reference kernels."""
        return tuple([step for step in self.steps if step.choice.is_reference])


def compile_model(
    graph: ExecutionGraph,
    context: DeviceContext,
    operators: OperatorTable,
    reference: ReferenceFactory | None,
    phases: PhaseRecorder,
    *,
    tf32: bool = False,
    guard_bytes: int = 0,
    states: Mapping[str, str] | None = None,
) -> CompiledModel:
    """Choose a kernel for every operator and plan the memory of one run.

    With `tf32`, float32 products may round their operands to ten bits of mantissa. `guard_bytes`
    (a multiple of the device's alignment) are left free before and after everything planned.
    `states` names inputs that stay from request to request, and the output that each becomes.

    Raises UnsupportedOperatorError for an operator the device has no kernel for.
    """
    kept = states_of(graph, states or {})
    with phases.phase("kernel.select", model=graph.name) as phase:
        weights = _WeightTable()
        lowered = [lower_node(graph, node, operators, reference) for node in graph.operators]
        if tf32:
            lowered = [(replace(request, tf32=True), operands) for request, operands in lowered]
        context.prepare([request for request, _ in lowered])
        steps = tuple(
            [
                _compile_step(node, request, operands, context, weights)
                for node, (request, operands) in zip(graph.operators, lowered, strict=True)
            ]
        )
        steps += tuple([_keep(graph, name, output, context) for name, output in kept.items()])
        constant_outputs = {
            tensor: weights.intern(tensor, graph.constants[tensor], None)
            for tensor in graph.outputs
            if tensor in graph.constants
        }
        phase.attributes["reference_kernels"] = sum(step.choice.is_reference for step in steps)
    with phases.phase("memory.plan", model=graph.name) as phase:
        alignment_bytes = context.description.alignment_bytes
        analysis, plan = plan_memory(graph, steps, alignment_bytes, guard_bytes, kept)
        steps = _placed(steps, analysis)
        phase.attributes["kernels"] = sum(step.is_launched for step in steps)
        phase.attributes["peak_bytes"] = plan.peak_bytes
        phase.attributes["lower_bound_bytes"] = plan.lower_bound_bytes
        phase.attributes["algorithm"] = plan.algorithm
    return CompiledModel(
        graph.name,
        graph,
        steps,
        weights.weights,
        constant_outputs,
        analysis,
        plan,
        guard_bytes=guard_bytes,
        states=kept,
    )


def fork_model(
    compiled: CompiledModel, forks: Sequence[Fork], alignment_bytes: int
) -> CompiledModel:
    """Return the model with these forks, its memory planned anew."""
    analysis, plan = plan_memory(
        compiled.graph,
        compiled.steps,
        alignment_bytes,
        compiled.guard_bytes,
        compiled.states,
        forks,
    )
    steps = _placed(compiled.steps, analysis)
    # What lies in place now is launched no more.
    launched = [[[at for at in part if steps[at].is_launched] for part in fork] for fork in forks]
    taken = [tuple([tuple(part) for part in fork if part]) for fork in launched]
    return replace(
        compiled,
        steps=steps,
        analysis=analysis,
        plan=plan,
        forks=tuple([fork for fork in taken if len(fork) > 1]),
    )


def choose_anew(
    compiled: CompiledModel, choices: Mapping[int, KernelChoice], alignment_bytes: int
) -> CompiledModel:
    """Return the model with other kernels for these steps, its memory planned anew.

    The model is a chain.
    """
    assert not compiled.forks, "kernels are chosen before branches"
    weights = {key: compiled.weights[key] for key in compiled.constant_outputs.values()}
    steps = []
    for at, step in enumerate(compiled.steps):
        choice, keys = choices.get(at), dict(step.weights)
        if choice is not None:
            for position, key in step.weights.items():
                # Its content is known by what it was before.
                weight = _weight(
                    key.partition("/")[0],
                    step.operands[position],
                    step.request.constants[position],
                    choice.packed.get(position),
                )
                keys[position] = weights.setdefault(weight.key, weight).key
            steps.append(replace(step, choice=choice, weights=keys))
        else:
            weights |= {key: compiled.weights[key] for key in keys.values()}
            steps.append(step)
    analysis, plan = plan_memory(
        compiled.graph, steps, alignment_bytes, compiled.guard_bytes, compiled.states
    )
    return replace(
        compiled,
        steps=_placed(steps, analysis),
        weights=weights,
        analysis=analysis,
        plan=plan,
    )


def _placed(steps: Sequence[CompiledStep], analysis: MemoryAnalysis) -> tuple[CompiledStep, ...]:
    """Return the steps, marked where the plan has their bytes where they have to come to."""
    return tuple(
        [
            replace(step, in_place=memory_step.moves or (step.is_keep and bool(memory_step.views)))
            for step, memory_step in zip(steps, analysis.steps, strict=True)
        ]
    )


class _WeightTable:
    """Collects a model's weights, each content and layout once."""

    def __init__(self) -> None:
        self.weights: dict[str, Weight] = {}
        self._digests: dict[int, str] = {}

    def intern(self, tensor: TensorId, array: np.ndarray, packed: PackedConstant | None) -> str:
        """Add a weight unless its bytes are there already; return its key."""
        if id(array) not in self._digests:
            self._digests[id(array)] = content_digest(array)
        weight = _weight(self._digests[id(array)], tensor, array, packed)
        return self.weights.setdefault(weight.key, weight).key


def _weight(
    digest: str, tensor: TensorId, array: np.ndarray, packed: PackedConstant | None
) -> Weight:
    layout = packed.layout if packed else "dense"
    size_bytes = packed.size_bytes if packed else array.nbytes
    return Weight(f"{digest}/{layout}/{size_bytes}", tensor, size_bytes, array, packed)


def _compile_step(
    node: OperatorNode,
    request: KernelRequest,
    operands: tuple[TensorId, ...],
    context: DeviceContext,
    weights: _WeightTable,
) -> CompiledStep:
    choice = context.select(request)
    return CompiledStep(
        node=node.name,
        operator=node.qualified_operator,
        request=request,
        choice=choice,
        operands=operands,
        results=node.outputs,
        weights={
            position: weights.intern(operands[position], array, choice.packed.get(position))
            for position, array in request.constants.items()
        },
    )


def _keep(
    graph: ExecutionGraph, name: TensorId, output: TensorId, context: DeviceContext
) -> CompiledStep:
    request, choice = keeping(graph, output, context)
    return CompiledStep(request.node, KEEP, request, choice, (output,), (name,), {})


class ModelBinder:
    """Gives a compiled model's tensors their regions in one stream slot and binds its kernels."""

    def __init__(
        self,
        compiled: CompiledModel,
        context: DeviceContext,
        weights: Mapping[str, Region],
        storages: Mapping[Hashable, Region],
        states: Mapping[TensorId, Region] | None = None,
    ) -> None:
        self._compiled = compiled
        self._context = context
        self._weights = weights
        self._storages: dict[Hashable, Region] = dict(storages)
        for name, region in (states or {}).items():
            self._storages[name] = region
        self._regions = self._place()

    def _place(self) -> dict[TensorId, Region]:
        compiled, graph = self._compiled, self._compiled.graph
        regions = {
            tensor: self._part(tensor, spec.size_bytes)
            for tensor, spec in graph.specs.items()
            if tensor in compiled.analysis.storage_of
        }
        for tensor, key in compiled.constant_outputs.items():
            regions[tensor] = self._weights[key]
        for step in compiled.steps:
            if step.choice.view and step.choice.view[0] in step.weights:
                source, target = step.choice.view
                regions[step.results[target]] = self._weights[step.weights[source]]
            elif step.choice.view and step.results[step.choice.view[1]] not in regions:
                # A view of a view of a constant: like its operand, it has no storage.
                source, target = step.choice.view
                regions[step.results[target]] = regions[step.operands[source]]
        return regions

    def _part(self, tensor: TensorId, size_bytes: int) -> Region:
        analysis = self._compiled.analysis
        storage = self._storages[analysis.storage_of[tensor]]
        return storage.view(analysis.offset_of.get(tensor, 0), size_bytes)

    def launched_steps(self) -> tuple[CompiledStep, ...]:
        """Return the steps that run a kernel, in order."""
        return tuple([step for step in self._compiled.steps if step.is_launched])

    def forks(self) -> tuple[Fork, ...]:
        """Return the model's forks as positions in `launched_steps`."""
        launched = [at for at, step in enumerate(self._compiled.steps) if step.is_launched]
        position = {step: call for call, step in enumerate(launched)}
        return tuple(
            [
                tuple([tuple([position[step] for step in branch]) for branch in fork])
                for fork in self._compiled.forks
            ]
        )

    def calls(self) -> tuple[KernelCall, ...]:
        """Bind every step of `launched_steps`."""
        return tuple(
            [
                self._bind(index, step)
                for index, step in enumerate(self._compiled.steps)
                if step.is_launched
            ]
        )

    def _bind(self, index: int, step: CompiledStep) -> KernelCall:
        workspace = None
        if step.choice.workspace_bytes:
            workspace = self._storages[WorkspaceId(index)]
        return self.bind_as(index, step.choice, {}, workspace)

    def bind_as(
        self,
        index: int,
        choice: KernelChoice,
        weights: Mapping[int, Region],
        workspace: Region | None,
    ) -> KernelCall:
        """Bind a step as another choice, with constants at these positions elsewhere."""
        step = self._compiled.steps[index]
        inputs = [
            weights.get(position, self._weights[step.weights[position]])
            if position in step.weights
            else self._regions.get(tensor)
            for position, tensor in enumerate(step.operands)
        ]
        outputs = [
            self._regions[tensor] if tensor != NO_TENSOR else None for tensor in step.results
        ]
        return self._context.bind(step.request, choice, inputs, outputs, workspace)

    def inputs(self) -> list[BoundTensor]:
        """Return the model's inputs in its order."""
        return [self._bound(tensor) for tensor in self._compiled.inputs]

    def outputs(self) -> list[BoundTensor]:
        """Return the model's outputs in its order."""
        return [self._bound(tensor) for tensor in self._compiled.outputs]

    def _bound(self, tensor: TensorId) -> BoundTensor:
        return BoundTensor(tensor, self._compiled.graph.spec(tensor), self._regions[tensor])
