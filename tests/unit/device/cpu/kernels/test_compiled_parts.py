"""What a team's threads make of a step, each its part, is what one thread makes of it alone."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest

from aegis_pipe.device.cpu.kernels import KERNELS, native
from tests.unit.device.cpu.kernels.block_cases import BLOCKS
from tests.unit.device.cpu.kernels.case import Case
from tests.unit.device.cpu.kernels.chain_cases import CHAINS
from tests.unit.device.cpu.kernels.quantised_cases import QUANTISED
from tests.unit.device.cpu.kernels.recurrent_cases import RECURRENT
from tests.unit.device.cpu.kernels.resizing_cases import RESIZING
from tests.unit.device.cpu.kernels.value_cases import VALUES
from tests.unit.kernel_driver import lower, operator_node

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason=f"compiled kernels {native.STATUS}")

CASES = {
    **BLOCKS,
    **CHAINS,
    **QUANTISED,
    **RECURRENT,
    **{name: case for name, case in RESIZING.items() if case.kernel.endswith("in_turn")},
    **{name: case for name, case in VALUES.items() if name.startswith("rescale")},
}


class _Worker(ctypes.Structure):
    """`worker` of `c/step.h`."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("index", "count", "thread"))


_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, _Worker)


def _aligned(size_bytes: int) -> np.ndarray:
    raw = np.zeros(size_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size_bytes]


def _run(case: Case, size: int) -> list[bytes]:
    """Run the parts of a team of this size, each in another thread's workspace.

    Last one first, but all at once: those of some steps meet.
    """
    request, positions = lower(operator_node(case.node, case.opset), case.values, case.constants)
    for kernel in KERNELS.candidates(request.operator):
        choice = kernel.choose(request)
        if choice is not None and choice.kernel == case.kernel:
            break
    else:
        raise AssertionError(f"{case.kernel} does not take this")
    inputs = []
    for canonical, position in enumerate(positions):
        value = case.values[position] if position >= 0 else None
        packed = choice.packed.get(canonical)
        inputs.append(packed.pack(value) if packed and value is not None else value)
    outputs = [spec and np.zeros(spec.shape, spec.dtype) for spec in request.outputs]
    workspace = _aligned(choice.workspace_bytes * size)
    call = kernel.bind(request, choice, inputs, outputs, workspace)
    assert isinstance(call, native.NativeCall)
    function = _FUNCTION(call.step.function)
    count = size if call.step.shares else 1
    team = [
        threading.Thread(
            target=function, args=(call.step.arguments, _Worker(index, count, count - 1 - index))
        )
        for index in range(count - 1, -1, -1)
    ]
    for worker in team:
        worker.start()
    for worker in team:
        worker.join()
    return [output.tobytes() for output in outputs if output is not None]


@pytest.mark.parametrize("name", CASES)
def test_parts_make_the_whole(name: str) -> None:
    alone = _run(CASES[name], 1)
    assert all(_run(CASES[name], size) == alone for size in (2, 3, 7))


def test_products_and_convolutions_are_shared() -> None:
    """So that the test above tests something."""
    for name in ("integers (33, 128) (128, 70) uint8int8 True", "conv 3x3 uint8int8"):
        case = CASES[name]
        request, _ = lower(operator_node(case.node, case.opset), case.values, case.constants)
        kernels = [k for k in KERNELS.candidates(request.operator) if k.choose(request)]
        assert kernels[0].shares_work
