"""A model bound to memory of its own for a moment, to time ways to run it side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from aegis_pipe.device.protocols import DeviceContext, DeviceGraph, Fork, KernelCall, Region
from aegis_pipe.errors import KernelError
from aegis_pipe.execution.compiler import CompiledModel, ModelBinder

_LAUNCHES, _TURNS = 8, 5
_LAUNCHED_NS = 2_000_000
"""Of a model that takes long, few launches are timed together."""

_ARENA: Final = "the arena"
_END: Final = "the end"


def described(model: CompiledModel) -> str:
    """Return all that its times depend on: kernels, sizes, and who reads what of whom."""
    numbers: dict[str, int] = {}
    steps = [
        (
            step.choice.kernel + step.choice.variant,
            [str(spec) for spec in (*step.request.inputs, *step.request.outputs)],
            [numbers.setdefault(each, len(numbers)) for each in (*step.operands, *step.results)],
        )
        for step in model.steps
    ]
    return str(steps)


def _offsets(model: CompiledModel, context: DeviceContext) -> dict[object, int]:
    """Return where weights, states and arena lie side by side, and where they end."""
    sizes_bytes: dict[object, int] = {key: each.size_bytes for key, each in model.weights.items()}
    sizes_bytes |= {(name,): size_bytes for name, size_bytes in model.state_bytes.items()}
    sizes_bytes |= {_ARENA: model.plan.peak_bytes, _END: 0}
    alignment_bytes = context.description.alignment_bytes
    offsets, end = {}, 0
    for name, size_bytes in sizes_bytes.items():
        offsets[name] = end
        end += -(-size_bytes // alignment_bytes) * alignment_bytes
    return offsets


class ModelTrial:
    """A model bound to zeroed memory; `stack` releases what it takes."""

    def __init__(self, model: CompiledModel, context: DeviceContext, stack: ExitStack) -> None:
        """Raise PermanentError where no memory is left: a reload measures beside others."""
        offsets = _offsets(model, context)
        memory = context.allocate(offsets[_END])
        stack.callback(memory.close)
        self._context = context
        # Of no pool: what its kernels refuse is nobody's fault.
        self._stream = context.create_stream(-1)
        stack.callback(self._stream.close)
        self._events = (context.create_event(), context.create_event())
        for event in self._events:
            stack.callback(event.close)

        def place(name: object, size_bytes: int) -> Region:
            return memory.view(offsets[name], size_bytes)

        arena = place(_ARENA, model.plan.peak_bytes)
        self.binder = ModelBinder(
            model,
            context,
            {key: place(key, each.size_bytes) for key, each in model.weights.items()},
            {
                each.tensor_id: arena.view(model.plan.offsets[each.tensor_id], each.size_bytes)
                for each in model.analysis.lifetimes
            },
            {name: place((name,), model.state_bytes[name]) for name in model.states},
        )
        self.calls = self.binder.calls()

    def record(self, calls: Sequence[KernelCall], forks: Sequence[Fork] = ()) -> DeviceGraph:
        """Return calls as a graph to be timed; the caller closes it."""
        return self._context.record(calls, self._stream, forks)

    def durations_ns(self, *graphs: DeviceGraph) -> tuple[int, ...]:
        """Return how long each graph takes: the best of some turns.

        All take turns, so that whatever the device's clocks do happens to all.
        """
        longest_ns = max([self._elapsed_ns(graph, 1) for graph in graphs])
        launches = min(_LAUNCHES, 1 + _LAUNCHED_NS // max(1, longest_ns))
        turns = [
            [self._elapsed_ns(graph, launches) // launches for graph in graphs]
            for _ in range(1 + _TURNS)
        ]
        return tuple([min(each) for each in zip(*turns, strict=True)])

    def _elapsed_ns(self, graph: DeviceGraph, launches: int) -> int:
        first, last = self._events
        self._stream.record(first)
        for _ in range(launches):
            graph.launch(self._stream)
        self._stream.record(last)
        # Zeros may be bad data for a kernel (an index): it takes its time all the same.
        with contextlib.suppress(KernelError):
            self._stream.synchronise()
        return last.completed_ns() - first.completed_ns()
