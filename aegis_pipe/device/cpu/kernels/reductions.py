"""Reductions, arg-reductions and cumulative operators.

Sums run in the operand's dtype (half precision in float32). What is mapped before it is summed
(squared, say) is mapped a block at a time into scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.pointwise import BOOL, INTEGERS, NUMBERS, WIDE_FLOATS, Dtypes
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.scratch import kernel_with_scratch
from aegis_pipe.device.cpu.kernels.tiles import TILE
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec


def _accepts(dtypes: Dtypes) -> Callable[[KernelRequest], bool]:
    return lambda request: operands.input_spec(request, 0).dtype in dtypes


def _kept_shape(request: KernelRequest) -> tuple[int, ...]:
    """Return the result's shape with the reduced axes as 1."""
    axes = operands.integers(request, "axes")
    shape = operands.input_spec(request, 0).shape
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _lowest(dtype: np.dtype) -> object:
    if dtype == BOOL:
        return False
    return np.iinfo(dtype).min if dtype in INTEGERS else -np.inf


def _highest(dtype: np.dtype) -> object:
    if dtype == BOOL:
        return True
    return np.iinfo(dtype).max if dtype in INTEGERS else np.inf


_PLAIN: Mapping[str, tuple[np.ufunc, Callable[[np.dtype], object], Dtypes]] = {
    "ReduceSum": (np.add, lambda _dtype: 0, INTEGERS | WIDE_FLOATS),
    "ReduceProd": (np.multiply, lambda _dtype: 1, INTEGERS | WIDE_FLOATS),
    "ReduceMax": (np.maximum, _lowest, INTEGERS | WIDE_FLOATS | {BOOL}),
    "ReduceMin": (np.minimum, _highest, INTEGERS | WIDE_FLOATS | {BOOL}),
}
"""Function, what it starts from, dtypes."""


def _plain_kernel(operator: str) -> CpuKernel:
    ufunc, empty, dtypes = _PLAIN[operator]

    def bind(
        request: KernelRequest,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        scratch: Sequence[np.ndarray],
    ) -> Callable[[], None]:
        data = operands.required(inputs)
        result = operands.required(outputs).reshape(_kept_shape(request))
        axes = operands.integers(request, "axes")
        start = empty(data.dtype)

        def run() -> None:
            ufunc.reduce(data, axes, data.dtype, result, keepdims=True, initial=start)

        return run

    return planned_kernel(operator, (operator,), bind, accepts=_accepts(dtypes))


@record(eq=True)
class _Sum:
    """What a sum maps before, and does to the result after."""

    dtypes: Dtypes
    before: Callable[..., object] | None = None
    after: Callable[[np.ndarray, int], object] | None = None


_SUMS: Mapping[str, _Sum] = {
    "ReduceMean": _Sum(WIDE_FLOATS, None, lambda out, count: np.divide(out, count, out=out)),
    "ReduceL1": _Sum(INTEGERS | WIDE_FLOATS, np.absolute),
    "ReduceL2": _Sum(WIDE_FLOATS, np.square, lambda out, _count: np.sqrt(out, out=out)),
    "ReduceSumSquare": _Sum(INTEGERS | WIDE_FLOATS, np.square),
    "ReduceLogSum": _Sum(WIDE_FLOATS, None, lambda out, _count: np.log(out, out=out)),
}


def _block(request: KernelRequest) -> tuple[int | None, int]:
    """Return along which kept axis the operand is cut into blocks, and their length.

    The axis is the longest; None: nothing is kept, and the operand counts as flat.
    """
    shape, kept = operands.input_spec(request, 0).shape, _kept_shape(request)
    size = int(np.prod(shape, dtype=np.int64))
    if int(np.prod(kept, dtype=np.int64)) <= 1:
        return None, min(size, TILE)
    axis = max(range(len(kept)), key=kept.__getitem__)
    slab = max(size // kept[axis], 1)
    return axis, min(max(TILE // slab, 1), kept[axis])


def _mapped_scratch(request: KernelRequest) -> list[TensorSpec]:
    """Return specs: a mapped block; and the sums of blocks, if the operand counts as flat."""
    spec = operands.input_spec(request, 0)
    axis, length = _block(request)
    if axis is None:
        blocks = -(-spec.element_count // max(length, 1))
        return [TensorSpec(spec.dtype, (length,)), TensorSpec(spec.dtype, (blocks,))]
    shape = (*spec.shape[:axis], length, *spec.shape[axis + 1 :])
    return [TensorSpec(spec.dtype, shape), TensorSpec(spec.dtype, (0,))]


def _fitting(block: np.ndarray, part: np.ndarray) -> np.ndarray:
    return block.reshape(-1)[: part.size].reshape(part.shape)


def _sum_mapped(
    request: KernelRequest,
    mapped: Callable[..., object],
    arrays: Sequence[np.ndarray],
    result: np.ndarray,
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    """Return a call that writes the sum of `mapped(*arrays)`.

    The arrays are the operand, and others that have its reduced axes as 1, as the result has.
    """
    axis, length = _block(request)
    if axis is None:
        return _sum_mapped_flat(mapped, arrays, result, scratch, length)
    axes = operands.integers(request, "axes")
    cuts = [
        (*[slice(None)] * axis, slice(start, start + length))
        for start in range(0, result.shape[axis], max(length, 1))
    ]
    steps = [([array[cut] for array in arrays], result[cut]) for cut in cuts]
    blocks = [_fitting(scratch[0], reads[0]) for reads, _ in steps]

    def run() -> None:
        for (reads, written), block in zip(steps, blocks, strict=True):
            mapped(*reads, out=block)
            np.add.reduce(block, axis=axes, dtype=block.dtype, out=written, keepdims=True)

    return run


def _sum_mapped_flat(
    mapped: Callable[..., object],
    arrays: Sequence[np.ndarray],
    result: np.ndarray,
    scratch: Sequence[np.ndarray],
    length: int,
) -> Callable[[], None]:
    data, *others = (array.reshape(-1) for array in arrays)
    starts = range(0, data.size, max(length, 1))
    parts = [data[start : start + length] for start in starts]
    blocks = [_fitting(scratch[0], part) for part in parts]
    sums, total = scratch[1], result.reshape(())

    def run() -> None:
        for index, (part, block) in enumerate(zip(parts, blocks, strict=True)):
            mapped(part, *others, out=block)
            np.add.reduce(block, dtype=block.dtype, out=sums[index, ...])
        np.add.reduce(sums, dtype=sums.dtype, out=total)

    return run


def _sum_kernel(operator: str) -> CpuKernel:
    how = _SUMS[operator]

    def bind(
        request: KernelRequest,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        scratch: Sequence[np.ndarray],
    ) -> Callable[[], None]:
        data = operands.required(inputs)
        result = operands.required(outputs).reshape(_kept_shape(request))
        axes, after = operands.integers(request, "axes"), how.after
        count = int(np.prod([data.shape[axis] for axis in axes], dtype=np.int64))
        if how.before is None:

            def add() -> None:
                np.add.reduce(data, axis=axes, dtype=data.dtype, out=result, keepdims=True)

        else:
            add = _sum_mapped(request, how.before, [data], result, scratch)
        if after is None:
            return add
        finish = after

        def run() -> None:
            add()
            finish(result, count)

        return run

    return planned_kernel(
        operator,
        (operator,),
        bind,
        accepts=_accepts(how.dtypes),
        scratch=_mapped_scratch if how.before else _no_scratch,
    )


def _no_scratch(_request: KernelRequest) -> list[TensorSpec]:
    return []


def _log_sum_exp_scratch(request: KernelRequest) -> list[TensorSpec]:
    kept, dtype = _kept_shape(request), operands.input_spec(request, 0).dtype
    return [*_mapped_scratch(request), TensorSpec(dtype, kept), TensorSpec(BOOL, kept)]


def _exp_of_difference(data: np.ndarray, greatest: np.ndarray, out: np.ndarray) -> None:
    np.subtract(data, greatest, out=out)
    np.exp(out, out=out)


def _bind_log_sum_exp(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    """Bind log(sum(exp(x - m))) + m with m the greatest element, so that nothing overflows."""
    data = operands.required(inputs)
    result = operands.required(outputs).reshape(_kept_shape(request))
    axes = operands.integers(request, "axes")
    block, sums, greatest, mask = scratch
    add = _sum_mapped(request, _exp_of_difference, [data, greatest], result, (block, sums))

    def run() -> None:
        np.maximum.reduce(data, axis=axes, out=greatest, keepdims=True, initial=-np.inf)
        # Infinity less infinity is NaN; an infinite greatest element is right without m.
        np.logical_not(np.isfinite(greatest, out=mask), out=mask)
        np.copyto(greatest, 0, where=mask)
        add()
        np.log(result, out=result)
        np.add(result, greatest, out=result)

    return run


def _arg_layout(request: KernelRequest) -> tuple[int, int, int]:
    """Return the operand as (outer, along the axis, inner)."""
    shape, axis = operands.input_spec(request, 0).shape, operands.integer(request, "axis")
    outer = int(np.prod(shape[:axis], dtype=np.int64))
    return outer, shape[axis], int(np.prod(shape[axis + 1 :], dtype=np.int64))


def _arg_block(request: KernelRequest) -> tuple[int, int]:
    """Return how many outer and inner positions are reordered at a time."""
    outer, length, inner = _arg_layout(request)
    columns = min(max(TILE // length, 1), inner)
    return min(max(TILE // max(length * inner, 1), 1), outer), columns


def _arg_scratch(request: KernelRequest) -> list[TensorSpec]:
    """Return the spec of a block whose last axis is the one that is searched."""
    rows, columns = _arg_block(request)
    spec = operands.input_spec(request, 0)
    return [TensorSpec(spec.dtype, (rows, columns, _arg_layout(request)[1]))]


def _arg_kernel(operator: str, search: Callable[..., np.ndarray]) -> CpuKernel:
    def bind(
        request: KernelRequest,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        scratch: Sequence[np.ndarray],
    ) -> Callable[[], None]:
        outer, length, inner = _arg_layout(request)
        rows, columns = _arg_block(request)
        # Of equal elements NumPy takes the first: search backwards for the last.
        backwards = bool(operands.integer(request, "select_last_index"))
        data = operands.required(inputs).reshape(outer, length, inner).transpose(0, 2, 1)
        data = data[:, :, ::-1] if backwards else data
        result = operands.required(outputs).reshape(outer, inner)
        steps = [
            (data[i : i + rows, j : j + columns], result[i : i + rows, j : j + columns])
            for i in range(0, outer, max(rows, 1))
            for j in range(0, inner, max(columns, 1))
        ]
        blocks = [_fitting(scratch[0], reads) for reads, _ in steps]

        def run() -> None:
            for (reads, written), block in zip(steps, blocks, strict=True):
                np.copyto(block, reads)
                search(block, axis=2, out=written)
            if backwards:
                np.subtract(length - 1, result, out=result)

        return run

    return kernel_with_scratch(operator, bind, accepts=_accepts(NUMBERS), scratch=_arg_scratch)


def _cumulative_kernel(operator: str, ufunc: np.ufunc, start: int) -> CpuKernel:
    def bind(
        request: KernelRequest,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        scratch: Sequence[np.ndarray],
    ) -> Callable[[], None]:
        axis = operands.integer(request, "axis")
        step = -1 if operands.integer(request, "reverse") else 1
        data, result = (
            np.moveaxis(array, axis, 0)[::step]
            for array in (operands.required(inputs), operands.required(outputs))
        )
        if not operands.integer(request, "exclusive"):

            def run() -> None:
                ufunc.accumulate(data, axis=0, dtype=data.dtype, out=result)

            return run

        def run_exclusive() -> None:
            np.copyto(result[:1], start)
            ufunc.accumulate(data[:-1], axis=0, dtype=data.dtype, out=result[1:])

        return run_exclusive

    return planned_kernel(operator, (operator,), bind, accepts=_accepts(INTEGERS | WIDE_FLOATS))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    *(_plain_kernel(operator) for operator in _PLAIN),
    *(_sum_kernel(operator) for operator in _SUMS),
    planned_kernel(
        "ReduceLogSumExp",
        ("ReduceLogSumExp",),
        _bind_log_sum_exp,
        accepts=_accepts(WIDE_FLOATS),
        scratch=_log_sum_exp_scratch,
    ),
    _arg_kernel("ArgMax", np.argmax),
    _arg_kernel("ArgMin", np.argmin),
    _cumulative_kernel("CumSum", np.add, 0),
    _cumulative_kernel("CumProd", np.multiply, 1),
)
