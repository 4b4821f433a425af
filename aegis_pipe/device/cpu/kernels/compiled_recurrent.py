"""Compiled recurrent layers (`c/recurrent.c`), whose weights are known at load.

native.rnn, native.gru, native.lstm
native.lstm_of_bytes  DynamicQuantizeLSTM: the weights are brought back to float32 at load
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER, NativeCall
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_X, _W, _R, _BIAS, _LENGTHS, _INITIAL_H, _INITIAL_C, _PEEPHOLES = range(8)
_DYNAMIC_LSTM = "com.microsoft.DynamicQuantizeLSTM"
_SCALES = {_W: 8, _R: 10}
"""Positions of the scales of quantised weights; their zero points follow."""

_KINDS = (
    "sigmoid",
    "tanh",
    "relu",
    "leakyrelu",
    "hardsigmoid",
    "affine",
    "scaledtanh",
    "thresholdedrelu",
    "softsign",
)
"""Activations in the order of the enumeration in `c/recurrent.c`."""


class _Activation(ctypes.Structure):
    """`activation` of `c/recurrent.c`."""

    _fields_ = (("kind", INTEGER), ("alpha", FLOAT), ("beta", FLOAT))


class _Direction(ctypes.Structure):
    """`direction` of `c/recurrent.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "w", "r", "r_last", "bias", "initial_h", "initial_c")),
        *((name, POINTER) for name in ("peepholes", "lengths", "y", "y_h", "y_c", "workspace")),
        *((name, INTEGER) for name in ("time", "batch", "inputs", "hidden", "is_reversed")),
        *((name, INTEGER) for name in ("time_rows", "batch_rows", "y_time", "y_batch")),
        ("state_batch", INTEGER),
        ("activations", _Activation * 3),
        ("clip", FLOAT),
        ("variant", ctypes.c_int32),
    )


class _Recurrence(ctypes.Structure):
    """`recurrence` of `c/recurrent.c`."""

    _fields_ = (("count", INTEGER), ("directions", _Direction * 2))


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Of a layer; `gates` of each hidden unit."""

    time: int
    batch: int
    inputs: int
    hidden: int
    gates: int
    directions: int
    layout: int

    @property
    def parts(self) -> tuple[int, ...]:
        """Widths of the separate products with R: GRU's candidate may meet another state."""
        return (2 * self.hidden, self.hidden) if self.gates == 3 else (self.gates * self.hidden,)

    @property
    def workspace_floats(self) -> int:
        """As `carve` in `c/recurrent.c` cuts it up."""
        width, state = self.gates * self.hidden, self.batch * self.hidden
        return (self.time * self.batch + self.batch) * width + 3 * state + width


def _operator(request: KernelRequest) -> str:
    return "LSTM" if request.operator == _DYNAMIC_LSTM else request.operator


def _sizes(request: KernelRequest) -> _Sizes:
    time, batch, inputs = operands.input_spec(request, _X).shape
    layout = operands.integer(request, "layout")
    if layout:
        time, batch = batch, time
    gates = _GATES[_operator(request)]
    weights = operands.input_spec(request, _W).shape
    width = weights[2] if request.operator == _DYNAMIC_LSTM else weights[1]
    return _Sizes(time, batch, inputs, width // gates, gates, weights[0], layout)


def _is_covered(request: KernelRequest) -> bool:
    real = (_X, _BIAS, _INITIAL_H, _INITIAL_C, _PEEPHOLES)
    specs = [request.inputs[i] for i in real if operands.has_input(request, i)]
    specs += [*request.outputs]
    names = operands.texts(request, "activations")
    return (
        native.LIBRARY is not None
        and {_W, _R} <= request.constants.keys()
        and all(s.dtype == compiled.FLOAT32 and s.element_count > 0 for s in specs if s)
        and all(name.lower() in _KINDS for name in names)
    )


def _choose(request: KernelRequest) -> KernelChoice | None:
    weights = [request.inputs[i] for i in (_W, _R)]
    if not all(spec and spec.dtype == compiled.FLOAT32 for spec in weights):
        return None
    if not _is_covered(request):
        return None
    return _choice(request, f"native.{request.operator.lower()}", "")


def _choose_dynamic(request: KernelRequest) -> KernelChoice | None:
    if not _is_covered(request):
        return None
    parameters = [p for at in _SCALES.values() for p in (at, at + 1) if request.inputs[p]]
    if not all(position in request.constants for position in parameters):
        return None
    digest = hashlib.sha256(
        b"".join(np.ascontiguousarray(request.constants[p]).tobytes() for p in parameters)
    )
    return _choice(request, "native.lstm_of_bytes", digest.hexdigest()[:16])


def _choice(request: KernelRequest, kernel: str, scales: str) -> KernelChoice:
    """Return the offer; `scales` tells apart weights whose bytes are the same."""
    assert native.LIBRARY is not None
    sizes = _sizes(request)
    packed = {}
    for position, depth, parts in (
        (_W, sizes.inputs, (sizes.gates * sizes.hidden,)),
        (_R, sizes.hidden, sizes.parts),
    ):
        size_bytes = 4 * sizes.directions * depth * sum(map(_in_panels, parts))
        layout = f"recurrent.{native.LIBRARY.name}.{len(parts)}{scales}"
        packed[position] = PackedConstant(layout, size_bytes, _packing(request, position, parts))
    rows = sizes.directions * sizes.time * sizes.batch
    width = sizes.gates * sizes.hidden
    return KernelChoice(
        kernel=kernel,
        workspace_bytes=4 * sizes.workspace_floats,
        packed=packed,
        cost=float(rows * width * (sizes.inputs + sizes.hidden)),
    )


def _in_panels(columns: int) -> int:
    assert native.LIBRARY is not None
    return compiled.round_up(columns, native.LIBRARY.panel_columns)


def _packing(
    request: KernelRequest, position: int, parts: Sequence[int]
) -> Callable[[np.ndarray], np.ndarray]:
    def pack(array: np.ndarray) -> np.ndarray:
        assert native.LIBRARY is not None
        if request.operator == _DYNAMIC_LSTM:
            matrices = _real_weights(request, position, array)
        else:
            matrices = array.transpose(0, 2, 1)
        bounds = np.cumsum(parts)[:-1]
        tiles = [
            compiled.in_tiles(part, native.LIBRARY.panel_columns).reshape(len(array), -1)
            for part in np.split(matrices, bounds, axis=2)
        ]
        return compiled.as_bytes(np.concatenate(tiles, axis=1))

    return pack


def _real_weights(request: KernelRequest, position: int, array: np.ndarray) -> np.ndarray:
    """Bring quantised weights [D, inputs, 4 H] back to float32; parameters are [D] or [D, 4 H]."""
    scale, zero = (request.constants.get(_SCALES[position] + i) for i in (0, 1))
    assert scale is not None, request.node
    directions = len(array)
    levels = array.astype(np.float32)
    if zero is not None:
        levels -= zero.reshape(directions, 1, -1).astype(np.float32)
    real: np.ndarray = levels * scale.reshape(directions, 1, -1)
    return real


def _activations(request: KernelRequest, direction: int, directions: int) -> Sequence[_Activation]:
    parts = [
        _Activation(_KINDS.index(name.lower()), alpha, beta)
        for name, alpha, beta in zip(
            operands.texts(request, "activations"),
            operands.numbers(request, "activation_alpha"),
            operands.numbers(request, "activation_beta"),
            strict=True,
        )
    ]
    count = len(parts) // directions
    own = parts[direction * count : (direction + 1) * count]
    return (*own, *[_Activation()] * (3 - count))


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    assert native.LIBRARY is not None
    sizes = _sizes(request)
    directions = [
        _bind_direction(request, sizes, inputs, outputs, workspace, direction)
        for direction in range(sizes.directions)
    ]
    arguments = _Recurrence(len(directions), (_Direction * 2)(*directions))
    function = f"aegis_{_operator(request).lower()}"
    return NativeCall(native.LIBRARY, function, arguments, (*inputs, *outputs, workspace))


def _bind_direction(
    request: KernelRequest,
    sizes: _Sizes,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
    direction: int,
) -> _Direction:
    time, batch, hidden, count = sizes.time, sizes.batch, sizes.hidden, sizes.directions
    width = sizes.gates * hidden
    state = hidden if sizes.layout else batch * hidden

    def part(arrays: Sequence[np.ndarray | None], position: int, floats: int) -> int | None:
        """Return where this direction's part of an operand begins."""
        start = native.address(operands.optional(arrays, position))
        return None if start is None else start + 4 * direction * floats

    weights = part(inputs, _W, sizes.inputs * _in_panels(width))
    recurrence = part(inputs, _R, hidden * sum(map(_in_panels, sizes.parts)))
    assert recurrence is not None, request.node
    variant = request.attributes.get("input_forget", request.attributes.get("linear_before_reset"))
    return _Direction(
        native.address(operands.required(inputs, _X)),
        weights,
        recurrence,
        recurrence + 4 * hidden * _in_panels(sizes.parts[0]),
        part(inputs, _BIAS, 2 * width),
        part(inputs, _INITIAL_H, state),
        part(inputs, _INITIAL_C, state),
        part(inputs, _PEEPHOLES, 3 * hidden),
        native.address(operands.optional(inputs, _LENGTHS)),
        part(outputs, 0, hidden if sizes.layout else batch * hidden),
        part(outputs, 1, state),
        part(outputs, 2, state),
        native.address(workspace),
        *(time, batch, sizes.inputs, hidden),
        operands.integers(request, "reverse")[direction],
        *((1, time) if sizes.layout else (batch, 1)),
        *(
            (count * hidden, time * count * hidden)
            if sizes.layout
            else (count * batch * hidden, hidden)
        ),
        count * hidden if sizes.layout else hidden,
        (_Activation * 3)(*_activations(request, direction, count)),
        operands.number(request, "clip"),
        int(bool(variant)),
    )


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("RNN", "GRU", "LSTM"), _choose, _bind),
    CpuKernel((_DYNAMIC_LSTM,), _choose_dynamic, _bind),
)
