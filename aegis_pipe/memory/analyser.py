"""From steps to lifetimes: which tensors share bytes, and how long each storage must stay.

A *storage* is a piece of memory that one or more tensors use: a tensor with its views, and with
whatever was written in place over it. Its id is that of the first tensor in it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from aegis_pipe.memory.lifetimes import MemoryStep, TensorLifetime, WorkspaceId


@dataclass(frozen=True, slots=True)
class MemoryAnalysis:
    """What the planner has to place, and which tensor lies in what."""

    storages: tuple[TensorLifetime, ...]
    """One per storage, by first use; their ids are the values of `storage_of`."""
    workspaces: tuple[TensorLifetime, ...]
    """One per step that needs scratch; ids are `WorkspaceId`s."""
    storage_of: Mapping[str, str]
    """Storage of each tensor with memory in the arena, at offset 0 of it."""
    constant_of: Mapping[str, str]
    """Tensors that are views of a constant, and which; they need no storage."""

    @property
    def lifetimes(self) -> tuple[TensorLifetime, ...]:
        """All of it, as the planner takes it."""
        return self.storages + self.workspaces


class LifetimeAnalyser:
    """Computes lifetimes; every storage and workspace gets the same alignment."""

    def __init__(self, alignment_bytes: int = 1) -> None:
        self._alignment_bytes = alignment_bytes

    def analyse(
        self,
        steps: Sequence[MemoryStep],
        sizes_bytes: Mapping[str, int],
        *,
        inputs: Sequence[str],
        outputs: Collection[str],
    ) -> MemoryAnalysis:
        """Return the lifetimes of storages and workspaces.

        Inputs are filled before step 0 and may be overwritten by their last reader; outputs are
        read after the last step. A tensor without a size is a constant. Asserts that every tensor
        is written once, before it is read.
        """
        run = _Analysis(steps, sizes_bytes, inputs, outputs)
        for index, step in enumerate(steps):
            run.take(index, step)
        return MemoryAnalysis(
            storages=tuple(self._lifetime(each, len(steps)) for each in run.storages.values()),
            workspaces=tuple(
                TensorLifetime(
                    WorkspaceId(index),
                    step.workspace_bytes,
                    index,
                    index + 1,
                    self._alignment_bytes,
                )
                for index, step in enumerate(steps)
                if step.workspace_bytes
            ),
            storage_of=MappingProxyType(run.storage_of),
            constant_of=MappingProxyType(run.constant_of),
        )

    def _lifetime(self, storage: _Storage, step_count: int) -> TensorLifetime:
        # An output's last use is after the last step; a graph without steps still has a moment 0.
        end = min(storage.last_use + 1, max(step_count, 1))
        return TensorLifetime(
            storage.root, storage.size_bytes, storage.first, end, self._alignment_bytes
        )


@dataclass(slots=True)
class _Storage:
    root: str
    size_bytes: int
    first: int
    last_use: int
    """Last step that reads or writes any of the tensors in it so far."""
    written_at: int
    """Step that last wrote to it; -1 for an input."""


class _Analysis:
    """The sweep over the steps; its state is the storages made so far."""

    def __init__(
        self,
        steps: Sequence[MemoryStep],
        sizes_bytes: Mapping[str, int],
        inputs: Sequence[str],
        outputs: Collection[str],
    ) -> None:
        self.storages: dict[str, _Storage] = {}
        self.storage_of: dict[str, str] = {}
        self.constant_of: dict[str, str] = {}
        self._sizes_bytes = sizes_bytes
        self._last_read = {tensor: i for i, step in enumerate(steps) for tensor in step.reads}
        # The copy out comes after all steps: nothing may be written over an output.
        self._last_read.update(dict.fromkeys(outputs, len(steps)))
        for tensor in inputs:
            self._store(tensor, 0, written_at=-1)

    def take(self, index: int, step: MemoryStep) -> None:
        """Give every tensor that the step writes a storage: shared if it may be, else its own."""
        for tensor in step.reads:
            assert self._is_known(tensor), f"step {index} reads `{tensor}` before it is written"
        for operand, result in step.views:
            self._view(index, operand, result)
        views = {result for _, result in step.views}
        for tensor in step.writes:
            if tensor not in views:
                self._write(index, step, tensor)

    def _write(self, index: int, step: MemoryStep, tensor: str) -> None:
        self._assert_new(index, tensor)
        operand = self._overwritable(index, step, tensor)
        if operand is None:
            self._store(tensor, index, written_at=index)
            return
        storage = self.storages[self.storage_of[operand]]
        storage.written_at = index
        self._share(tensor, storage, index)

    def _view(self, index: int, operand: str, result: str) -> None:
        self._assert_new(index, result)
        if operand not in self.storage_of:
            self.constant_of[result] = self.constant_of.get(operand, operand)
            return
        storage = self.storages[self.storage_of[operand]]
        assert self._size(result) <= storage.size_bytes, f"`{result}` outgrows `{operand}`"
        # A result of this step, so that no other result of it lands here.
        storage.written_at = index
        self._share(result, storage, index)

    def _overwritable(self, index: int, step: MemoryStep, result: str) -> str | None:
        """Return the first declared operand whose storage the result may be written over."""
        for operand, target in step.in_place:
            if target == result and self._may_overwrite(index, step, operand, result):
                return operand
        return None

    def _may_overwrite(self, index: int, step: MemoryStep, operand: str, result: str) -> bool:
        if operand not in self.storage_of:
            return False  # a constant, or a view of one
        storage = self.storages[self.storage_of[operand]]
        dies_here = storage.last_use <= index
        # Another result may have been put there in this very step.
        is_free = storage.written_at < index
        fits = self._size(result) <= storage.size_bytes
        return dies_here and is_free and fits and self._reads_allow(step, storage, result)

    def _reads_allow(self, step: MemoryStep, storage: _Storage, result: str) -> bool:
        """Whether each operand that lies in the storage is declared as safe to write over.

        `x + x` with only the left operand declared is not: the right one would be overwritten
        while the kernel still reads it.
        """
        operands = [each for each in step.reads if self.storage_of.get(each) == storage.root]
        return all(
            operands.count(operand) <= step.in_place.count((operand, result))
            for operand in operands
        )

    def _store(self, tensor: str, index: int, *, written_at: int) -> None:
        storage = _Storage(tensor, self._size(tensor), index, index, written_at)
        self.storages[tensor] = storage
        self._share(tensor, storage, index)

    def _share(self, tensor: str, storage: _Storage, index: int) -> None:
        self.storage_of[tensor] = storage.root
        storage.last_use = max(storage.last_use, index, self._last_read.get(tensor, index))

    def _size(self, tensor: str) -> int:
        assert tensor in self._sizes_bytes, f"`{tensor}` has no size"
        return self._sizes_bytes[tensor]

    def _is_known(self, tensor: str) -> bool:
        return (
            tensor in self.storage_of
            or tensor in self.constant_of
            or tensor not in self._sizes_bytes
        )

    def _assert_new(self, index: int, tensor: str) -> None:
        is_new = tensor not in self.storage_of and tensor not in self.constant_of
        assert is_new, f"step {index} writes `{tensor}` again"
