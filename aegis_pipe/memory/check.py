"""An independent check of plans: it runs the steps on pretended bytes and looks what they hold.

Shares no code with analyser and planner. A plan that fails is a bug of ours, never the user's.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aegis_pipe.memory.lifetimes import MemoryStep, Part, TensorLifetime, WorkspaceId
from aegis_pipe.memory.plan import AllocationPlan


@dataclass(frozen=True, slots=True)
class PlanViolation:
    """One way in which a plan is wrong."""

    step: int
    """-1 before the first step; the number of steps after the last."""
    tensor: str
    """What is damaged or misplaced."""
    other: str
    """What it is in conflict with; empty if nothing."""
    message: str

    def __str__(self) -> str:
        """Format as `step 12: ...`."""
        return f"step {self.step}: {self.message}"


def assert_plan_is_sound(
    steps: Sequence[MemoryStep],
    sizes_bytes: Mapping[str, int],
    *,
    inputs: Sequence[str],
    outputs: Collection[str],
    storage_of: Mapping[str, Hashable],
    offset_of: Mapping[str, int] | None = None,
    plan: AllocationPlan,
    alignment_bytes: int = 1,
) -> None:
    """Raise AssertionError with the first violations, if `check_plan` finds any."""
    violations = check_plan(
        steps,
        sizes_bytes,
        inputs=inputs,
        outputs=outputs,
        storage_of=storage_of,
        offset_of=offset_of,
        plan=plan,
        alignment_bytes=alignment_bytes,
    )
    if violations:
        # Raised, not asserted: `python -O` must not run on top of a plan that is wrong.
        raise AssertionError(
            f"the memory plan has {len(violations)} violations; the first are:\n"
            + "\n".join(f"  {violation}" for violation in violations[:5])
        )


def check_plan(
    steps: Sequence[MemoryStep],
    sizes_bytes: Mapping[str, int],
    *,
    inputs: Sequence[str],
    outputs: Collection[str],
    storage_of: Mapping[str, Hashable],
    offset_of: Mapping[str, int] | None = None,
    plan: AllocationPlan,
    alignment_bytes: int = 1,
) -> list[PlanViolation]:
    """Return everything that would go wrong if the steps ran at the planned offsets.

    Proves that what a step reads is what was written, byte for byte; that a step overwrites its own
    operands only where it says it can; that what is not moved lies in place already; that outputs
    are whole at the end; that branches of a fork write to nothing that another one reads or
    writes; and that all lies aligned and within the peak. `offset_of` says where in
    its storage a tensor begins, if not at 0. Tensors without a storage are constants and not
    looked at.
    """
    check = _Simulation(steps, sizes_bytes, storage_of, offset_of or {}, plan, alignment_bytes)
    check.fill(inputs)
    for index in range(len(steps)):
        check.run(index)
    check.copy_out(outputs)
    check.look_across_branches()
    return check.violations


def check_lifetimes(
    lifetimes: Sequence[TensorLifetime], plan: AllocationPlan
) -> list[PlanViolation]:
    """Return misplaced tensors and pairs that overlap in time and memory; O(n log n)."""
    violations = [each for lifetime in lifetimes for each in _misplacements(lifetime, plan)]
    violations.extend(_overlaps(lifetimes, plan.offsets))
    return violations


def _misplacements(lifetime: TensorLifetime, plan: AllocationPlan) -> Iterator[PlanViolation]:
    name = str(lifetime.tensor_id)
    if lifetime.tensor_id not in plan.offsets:
        yield PlanViolation(lifetime.first, name, "", f"`{name}` has no offset")
        return
    offset = plan.offsets[lifetime.tensor_id]
    if lifetime.offset_bytes not in (None, offset):
        message = f"`{name}` lies at {offset}, but has to lie at {lifetime.offset_bytes}"
        yield PlanViolation(lifetime.first, name, "", message)
    if offset % lifetime.alignment_bytes:
        message = f"`{name}` at {offset} is not aligned to {lifetime.alignment_bytes}"
        yield PlanViolation(lifetime.first, name, "", message)
    if offset < 0 or offset + lifetime.size_bytes > plan.peak_bytes:
        message = (
            f"`{name}` takes [{offset}, {offset + lifetime.size_bytes}) "
            f"of a block of {plan.peak_bytes} bytes"
        )
        yield PlanViolation(lifetime.first, name, "", message)


def _overlaps(
    lifetimes: Sequence[TensorLifetime], offsets: Mapping[Hashable, int]
) -> Iterator[PlanViolation]:
    """Sweep over time with the live spans sorted by offset: only neighbours can overlap."""
    placed = [each for each in lifetimes if each.size_bytes and each.tensor_id in offsets]
    # At the same step, ends come before starts: intervals are half-open.
    events = sorted(
        event
        for number, each in enumerate(placed)
        for event in [
            (each.first, 1, number),
            (each.end, 0, number),
            *((start, 0, number) for start, _ in each.gaps),
            *((end, 1, number) for _, end in each.gaps),
        ]
    )
    live: list[tuple[int, int, int]] = []  # start, end, number; never overlapping
    for step, starts, number in events:
        lifetime = placed[number]
        start = offsets[lifetime.tensor_id]
        span = (start, start + lifetime.size_bytes, number)
        position = bisect.bisect_left(live, span)
        if not starts:
            if position < len(live) and live[position] == span:
                del live[position]
            continue
        clashes = [
            other
            for other in live[max(position - 1, 0) : position + 1]
            if other[0] < span[1] and start < other[1]
        ]
        for low, high, other in clashes:
            mine, theirs = str(lifetime.tensor_id), str(placed[other].tensor_id)
            message = f"`{mine}` at [{start}, {span[1]}) overlaps `{theirs}` at [{low}, {high})"
            yield PlanViolation(step, mine, theirs, message)
        if not clashes:
            live.insert(position, span)


class _Piece(NamedTuple):
    """A stretch of a tensor that holds bytes which were written as another one's."""

    offset: int
    size: int
    name: str
    """The tensor as which they were written."""
    shift: int
    """Where in that tensor they are."""


class _Simulation:
    """The block of memory, as a sorted list of spans with the tensor whose bytes they hold.

    A span is (start, end, tensor, where the tensor's first byte is or would be).
    """

    def __init__(
        self,
        steps: Sequence[MemoryStep],
        sizes_bytes: Mapping[str, int],
        storage_of: Mapping[str, Hashable],
        offset_of: Mapping[str, int],
        plan: AllocationPlan,
        alignment_bytes: int,
    ) -> None:
        self.violations: list[PlanViolation] = []
        self._steps = steps
        self._sizes_bytes = sizes_bytes
        self._storage_of = storage_of
        self._offset_of = offset_of
        self._plan = plan
        self._alignment_bytes = alignment_bytes
        self._spans: list[tuple[int, int, str, int]] = []
        self._content: dict[str, list[_Piece]] = {}
        """What a tensor's bytes must hold: itself, what it is a view of, or is made of."""

    def fill(self, inputs: Sequence[str]) -> None:
        """Copy the inputs in, all before the first step."""
        for tensor in inputs:
            self._write(-1, tensor)
        for tensor in inputs:
            self._read(-1, tensor, "the copy in")

    def run(self, index: int) -> None:
        """Read the operands, then write results and workspace, then see that all results stay."""
        step = self._steps[index]
        for tensor in step.reads:
            self._read(index, tensor, f"`{step.name}`")
        self._check_overwrites(index)
        views = {result: Part(operand, result, 0) for operand, result in step.views}
        views |= {part.part: part for part in step.parts}
        joined = {join.whole for join in step.joins}
        for tensor in step.writes:
            if tensor in views:
                self._view(index, views[tensor])
            elif tensor in joined:
                self._join(index, tensor, [join for join in step.joins if join.whole == tensor])
            else:
                self._write(index, tensor)
        if step.workspace_bytes:
            start, end = self._place(index, WorkspaceId(index), step.workspace_bytes)
            self._mark(start, end, f"workspace of `{step.name}`")
        for tensor in step.writes:
            self._read(index, tensor, f"after `{step.name}`, its writer,")

    def copy_out(self, outputs: Collection[str]) -> None:
        """Read the outputs, all after the last step."""
        for tensor in outputs:
            self._read(len(self._steps), tensor, "the copy out")

    def look_across_branches(self) -> None:
        """See that whatever one branch of a fork writes is nothing to the others.

        In step order all was found right; this way it is so in any order that keeps each branch's.
        """
        forks: dict[int, list[tuple[int, int, bool, int, int, str]]] = {}
        for index, step in enumerate(self._steps):
            if step.branch is None:
                continue
            fork, branch = step.branch
            for writes, name, (start, end) in self._touched(index, step):
                touch = (start, end, writes, index, branch, name)
                forks.setdefault(fork, []).append(touch)
        for touches in forks.values():
            open_touches: list[tuple[int, int, bool, int, int, str]] = []
            for touch in sorted(touches):
                start, _, writes, index, branch, name = touch
                open_touches = [each for each in open_touches if each[1] > start]
                for _, _, other_writes, other_index, other_branch, other in open_touches:
                    if branch != other_branch and (writes or other_writes):
                        message = (
                            f"{_quoted(name)} shares bytes with {_quoted(other)} "
                            f"of step {other_index}, which may run at the same time"
                        )
                        self._report(index, name, other, message)
                open_touches.append(touch)

    def _touched(self, index: int, step: MemoryStep) -> Iterator[tuple[bool, str, tuple[int, int]]]:
        """Yield what a step's kernel writes (True) and reads (False); nothing of what runs none."""
        if step.views or step.moves:
            return
        for tensors, writes in ((step.reads, False), (step.writes, True)):
            for tensor in tensors:
                if tensor in self._storage_of and self._sizes_bytes[tensor]:
                    yield writes, tensor, self._span_of(tensor)
        if step.workspace_bytes:
            start = self._plan.offsets.get(WorkspaceId(index), 0)
            yield True, f"workspace of `{step.name}`", (start, start + step.workspace_bytes)

    def _view(self, index: int, view: Part) -> None:
        operand, result, shift = view
        if operand not in self._storage_of:
            if result in self._storage_of:
                message = f"`{result}` is a view of constant `{operand}` but has a storage"
                self._report(index, result, operand, message)
            return
        lies_in_place = (
            result in self._storage_of and self._start_of(result) == self._start_of(operand) + shift
        )
        if not lies_in_place:
            message = f"`{result}` is a view of `{operand}` but lies elsewhere"
            self._report(index, result, operand, message)
        self._content[result] = self._stretch(operand, shift, self._sizes_bytes[result])

    def _stretch(self, tensor: str, shift: int, size: int) -> list[_Piece]:
        """Return what a stretch of a tensor has to hold."""
        return [
            _Piece(low - shift, high - low, piece.name, piece.shift + low - piece.offset)
            for piece in self._content.get(tensor, [])
            if (low := max(piece.offset, shift))
            < (high := min(piece.offset + piece.size, shift + size))
        ]

    def _join(self, index: int, result: str, joins: Sequence[Part]) -> None:
        """See that each part of a result that nobody puts together is in place already."""
        self._content[result] = []
        if result not in self._storage_of:
            self._report(index, result, "", f"`{result}` is put together but has no storage")
            return
        for _, operand, shift in joins:
            if operand not in self._storage_of:
                message = f"constant `{operand}` is part of `{result}`, but nobody writes it there"
                self._report(index, result, operand, message)
                continue
            if self._start_of(operand) != self._start_of(result) + shift:
                message = f"`{operand}` is part of `{result}` but lies elsewhere"
                self._report(index, result, operand, message)
            self._content[result] += [
                piece._replace(offset=piece.offset + shift)
                for piece in self._content.get(operand, [])
            ]

    def _write(self, index: int, tensor: str) -> None:
        if tensor not in self._storage_of:
            self._report(index, tensor, "", f"`{tensor}` is written but has no storage")
            return
        size = self._sizes_bytes[tensor]
        shift = self._offset_of.get(tensor, 0)
        start, end = self._place(index, self._storage_of[tensor], size, shift)
        self._content[tensor] = [_Piece(0, size, tensor, 0)]
        self._mark(start, end, tensor)

    def _read(self, index: int, tensor: str, reader: str) -> None:
        if tensor not in self._storage_of:
            return
        if tensor not in self._content:
            self._report(index, tensor, "", f"{reader} reads `{tensor}` before it is written")
            return
        start, end = self._span_of(tensor)
        whole = end - start
        for piece in self._content[tensor]:
            first = start + piece.offset
            for low, high, held, origin in self._touching(first, first + piece.size):
                low, high = max(low, first), min(high, first + piece.size)
                if held == piece.name and origin == first - piece.shift:
                    whole -= high - low
                    continue
                message = (
                    f"{reader} reads `{tensor}` at [{start}, {end}), "
                    f"but [{low}, {high}) holds {_quoted(held)}"
                )
                self._report(index, tensor, held, message)
                return
        if whole:
            self._report(index, tensor, "", f"{whole} bytes of `{tensor}` were never written")

    def _check_overwrites(self, index: int) -> None:
        """See that scratch and results leave the step's operands alone, but for what it allows."""
        step = self._steps[index]
        views = {result for _, result in step.views}
        views |= {part.part for part in step.parts} | {join.whole for join in step.joins}
        targets = [
            (tensor, self._span_of(tensor))
            for tensor in step.writes
            if tensor not in views and tensor in self._storage_of
        ]
        if step.workspace_bytes:
            start = self._plan.offsets.get(WorkspaceId(index), 0)
            targets.append((f"workspace of `{step.name}`", (start, start + step.workspace_bytes)))
        for operand in sorted({each for each in step.reads if each in self._storage_of}):
            low, high = self._span_of(operand)
            for target, (start, end) in targets:
                if max(low, start) >= min(high, end):
                    continue
                allowed = low == start and step.reads.count(operand) <= step.in_place.count(
                    (operand, target)
                )
                if not allowed:
                    message = (
                        f"`{step.name}` reads `{operand}` at [{low}, {high}) "
                        f"while it writes {_quoted(target)} at [{start}, {end})"
                    )
                    self._report(index, operand, target, message)

    def _start_of(self, tensor: str) -> int:
        return self._plan.offsets.get(self._storage_of[tensor], 0) + self._offset_of.get(tensor, 0)

    def _span_of(self, tensor: str) -> tuple[int, int]:
        start = self._start_of(tensor)
        return start, start + self._sizes_bytes[tensor]

    def _place(
        self, index: int, storage: Hashable, size_bytes: int, shift: int = 0
    ) -> tuple[int, int]:
        """Return the span of some of a storage's bytes, and see that it is a proper place."""
        size, alignment, plan = shift + size_bytes, self._alignment_bytes, self._plan
        offset = plan.offsets.get(storage, -1)
        if offset < 0 or offset % alignment or offset + size > plan.peak_bytes:
            lifetime = TensorLifetime(storage, size, index, index + 1, alignment)
            self.violations.extend(_misplacements(lifetime, plan))
        start = plan.offsets.get(storage, 0) + shift
        if shift % self._alignment_bytes:
            message = f"{shift} bytes into `{storage}` is not aligned to {self._alignment_bytes}"
            self._report(index, str(storage), "", message)
        return start, start + size_bytes

    def _touching(self, start: int, end: int) -> list[tuple[int, int, str, int]]:
        """Return the spans with a byte in [start, end)."""
        if start >= end:
            return []
        return self._spans[self._position(start) : bisect.bisect_left(self._spans, (end,))]

    def _mark(self, start: int, end: int, content: str) -> None:
        """Let [start, end) hold something new; what is left of the old stays."""
        if start >= end:
            return
        touched = self._touching(start, end)
        left = [(low, start, old, origin) for low, _, old, origin in touched if low < start]
        right = [(end, high, old, origin) for _, high, old, origin in touched if high > end]
        position = self._position(start)
        new = [*left, (start, end, content, start), *right]
        self._spans[position : position + len(touched)] = new

    def _position(self, start: int) -> int:
        """Return the position of the first span that ends after `start`."""
        position = bisect.bisect_left(self._spans, (start,))
        return position - 1 if position and self._spans[position - 1][1] > start else position

    def _report(self, index: int, tensor: str, other: str, message: str) -> None:
        self.violations.append(PlanViolation(index, tensor, other, message))


def _quoted(name: str) -> str:
    return name if name.startswith("workspace of `") else f"`{name}`"
