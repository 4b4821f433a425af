"""Attention whose operands are views: copied to heads of their own, and the result back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.nested import (
    accepts_nested,
    bind_nested,
    nested_cost,
    nested_scratch,
)
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.heads import Heads
from aegis_pipe.device.requests import number
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_OPERANDS = ("q_view", "k_view", "v_view")


def _inner_request(request: KernelRequest) -> KernelRequest:
    dtype = operands.output_spec(request).dtype
    q, k, v, y = (
        TensorSpec(dtype, Heads.of_view(request, name).shape) for name in (*_OPERANDS, "y_view")
    )
    attributes = {
        "q_num_heads": q.shape[1],
        "kv_num_heads": k.shape[1],
        "scale": number(request, "scale"),
        "is_causal": 0,
        "softcap": 0.0,
        "left_window_size": -1,
        "right_window_size": -1,
        "qk_matmul_output_mode": 0,
    }
    mask = request.inputs[3:] or (None,)
    inputs = (q, k, v, *mask, None, None, None)
    return KernelRequest("Attention", request.node, attributes, inputs, (y,))


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    inner = _inner_request(request)
    heads = [operands.input_spec(inner, position) for position in range(3)]
    return (nested_scratch(inner), operands.output_spec(inner), *heads)


def _view(array: np.ndarray, heads: Heads) -> np.ndarray:
    """Return [batch, heads, length, size] of a dense array."""
    strides = tuple(array.itemsize * each for each in (*heads.strides, 1))
    first = array.reshape(-1)[heads.offset :]
    return np.lib.stride_tricks.as_strided(first, heads.shape, strides)


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    workspace, result, *heads = scratch
    views = [
        _view(operands.required(inputs, position), Heads.of_view(request, name))
        for position, name in enumerate(_OPERANDS)
    ]
    mask = [*inputs[3:], None][0]
    arrays = [*heads, mask, None, None, None]
    call = bind_nested(_inner_request(request), arrays, [result], workspace)
    target = _view(operands.required(outputs), Heads.of_view(request, "y_view"))

    def run() -> None:
        for array, view in zip(heads, views, strict=True):
            np.copyto(array, view)
        call()
        np.copyto(target, result)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "strided_attention",
        ("aegis.StridedAttention",),
        _bind,
        accepts=lambda request: accepts_nested(_inner_request(request)),
        scratch=_scratch,
        cost=lambda request: nested_cost(_inner_request(request)),
    ),
)
