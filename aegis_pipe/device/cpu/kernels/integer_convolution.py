"""Convolutions of integers.

conv.integer     conv.columns on integers held in float32 or float64, whichever is exact
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.convolution_columns import (
    column_blocks,
    convolution_of,
    interior_of,
    multiply_adds,
)
from aegis_pipe.device.cpu.kernels.planned import (
    FLOAT32,
    no_packing,
    packed_centred,
    planned_kernel,
)
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.requantise import (
    IntegerResult,
    Requantised,
    exact_float,
    subtract_zero,
)
from aegis_pipe.kernel import KernelRequest, PackedConstant
from aegis_pipe.tensor import TensorSpec


def _quantised_positions(request: KernelRequest) -> tuple[int, int, int]:
    """Return the positions of weights, data zero point and weights zero point."""
    return (3, 2, 5) if request.operator == "QLinearConv" else (1, 2, 3)


def _centred_constant(request: KernelRequest) -> np.ndarray | None:
    """Return weights minus zero point, exactly, or None if they are not known at load."""
    weights_at, _, zero_at = _quantised_positions(request)
    weights, zero = request.constants.get(weights_at), request.constants.get(zero_at)
    if weights is None or (zero is None and operands.has_input(request, zero_at)):
        return None
    return _centred(weights, zero)


def _centred(weights: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    centred = weights.astype(np.int32)
    return centred if zero is None else centred - _per_map(zero.astype(np.int32), weights.ndim)


def _per_map(values: np.ndarray, rank: int) -> np.ndarray:
    """Reshape a scalar or one value an output channel so that it broadcasts to the weights."""
    return values.reshape(-1, *(1,) * (rank - 1))


def _integer_dtype(request: KernelRequest) -> np.dtype:
    weights = operands.input_spec(request, _quantised_positions(request)[0])
    centred = _centred_constant(request)
    rows = None if centred is None else centred.reshape(centred.shape[0], -1)
    return exact_float(math.prod(weights.shape[1:]), rows)


def _accepts_integer(request: KernelRequest) -> bool:
    weights_at, _, _ = _quantised_positions(request)
    data = operands.input_spec(request, 0)
    return (
        data.dtype.itemsize == operands.input_spec(request, weights_at).dtype.itemsize == 1
        and data.dtype.kind in "iu"
        and len(data.shape) >= 3
        and min(operands.integers(request, "pads")) >= 0
    )


def _packs_weights(request: KernelRequest) -> bool:
    weights_at, _, zero_at = _quantised_positions(request)
    zero_known = zero_at in request.constants or not operands.has_input(request, zero_at)
    return weights_at in request.constants and zero_known


def _pack_integer(request: KernelRequest) -> Mapping[int, PackedConstant]:
    if not _packs_weights(request):
        return no_packing(request)
    weights_at, _, zero_at = _quantised_positions(request)
    zero = request.constants.get(zero_at)
    return packed_centred(
        request, weights_at, zero, _integer_dtype(request), partial(_centred, zero=zero)
    )


def _integer_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    weights_at, _, _ = _quantised_positions(request)
    shape = convolution_of(request, weights_at)
    dtype = _integer_dtype(request)
    column = shape.column_shape(dtype.itemsize)
    rows = column[2 + len(shape.axes)]
    sums = (shape.groups, shape.maps, rows * shape.row_positions)
    loose = (0,) if _packs_weights(request) else operands.input_spec(request, weights_at).shape
    return (
        TensorSpec(dtype, shape.padded_shape),
        TensorSpec(dtype, column),
        TensorSpec(dtype, sums),
        TensorSpec(dtype, loose),
        TensorSpec(FLOAT32, _multiplier_shape(request)),
    )


def _bind_integer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    weights_at, zero_at, weights_zero_at = _quantised_positions(request)
    shape = convolution_of(request, weights_at)
    padded, column, sums, loose, multiplier = scratch
    interior = interior_of(shape, padded)
    data = operands.required(inputs)
    data = data.reshape(shape.batch, shape.groups, shape.depth, *data.shape[2:])
    zero = operands.optional(inputs, zero_at)
    raw_weights = operands.required(inputs, weights_at)
    weights_zero = operands.optional(inputs, weights_zero_at)
    if weights_zero is not None:
        weights_zero = _per_map(weights_zero, raw_weights.ndim)
    is_packed = _packs_weights(request)
    centred = raw_weights.view(loose.dtype) if is_packed else loose
    weights = centred.reshape(shape.groups, shape.maps, -1)
    result = operands.required(outputs).reshape(
        shape.batch, shape.groups, shape.maps, shape.positions
    )
    writer = _result_writer(request, inputs, multiplier, shape.groups)
    flat_sums = sums.reshape(-1)
    blocks = []
    for windows, target, matrices, positions in column_blocks(shape, padded, column):
        block_shape = (shape.groups, shape.maps, matrices.shape[2])
        block_sums = flat_sums[: math.prod(block_shape)].reshape(block_shape)
        blocks.append((windows, target, matrices, block_sums, positions))

    def run() -> None:
        writer.prepare()
        padded.fill(0)
        if not is_packed:
            subtract_zero(raw_weights, weights_zero, loose)
        for image in range(shape.batch):
            subtract_zero(data[image], zero, interior)
            for windows, target, matrices, block_sums, positions in blocks:
                np.copyto(target, windows)
                np.matmul(weights, matrices, out=block_sums)
                writer.finish(block_sums, result[image, :, :, positions])

    return run


def _multiplier_shape(request: KernelRequest) -> tuple[int, ...]:
    if request.operator == "ConvInteger":
        return (0,)
    groups = operands.integer(request, "group")
    scales = operands.input_spec(request, 4).element_count
    return (groups, scales // groups, 1) if scales > 1 else (1, 1, 1)


def _result_writer(
    request: KernelRequest, inputs: Sequence[np.ndarray | None], multiplier: np.ndarray, groups: int
) -> IntegerResult:
    if request.operator == "ConvInteger":
        return IntegerResult()
    bias = operands.optional(inputs, 8)
    return Requantised(
        multiplier=multiplier,
        scales=(
            operands.required(inputs, 1).reshape(()),
            operands.required(inputs, 4).reshape(multiplier.shape),
            operands.required(inputs, 6).reshape(()),
        ),
        zero=operands.required(inputs, 7).reshape(()),
        bias=None if bias is None else bias.reshape(groups, -1, 1),
        levels=operands.integers(request, "levels") if "levels" in request.attributes else (),
    )


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "conv.integer",
        ("ConvInteger", "QLinearConv"),
        _bind_integer,
        accepts=_accepts_integer,
        scratch=_integer_scratch,
        packed=_pack_integer,
        cost=multiply_adds,
    ),
)
