"""The GPU's kernels compute what the CPU's do: their sources run on the host, see `host_device`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes  # noqa: F401
import numpy as np
import pytest

from aegis_pipe.device.cpu.kernels import KERNELS as CPU_KERNELS
from aegis_pipe.kernel import KernelRequest

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import KERNELS
from aegis_pipe.device.cuda.kernels.registry import Enqueue, Machine
from tests.unit.device.cuda import host_device
from tests.unit.device.cuda.kernel_requests import Example, examples

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")

GUARD = 64
"""Bytes behind results and workspace that nobody may write."""
MACHINE = Machine(None, None, "none", 90, 132)


class Bound:
    """One request bound to memory of its own."""

    def __init__(self, request: KernelRequest, values: Sequence[np.ndarray | None]) -> None:
        kernel, choice = next(
            (kernel, choice)
            for kernel in KERNELS.candidates(request.operator)
            if (choice := kernel.choose(request, MACHINE)) is not None
        )
        self.name = f"{request.operator}, {choice.kernel}"
        self.request = request
        self.values = [None if v is None else np.array(v, order="C") for v in values]
        self._memory = [
            None if spec is None else np.full(spec.size_bytes + GUARD, 0xA5, np.uint8)
            for spec in request.outputs
        ]
        self._workspace = np.full(choice.workspace_bytes + GUARD, 0xA5, np.uint8)
        self._binding = host_device.HostBinding(
            request,
            choice,
            MACHINE,
            tuple(None if v is None else v.ctypes.data for v in self.values),
            tuple(None if m is None else m.ctypes.data for m in self._memory),
            self._workspace.ctypes.data,
            None,
        )
        self._launches: Sequence[Enqueue] = () if choice.view else kernel.bind(self._binding)
        self.is_view = choice.view is not None

    def run(self) -> list[np.ndarray | None]:
        """Return the results; asserts that nothing else was written, and no fault."""
        for launch in self._launches:
            launch(0)
        assert not any(word.cell[0] for word in self._binding.faults), self.name
        guards = [self._workspace, *(memory for memory in self._memory if memory is not None)]
        assert all((memory[-GUARD:] == 0xA5).all() for memory in guards), self.name
        return [
            None if spec is None else memory[:-GUARD].view(spec.dtype).reshape(spec.shape)
            for spec, memory in zip(self.request.outputs, self._memory, strict=True)
        ]


ROUNDED = {"com.microsoft.DynamicQuantizeLSTM": 2e-2}
"""Where the CPU rounds activations to 8 bits, as ONNX Runtime does, and the GPU does not."""


def by_the_cpu(
    request: KernelRequest, values: Sequence[np.ndarray | None]
) -> list[np.ndarray | None] | None:
    """Return what the CPU's first NumPy kernel computes; None if there is none."""
    for kernel in CPU_KERNELS.candidates(request.operator):
        choice = kernel.choose(request)
        if choice is None or choice.view or choice.packed or "native" in choice.kernel:
            continue
        outputs = [None if s is None else np.zeros(s.shape, s.dtype) for s in request.outputs]
        workspace = np.zeros(choice.workspace_bytes + 64, np.uint8)
        start = -workspace.ctypes.data % 64
        scratch = workspace[start : start + choice.workspace_bytes]
        with np.errstate(all="ignore"):
            kernel.bind(request, choice, values, outputs, scratch if scratch.size else None)()
        return outputs
    return None


@pytest.fixture(scope="module")
def bound() -> list[Bound]:
    """One request for each operator and kernel, compiled side by side."""
    chosen: dict[str, Example] = {}
    for request, values in examples():
        for kernel in KERNELS.candidates(request.operator):
            choice = kernel.choose(request, MACHINE)
            if choice is not None:
                chosen.setdefault(f"{request.operator}, {choice.kernel}", (request, values))
                break
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda example: Bound(*example), chosen.values()))


@pytest.mark.timeout(600)
def test_as_the_cpu(bound: list[Bound]) -> None:
    compared, wrong = 0, []
    for one in bound:
        expected = None if one.is_view else by_the_cpu(one.request, one.values)
        if expected is None:
            continue
        compared += 1
        for found, wanted in zip(one.run(), expected, strict=True):
            if found is None or wanted is None:
                continue
            a, b = found.astype(np.float64), wanted.astype(np.float64)
            finite = b[np.isfinite(b)]
            size = max(1.0, float(np.abs(finite).max(initial=0)))
            step = 1e-2 if found.dtype.itemsize == 2 else 1e-5
            step = ROUNDED.get(one.request.operator, step)
            # A tie between two steps of a scale may be rounded either way.
            near = 1.0 if found.dtype in (np.int8, np.uint8) else step * size
            if not np.allclose(a, b, rtol=step, atol=near, equal_nan=True):
                wrong.append((one.name, float(np.nanmax(np.abs(a - b)))))
    assert wrong == []
    assert compared > 180
