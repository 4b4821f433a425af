"""Compiled softmax and normalisations (`c/normalisation.c`).

native.softmax              over neighbouring dimensions; LogSoftmax too
native.layer_normalisation  over the last ones; RMSNormalization is the same without the mean
native.skip_normalisation   the sum of two operands, normalised likewise
native.batch_normalisation  with the statistics given
native.local_response       over neighbouring channels
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest


class _Softmax(ctypes.Structure):
    """`softmax` of `c/normalisation.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y")),
        *((name, INTEGER) for name in ("outer", "count", "inner", "takes_logarithm")),
    )


class _LayerNormalisation(ctypes.Structure):
    """`layer_normalisation` of `c/normalisation.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "scale", "bias", "skip", "skip_bias", "sum")),
        *((name, POINTER) for name in ("y", "mean", "inverse_deviation")),
        *((name, INTEGER) for name in ("rows", "count")),
        ("epsilon", FLOAT),
        ("centres", ctypes.c_int32),
    )


class _BatchNormalisation(ctypes.Structure):
    """`batch_normalisation` of `c/normalisation.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "scale", "bias", "mean", "variance", "y")),
        *((name, INTEGER) for name in ("batch", "channels", "count")),
        ("epsilon", FLOAT),
    )


class _LocalResponse(ctypes.Structure):
    """`local_response` of `c/normalisation.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y")),
        *((name, INTEGER) for name in ("batch", "channels", "count", "before", "after")),
        *((name, FLOAT) for name in ("alpha", "bias", "beta")),
    )


_LAYERS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")

_SKIPS = (
    "com.microsoft.SkipLayerNormalization",
    "com.microsoft.SkipSimplifiedLayerNormalization",
)


def _choose_softmax(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    if not operands.integers(request, "axes"):
        return None
    return KernelChoice(
        kernel="native.softmax", in_place=((0, 0),), cost=4 * elements_moved(request)
    )


def _bind_softmax(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    axes = operands.integers(request, "axes")
    first, last = axes[0], axes[-1] + 1
    arguments = _Softmax(
        *(native.address(x), native.address(y)),
        *(math.prod(x.shape[:first]), math.prod(x.shape[first:last]), math.prod(x.shape[last:])),
        request.operator == "LogSoftmax",
    )
    return native.call("aegis_softmax", arguments, (x, y))


def _choose_layer(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    row = operands.input_spec(request, 0).shape[operands.integer(request, "axis") :]
    for position in (1, 2):
        # One value an element of a row: other forms broadcast.
        if operands.has_input(request, position):
            shape = operands.input_spec(request, position).shape
            if math.prod(shape) != math.prod(row) or len(shape) < len(row):
                return None
    return KernelChoice(kernel="native.layer_normalisation", cost=3 * elements_moved(request))


def _bind_layer(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x = operands.required(inputs)
    axis = operands.integer(request, "axis")
    arguments = _LayerNormalisation(
        native.address(x),
        native.address(operands.required(inputs, 1)),
        native.address(operands.optional(inputs, 2)),
        *(None, None, None),
        *(native.address(operands.optional(outputs, position)) for position in range(3)),
        math.prod(x.shape[:axis]),
        math.prod(x.shape[axis:]),
        operands.number(request, "epsilon"),
        request.operator == "LayerNormalization",
    )
    kept = (*inputs, *outputs)
    return native.call("aegis_layer_normalisation", arguments, kept)


def _choose_skip(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    data, skip = operands.input_spec(request, 0), operands.input_spec(request, 1)
    return (
        KernelChoice(kernel="native.skip_normalisation", cost=4 * elements_moved(request))
        if data == skip
        else None
    )


def _bind_skip(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x = operands.required(inputs)
    arguments = _LayerNormalisation(
        native.address(x),
        native.address(operands.required(inputs, 2)),
        native.address(operands.optional(inputs, 3)),
        native.address(operands.required(inputs, 1)),
        native.address(operands.optional(inputs, 4)),
        native.address(operands.optional(outputs, 3)),
        *(native.address(operands.optional(outputs, position)) for position in range(3)),
        math.prod(x.shape[:-1]),
        x.shape[-1],
        operands.number(request, "epsilon"),
        "Simplified" not in request.operator,
    )
    kept = (*inputs, *outputs)
    return native.call("aegis_layer_normalisation", arguments, kept)


def _choose_batch(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    if operands.integer(request, "training_mode") or any(request.outputs[1:]):
        return None
    if len(operands.input_spec(request, 0).shape) < 2:
        return None
    return KernelChoice(
        kernel="native.batch_normalisation", in_place=((0, 0),), cost=elements_moved(request)
    )


def _bind_batch(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    arguments = _BatchNormalisation(
        *(native.address(array) for array in (*inputs[:5], y)),
        *x.shape[:2],
        math.prod(x.shape[2:]),
        operands.number(request, "epsilon"),
    )
    return native.call("aegis_batch_normalisation", arguments, (*inputs, y))


def _choose_local(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    work = 8.0 + operands.integer(request, "size")
    return KernelChoice(kernel="native.local_response", cost=work * elements_moved(request))


def _bind_local(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x, y = operands.required(inputs), operands.required(outputs)
    size = operands.integer(request, "size")
    arguments = _LocalResponse(
        *(native.address(x), native.address(y)),
        *(*x.shape[:2], math.prod(x.shape[2:])),
        *((size - 1) // 2, size // 2),
        operands.number(request, "alpha") / size,
        *(operands.number(request, name) for name in ("bias", "beta")),
    )
    return native.call("aegis_local_response", arguments, (x, y))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("Softmax", "LogSoftmax"), _choose_softmax, _bind_softmax),
    CpuKernel(_LAYERS, _choose_layer, _bind_layer),
    CpuKernel(_SKIPS, _choose_skip, _bind_skip),
    CpuKernel(("BatchNormalization",), _choose_batch, _bind_batch),
    CpuKernel(("LRN",), _choose_local, _bind_local),
)
