"""When each tensor is alive: the planner's whole input.

Lower layers get plain facts: the analyser sees steps with reads and writes, never a graph.
Intervals are half-open `[first, end)` over step numbers.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from aegis_pipe.record import record


@record(eq=True)
class TensorLifetime:
    """A tensor's bytes and the steps during which they must stay."""

    tensor_id: Hashable
    size_bytes: int
    first: int
    end: int
    alignment_bytes: int = 1
    gaps: tuple[tuple[int, int], ...] = ()
    """Half-open parts of the interval, ascending, in which others may use the bytes."""
    offset_bytes: int | None = None
    """Where it has to lie; None: wherever the planner likes."""


@record(eq=True)
class WorkspaceId:
    """Names a step's scratch memory; never equal to a tensor's id, whatever that is."""

    step: int

    def __str__(self) -> str:
        """Format as `workspace of step 12`."""
        return f"workspace of step {self.step}"


class Part(NamedTuple):
    """A tensor whose bytes are a stretch of another one's."""

    whole: str
    part: str
    offset_bytes: int
    """Where in the whole the part begins."""


@record(eq=True)
class MemoryStep:
    """What one step does to memory.

    A step may overlap results with operands only where it says so: `in_place` pairs may share if
    the operand dies here, `views` pairs are the same bytes by nature (no kernel runs). A step with
    `parts` or `joins` only moves bytes: where the plan lets them lie in place, no kernel runs.
    """

    name: str
    reads: tuple[str, ...]
    """One entry per operand: a tensor that is read twice stands twice."""
    writes: tuple[str, ...]
    workspace_bytes: int = 0
    in_place: tuple[tuple[str, str], ...] = ()
    """(operand, result) that may share storage."""
    views: tuple[tuple[str, str], ...] = ()
    """(operand, result) that are the same bytes."""
    parts: tuple[Part, ...] = ()
    """Results that are stretches of an operand: a split, a slice."""
    joins: tuple[Part, ...] = ()
    """Operands of which the one result is put together: a concatenation."""
    branch: tuple[int, int] | None = None
    """Fork and branch that it is part of; it may run beside the fork's other branches."""

    @property
    def moves(self) -> bool:
        """Whether it only moves bytes, and has nothing to do where they are in place."""
        return bool(self.parts or self.joins)
