"""Compiled attention (`c/attention.c`): heads are read and written where they lie."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.heads import Heads
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.record import record

_STRIDED = "aegis.StridedAttention"
_MASK = 3


class _Strides(ctypes.Structure):
    """`head_strides` of `c/attention.c`."""

    _fields_ = tuple([(name, INTEGER) for name in ("batch", "head", "row")])


class _Attention(ctypes.Structure):
    """`attention` of `c/attention.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("q", "k", "v", "mask", "y", "workspace")),
        *((name, _Strides) for name in ("of_q", "of_k", "of_v", "of_mask", "of_y")),
        *((name, INTEGER) for name in ("batch", "heads", "sharers")),
        *((name, INTEGER) for name in ("queries", "keys", "size", "value_size", "first_sees")),
        ("scale", FLOAT),
    )


@record(eq=True)
class _Layout:
    """Where the heads of Q, K, V and Y are, and the mask's strides."""

    q: Heads
    k: Heads
    v: Heads
    y: Heads
    mask: tuple[int, int, int]
    is_causal: bool = False


def _layout(request: KernelRequest) -> _Layout | None:
    """Return where everything is; None if the kernel does not compute this."""
    if request.operator == _STRIDED:
        names = ("q_view", "k_view", "v_view", "y_view")
        q, k, v, y = (Heads.of_view(request, name) for name in names)
        is_causal = False
    else:
        if not _is_plain(request):
            return None
        key_heads = operands.integer(request, "kv_num_heads")
        q, y = (
            Heads.of(spec.shape, operands.integer(request, "q_num_heads"))
            for spec in (operands.input_spec(request, 0), operands.output_spec(request))
        )
        k, v = (Heads.of(operands.input_spec(request, at).shape, key_heads) for at in (1, 2))
        is_causal = bool(operands.integer(request, "is_causal"))
    mask = _mask_strides(request, (q.batch, q.heads, q.length, k.length))
    return None if mask is None else _Layout(q, k, v, y, mask, is_causal)


def _is_plain(request: KernelRequest) -> bool:
    """Return whether nothing but a mask and the diagonal limits what queries see."""
    return (
        not any(operands.has_input(request, position) for position in (4, 5, 6))
        and not any(operands.has_output(request, position) for position in (1, 2, 3))
        and operands.number(request, "softcap") == 0
        and operands.integer(request, "left_window_size") < 0
        and operands.integer(request, "right_window_size") < 0
    )


def _mask_strides(
    request: KernelRequest, scores: tuple[int, int, int, int]
) -> tuple[int, int, int] | None:
    """Return strides of batch, head and query; None if it has not a number for every key."""
    if not operands.has_input(request, _MASK):
        return 0, 0, 0
    shape = operands.input_spec(request, _MASK).shape
    if not shape or len(shape) > 4 or shape[-1] != scores[-1]:
        return None
    full = (1,) * (4 - len(shape)) + shape
    of_batch, of_head, of_query = (
        0 if full[axis] == 1 else int(np.prod(full[axis + 1 :], dtype=np.int64))
        for axis in range(3)
    )
    return of_batch, of_head, of_query


def _arguments(
    request: KernelRequest, layout: _Layout, pointers: Sequence[int | None]
) -> _Attention:
    q, k, v, y = layout.q, layout.k, layout.v, layout.y
    return _Attention(
        *pointers,
        *(_Strides(*strides) for strides in (q.strides, k.strides, v.strides, layout.mask)),
        _Strides(*y.strides),
        *(q.batch, q.heads, q.heads // k.heads),
        *(q.length, k.length, q.size, v.size, layout.is_causal),
        operands.number(request, "scale"),
    )


def _choose(request: KernelRequest) -> KernelChoice | None:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return None
    layout = _layout(request)
    if layout is None:
        return None
    q, k, v = layout.q, layout.k, layout.v
    arguments = _arguments(request, layout, (None,) * 6)
    scores = q.batch * q.heads * q.length * k.length
    return KernelChoice(
        kernel="native.attention",
        workspace_bytes=4 * native.LIBRARY.size_for("aegis_attention_workspace", arguments),
        cost=float(scores * (q.size + v.size)),
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    layout = _layout(request)
    assert layout is not None, choice.kernel
    arrays = (*(operands.required(inputs, position) for position in range(3)),)
    offsets = [4 * heads.offset for heads in (layout.q, layout.k, layout.v, layout.y)]
    firsts = [
        (native.address(array) or 0) + offset
        for array, offset in zip((*arrays, operands.required(outputs)), offsets, strict=True)
    ]
    mask = native.address(operands.optional(inputs, _MASK))
    pointers = (*firsts[:3], mask, firsts[3], native.address(workspace))
    arguments = _arguments(request, layout, pointers)
    kept = (*inputs, *outputs, workspace)
    return native.call("aegis_attention", arguments, kept)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel((_STRIDED, "Attention"), _choose, _bind, shares_work=True),
)
