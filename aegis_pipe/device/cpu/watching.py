"""Kernels that are watched: whatever they write outside their planned places is found at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

import numpy as np

from aegis_pipe.device.cpu.graph import CpuKernelCall

CANARY = 0xA7
"""What guards hold: a byte that neither zeros nor small numbers have."""

Spans = Sequence[tuple[int, int]]


def watched(
    call: CpuKernelCall,
    memory: np.ndarray,
    *,
    guards: Spans,
    written: Spans,
    blame: Callable[[int], NoReturn],
) -> CpuKernelCall:
    """Return a call that fills `guards`, runs, and compares all bytes outside of `written`.

    `memory` is uint8[arena]; spans are half-open, in bytes of it. `blame` raises for the first byte
    that has changed.
    """
    run = call.run
    assert run is not None, f"node `{call.node}` has no kernel to watch"
    before = np.empty_like(memory)

    def run_watched() -> None:
        for start, end in guards:
            memory[start:end] = CANARY
        np.copyto(before, memory)
        run()
        for start, end in written:
            before[start:end] = memory[start:end]
        if not np.array_equal(before, memory):
            blame(int(np.flatnonzero(before != memory)[0]))

    return CpuKernelCall(call.kernel, call.node, run_watched)
