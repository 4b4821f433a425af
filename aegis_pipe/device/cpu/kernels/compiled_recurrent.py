"""Compiled recurrent layers (`c/recurrent.c`), whose weights are known at load.

native.rnn, native.gru, native.lstm
native.lstm_of_bytes  DynamicQuantizeLSTM: products of bytes; X and the state are quantised too
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cpu.kernels import byte_units, compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
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
        *((name, byte_units.Scales) for name in ("w_scales", "r_scales")),
    )


class _Recurrence(ctypes.Structure):
    """`recurrence` of `c/recurrent.c`."""

    _fields_ = (("count", INTEGER), ("directions", _Direction * 2), ("place", POINTER))


_SHARED_TIME_COST_MIN = 100_000
"""Multiply-adds of one time step with R; below this the team would meet more than it multiplies."""
_BYTES_FASTER = 4
"""Multiply-adds of bytes in the time of one of floats."""


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
    def width(self) -> int:
        """Of all gates."""
        return self.gates * self.hidden

    def depth(self, position: int) -> int:
        """Return the rows of W or R."""
        return self.inputs if position == _W else self.hidden

    @property
    def parts(self) -> tuple[int, ...]:
        """Widths of the separate products with R: GRU's candidate may meet another state."""
        return (2 * self.hidden, self.hidden) if self.gates == 3 else (self.gates * self.hidden,)

    @property
    def workspace_floats(self) -> int:
        """As `carve` in `c/recurrent.c` cuts it up."""
        width, state = self.width, self.batch * self.hidden
        return (self.time * self.batch + self.batch) * width + 3 * state + width

    @property
    def workspace_bytes(self) -> int:
        """What products of bytes take besides."""
        assert native.LIBRARY is not None
        return native.LIBRARY.byte_recurrence_workspace(
            self.time, self.batch, self.inputs, self.hidden, self.width
        )


def _is_of_bytes(request: KernelRequest) -> bool:
    return request.operator == _DYNAMIC_LSTM


def _operator(request: KernelRequest) -> str:
    return "LSTM" if _is_of_bytes(request) else request.operator


def _sizes(request: KernelRequest) -> _Sizes:
    time, batch, inputs = operands.input_spec(request, _X).shape
    layout = operands.integer(request, "layout")
    if layout:
        time, batch = batch, time
    gates = _GATES[_operator(request)]
    weights = operands.input_spec(request, _W).shape
    width = weights[2] if _is_of_bytes(request) else weights[1]
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
    return _choice(request, f"native.{request.operator.lower()}", _float_panels)


def _choose_dynamic(request: KernelRequest) -> KernelChoice | None:
    weights = [request.inputs[i] for i in (_W, _R)]
    if not all(spec and spec.dtype in byte_units.EIGHT_BITS for spec in weights):
        return None
    if not _is_covered(request):
        return None
    return _choice(request, "native.lstm_of_bytes", _byte_panels)


def _choice(
    request: KernelRequest, kernel: str, panels: Callable[[KernelRequest, int], PackedConstant]
) -> KernelChoice:
    sizes = _sizes(request)
    rows = sizes.directions * sizes.time * sizes.batch
    multiply_adds = float(rows * sizes.width * (sizes.inputs + sizes.hidden))
    is_bytes = _is_of_bytes(request)
    return KernelChoice(
        kernel=kernel,
        workspace_bytes=4 * sizes.workspace_floats + (sizes.workspace_bytes if is_bytes else 0),
        packed={position: panels(request, position) for position in (_W, _R)},
        cost=multiply_adds / _BYTES_FASTER if is_bytes else multiply_adds,
    )


def _float_panels(request: KernelRequest, position: int) -> PackedConstant:
    assert native.LIBRARY is not None
    sizes = _sizes(request)
    parts = (sizes.width,) if position == _W else sizes.parts
    size_bytes = 4 * sizes.directions * sizes.depth(position) * sum(map(_in_panels, parts))
    layout = f"recurrent.{native.LIBRARY.name}.{len(parts)}"
    return PackedConstant.filled(layout, size_bytes, _packing(parts))


def _byte_panels(request: KernelRequest, position: int) -> PackedConstant:
    sizes = _sizes(request)

    def fill(array: np.ndarray, panels: np.ndarray) -> None:
        for matrix, into in zip(array, panels.reshape(len(array), -1), strict=True):
            byte_units.pack(matrix, into)

    size_bytes = byte_units.panels_bytes(sizes.depth(position), sizes.width)
    return PackedConstant.filled("recurrent.bytes", sizes.directions * size_bytes, fill)


def _in_panels(columns: int) -> int:
    assert native.LIBRARY is not None
    return compiled.round_up(columns, native.LIBRARY.panel_columns)


def _packing(parts: Sequence[int]) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return what turns [directions, rows, depth] into panels: of so many rows, one part each."""

    def fill(array: np.ndarray, packed: np.ndarray) -> None:
        assert native.LIBRARY is not None
        plain = np.ascontiguousarray(array, dtype=np.float32)
        depth = plain.shape[2]
        row, target = plain.ctypes.data, packed.ctypes.data
        for columns in (*parts,) * len(plain):
            native.LIBRARY.pack_panels(row, 1, depth, depth, columns, target)
            row += 4 * columns * depth
            target += 4 * _in_panels(columns) * depth
        assert row == plain.ctypes.data + plain.nbytes, f"{parts} of {plain.shape}"
        assert target == packed.ctypes.data + packed.nbytes, f"{parts} into {packed.nbytes} bytes"

    return fill


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
    sizes = _sizes(request)
    directions = [
        _bind_direction(request, choice, inputs, outputs, workspace, direction)
        for direction in range(sizes.directions)
    ]
    lines, place = native.meeting_place()
    arguments = _Recurrence(len(directions), (_Direction * 2)(*directions), place)
    function = choice.kernel.replace("native.", "aegis_")
    call = native.call(function, arguments, (*inputs, *outputs, workspace, lines))
    faster = _BYTES_FASTER if _is_of_bytes(request) else 1
    if sizes.batch * sizes.width * sizes.hidden < faster * _SHARED_TIME_COST_MIN:
        call.step.shares = 0
    return call


def _bind_direction(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
    direction: int,
) -> _Direction:
    sizes = _sizes(request)
    time, batch, hidden, count = sizes.time, sizes.batch, sizes.hidden, sizes.directions
    width = sizes.gates * hidden
    state = hidden if sizes.layout else batch * hidden

    def part(arrays: Sequence[np.ndarray | None], position: int, floats: int) -> int | None:
        """Return where this direction's part of an operand begins."""
        start = native.address(operands.optional(arrays, position))
        return None if start is None else start + 4 * direction * floats

    def weights(position: int) -> int:
        """Return where this direction's panels begin."""
        start, size = (
            operands.required(inputs, position).ctypes.data,
            choice.packed[position].size_bytes,
        )
        return int(start) + direction * size // count

    recurrence = weights(_R)
    variant = request.attributes.get("input_forget", request.attributes.get("linear_before_reset"))
    return _Direction(
        native.address(operands.required(inputs, _X)),
        weights(_W),
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
        *(_scales(request, inputs, position, direction) for position in (_W, _R)),
    )


def _scales(
    request: KernelRequest, inputs: Sequence[np.ndarray | None], position: int, direction: int
) -> byte_units.Scales:
    """Return this direction's scales of W or R: one, or one a column; none of floats."""
    if not _is_of_bytes(request):
        return byte_units.Scales()
    at = _SCALES[position]
    scale, zero = (
        None if array is None else array.reshape(_sizes(request).directions, -1)[direction]
        for array in (operands.required(inputs, at), operands.optional(inputs, at + 1))
    )
    return byte_units.Scales(
        b_zero=native.address(zero),
        b_scale=native.address(scale),
        b_is_signed=byte_units.is_signed(operands.input_spec(request, position)),
        b_zeros=byte_units.size_of(zero),
        b_scales=byte_units.size_of(scale),
        kind=byte_units.FLOAT_RESULT,
        alpha=1.0,
        has_zeros=byte_units.has_zeros(request, position, at + 1),
    )


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("RNN", "GRU", "LSTM"), _choose, _bind),
    CpuKernel((_DYNAMIC_LSTM,), _choose_dynamic, _bind),
)
