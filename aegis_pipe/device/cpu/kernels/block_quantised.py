"""Weights of few bits, unpacked a tile at a time: in memory they stay as small as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import FLOAT32, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_UINT8 = np.dtype(np.uint8)
_FOUR_BITS = (np.dtype(ml_dtypes.int4), np.dtype(ml_dtypes.uint4))
_BYTES_WILL_DO = 4
"""The accuracy_level by which A may be rounded to 8 bits."""
_LEVEL_MAX = np.float32(127)
_TILE_ELEMENTS = 64 << 10


def _unpack(packed: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Write the elements of uint8[..., n] to uint8[..., 8 / bits * n], lowest bits first."""
    per_byte = 8 // bits
    for place in range(per_byte):
        part = out[..., place::per_byte]
        np.right_shift(packed[..., : part.shape[-1]], bits * place, out=part)
        np.bitwise_and(part, (1 << bits) - 1, out=part)


def _matmul_sizes(request: KernelRequest) -> tuple[int, int, int, int]:
    """Return (K, N, blocks, columns of a tile)."""
    depth = operands.input_spec(request, 0).shape[-1]
    columns = operands.output_spec(request).shape[-1]
    size = operands.integer(request, "block_size")
    blocks = -(-depth // size)
    return depth, columns, blocks, max(1, min(columns, _TILE_ELEMENTS // (blocks * size)))


def _accepts_matmul(request: KernelRequest) -> bool:
    zeros = request.inputs[3]
    return (
        operands.input_spec(request, 0).dtype == FLOAT32
        and operands.input_spec(request, 1).dtype == _UINT8
        and operands.input_spec(request, 2).dtype == FLOAT32
        and (zeros is None or zeros.dtype in (_UINT8, FLOAT32))
        and not operands.integer(request, "is_reordered")
        and not operands.integer(request, "is_prepacked")
    )


def quantises_left(request: KernelRequest) -> bool:
    """Return whether A becomes bytes, block by block, as ONNX Runtime's accuracy_level 4 has it."""
    zeros = request.inputs[3]
    is_wanted = operands.integer(request, "accuracy_level") == _BYTES_WILL_DO
    return is_wanted and (zeros is None or zeros.dtype == _UINT8)


def _matmul_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    _, columns, blocks, tile = _matmul_sizes(request)
    size = operands.integer(request, "block_size")
    data = operands.input_spec(request, 0)
    rows = data.element_count // max(data.shape[-1], 1)
    return (
        TensorSpec(_UINT8, (tile, blocks, size)),
        TensorSpec(FLOAT32, (tile, blocks, size)),
        TensorSpec(_UINT8, (columns, blocks)),
        TensorSpec(FLOAT32, (rows, tile)),
        *([TensorSpec(FLOAT32, (rows, blocks, size))] if quantises_left(request) else []),
        *([TensorSpec(FLOAT32, (rows, blocks, 1))] * 3 if quantises_left(request) else []),
    )


def _matmul_cost(request: KernelRequest) -> float:
    depth, columns, _, _ = _matmul_sizes(request)
    return float(operands.output_spec(request).element_count * depth + columns * depth)


def _bind_matmul(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    depth, columns, blocks, tile = _matmul_sizes(request)
    bits = operands.integer(request, "bits")
    data = operands.required(inputs, 0).reshape(-1, depth)
    round_left: Callable[[], None] | None = None
    if quantises_left(request):
        round_left = _rounding(data, *scratch[4:])
        data = scratch[4].reshape(len(data), -1)[:, :depth]
    result = operands.required(outputs).reshape(-1, columns)
    weights = operands.required(inputs, 1).reshape(columns, blocks, -1)
    scales = operands.required(inputs, 2).reshape(columns, blocks, 1)
    given_zeros, bias = operands.optional(inputs, 3), operands.optional(inputs, 4)
    levels, real, unpacked_zeros, product = scratch[:4]
    zeros: np.ndarray | int = 1 << (bits - 1)
    packed_zeros = None
    if given_zeros is not None and given_zeros.dtype == FLOAT32:
        zeros = given_zeros.reshape(columns, blocks)
    elif given_zeros is not None:
        zeros, packed_zeros = unpacked_zeros, given_zeros.reshape(columns, -1)
    tiles = []
    for first in range(0, columns, tile):
        chosen = slice(first, min(first + tile, columns))
        count = chosen.stop - chosen.start
        tiles.append(
            (
                weights[chosen],
                zeros[chosen][:, :, None] if isinstance(zeros, np.ndarray) else zeros,
                scales[chosen],
                levels[:count],
                real[:count],
                real[:count].reshape(count, -1)[:, :depth].T,
                product.reshape(-1)[: len(data) * count].reshape(-1, count),
                result[:, chosen],
            )
        )

    def run() -> None:
        if round_left is not None:
            round_left()
        if packed_zeros is not None:
            _unpack(packed_zeros, bits, unpacked_zeros)
        for packed, zero, scale, level, weight, factor, partial, target in tiles:
            _unpack(packed, bits, level)
            np.subtract(level, zero, out=weight, dtype=FLOAT32)
            np.multiply(weight, scale, out=weight)
            np.matmul(data, factor, out=partial)
            np.copyto(target, partial)
        if bias is not None:
            np.add(result, bias, out=result)

    return run


def _rounding(
    data: np.ndarray, blocks: np.ndarray, reach: np.ndarray, low: np.ndarray, factor: np.ndarray
) -> Callable[[], None]:
    """Return what writes A's blocks, each rounded to 127 levels on both sides of 0."""
    rows, depth = data.shape
    padded = blocks.reshape(rows, -1)

    def run() -> None:
        padded[:, depth:] = 0
        np.copyto(padded[:, :depth], data)
        np.maximum.reduce(blocks, axis=2, keepdims=True, out=reach)
        np.minimum.reduce(blocks, axis=2, keepdims=True, out=low)
        np.negative(low, out=low)
        np.maximum(reach, low, out=reach)
        factor.fill(0)
        np.divide(_LEVEL_MAX, reach, out=factor, where=reach != 0)
        np.multiply(blocks, factor, out=blocks)
        np.rint(blocks, out=blocks)
        np.divide(reach, _LEVEL_MAX, out=reach)
        np.multiply(blocks, reach, out=blocks)

    return run


def _accepts_gather(request: KernelRequest) -> bool:
    data, zeros = operands.input_spec(request, 0), request.inputs[3]
    return (
        (data.dtype == _UINT8 or data.dtype in _FOUR_BITS)
        and (zeros is None or zeros.dtype == data.dtype)
        and operands.input_spec(request, 2).dtype == FLOAT32
        and operands.integer(request, "gather_axis") == 0
        and operands.integer(request, "quantize_axis") == len(data.shape) - 1
    )


def _gather_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return arrays for one row: levels, scales and zero points as an element has them."""
    data, scales = operands.input_spec(request, 0), operands.input_spec(request, 2)
    row = data.shape[1:-1]
    width = operands.output_spec(request).shape[-1]
    return (
        TensorSpec(_UINT8, (*row, width)),
        TensorSpec(_UINT8, (*row, scales.shape[-1])),
    )


def _bind_gather(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, indices = operands.required(inputs, 0), operands.required(inputs, 1).reshape(-1)
    scales, zeros = operands.required(inputs, 2), operands.optional(inputs, 3)
    bits, size = operands.integer(request, "bits"), operands.integer(request, "block_size")
    result = operands.required(outputs).reshape(len(indices), *scratch[0].shape)
    levels, unpacked_zeros = scratch
    is_packed = data.dtype == _UINT8
    default = 0 if data.dtype == _FOUR_BITS[0] else 1 << (bits - 1)
    blocks = [
        (slice(first, first + size), slice(block, block + 1))
        for block, first in enumerate(range(0, levels.shape[-1], size))
    ]

    def run() -> None:
        rows = len(data)
        if indices.size and not -rows <= indices.min() <= indices.max() < rows:
            raise KernelError(
                f"indices reach from {indices.min()} to {indices.max()}, "
                f"but the table has {rows} rows",
                context=f"node `{request.node}` ({request.operator})",
                hint="check that the tokeniser belongs to this model",
            )
        for target, index in zip(result, indices, strict=True):
            zero: np.ndarray | int = default
            if is_packed:
                _unpack(data[index], bits, levels)
                np.copyto(target, levels)
                if zeros is not None:
                    _unpack(zeros[index], bits, unpacked_zeros)
                    zero = unpacked_zeros
            else:
                np.copyto(target, data[index], casting="unsafe")
                zero = default if zeros is None else zeros[index].astype(np.int8)
            for elements, block in blocks:
                part = target[..., elements]
                np.subtract(part, zero if isinstance(zero, int) else zero[..., block], out=part)
                np.multiply(part, scales[index][..., block], out=part)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "matmul.bits",
        ("com.microsoft.MatMulNBits",),
        _bind_matmul,
        accepts=_accepts_matmul,
        scratch=_matmul_scratch,
        cost=_matmul_cost,
    ),
    planned_kernel(
        "gather.block_quantised",
        ("com.microsoft.GatherBlockQuantized",),
        _bind_gather,
        accepts=_accepts_gather,
        scratch=_gather_scratch,
    ),
)
