"""TopK by sorting integers in place.

An element and its index become one 64-bit key, whose order is the wanted one: the element's order
in the upper half (a float's bits, turned so that they compare like integers), the index in the
lower. Keys differ, so any sort gives the same result, and equal elements come in index order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.pointwise import FLOAT32, FLOATS, INTEGERS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.scratch import kernel_with_scratch
from aegis_pipe.device.cpu.kernels.tiles import TILE
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_UINT64 = np.dtype(np.uint64)
_INT64 = np.dtype(np.int64)
_INDEX_BITS = np.uint64(32)
_LOWER_HALF = np.uint64(0xFFFFFFFF)
_PARTITION_FROM = 8
"""Partition before sorting if the axis is so many times longer than k."""


def _accepts(request: KernelRequest) -> bool:
    spec = operands.input_spec(request, 0)
    return spec.dtype in FLOATS | INTEGERS and spec.dtype.itemsize <= FLOAT32.itemsize


def _layout(request: KernelRequest) -> tuple[int, int, int]:
    """Return the operand as (outer, along the axis, inner)."""
    shape, axis = operands.input_spec(request, 0).shape, operands.integer(request, "axis")
    outer = int(np.prod(shape[:axis], dtype=np.int64))
    return outer, shape[axis], int(np.prod(shape[axis + 1 :], dtype=np.int64))


def _scratch(request: KernelRequest) -> list[TensorSpec]:
    """Return specs of a block of outer positions: keys, floats, their signs, flat positions."""
    outer, length, inner = _layout(request)
    rows = min(max(TILE // max(length * inner, 1), 1), outer)
    block = (rows, inner, length)
    return [
        TensorSpec(_UINT64, block),
        TensorSpec(FLOAT32, block),
        TensorSpec(FLOAT32, block),
        TensorSpec(_INT64, (rows, operands.integer(request, "k"), inner)),
    ]


def _write_float_order(
    data: np.ndarray, keys: np.ndarray, floats: np.ndarray, signs: np.ndarray
) -> None:
    """Write each float's rank: its bits, all turned if it is negative, else only the first."""
    np.copyto(floats, data, casting="unsafe")
    # -0.0 + 0.0 is 0.0: the two zeros are equal.
    np.add(floats, 0.0, out=floats)
    bits, turned = floats.view(np.int32), signs.view(np.int32)
    np.right_shift(bits, 31, out=turned)
    np.bitwise_or(turned, np.int32(-(2**31)), out=turned)
    np.bitwise_xor(bits, turned, out=bits)
    np.copyto(keys, floats.view(np.uint32))


def _write_integer_order(
    data: np.ndarray, keys: np.ndarray, _floats: np.ndarray, _signs: np.ndarray
) -> None:
    np.copyto(keys.view(np.int64), data)
    np.subtract(keys.view(np.int64), int(np.iinfo(data.dtype).min), out=keys.view(np.int64))


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    outer, length, inner = _layout(request)
    k, largest = operands.integer(request, "k"), operands.integer(request, "largest")
    data = operands.required(inputs)
    flat, lines = data.reshape(-1), data.reshape(outer, length, inner).transpose(0, 2, 1)
    values, indices = (
        None if array is None else array.reshape(outer, k, inner)
        for array in (operands.optional(outputs, 0), operands.optional(outputs, 1))
    )
    write_order = _write_float_order if data.dtype in FLOATS else _write_integer_order
    numbers = np.arange(length, dtype=np.uint64)
    columns = np.arange(inner, dtype=np.int64)
    rows = scratch[0].shape[0]

    def run_block(start: int) -> None:
        part = lines[start : start + rows]
        keys, floats, signs, positions = (array[: len(part)] for array in scratch)
        write_order(part, keys, floats, signs)
        if largest:
            np.subtract(_LOWER_HALF, keys, out=keys)
        np.left_shift(keys, _INDEX_BITS, out=keys)
        np.bitwise_or(keys, numbers, out=keys)
        if 0 < k * _PARTITION_FROM <= length:
            keys.partition(k - 1, axis=2)
        keys[:, :, : k if k * _PARTITION_FROM <= length else length].sort(axis=2)
        best = keys[:, :, :k].transpose(0, 2, 1)
        np.bitwise_and(best, _LOWER_HALF, out=best)
        np.copyto(positions, best, casting="unsafe")
        if indices is not None:
            np.copyto(indices[start : start + rows], positions)
        if values is not None:
            np.multiply(positions, inner, out=positions)
            np.add(positions, columns, out=positions)
            firsts = np.arange(start, start + len(part), dtype=np.int64) * (length * inner)
            np.add(positions, firsts.reshape(-1, 1, 1), out=positions)
            np.take(flat, positions, out=values[start : start + rows], mode="clip")

    def run() -> None:
        if k and flat.size:
            for start in range(0, outer, rows):
                run_block(start)

    return run


def _accepts_wide(request: KernelRequest) -> bool:
    return operands.input_spec(request, 0).dtype in (np.float64, np.int64, np.uint64)


_PAIR = np.dtype([("order", np.uint64), ("index", np.int64)])
"""What 64-bit elements are sorted by; as in the keys of narrower ones, the index decides ties."""


def _wide_scratch(request: KernelRequest) -> list[TensorSpec]:
    outer, length, inner = _layout(request)
    return [TensorSpec(_PAIR, (min(outer, 1), inner, length))]


def _write_wide_order(data: np.ndarray, order: np.ndarray) -> None:
    """Write each element's rank as an unsigned integer."""
    if data.dtype == np.uint64:
        np.copyto(order, data)
        return
    sign = np.uint64(1 << 63)
    if data.dtype == np.int64:
        np.bitwise_xor(data.view(np.uint64), sign, out=order)
        return
    bits = (data + 0.0).view(np.uint64)
    np.copyto(order, np.where(bits & sign, ~bits, bits | sign))


def _bind_wide(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    outer, length, inner = _layout(request)
    k, largest = operands.integer(request, "k"), operands.integer(request, "largest")
    lines = operands.required(inputs).reshape(outer, length, inner).transpose(0, 2, 1)
    values, indices = (
        None if array is None else array.reshape(outer, k, inner).transpose(0, 2, 1)
        for array in (operands.optional(outputs, 0), operands.optional(outputs, 1))
    )
    (pairs,) = scratch

    def run() -> None:
        for row in range(outer if k and length else 0):
            pair = pairs[0]
            _write_wide_order(np.ascontiguousarray(lines[row]), pair["order"])
            if largest:
                np.invert(pair["order"], out=pair["order"])
            pair["index"] = np.arange(length)
            pair.sort(axis=1, order=("order", "index"))
            best = pair["index"][:, :k]
            if indices is not None:
                indices[row] = best
            if values is not None:
                values[row] = np.take_along_axis(lines[row], best, axis=1)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    kernel_with_scratch("TopK", _bind, accepts=_accepts, scratch=_scratch),
    kernel_with_scratch("TopK", _bind_wide, accepts=_accepts_wide, scratch=_wide_scratch),
)
