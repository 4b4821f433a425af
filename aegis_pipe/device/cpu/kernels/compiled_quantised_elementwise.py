"""Compiled elementwise work on bytes (`c/quantised_elementwise.c`).

native.bytes.quantise_dynamically  scale and zero point from the data
native.bytes.pair                  QLinearAdd, QLinearMul
native.bytes.map                   functions of one element; QLinearConcat
native.bytes.softmax               QLinearSoftmax, over neighbouring dimensions
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import broadcasting, byte_units, compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest

_RANK = broadcasting.RANK
_SHORT_RUN = 4
"""Shorter runs of the last dimension leave most lanes empty."""
_CONCAT = "com.microsoft.QLinearConcat"
_FUNCTIONS = {
    _CONCAT: 0,
    "aegis.QLinearClip": 0,
    "com.microsoft.QLinearLeakyRelu": 1,
    "com.microsoft.QLinearSigmoid": 2,
}
"""Numbers of the enumeration in `c/quantised_elementwise.c`."""


class _DynamicQuantisation(ctypes.Structure):
    """`dynamic_quantisation` of `c/quantised_elementwise.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y", "scale", "zero")),
        ("count", INTEGER),
    )


class _Pair(ctypes.Structure):
    """`byte_pair` of `c/quantised_elementwise.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("a", "b", "y", "a_scale", "b_scale", "y_scale")),
        *((name, POINTER) for name in ("a_zero", "b_zero", "y_zero")),
        *((name, INTEGER * _RANK) for name in ("shape", "a_strides", "b_strides")),
        *((name, INTEGER) for name in ("is_signed", "multiplies")),
        *((name, FLOAT) for name in ("low", "high")),
    )


class _Map(ctypes.Structure):
    """`byte_map` of `c/quantised_elementwise.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y", "x_scale", "y_scale", "x_zero", "y_zero")),
        *((name, INTEGER) for name in ("rows", "count", "y_row")),
        *((name, INTEGER) for name in ("x_is_signed", "y_is_signed", "function")),
        *((name, FLOAT) for name in ("alpha", "low", "high")),
        ("unused", ctypes.c_int32),
    )


class _Softmax(ctypes.Structure):
    """`byte_softmax` of `c/quantised_elementwise.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y", "x_scale", "y_scale", "y_zero")),
        *((name, INTEGER) for name in ("outer", "count", "inner", "x_is_signed", "y_is_signed")),
        *((name, FLOAT) for name in ("low", "high")),
    )


class _Maps(ctypes.Structure):
    """`byte_maps` of `c/quantised_elementwise.c`."""

    _fields_ = (("maps", POINTER), ("count", INTEGER))


def _choose_dynamic(request: KernelRequest) -> KernelChoice | None:
    source = operands.input_spec(request, 0)
    if native.LIBRARY is None or source.dtype != compiled.FLOAT32 or not source.element_count:
        return None
    if not all(operands.has_output(request, position) for position in range(3)):
        return None
    return KernelChoice(
        kernel="native.bytes.quantise_dynamically", cost=2 * elements_moved(request)
    )


def _bind_dynamic(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    x = operands.required(inputs)
    addresses = (native.address(array) for array in (x, *outputs))
    arguments = _DynamicQuantisation(*addresses, x.size)
    function = "aegis_quantise_dynamically"
    return native.call(function, arguments, (x, *outputs))


def _choose_pair(request: KernelRequest) -> KernelChoice | None:
    a, b, result = (
        operands.input_spec(request, 0),
        operands.input_spec(request, 3),
        operands.output_spec(request),
    )
    if native.LIBRARY is None or not result.element_count:
        return None
    if a.dtype not in byte_units.EIGHT_BITS or {b.dtype, result.dtype} != {a.dtype}:
        return None
    if not byte_units.is_single(request, 1, 2, 4, 5, 6, 7):
        return None
    broadcast = broadcasting.broadcast(result.shape, a.shape, b.shape)
    if broadcast is None or broadcast.shape[-1] < min(_SHORT_RUN, result.element_count):
        return None
    return KernelChoice(
        kernel="native.bytes.pair",
        in_place=tuple([(i, 0) for i in (0, 3) if request.inputs[i] == result]),
        cost=elements_moved(request),
    )


def _bind_pair(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    a, b, y = operands.required(inputs), operands.required(inputs, 3), operands.required(outputs)
    broadcast = broadcasting.broadcast(y.shape, a.shape, b.shape)
    assert broadcast is not None, request.node
    arguments = _Pair(
        *(native.address(array) for array in (a, b, y)),
        *(native.address(operands.required(inputs, position)) for position in (1, 4, 6)),
        *(native.address(operands.optional(inputs, position)) for position in (2, 5, 7)),
        *(
            (INTEGER * _RANK)(*values)
            for values in (broadcast.shape, broadcast.a_strides, broadcast.b_strides)
        ),
        byte_units.is_signed(y),
        request.operator.endswith("Mul"),
        *byte_units.result_bounds(request),
    )
    return native.call("aegis_byte_pair", arguments, (*inputs, y))


def _parts(request: KernelRequest) -> list[int]:
    """Return the positions of what is mapped; scale and zero point follow."""
    return list(range(2, len(request.inputs), 3)) if request.operator == _CONCAT else [0]


def _choose_map(request: KernelRequest) -> KernelChoice | None:
    parts = _parts(request)
    specs = [operands.output_spec(request), *(operands.input_spec(request, i) for i in parts)]
    others = [i for i in range(len(request.inputs)) if i not in parts]
    if native.LIBRARY is None or not all(spec.element_count for spec in specs):
        return None
    if not {spec.dtype for spec in specs} <= set(byte_units.EIGHT_BITS):
        return None
    if not byte_units.is_single(request, *others):
        return None
    return KernelChoice(kernel="native.bytes.map", cost=elements_moved(request))


def _bind_map(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    y = operands.required(outputs)
    axis = operands.integer(request, "axis") if request.operator == _CONCAT else 0
    y_scale, y_zero = (0, 1) if request.operator == _CONCAT else (3, 4)
    y_row = math.prod(y.shape[axis:])
    start = y.ctypes.data
    maps = []
    for position in _parts(request):
        x = operands.required(inputs, position)
        count = math.prod(x.shape[axis:])
        zero = operands.optional(inputs, position + 2)
        maps.append(
            _Map(
                native.address(x),
                start,
                native.address(operands.required(inputs, position + 1)),
                native.address(operands.required(inputs, y_scale)),
                native.address(zero),
                native.address(operands.optional(inputs, y_zero)),
                *(x.size // count, count, y_row),
                *(byte_units.is_signed(x), byte_units.is_signed(y)),
                _FUNCTIONS[request.operator],
                operands.number(request, "alpha") if "alpha" in request.attributes else 0.0,
                *byte_units.result_bounds(request),
            )
        )
        start += count
    array = (_Map * len(maps))(*maps)
    arguments = _Maps(ctypes.addressof(array), len(maps))
    return native.call("aegis_byte_map", arguments, (*inputs, y, array))


def _choose_softmax(request: KernelRequest) -> KernelChoice | None:
    specs = operands.input_spec(request, 0), operands.output_spec(request)
    if native.LIBRARY is None or not all(spec.element_count for spec in specs):
        return None
    if not {spec.dtype for spec in specs} <= set(byte_units.EIGHT_BITS):
        return None
    if not byte_units.is_single(request, 1, 2, 3, 4) or not operands.integers(request, "axes"):
        return None
    return KernelChoice(kernel="native.bytes.softmax", cost=4 * elements_moved(request))


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
        *map(native.address, (x, y, operands.required(inputs, 1), operands.required(inputs, 3))),
        native.address(operands.optional(inputs, 4)),
        *(math.prod(x.shape[:first]), math.prod(x.shape[first:last]), math.prod(x.shape[last:])),
        *(byte_units.is_signed(x), byte_units.is_signed(y)),
        *byte_units.level_bounds(y.dtype),
    )
    return native.call("aegis_byte_softmax", arguments, (*inputs, y))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("DynamicQuantizeLinear",), _choose_dynamic, _bind_dynamic),
    CpuKernel(
        ("com.microsoft.QLinearAdd", "com.microsoft.QLinearMul"),
        _choose_pair,
        _bind_pair,
        shares_work=True,
    ),
    CpuKernel(("com.microsoft.QLinearSoftmax",), _choose_softmax, _bind_softmax, shares_work=True),
    CpuKernel(tuple(_FUNCTIONS), _choose_map, _bind_map, shares_work=True),
)
