"""Layers that mix a sequence through a state of fixed size: one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import activations, operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


def _bind_swiglu(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    gate, value = operands.required(inputs, 0), operands.required(inputs, 1)
    result, alpha = operands.required(outputs), operands.number(request, "alpha")

    def run() -> None:
        np.multiply(gate, alpha, out=result)
        activations.sigmoid(result)
        np.multiply(result, gate, out=result)
        np.multiply(result, value, out=result)

    return run


def _conv_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data, weights = operands.input_spec(request, 0), operands.input_spec(request, 1)
    batch, channels, length = data.shape
    padded = (batch, channels, length + weights.shape[2] - 1)
    return (TensorSpec(data.dtype, padded), data)


def _bind_conv(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, weights = operands.required(inputs, 0), operands.required(inputs, 1)
    bias, past = operands.optional(inputs, 2), operands.optional(inputs, 3)
    result, present = operands.required(outputs), operands.optional(outputs, 1)
    padded, product = scratch
    length, reach = data.shape[2], weights.shape[2] - 1
    taps = [(padded[:, :, tap : tap + length], weights[:, :, tap]) for tap in range(reach + 1)]
    is_silu = operands.text(request, "activation") == "silu"

    def run() -> None:
        np.copyto(padded[:, :, :reach], 0 if past is None else past)
        np.copyto(padded[:, :, reach:], data)
        np.copyto(result, 0 if bias is None else bias[:, None])
        for stretch, weight in taps:
            np.multiply(stretch, weight, out=product)
            np.add(result, product, out=result)
        if is_silu:
            np.copyto(product, result)
            activations.sigmoid(result)
            np.multiply(result, product, out=result)
        if present is not None:
            np.copyto(present, padded[:, :, length:])

    return run


def _state_spec(request: KernelRequest) -> TensorSpec:
    query, value = operands.input_spec(request, 0), operands.input_spec(request, 2)
    heads = operands.integer(request, "q_num_heads")
    kv_heads = operands.integer(request, "kv_num_heads")
    shape = (query.shape[0], kv_heads, query.shape[2] // heads, value.shape[2] // kv_heads)
    return TensorSpec(query.dtype, shape)


def _attention_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    state = _state_spec(request)
    batch, kv_heads, size, value_size = state.shape
    repeats = operands.integer(request, "q_num_heads") // kv_heads
    return (
        state,
        state,
        TensorSpec(state.dtype, (batch, kv_heads, 1, value_size)),
        TensorSpec(state.dtype, (batch, kv_heads, size, 1)),
        TensorSpec(state.dtype, (batch, kv_heads, repeats, value_size)),
    )


def _per_head(array: np.ndarray | None, heads: int) -> np.ndarray | None:
    """Return a view [length, batch, heads or 1, size] of [batch, length, heads * size]."""
    if array is None:
        return None
    batch, length, width = array.shape
    heads = heads if width % heads == 0 else 1
    return array.reshape(batch, length, heads, -1).swapaxes(0, 1)


def _bind_attention(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    state, product, written, forgotten, read = scratch
    batch, kv_heads, size, value_size = state.shape
    repeats = read.shape[2]
    length = operands.required(inputs, 0).shape[1]
    query = operands.required(inputs, 0).reshape(batch, length, kv_heads, repeats, size)
    key = operands.required(inputs, 1).reshape(batch, length, kv_heads, size)
    value = operands.required(inputs, 2).reshape(batch, length, kv_heads, value_size)
    past = operands.optional(inputs, 3)
    decay = _per_head(operands.optional(inputs, 4), kv_heads)
    beta = _per_head(operands.optional(inputs, 5), kv_heads)
    result, present = operands.required(outputs), operands.optional(outputs, 1)
    results = result.reshape(batch, length, kv_heads, repeats, value_size)
    scale = operands.number(request, "scale")

    def run() -> None:
        np.copyto(state, 0 if past is None else past)
        for time in range(length):
            keys = key[:, time]
            if decay is not None:
                np.exp(decay[time][..., None], out=forgotten)
                np.multiply(state, forgotten, out=state)
            if beta is None:
                np.copyto(written, value[:, time, :, None])
            else:
                np.matmul(keys[:, :, None], state, out=written)
                np.subtract(value[:, time, :, None], written, out=written)
                np.multiply(written, beta[time][..., None], out=written)
            np.multiply(keys[..., None], written, out=product)
            np.add(state, product, out=state)
            np.matmul(query[:, time], state, out=read)
            np.multiply(read, scale, out=results[:, time])
        if present is not None:
            np.copyto(present, state)

    return run


def _attention_cost(request: KernelRequest) -> float:
    state, length = _state_spec(request), operands.input_spec(request, 0).shape[1]
    return float(3 * length * state.element_count)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("swiglu", ("SwiGLU",), _bind_swiglu),
    planned_kernel(
        "causal_conv_with_state", ("CausalConvWithState",), _bind_conv, scratch=_conv_scratch
    ),
    planned_kernel(
        "linear_attention",
        ("LinearAttention",),
        _bind_attention,
        scratch=_attention_scratch,
        cost=_attention_cost,
    ),
)
