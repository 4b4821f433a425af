"""Recurrent layers, one direction after the other.

The inputs of all time steps meet their weights in one matrix product; then each step adds the
recurrent product and applies the gates in place. All sequences take their first step at once: a
reversed direction begins each at its own last element. One that has ended keeps its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cpu.kernels import activations, operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_SEQUENCE_LENS, _INITIAL_H, _INITIAL_C, _PEEPHOLES = 4, 5, 6, 7

_Step = Callable[[np.ndarray], None]
Product = Callable[[np.ndarray, np.ndarray, np.ndarray | None], None]
"""product(rows, sums, counted) of X or H with W or R; `counted`: `was_active` of `_Scratch`."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    time: int
    batch: int
    hidden: int
    gates: int
    directions: int
    dtype: np.dtype


def _sizes(request: KernelRequest) -> _Sizes:
    data, recurrence = operands.input_spec(request, 0), operands.input_spec(request, 2)
    time, batch = data.shape[:2]
    if operands.integer(request, "layout"):
        time, batch = batch, time
    gates = _GATES[request.operator]
    return _Sizes(time, batch, recurrence.shape[2], gates, recurrence.shape[0], data.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _Scratch:
    """Working arrays of one direction; states are [batch, hidden]."""

    gates: np.ndarray
    """[time and batch as in X, gates * hidden]."""
    recurrent: np.ndarray
    """[batch, gates * hidden]."""
    hidden: np.ndarray
    new_hidden: np.ndarray
    cell: np.ndarray
    new_cell: np.ndarray
    spare: np.ndarray
    active: np.ndarray
    """bool[batch, 1]: sequences that have not ended."""
    was_active: np.ndarray
    """bool[batch, 1]: sequences that had not ended one step earlier."""
    own_gates: np.ndarray
    """[batch, gates * hidden] of a step, where sequences have times of their own."""


def layer_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return the scratch arrays of `bind_layer`."""
    sizes = _sizes(request)
    rows = operands.input_spec(request, 0).shape[:2]
    width = sizes.gates * sizes.hidden
    state = TensorSpec(sizes.dtype, (sizes.batch, sizes.hidden))
    return (
        TensorSpec(sizes.dtype, (*rows, width)),
        TensorSpec(sizes.dtype, (sizes.batch, width)),
        *[state] * 5,
        *[TensorSpec(np.dtype(np.bool_), (sizes.batch, 1))] * 2,
        TensorSpec(sizes.dtype, (sizes.batch, width)),
    )


def accepts(request: KernelRequest) -> bool:
    """Return whether this is a layer of floats whose activations are known."""
    floats = [
        spec for i, spec in enumerate(request.inputs) if spec is not None and i != _SEQUENCE_LENS
    ]
    return (
        floats[0].dtype in _FLOATS
        and len({spec.dtype for spec in floats}) == 1
        and all(map(activations.known, operands.texts(request, "activations")))
    )


def layer_cost(request: KernelRequest) -> float:
    """Return the multiply-adds."""
    sizes = _sizes(request)
    per_direction = sizes.gates * sizes.hidden * operands.input_spec(request, 1).shape[2]
    recurrent = sizes.gates * sizes.hidden * sizes.hidden
    return float(sizes.directions * sizes.time * sizes.batch * (per_direction + recurrent))


def _gate_functions(request: KernelRequest, direction: int) -> list[_Step]:
    """Return what each activation does to its operand in place, clipping included."""
    names = operands.texts(request, "activations")
    alphas = operands.numbers(request, "activation_alpha")
    betas = operands.numbers(request, "activation_beta")
    count = len(names) // len(operands.integers(request, "reverse"))
    chosen = slice(direction * count, (direction + 1) * count)
    return [
        activations.activation(name, (alpha, beta)[: activations.parameter_count(name)])
        or (lambda _: None)
        for name, alpha, beta in zip(names[chosen], alphas[chosen], betas[chosen], strict=True)
    ]


def _clipped(step: _Step, clip: float) -> _Step:
    if math.isinf(clip):
        return step

    def apply(x: np.ndarray) -> None:
        np.clip(x, -clip, clip, out=x)
        step(x)

    return apply


def _one_direction(
    arrays: Sequence[np.ndarray | None], position: int, direction: int
) -> np.ndarray | None:
    array = operands.optional(arrays, position)
    return None if array is None else array[direction]


def _rnn_step(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    scratch: _Scratch,
    direction: int,
) -> _Step:
    """H = f(X W + H R + B)."""
    recurrence = operands.required(inputs, 2)[direction].T
    (activate,) = _gate_functions(request, direction)
    activate = _clipped(activate, operands.number(request, "clip"))

    def step(gates: np.ndarray) -> None:
        np.matmul(scratch.hidden, recurrence, out=scratch.recurrent)
        np.add(gates, scratch.recurrent, out=scratch.new_hidden)
        activate(scratch.new_hidden)

    return step


def _gru_step(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    scratch: _Scratch,
    direction: int,
) -> _Step:
    """z, r = f(X W + H R + B); h = g(...); H = (1 - z) h + z H."""
    hidden = scratch.hidden.shape[1]
    recurrence = operands.required(inputs, 2)[direction]
    bias = _one_direction(inputs, 3, direction)
    linear = bool(operands.integer(request, "linear_before_reset"))
    clip = operands.number(request, "clip")
    gate, candidate = (_clipped(f, clip) for f in _gate_functions(request, direction))
    both = slice(0, 2 * hidden)
    last = slice(2 * hidden, 3 * hidden)
    all_or_both = slice(0, 3 * hidden) if linear else both
    first_product = scratch.recurrent[:, all_or_both]
    first_weights = recurrence[all_or_both].T
    last_weights = recurrence[last].T
    hidden_bias = None if bias is None or not linear else bias[5 * hidden :]

    def step(gates: np.ndarray) -> None:
        np.matmul(scratch.hidden, first_weights, out=first_product)
        update_reset = gates[:, both]
        np.add(update_reset, scratch.recurrent[:, both], out=update_reset)
        gate(update_reset)
        update, reset = gates[:, :hidden], gates[:, hidden : 2 * hidden]
        if linear:
            product = scratch.recurrent[:, last]
            if hidden_bias is not None:
                np.add(product, hidden_bias, out=product)
            np.multiply(product, reset, out=scratch.new_hidden)
        else:
            np.multiply(scratch.hidden, reset, out=scratch.spare)
            np.matmul(scratch.spare, last_weights, out=scratch.new_hidden)
        np.add(scratch.new_hidden, gates[:, last], out=scratch.new_hidden)
        candidate(scratch.new_hidden)
        # H = h + z (H - h)
        np.subtract(scratch.hidden, scratch.new_hidden, out=scratch.spare)
        np.multiply(scratch.spare, update, out=scratch.spare)
        np.add(scratch.new_hidden, scratch.spare, out=scratch.new_hidden)

    return step


def _lstm_step(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    scratch: _Scratch,
    direction: int,
    product: Product | None = None,
) -> _Step:
    """i, o, f = f(X W + H R + P C + B); C = f C + i g(...); H = o h(C)."""
    width = scratch.hidden.shape[1]
    multiply = product or _real_product(operands.required(inputs, 2)[direction].T)
    counted = scratch.was_active if operands.has_input(request, _SEQUENCE_LENS) else None
    peepholes = _one_direction(inputs, _PEEPHOLES, direction)
    coupled = bool(operands.integer(request, "input_forget"))
    clip = operands.number(request, "clip")
    gate, candidate, squash = _gate_functions(request, direction)
    gate, candidate = _clipped(gate, clip), _clipped(candidate, clip)
    spare, cell, new_cell = scratch.spare, scratch.cell, scratch.new_cell

    def peep(part: np.ndarray, index: int, state: np.ndarray) -> None:
        if peepholes is not None:
            np.multiply(state, peepholes[index * width : (index + 1) * width], out=spare)
            np.add(part, spare, out=part)

    def step(gates: np.ndarray) -> None:
        multiply(scratch.hidden, scratch.recurrent, counted)
        np.add(gates, scratch.recurrent, out=gates)
        admit, emit, forget, content = (
            gates[:, index * width : (index + 1) * width] for index in range(4)
        )
        peep(admit, 0, cell)
        gate(admit)
        if coupled:
            np.subtract(1, admit, out=forget)
        else:
            peep(forget, 2, cell)
            gate(forget)
        candidate(content)
        np.multiply(cell, forget, out=new_cell)
        np.multiply(admit, content, out=spare)
        np.add(new_cell, spare, out=new_cell)
        peep(emit, 1, new_cell)
        gate(emit)
        np.copyto(scratch.new_hidden, new_cell)
        squash(scratch.new_hidden)
        np.multiply(scratch.new_hidden, emit, out=scratch.new_hidden)

    return step


def _real_product(weights: np.ndarray) -> Product:
    def multiply(rows: np.ndarray, sums: np.ndarray, counted: np.ndarray | None) -> None:
        np.matmul(rows, weights, out=sums)

    return multiply


_STEPS = {"RNN": _rnn_step, "GRU": _gru_step, "LSTM": _lstm_step}


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    return bind_layer(request, inputs, outputs, scratch, None)


def bind_layer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
    products: Callable[[int], tuple[Product, Product]] | None,
) -> Callable[[], None]:
    """Return the layer's call. `products` of a direction replace those with W and R of an LSTM."""
    working = _Scratch(*scratch)
    directions = [
        _bind_direction(
            request, inputs, outputs, working, direction, products(direction) if products else None
        )
        for direction in range(_sizes(request).directions)
    ]

    def run() -> None:
        for direction in directions:
            direction()

    return run


def _state(array: np.ndarray | None, layout: int, direction: int) -> np.ndarray | None:
    """Return a state's [batch, hidden] of one direction."""
    if array is None:
        return None
    return array[:, direction] if layout else array[direction]


def _bind_direction(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: _Scratch,
    direction: int,
    products: tuple[Product, Product] | None,
) -> Callable[[], None]:
    sizes = _sizes(request)
    layout = operands.integer(request, "layout")
    data = operands.required(inputs)
    bias = _one_direction(inputs, 3, direction)
    lengths = operands.optional(inputs, _SEQUENCE_LENS)
    gates = scratch.gates.swapaxes(0, 1) if layout else scratch.gates
    sequence = operands.optional(outputs, 0)
    if sequence is not None:
        sequence = sequence[:, :, direction].swapaxes(0, 1) if layout else sequence[:, direction]
    states = [
        (scratch.hidden, scratch.new_hidden, _INITIAL_H, 1),
        (scratch.cell, scratch.new_cell, _INITIAL_C, 2),
    ][: 2 if request.operator == "LSTM" else 1]
    starts = [
        (state, _state(operands.optional(inputs, position), layout, direction))
        for state, _, position, _ in states
    ]
    ends = [
        (target, state)
        for state, _, _, position in states
        if (target := _state(operands.optional(outputs, position), layout, direction)) is not None
    ]
    if products is None:
        multiply = _real_product(operands.required(inputs, 1)[direction].T)
        step = _STEPS[request.operator](request, inputs, scratch, direction)
    else:
        multiply = products[0]
        step = _lstm_step(request, inputs, scratch, direction, products[1])
    is_reversed = operands.integers(request, "reverse")[direction]
    flat_data = data.reshape(-1, data.shape[-1])
    flat_gates = scratch.gates.reshape(-1, scratch.gates.shape[-1])

    def take_together(time: int) -> None:
        """Take a step of sequences that are all as long as can be."""
        step(gates[time])
        for state, new_state, _, _ in states:
            np.copyto(state, new_state)
        if sequence is not None:
            np.copyto(sequence[time], scratch.new_hidden)

    def take_each(position: int, lengths: np.ndarray) -> None:
        """Take a step of sequences each of which has a time of its own, or has ended."""
        np.greater(lengths[:, None], position, out=scratch.active)
        np.greater_equal(lengths[:, None], position, out=scratch.was_active)
        times = [
            min(length, sizes.time) - 1 - position
            if is_reversed and position < length
            else position
            for length in lengths.tolist()
        ]
        for index, time in enumerate(times):
            own = scratch.own_gates[index]
            np.copyto(own, gates[time, index] if scratch.active[index] else 0)
        step(scratch.own_gates)
        for state, new_state, _, _ in states:
            np.copyto(state, new_state, where=scratch.active)
        if sequence is None:
            return
        for index, time in enumerate(times):
            new = scratch.new_hidden[index] if scratch.active[index] else 0
            np.copyto(sequence[time, index], new)

    def run() -> None:
        # Whatever comes behind the longest sequence does not count.
        rows = len(flat_data)
        if lengths is not None and not layout:
            rows = min(max(int(lengths.max(initial=0)), 0), sizes.time) * sizes.batch
        multiply(flat_data[:rows], flat_gates[:rows], None)
        if bias is not None:
            _add_bias(request, bias, flat_gates[:rows])
        for state, start in starts:
            np.copyto(state, 0 if start is None else start)
        for position in range(sizes.time):
            if lengths is None:
                take_together(sizes.time - 1 - position if is_reversed else position)
            else:
                take_each(position, lengths)
        for target, state in ends:
            np.copyto(target, state)

    return run


def _add_bias(request: KernelRequest, bias: np.ndarray, gates: np.ndarray) -> None:
    """Add the biases of inputs and of recurrence, but not the one that GRU adds before reset."""
    width = gates.shape[1]
    np.add(gates, bias[:width], out=gates)
    outside = width
    if request.operator == "GRU" and operands.integer(request, "linear_before_reset"):
        outside = 2 * width // 3
    part = gates[:, :outside]
    np.add(part, bias[width : width + outside], out=part)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "recurrent",
        ("RNN", "GRU", "LSTM"),
        _bind,
        accepts=accepts,
        scratch=layer_scratch,
        cost=layer_cost,
    ),
)
