"""Compiled element-by-element operators (`c/elementwise.c`).

native.map   one operand, constants apart
native.pair  two operands whose broadcasting comes down to four dimensions at most
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import broadcasting, compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest

_RANK = broadcasting.RANK
_SHORT_RUN = 8
"""With shorter last dimensions, registers would be almost empty."""


class _Map(ctypes.Structure):
    """`map` of `c/elementwise.c`."""

    _fields_ = (("x", POINTER), ("y", POINTER), ("count", INTEGER), ("p", FLOAT), ("q", FLOAT))


class _PairArguments(ctypes.Structure):
    """`pair` of `c/elementwise.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("a", "b", "y")),
        *((name, INTEGER * _RANK) for name in ("shape", "a_strides", "b_strides")),
    )


MAPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Relu": ("relu", ()),
    "LeakyRelu": ("leaky_relu", ("alpha",)),
    "Sigmoid": ("sigmoid", ()),
    "Tanh": ("tanh", ()),
    "Exp": ("exp", ()),
    "Erf": ("erf", ()),
    "HardSigmoid": ("hard_sigmoid", ("alpha", "beta")),
    "HardSwish": ("hard_swish", ()),
    "Swish": ("swish", ("alpha",)),
    "Sqrt": ("sqrt", ()),
    "Neg": ("negate", ()),
    "Abs": ("magnitude", ()),
    "Reciprocal": ("reciprocal", ()),
}
"""By operator: the function, and the attributes that are its parameters."""

PAIRS = {
    "Add": "add",
    "Sub": "subtract",
    "Mul": "multiply",
    "Div": "divide",
    "Max": "maximum",
    "Min": "minimum",
    "Sum": "add",
    "PRelu": "prelu",
}
_GELU = "com.microsoft.BiasGelu"
"""Gelu with a bias or without."""


def map_function(request: KernelRequest) -> tuple[str, tuple[float, float]] | None:
    """Return the function of one operand and its parameters; None if this form has none."""
    if request.operator == "Clip":
        bounds = _clip_bounds(request)
        return None if bounds is None else ("clip", bounds)
    if request.operator == "Pow":
        exponent = request.constants.get(1)
        is_two = exponent is not None and exponent.size == 1 and exponent.reshape(()) == 2
        has_shape = operands.output_spec(request) == operands.input_spec(request, 0)
        return ("square", (0.0, 0.0)) if is_two and has_shape else None
    if request.operator == _GELU:
        return None if operands.has_input(request, 1) else (_gelu(request), (0.0, 0.0))
    name, parameters = MAPS[request.operator]
    values = (*(operands.number(request, parameter) for parameter in parameters), 0.0, 0.0)
    return name, (values[0], values[1])


def _gelu(request: KernelRequest) -> str:
    return "gelu" if operands.text(request, "approximate") == "none" else "gelu_tanh"


def _clip_bounds(request: KernelRequest) -> tuple[float, float] | None:
    """Return the bounds if they are known at load and not NaN."""
    if operands.has_input(request, 1) or operands.has_input(request, 2):
        return None
    low, high = request.attributes["min"], request.attributes["max"]
    bounds = (
        -math.inf if low is None else operands.number(request, "min"),
        math.inf if high is None else operands.number(request, "max"),
    )
    return None if any(map(math.isnan, bounds)) else bounds


def _choose_map(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    if map_function(request) is None:
        return None
    return KernelChoice(kernel="native.map", in_place=((0, 0),), cost=elements_moved(request))


def _bind_map(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    function = map_function(request)
    assert function is not None, request.operator
    name, parameters = function
    x, y = operands.required(inputs), operands.required(outputs)
    arguments = _Map(native.address(x), native.address(y), x.size, *parameters)
    return native.call(f"aegis_{name}", arguments, (x, y))


def _broadcast(request: KernelRequest) -> broadcasting.Broadcast | None:
    a, b = (operands.input_spec(request, position).shape for position in (0, 1))
    return broadcasting.broadcast(operands.output_spec(request).shape, a, b)


def _choose_pair(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    if len(request.inputs) != 2 or None in request.inputs:
        return None
    broadcast = _broadcast(request)
    result = operands.output_spec(request)
    if broadcast is None or broadcast.shape[-1] < min(_SHORT_RUN, result.element_count):
        return None
    in_place = tuple(
        [(position, 0) for position, spec in enumerate(request.inputs) if spec == result]
    )
    return KernelChoice(kernel="native.pair", in_place=in_place, cost=elements_moved(request))


def pair_function(request: KernelRequest) -> str:
    """Return the function of two operands."""
    is_gelu = request.operator == _GELU
    return f"bias_{_gelu(request)}" if is_gelu else PAIRS[request.operator]


def _bind_pair(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    broadcast = _broadcast(request)
    assert broadcast is not None, request.node
    arguments = _PairArguments(
        *(native.address(array) for array in (*inputs, operands.required(outputs))),
        *(
            (INTEGER * _RANK)(*values)
            for values in (broadcast.shape, broadcast.a_strides, broadcast.b_strides)
        ),
    )
    name = f"aegis_{pair_function(request)}"
    return native.call(name, arguments, (*inputs, *outputs))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel((*MAPS, "Clip", "Pow", _GELU), _choose_map, _bind_map),
    CpuKernel((*PAIRS, _GELU), _choose_pair, _bind_pair),
)
