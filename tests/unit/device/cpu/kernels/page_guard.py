"""Runs every compiled case with each operand hard against a page that may not be touched."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np

from aegis_pipe.device.cpu.kernels import KERNELS, native
from tests.unit.device.cpu.kernels.case import Case
from tests.unit.device.cpu.kernels.compiled_cases import CASES
from tests.unit.kernel_driver import lower, operator_node

PAGE = mmap.PAGESIZE
_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(content: np.ndarray, *, at_end: bool) -> np.ndarray:
    """Copy an array to where it ends, or begins, at a forbidden page."""
    pages = max(1, -(-content.nbytes // PAGE))
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    raw = np.frombuffer(memory, np.uint8)
    for forbidden in (0, (pages + 1) * PAGE):
        address = ctypes.c_void_p(raw.ctypes.data + forbidden)
        assert _libc.mprotect(address, ctypes.c_size_t(PAGE), _PROT_NONE) == 0
    start = (pages + 1) * PAGE - content.nbytes if at_end else PAGE
    array = raw[start : start + content.nbytes].view(content.dtype).reshape(content.shape)
    np.copyto(array, content)
    return array


def run(case: Case, *, at_end: bool) -> bytes:
    """Run one case and return its first result's bytes."""
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
        if value is not None and packed:
            value = packed.pack(value)
        inputs.append(None if value is None else guarded(value, at_end=at_end))
    outputs = [
        spec and guarded(np.zeros(spec.shape, spec.dtype), at_end=at_end)
        for spec in request.outputs
    ]
    workspace = guarded(np.zeros(choice.workspace_bytes, np.uint8), at_end=at_end)
    kernel.bind(request, choice, inputs, outputs, workspace)()
    return outputs[0].tobytes()


def main() -> None:
    """Run all cases, with another build of the library if one is named."""
    if len(sys.argv) > 1:
        native.LIBRARY = native.NativeLibrary(Path(sys.argv[1]))
    for name, case in CASES.items():
        assert run(case, at_end=True) == run(case, at_end=False), name
    print(len(CASES))


if __name__ == "__main__":
    main()
