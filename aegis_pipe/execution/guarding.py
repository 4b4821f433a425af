"""The debug mode of memory: guards around every planned place, and every kernel watched.

Each storage and workspace is planned with guard bytes before and after it, and nothing is put into
place (a part has no guard of its own). While a kernel runs, it may change its results and its
workspace; any other byte of the model's arena that changes is an overrun, found before the next
kernel runs and told with tensor, step, kernel, model and offset.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NoReturn

from aegis_pipe.device.protocols import DeviceContext, KernelCall, Region
from aegis_pipe.errors import MemoryOverrunError
from aegis_pipe.execution.compiler import CompiledModel
from aegis_pipe.memory import WorkspaceId
from aegis_pipe.tensor import TensorId

_Span = tuple[int, int]


def watch_calls(
    compiled: CompiledModel, calls: Sequence[KernelCall], arena: Region, context: DeviceContext
) -> tuple[KernelCall, ...]:
    """Return the calls of `ModelBinder.calls`, each watched; `arena` is the model's part of it."""
    places = _Places(compiled)
    launched = [index for index, step in enumerate(compiled.steps) if step.is_launched]
    watched = []
    done = -1
    for index, call in zip(launched, calls, strict=True):
        watched.append(
            context.watch(
                call,
                arena,
                guards=places.guards_of_new(done, index),
                written=list(places.targets(index).values()),
                blame=places.blame(index),
            )
        )
        done = index
    return tuple(watched)


class _Places:
    """Where everything of a model lies, and when."""

    def __init__(self, compiled: CompiledModel) -> None:
        self._compiled = compiled
        self._lifetimes = {each.tensor_id: each for each in compiled.analysis.lifetimes}

    def guards_of_new(self, after: int, step: int) -> list[_Span]:
        """Return the guards of what is first used after one step, up to another."""
        width = self._compiled.guard_bytes
        new = [x for x, each in self._lifetimes.items() if after < each.first <= step]
        return [
            guard
            for start, end in map(self._span, new)
            for guard in ((start - width, start), (end, end + width))
        ]

    def targets(self, step: int) -> dict[str, _Span]:
        """Return what a step may change, by name."""
        analysis, graph = self._compiled.analysis, self._compiled.graph
        targets = {}
        for tensor in analysis.steps[step].writes:
            if analysis.storage_of[tensor] not in self._lifetimes:
                continue  # a state, which lies outside of the arena
            start, _ = self._span(analysis.storage_of[tensor])
            start += analysis.offset_of.get(tensor, 0)
            size_bytes = graph.spec(TensorId(tensor)).size_bytes
            targets[f"`{tensor}`"] = start, start + size_bytes
        if analysis.steps[step].workspace_bytes:
            targets["its workspace"] = self._span(WorkspaceId(step))
        return targets

    def blame(self, step: int) -> Callable[[int], NoReturn]:
        """Return what raises for a byte that the step's kernel should have left alone."""

        def raise_overrun(address: int) -> NoReturn:
            compiled = self._compiled
            one = compiled.steps[step]
            raise MemoryOverrunError(
                f"kernel `{one.choice.kernel}` wrote outside of its planned memory: "
                f"{self._relative(step, address)}, at byte {address} of the model's arena, "
                f"where {self._owner(step, address)}",
                context=f"model `{compiled.name}`, step {step}, node `{one.node}`",
                hint="report this as a bug of the kernel, with the model",
            )

        return raise_overrun

    def _relative(self, step: int, address: int) -> str:
        """Say how far it is from the nearest place that the step may write to."""
        if not self.targets(step):
            return "it has no place to write to here"
        distance, where = min(
            (address - end, f"after the end of {name}")
            if address >= end
            else (start - address, f"before the start of {name}")
            for name, (start, end) in self.targets(step).items()
        )
        return f"{distance} bytes {where}" if distance else f"right {where}"

    def _owner(self, step: int, address: int) -> str:
        for storage, each in self._lifetimes.items():
            start, end = self._span(storage)
            if start <= address < end and each.first <= step < each.end:
                return f"`{storage}` lies"
        return "nothing lies"

    def _span(self, storage: Hashable) -> _Span:
        start = self._compiled.plan.offsets[storage]
        return start, start + self._lifetimes[storage].size_bytes
