"""From steps to lifetimes: which tensors share bytes, and how long each storage must stay.

A *storage* is a piece of memory that one or more tensors use: a tensor with its views and parts,
with whatever was written in place over it, and with what it was put together of. Its id is that of
the tensor that it was made for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from aegis_pipe.memory.lifetimes import MemoryStep, Part, TensorLifetime, WorkspaceId


@dataclass(frozen=True, slots=True)
class MemoryAnalysis:
    """What the planner has to place, and which tensor lies in what."""

    steps: tuple[MemoryStep, ...]
    """The steps as they are to run: `parts` and `joins` only where bytes lie in place."""
    storages: tuple[TensorLifetime, ...]
    """One per storage, by first use; their ids are the values of `storage_of`."""
    workspaces: tuple[TensorLifetime, ...]
    """One per step that needs scratch; ids are `WorkspaceId`s."""
    storage_of: Mapping[str, str]
    """Storage of each tensor with memory in the arena."""
    offset_of: Mapping[str, int]
    """Where in its storage a tensor begins, if not at 0."""
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
        kept: Mapping[str, Collection[str]] | None = None,
    ) -> MemoryAnalysis:
        """Return the lifetimes of storages and workspaces.

        `kept` are tensors outside of the arena that hold something before step 0, and the results
        that may come to lie where each of them lies, once nobody reads it any more. Their storages
        have no lifetimes; nothing else is written there, or moved there or away.

        Inputs are filled before step 0 and may be overwritten by their last reader; outputs are
        read after the last step. A tensor without a size is a constant. Asserts that every tensor
        is written once, before it is read. `parts` and `joins` that would take more memory than
        they save (a small part keeps its whole alive) are left to a kernel.

        What is alive at any step of a fork stays for all of it, and is written over only by a
        branch that is alone in using it there.
        """
        facts = (sizes_bytes, inputs, outputs, kept or {})

        def analyse(in_place: Collection[int]) -> MemoryAnalysis:
            chosen = [
                step if not step.moves or index in in_place else replace(step, parts=(), joins=())
                for index, step in enumerate(steps)
            ]
            return self._analyse(chosen, *facts)

        moving = [index for index, step in enumerate(steps) if step.moves]
        apart = analyse(())
        if not moving:
            return apart
        limit_bytes = largest_live_bytes(apart.lifetimes)
        together = analyse(moving)
        if largest_live_bytes(together.lifetimes) <= limit_bytes:
            return together
        chosen: list[int] = []
        # Halves, and halves of those that cost memory: few analyses where few steps do.
        waiting = [moving[len(moving) // 2 :], moving[: len(moving) // 2]]
        while waiting:
            group = waiting.pop()
            if not group:
                continue
            if largest_live_bytes(analyse([*chosen, *group]).lifetimes) <= limit_bytes:
                chosen += group
            elif len(group) > 1:
                waiting += [group[len(group) // 2 :], group[: len(group) // 2]]
        return analyse(chosen)

    def _analyse(
        self,
        steps: Sequence[MemoryStep],
        sizes_bytes: Mapping[str, int],
        inputs: Sequence[str],
        outputs: Collection[str],
        kept: Mapping[str, Collection[str]],
    ) -> MemoryAnalysis:
        run = _Analysis(steps, sizes_bytes, inputs, outputs, kept, self._alignment_bytes)
        taken = tuple([run.take(index, step) for index, step in enumerate(steps)])
        in_arena = [each for each in run.storages.values() if each.root not in kept]
        storages = sorted(in_arena, key=lambda each: each.first)
        forks = _forks(steps)
        return MemoryAnalysis(
            steps=taken,
            storages=tuple(
                [_widened(self._lifetime(each, len(steps)), forks) for each in storages]
            ),
            workspaces=tuple(
                [
                    _widened(
                        TensorLifetime(
                            WorkspaceId(index),
                            step.workspace_bytes,
                            index,
                            index + 1,
                            self._alignment_bytes,
                        ),
                        forks,
                    )
                    for index, step in enumerate(taken)
                    if step.workspace_bytes
                ]
            ),
            storage_of=MappingProxyType(run.storage_of),
            offset_of=MappingProxyType(run.offset_of),
            constant_of=MappingProxyType(run.constant_of),
        )

    def _lifetime(self, storage: _Storage, step_count: int) -> TensorLifetime:
        # An output's last use is after the last step; a graph without steps still has a moment 0.
        end = min(storage.last_use + 1, max(step_count, 1))
        return TensorLifetime(
            storage.root, storage.size_bytes, storage.first, end, self._alignment_bytes
        )


def _forks(steps: Sequence[MemoryStep]) -> list[tuple[int, int]]:
    """Return the first step of each fork and the one behind its last."""
    places: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        if step.branch is not None:
            places.setdefault(step.branch[0], []).append(index)
    return [(min(each), max(each) + 1) for each in places.values()]


def _widened(lifetime: TensorLifetime, forks: Sequence[tuple[int, int]]) -> TensorLifetime:
    """Return it with every fork that it is alive in as a whole."""
    alive_in = [each for each in forks if each[0] < lifetime.end and lifetime.first < each[1]]
    first = min([lifetime.first, *(first for first, _ in alive_in)])
    end = max([lifetime.end, *(end for _, end in alive_in)])
    if (first, end) == (lifetime.first, lifetime.end):
        return lifetime
    return replace(lifetime, first=first, end=end)


def largest_live_bytes(lifetimes: Sequence[TensorLifetime]) -> int:
    """Return the largest sum of sizes that are alive at a step."""
    changes = sorted(
        [(each.first, each.size_bytes) for each in lifetimes]
        + [(each.end, -each.size_bytes) for each in lifetimes]
    )
    live_bytes = largest_bytes = 0
    for _, change_bytes in changes:
        live_bytes += change_bytes
        largest_bytes = max(largest_bytes, live_bytes)
    return largest_bytes


@dataclass(slots=True)
class _Storage:
    root: str
    size_bytes: int
    first: int
    last_use: int
    """Last step that reads or writes any of the tensors in it so far."""
    written_at: int
    """Step that last wrote to it; -1 for an input."""
    tensors: list[str] = field(default_factory=list)


class _Analysis:
    """The sweep over the steps; its state is the storages made so far."""

    def __init__(
        self,
        steps: Sequence[MemoryStep],
        sizes_bytes: Mapping[str, int],
        inputs: Sequence[str],
        outputs: Collection[str],
        kept: Mapping[str, Collection[str]],
        alignment_bytes: int,
    ) -> None:
        self.storages: dict[str, _Storage] = {}
        self.storage_of: dict[str, str] = {}
        self.offset_of: dict[str, int] = {}
        self.constant_of: dict[str, str] = {}
        self._sizes_bytes = sizes_bytes
        self._alignment_bytes = alignment_bytes
        self._last_read = {tensor: i for i, step in enumerate(steps) for tensor in step.reads}
        # Of every fork the branches that read or write a tensor.
        self._users: dict[tuple[str, int], set[int]] = {}
        for step in steps:
            if step.branch is not None:
                fork, branch = step.branch
                for tensor in (*step.reads, *step.writes):
                    self._users.setdefault((tensor, fork), set()).add(branch)
        # The copy out comes after all steps: nothing may be written over an output.
        self._last_read.update(dict.fromkeys(outputs, len(steps)))
        self._kept = kept
        self._home = {heir: tensor for tensor, heirs in kept.items() for heir in heirs}
        for tensor in (*inputs, *kept):
            self._store(tensor, 0, written_at=-1)

    def take(self, index: int, step: MemoryStep) -> MemoryStep:
        """Give every tensor that the step writes a storage: shared if it may be, else its own.

        Returns the step, without `parts` and `joins` if they can not lie in place.
        """
        for tensor in step.reads:
            assert self._is_known(tensor), f"step {index} reads `{tensor}` before it is written"
        if step.moves and self._can_stay(step):
            step = replace(step, workspace_bytes=0, in_place=())
        elif step.moves:
            step = replace(step, parts=(), joins=())
        for operand, result in step.views:
            self._view(index, operand, result, 0)
        for whole, part, offset_bytes in step.parts:
            self._view(index, whole, part, offset_bytes)
        if step.joins:
            self._join(index, step.joins)
        placed = {result for _, result in step.views} | {part.part for part in step.parts}
        placed |= {join.whole for join in step.joins}
        for tensor in step.writes:
            if tensor not in placed:
                assert not step.moves, f"step {index} also computes `{tensor}`"
                self._write(index, step, tensor)
        return step

    def _can_stay(self, step: MemoryStep) -> bool:
        """Whether all that the step would move can lie where it has to come to."""
        if any(self.storage_of.get(part.whole, part.whole) in self._kept for part in step.parts):
            return False
        if any(part.whole not in self.storage_of for part in step.parts):
            return False  # a constant, or a view of one
        if any(
            (self.offset_of.get(part.whole, 0) + part.offset_bytes) % self._alignment_bytes
            for part in step.parts
        ):
            return False
        homes = [self.storage_of.get(join.part) for join in step.joins]
        return len(set(homes)) == len(homes) and all(map(self._can_join, step.joins))

    def _can_join(self, join: Part) -> bool:
        """Whether a storage holds this operand and nothing beside it, so that it can move."""
        if join.part not in self.storage_of or join.offset_bytes % self._alignment_bytes:
            return False
        storage = self.storages[self.storage_of[join.part]]
        if storage.root in self._kept:
            return False
        return storage.size_bytes == self._size(join.part) and not self.offset_of.get(join.part)

    def _write(self, index: int, step: MemoryStep, tensor: str) -> None:
        self._assert_new(index, tensor)
        operand = self._overwritable(index, step, tensor) or self._vacated(index, step, tensor)
        if operand is None:
            self._store(tensor, index, written_at=index)
            return
        storage = self.storages[self.storage_of[operand]]
        storage.written_at = index
        self._share(tensor, storage, index, self.offset_of.get(operand, 0))

    def _view(self, index: int, operand: str, result: str, offset_bytes: int) -> None:
        self._assert_new(index, result)
        if operand not in self.storage_of:
            self.constant_of[result] = self.constant_of.get(operand, operand)
            return
        storage = self.storages[self.storage_of[operand]]
        start = self.offset_of.get(operand, 0) + offset_bytes
        assert start + self._size(result) <= storage.size_bytes, f"`{result}` outgrows `{operand}`"
        # A result of this step, so that no other result of it lands here.
        storage.written_at = index
        self._share(result, storage, index, start)

    def _join(self, index: int, joins: Sequence[Part]) -> None:
        """Make the result's storage, and move the operands' storages into it."""
        whole = joins[0].whole
        self._assert_new(index, whole)
        parts = [self.storages.pop(self.storage_of[join.part]) for join in joins]
        assert sum(each.size_bytes for each in parts) == self._size(whole), f"gaps in `{whole}`"
        first = min(each.first for each in parts)
        storage = _Storage(whole, self._size(whole), first, index, written_at=index)
        self.storages[whole] = storage
        for join, old in zip(joins, parts, strict=True):
            storage.last_use = max(storage.last_use, old.last_use)
            for tensor in old.tensors:
                self._share(
                    tensor, storage, first, self.offset_of.get(tensor, 0) + join.offset_bytes
                )
        self._share(whole, storage, index, 0)

    def _overwritable(self, index: int, step: MemoryStep, result: str) -> str | None:
        """Return the first declared operand whose storage the result may be written over."""
        for operand, target in step.in_place:
            if target == result and self._may_overwrite(index, step, operand, result):
                return operand
        return None

    def _vacated(self, index: int, step: MemoryStep, result: str) -> str | None:
        """Return what is kept where the result belongs, if all have read it before this step."""
        home = self._home.get(result)
        if home is None or self.storages[home].last_use >= index:
            return None
        if not self._is_alone_with(step, self.storages[home]):
            return None
        return home if self._size(home) == self._size(result) else None

    def _may_overwrite(self, index: int, step: MemoryStep, operand: str, result: str) -> bool:
        if operand not in self.storage_of:
            return False  # a constant, or a view of one
        storage = self.storages[self.storage_of[operand]]
        if storage.root in self._kept and self._home.get(result) != storage.root:
            return False
        dies_here = storage.last_use <= index
        # Another result may have been put there in this very step.
        is_free = storage.written_at < index
        fits = self.offset_of.get(operand, 0) + self._size(result) <= storage.size_bytes
        if not self._is_alone_with(step, storage):
            return False
        return dies_here and is_free and fits and self._reads_allow(step, operand, result)

    def _is_alone_with(self, step: MemoryStep, storage: _Storage) -> bool:
        """Whether no branch beside the step's uses the storage."""
        if step.branch is None:
            return True
        fork, branch = step.branch
        return all(self._users.get((tensor, fork), set()) <= {branch} for tensor in storage.tensors)

    def _reads_allow(self, step: MemoryStep, operand: str, result: str) -> bool:
        """Whether each operand that lies where the result would is declared as safe.

        `x + x` with only the left operand declared is not: the right one would be overwritten
        while the kernel still reads it.
        """
        start = self.offset_of.get(operand, 0)
        end = start + self._size(result)
        for other in step.reads:
            if self.storage_of.get(other) != self.storage_of[operand]:
                continue
            low = self.offset_of.get(other, 0)
            if low >= end or low + self._size(other) <= start:
                continue
            if low != start or step.reads.count(other) > step.in_place.count((other, result)):
                return False
        return True

    def _store(self, tensor: str, index: int, *, written_at: int) -> None:
        storage = _Storage(tensor, self._size(tensor), index, index, written_at)
        self.storages[tensor] = storage
        self._share(tensor, storage, index, 0)

    def _share(self, tensor: str, storage: _Storage, index: int, offset_bytes: int) -> None:
        self.storage_of[tensor] = storage.root
        if offset_bytes:
            self.offset_of[tensor] = offset_bytes
        storage.tensors.append(tensor)
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
