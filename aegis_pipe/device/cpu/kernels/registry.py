"""The CPU device's kernel table: one entry per kernel, first registered is asked first.

A kernel file defines `CpuKernel`s and registers them with `KERNELS.register(...)`; adding one is
one new file and one line in `aegis_pipe/device/cpu/kernels/__init__.py`. Choosing and binding
happen at load; the bound callable takes nothing, writes into `outputs` and nowhere else but its
workspace, and keeps no state between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aegis_pipe.kernel import KernelChoice, KernelRequest


class Bind(Protocol):
    """Fixes a kernel to its operands, given as array views of planned memory."""

    def __call__(
        self,
        request: KernelRequest,
        choice: KernelChoice,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        workspace: np.ndarray | None,
    ) -> Callable[[], None]:
        """Return the call.

        `inputs[i]` has the spec's dtype and shape, or is uint8[size_bytes] if it was packed;
        `workspace` is uint8[choice.workspace_bytes]. All are C-contiguous and stay at their
        addresses. Inputs may be written over only by an `in_place` output.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CpuKernel:
    """One kernel and the canonical operators it can run."""

    operators: tuple[str, ...]
    choose: Callable[[KernelRequest], KernelChoice | None]
    """The offer, or None if this kernel does not do this request."""
    bind: Bind
    shares_work: bool = False
    """Whether a team of threads runs it together: each needs the workspace of the offer."""


class KernelTable:
    """Kernels by operator, in the order they were registered."""

    def __init__(self) -> None:
        self._by_operator: dict[str, list[CpuKernel]] = {}

    def register(self, *kernels: CpuKernel) -> None:
        """Add kernels; earlier ones are asked first."""
        for kernel in kernels:
            for operator in kernel.operators:
                self._by_operator.setdefault(operator, []).append(kernel)

    def candidates(self, operator: str) -> Sequence[CpuKernel]:
        """Return the kernels that know this operator."""
        return self._by_operator.get(operator, ())

    def operators(self) -> tuple[str, ...]:
        """All operators some kernel knows, sorted."""
        return tuple(sorted(self._by_operator))


KERNELS = KernelTable()
