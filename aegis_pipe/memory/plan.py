"""Where each tensor lies: the planner's whole answer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from aegis_pipe.units import format_size


@dataclass(frozen=True, slots=True)
class AllocationPlan:
    """Offsets inside one contiguous block of memory, and how good they are."""

    offsets: Mapping[Hashable, int]
    """Bytes from the start of the block, by tensor id, in the order of the lifetimes given."""
    peak_bytes: int
    """Size of the block: the largest end of a tensor."""
    lower_bound_bytes: int
    """No plan for the same lifetimes has a smaller peak."""
    algorithm: str
    """Which strategy found it, for the curious."""
    cut_off: bool = False
    """The clock ended the search, not its count of work: another run may find another plan."""

    @property
    def optimal(self) -> bool:
        """Whether the plan is proven to be the smallest there is."""
        return self.peak_bytes == self.lower_bound_bytes

    @property
    def gap(self) -> float:
        """How far the peak can be above the optimum, as a fraction of the bound; 0.0 if optimal."""
        if self.optimal:
            return 0.0
        return self.peak_bytes / self.lower_bound_bytes - 1.0

    def __str__(self) -> str:
        """Format as `243 tensors in 6.891 MiB (optimal, by size)`."""
        quality = "optimal" if self.optimal else f"at most {self.gap:.2%} above the optimum"
        return (
            f"{len(self.offsets)} tensors in {format_size(self.peak_bytes)} "
            f"({quality}, {self.algorithm})"
        )
