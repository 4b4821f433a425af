"""Compiled non-maximum suppression (`c/suppression.c`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import native, operands
from aegis_pipe.device.cpu.kernels.compiled import FLOAT32
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import carve, elements_moved, scratch_bytes
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_BOX_FLOATS = 5


class _Suppression(ctypes.Structure):
    """`suppression` of `c/suppression.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("boxes", "scores", "overlap", "least", "most")),
        *((name, POINTER) for name in ("selected", "length", "corners", "heap", "kept")),
        *((name, INTEGER) for name in ("images", "classes", "count", "planned", "is_centred")),
    )


def _scratch(request: KernelRequest) -> list[TensorSpec]:
    """Return specs of all boxes' corners, the heap of their indices, and the kept boxes."""
    count = operands.input_spec(request, 0).shape[1]
    planned = operands.integer(request, "boxes_per_class")
    return [
        TensorSpec(FLOAT32, (count, _BOX_FLOATS)),
        TensorSpec(np.dtype(np.int64), (count,)),
        TensorSpec(FLOAT32, (planned, _BOX_FLOATS)),
    ]


def _choose(request: KernelRequest) -> KernelChoice | None:
    specs = [request.inputs[i] for i in range(4)]
    if native.LIBRARY is None or any(spec and spec.dtype != FLOAT32 for spec in specs):
        return None
    return KernelChoice(
        "native.non_max_suppression",
        workspace_bytes=scratch_bytes(_scratch(request)),
        cost=elements_moved(request),
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    scratch = carve(workspace, _scratch(request))
    given = [*inputs[:5], operands.optional(outputs, 0), operands.optional(outputs, 1), *scratch]
    images, classes, count = operands.input_spec(request, 1).shape
    arguments = _Suppression(
        *map(native.address, given),
        images,
        classes,
        count,
        operands.integer(request, "boxes_per_class"),
        operands.integer(request, "center_point_box"),
    )
    return native.call("aegis_suppress", arguments, given)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (CpuKernel(("aegis.NonMaxSuppression",), _choose, _bind),)
