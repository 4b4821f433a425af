"""Products of quantised matrices: exact sums in floating point, then one rescaling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.matrix_products import merged, product_shape
from aegis_pipe.device.cpu.kernels.planned import (
    FLOAT32,
    no_packing,
    packed_centred,
    planned_kernel,
)
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.requantise import exact_float, subtract_zero
from aegis_pipe.kernel import KernelRequest, PackedConstant
from aegis_pipe.tensor import TensorSpec

_A, _B, _A_SCALE, _A_ZERO, _B_SCALE, _B_ZERO, _BIAS, _Y_SCALE, _Y_ZERO = range(9)
_LEVELS = 255


def _is_eight_bits(spec: TensorSpec) -> bool:
    return spec.dtype.kind in "iu" and spec.dtype.itemsize == 1


def _accepts(request: KernelRequest) -> bool:
    left, right = operands.input_spec(request, _A), operands.input_spec(request, _B)
    scalars = [request.inputs[i] for i in (_A_SCALE, _A_ZERO, _Y_SCALE, _Y_ZERO)]
    is_dynamic = left.dtype == FLOAT32 and not operands.has_input(request, _A_SCALE)
    return (
        _is_eight_bits(right)
        and (_is_eight_bits(left) or is_dynamic)
        and all(spec.element_count == 1 for spec in scalars if spec)
        and operands.has_input(request, _Y_SCALE)
        == (operands.output_spec(request).dtype.kind in "iu")
    )


def _parameter(array: np.ndarray) -> np.ndarray:
    """Return a scalar or [N] as it broadcasts to matrices [..., N]."""
    return array.reshape(()) if array.size == 1 else array


def _centred(request: KernelRequest, right: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
    """Return B[K, N] minus its zero points, exactly."""
    right = right.astype(np.int32)
    right = right.swapaxes(-1, -2) if operands.integer(request, "transB") else right
    return right if zero is None else right - _parameter(zero.astype(np.int32))


def _known_right(request: KernelRequest) -> np.ndarray | None:
    right, zero = request.constants.get(_B), request.constants.get(_B_ZERO)
    if right is None or (zero is None and operands.has_input(request, _B_ZERO)):
        return None
    return _centred(request, right, zero)


def _depth(request: KernelRequest) -> int:
    return operands.input_spec(request, _A).shape[-2 if operands.integer(request, "transA") else -1]


def _sum_dtype(request: KernelRequest) -> np.dtype:
    right, depth = _known_right(request), _depth(request)
    if right is None:
        return exact_float(depth, None)
    return exact_float(depth, right.swapaxes(-1, -2).reshape(-1, depth))


def _packed(request: KernelRequest) -> Mapping[int, PackedConstant]:
    if _known_right(request) is None:
        return no_packing(request)
    zero = request.constants.get(_B_ZERO)
    return packed_centred(
        request,
        _B,
        zero,
        _sum_dtype(request),
        lambda right: _centred(request, right, zero),
        order="-turned" if operands.integer(request, "transB") else "",
    )


def _right_shape(request: KernelRequest) -> tuple[int, ...]:
    shape = operands.input_spec(request, _B).shape
    return (*shape[:-2], shape[-1], shape[-2]) if operands.integer(request, "transB") else shape


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    dtype = _sum_dtype(request)
    left = operands.input_spec(request, _A).shape
    left = left[::-1] if operands.integer(request, "transA") else left
    is_packed = _known_right(request) is not None
    return (
        TensorSpec(dtype, left),
        TensorSpec(dtype, (0,) if is_packed else _right_shape(request)),
        TensorSpec(dtype, operands.output_spec(request).shape),
        TensorSpec(FLOAT32, operands.input_spec(request, _B_SCALE).shape),
        TensorSpec(FLOAT32, ()),
    )


def _cost(request: KernelRequest) -> float:
    return float(operands.output_spec(request).element_count * _depth(request))


def quantise_dynamically(
    data: np.ndarray, levels: np.ndarray, scale: np.ndarray, rows: np.ndarray | None = None
) -> None:
    """Write the centred levels and the scale of data on the 8-bit grid of its own range.

    As DynamicQuantizeLinear: the range includes 0, which is a level of its own.
    `rows`: bool[rows, 1], those whose range it is; the others saturate.
    """
    counted = True if rows is None else rows
    low = min(float(data.min(initial=0, where=counted)), 0.0)
    high = max(float(data.max(initial=0, where=counted)), 0.0)
    step = np.float32(high - low) / np.float32(_LEVELS)
    scale[...] = step if step else 1
    zero = np.rint(np.float32(-low) / scale)
    np.divide(data, scale, out=levels, casting="same_kind", dtype=FLOAT32)
    np.rint(levels, out=levels)
    np.clip(levels, -zero, _LEVELS - zero, out=levels)


def _bind_left(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    left: np.ndarray,
    own_scale: np.ndarray,
) -> Callable[[], None]:
    data = operands.required(inputs, _A)
    data = data.T if operands.integer(request, "transA") else data
    if not operands.has_input(request, _A_SCALE):
        return lambda: quantise_dynamically(data, left, own_scale)
    zero = operands.optional(inputs, _A_ZERO)
    zero = None if zero is None else zero.reshape(())
    return lambda: subtract_zero(data, zero, left)


def _bind_right(
    request: KernelRequest, inputs: Sequence[np.ndarray | None], spare: np.ndarray
) -> tuple[np.ndarray, Callable[[], None] | None]:
    """Return B minus its zero points, and what has to be called to get it."""
    raw = operands.required(inputs, _B)
    if _known_right(request) is not None:
        return raw.view(spare.dtype).reshape(_right_shape(request)), None
    raw = raw.swapaxes(-1, -2) if operands.integer(request, "transB") else raw
    zero = operands.optional(inputs, _B_ZERO)
    fitting = None if zero is None else _parameter(zero)
    return spare, lambda: subtract_zero(raw, fitting, spare)


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    left, spare, sums, multiplier, own_scale = scratch
    prepare_left = _bind_left(request, inputs, left, own_scale)
    right, prepare_right = _bind_right(request, inputs, spare)
    factors = merged(left, right, sums.reshape(product_shape(left, right)))
    given_scale = operands.optional(inputs, _A_SCALE)
    a_scale = own_scale if given_scale is None else given_scale.reshape(())
    b_scale, alpha = operands.required(inputs, _B_SCALE), operands.number(request, "alpha")
    bias = operands.optional(inputs, _BIAS)
    integer_bias = bias if bias is not None and bias.dtype.kind == "i" else None
    levels = operands.integers(request, "levels")
    write = _bind_write(inputs, operands.required(outputs), sums, multiplier, levels)

    def run() -> None:
        prepare_left()
        if prepare_right:
            prepare_right()
        np.matmul(factors[0], factors[1], out=factors[2])
        if integer_bias is not None:
            np.add(sums, integer_bias, out=sums, dtype=sums.dtype, casting="unsafe")
        np.multiply(b_scale, a_scale, out=multiplier)
        np.multiply(multiplier, alpha, out=multiplier)
        write()

    return run


def _bind_write(
    inputs: Sequence[np.ndarray | None],
    result: np.ndarray,
    sums: np.ndarray,
    multiplier: np.ndarray,
    levels: tuple[int, ...],
) -> Callable[[], None]:
    """Return the call that rescales the sums into the result."""
    factor = _parameter(multiplier)
    scale, zero = operands.optional(inputs, _Y_SCALE), operands.optional(inputs, _Y_ZERO)
    bias = operands.optional(inputs, _BIAS)
    if scale is None:

        def write_real() -> None:
            np.multiply(sums, factor, out=result, casting="same_kind")
            if bias is not None and bias.dtype.kind == "f":
                np.add(result, bias, out=result)

        return write_real
    limits = np.iinfo(result.dtype)
    low, high = levels or (limits.min, limits.max)
    result_scale = scale.reshape(())
    result_zero = None if zero is None else zero.reshape(())

    def write_quantised() -> None:
        np.divide(multiplier, result_scale, out=multiplier)
        np.multiply(sums, factor, out=sums)
        np.rint(sums, out=sums)
        if result_zero is not None:
            np.add(sums, result_zero, out=sums, dtype=sums.dtype)
        np.clip(sums, low, high, out=sums)
        np.copyto(result, sums, casting="unsafe")

    return write_quantised


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "matmul.quantised",
        ("com.microsoft.QGemm",),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
        packed=_packed,
        cost=_cost,
    ),
)
