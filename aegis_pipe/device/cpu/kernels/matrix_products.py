"""Matrix products: one `np.matmul` into the output, whatever the batch dimensions.

matmul           MatMul, FusedMatMul; a batch against one matrix is a single product
gemm             Gemm, FusedGemm
matmul.integer   MatMulInteger, QLinearMatMul: exact sums in float32 or float64
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from aegis_pipe.device.cpu.kernels import activations, operands
from aegis_pipe.device.cpu.kernels.planned import (
    FLOAT32,
    all_float,
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

_MATMULS = ("MatMul", "com.microsoft.FusedMatMul")
_GEMMS = ("Gemm", "com.microsoft.FusedGemm")


def as_matrices(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both operands with two dimensions at least: a vector is a row, or a column."""
    return (
        left if left.ndim > 1 else left[None, :],
        right if right.ndim > 1 else right[:, None],
    )


def product_shape(left: np.ndarray, right: np.ndarray) -> tuple[int, ...]:
    """Return the shape of the product of batches of matrices."""
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    return (*batch, left.shape[-2], right.shape[-1])


def merged(
    left: np.ndarray, right: np.ndarray, result: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge a batch of left matrices that all meet one right matrix into a single tall one."""
    one_right = math.prod(right.shape[:-2]) == 1
    if not one_right or left.ndim < 3 or not left.flags.c_contiguous:
        return left, right, result
    return (
        left.reshape(-1, left.shape[-1]),
        right.reshape(right.shape[-2:]) if right.flags.c_contiguous else right,
        result.reshape(-1, result.shape[-1]),
    )


def _multiply_adds(request: KernelRequest) -> float:
    depth = operands.input_spec(request, 0).shape[-1:] or (1,)
    if request.operator in _GEMMS and operands.integer(request, "transA"):
        depth = operands.input_spec(request, 0).shape[:1]
    return float(operands.output_spec(request).element_count * depth[0])


def _accepts_matmul(request: KernelRequest) -> bool:
    specs = [spec.dtype for spec in request.inputs if spec]
    return all_float(request) or (specs[0].kind in "iu" and not request.attributes)


def _oriented(request: KernelRequest, array: np.ndarray, name: str) -> np.ndarray:
    if not request.attributes:
        return array
    if operands.integer(request, f"transBatch{name}") and array.ndim > 2:
        array = np.moveaxis(array, 0, -2)
    if operands.integer(request, f"trans{name}") and array.ndim > 1:
        array = array.swapaxes(-1, -2)
    return array


def _bind_matmul(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    left, right = as_matrices(
        _oriented(request, operands.required(inputs, 0), "A"),
        _oriented(request, operands.required(inputs, 1), "B"),
    )
    whole = operands.required(outputs)
    left, right, result = merged(left, right, whole.reshape(product_shape(left, right)))
    alpha = operands.number(request, "alpha") if request.attributes else 1.0

    def run() -> None:
        np.matmul(left, right, out=result)
        if alpha != 1:
            np.multiply(whole, alpha, out=whole)

    return run


def _accepts_gemm(request: KernelRequest) -> bool:
    integers = operands.output_spec(request).dtype.kind in "iu" and all(
        operands.number(request, name).is_integer() for name in ("alpha", "beta")
    )
    return (all_float(request) or integers) and activations.known(
        str(request.attributes.get("activation", ""))
    )


def _gemm_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    scales_bias = operands.has_input(request, 2) and operands.number(request, "beta") != 1
    return (operands.input_spec(request, 2),) if scales_bias else ()


def _scalar(value: float, dtype: np.dtype) -> float:
    return int(value) if dtype.kind in "iu" else value


def _bind_gemm(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    left, right = operands.required(inputs, 0), operands.required(inputs, 1)
    left = left.T if operands.integer(request, "transA") else left
    right = right.T if operands.integer(request, "transB") else right
    bias = operands.optional(inputs, 2)
    result = operands.required(outputs)
    alpha = _scalar(operands.number(request, "alpha"), result.dtype)
    beta = _scalar(operands.number(request, "beta"), result.dtype)
    addend = scratch[0] if scratch else bias
    activate = activations.activation(
        str(request.attributes.get("activation", "")),
        [operands.number(request, "activation_alpha")] if len(request.attributes) > 4 else (),
    )

    def run() -> None:
        np.matmul(left, right, out=result)
        if alpha != 1:
            np.multiply(result, alpha, out=result)
        if bias is not None and addend is not None:
            if addend is not bias:
                np.multiply(bias, beta, out=addend)
            np.add(result, addend, out=result)
        if activate:
            activate(result)

    return run


def _quantised_positions(request: KernelRequest) -> tuple[int, int, int]:
    """Return the positions of B, A's zero point and B's zero point."""
    return (3, 2, 5) if request.operator == "QLinearMatMul" else (1, 2, 3)


def _accepts_integer(request: KernelRequest) -> bool:
    right_at, _, _ = _quantised_positions(request)
    specs = (operands.input_spec(request, 0), operands.input_spec(request, right_at))
    eight_bits = all(spec.dtype.kind in "iu" and spec.dtype.itemsize == 1 for spec in specs)
    return eight_bits and operands.output_spec(request).dtype.kind in "iu"


def _centred_right(request: KernelRequest) -> np.ndarray | None:
    """Return B minus its zero point, exactly, if both are known at load."""
    right_at, _, zero_at = _quantised_positions(request)
    right, zero = request.constants.get(right_at), request.constants.get(zero_at)
    if right is None or (zero is None and operands.has_input(request, zero_at)):
        return None
    return _centred(right, zero)


def _centred(right: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    centred = right.astype(np.int32)
    return centred if zero is None else centred - zero.astype(np.int32)


def _integer_dtype(request: KernelRequest) -> np.dtype:
    depth = operands.input_spec(request, 0).shape[-1]
    right = _centred_right(request)
    if right is None:
        return exact_float(depth, None)
    columns = right if right.ndim == 1 else right.swapaxes(-1, -2)
    return exact_float(depth, columns.reshape(-1, depth))


def _pack_integer(request: KernelRequest) -> Mapping[int, PackedConstant]:
    if _centred_right(request) is None:
        return no_packing(request)
    right_at, _, zero_at = _quantised_positions(request)
    zero = request.constants.get(zero_at)
    return packed_centred(
        request, right_at, zero, _integer_dtype(request), partial(_centred, zero=zero)
    )


def _integer_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    right_at, _, _ = _quantised_positions(request)
    left, right = operands.input_spec(request, 0), operands.input_spec(request, right_at)
    dtype = _integer_dtype(request)
    multiplier: tuple[int, ...] = (0,)
    if request.operator == "QLinearMatMul":
        rank = max(len(left.shape), len(right.shape), 2)
        scales = (_scale_shape(request, position, rank) for position in (1, 4, 6))
        multiplier = np.broadcast_shapes(*scales)
    is_packed = _centred_right(request) is not None
    return (
        TensorSpec(dtype, left.shape),
        TensorSpec(dtype, (0,) if is_packed else right.shape),
        TensorSpec(dtype, operands.output_spec(request).shape),
        TensorSpec(FLOAT32, multiplier),
    )


def _scale_shape(request: KernelRequest, position: int, rank: int) -> tuple[int, ...]:
    """Return the shape in which a scale or zero point broadcasts to its matrices.

    A vector holds one value a row of A or of the result, or one a column of B.
    """
    shape = operands.input_spec(request, position).shape
    columns = (3, 4, 5) if request.operator == "QLinearMatMul" else (3,)
    if len(shape) == 1 and shape[0] > 1 and position not in columns:
        shape = (shape[0], 1)
    return (1,) * (rank - len(shape)) + shape


def _parameter(
    request: KernelRequest, inputs: Sequence[np.ndarray | None], position: int, rank: int
) -> np.ndarray | None:
    array = operands.optional(inputs, position)
    return None if array is None else array.reshape(_scale_shape(request, position, rank))


def _bind_integer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    right_at, left_zero_at, right_zero_at = _quantised_positions(request)
    raw_left, raw_right = operands.required(inputs, 0), operands.required(inputs, right_at)
    is_packed = _centred_right(request) is not None
    spare = scratch[1]
    if is_packed:
        spare = raw_right.view(spare.dtype).reshape(operands.input_spec(request, right_at).shape)
    left, right = as_matrices(scratch[0], spare)
    left_zero = _parameter(request, inputs, left_zero_at, left.ndim)
    right_zero = _parameter(request, inputs, right_zero_at, right.ndim)
    sums = scratch[2].reshape(product_shape(left, right))
    result = operands.required(outputs).reshape(sums.shape)
    factors = merged(left, right, sums)
    writer = _result_writer(request, inputs, scratch[3], result)

    def run() -> None:
        writer.prepare()
        subtract_zero(raw_left.reshape(left.shape), left_zero, left)
        if not is_packed:
            subtract_zero(raw_right.reshape(right.shape), right_zero, right)
        np.matmul(factors[0], factors[1], out=factors[2])
        writer.finish(sums, result)

    return run


def _result_writer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    multiplier: np.ndarray,
    result: np.ndarray,
) -> IntegerResult:
    if request.operator == "MatMulInteger":
        return IntegerResult()
    scales = [_parameter(request, inputs, position, result.ndim) for position in (1, 4, 6, 7)]
    return Requantised(
        multiplier=multiplier,
        scales=(
            operands.required(scales, 0),
            operands.required(scales, 1),
            operands.required(scales, 2),
        ),
        zero=operands.required(scales, 3),
    )


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("matmul", _MATMULS, _bind_matmul, accepts=_accepts_matmul, cost=_multiply_adds),
    planned_kernel(
        "gemm",
        _GEMMS,
        _bind_gemm,
        accepts=_accepts_gemm,
        scratch=_gemm_scratch,
        cost=_multiply_adds,
    ),
    planned_kernel(
        "matmul.integer",
        ("MatMulInteger", "QLinearMatMul"),
        _bind_integer,
        accepts=_accepts_integer,
        scratch=_integer_scratch,
        packed=_pack_integer,
        cost=_multiply_adds,
    ),
)
