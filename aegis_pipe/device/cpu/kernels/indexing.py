"""Kernels whose indices are data: gather, scatter, one-hot.

Indices are checked on every run, before anything is read through them; constant ones once, when
the kernel is bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.scratch import anything_numeric, kernel_with_scratch
from aegis_pipe.device.cpu.kernels.tiles import tile_size, tile_views
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_INT64 = np.dtype(np.int64)


def index_outside(request: KernelRequest, index: int, size: int) -> KernelError:
    """Return the error that an index is not in [-size, size)."""
    return KernelError(
        f"index {index} is outside of a dimension of size {size}",
        context=f"node `{request.node}` ({request.operator})",
        hint="check the indices that the request or the operator before gives",
    )


def check_indices(request: KernelRequest, indices: np.ndarray, size: int) -> None:
    """Raise KernelError unless all indices are in [-size, size)."""
    if indices.size == 0:
        return
    for index in (int(indices.min()), int(indices.max())):
        if not -size <= index < size:
            raise index_outside(request, index, size)


def _gather_scratch(request: KernelRequest) -> list[TensorSpec]:
    indices = operands.input_spec(request, 1)
    return [] if indices.dtype == _INT64 else [TensorSpec(_INT64, indices.shape)]


def _bind_gather(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, indices = operands.required(inputs), operands.required(inputs, 1)
    result, axis = operands.required(outputs), operands.integer(request, "axis")
    # Rows before, the axis, elements behind it: what `take` does fastest.
    outer = int(np.prod(data.shape[:axis], dtype=np.int64))
    inner = int(np.prod(data.shape[axis + 1 :], dtype=np.int64))
    source = data.reshape(outer, data.shape[axis], inner)
    target = result.reshape(outer, indices.size, inner)
    wide = scratch[0] if scratch else indices
    flat = wide.reshape(-1)
    is_known = 1 in request.constants
    if is_known:
        check_indices(request, request.constants[1], data.shape[axis])

    def run() -> None:
        if not is_known:
            check_indices(request, indices, data.shape[axis])
        if wide is not indices:
            np.copyto(wide, indices, casting="unsafe")
        if target.size:
            # "wrap" counts negative indices from the end; the default would buffer the output.
            np.take(source, flat, axis=1, out=target, mode="wrap")

    return run


def _element_strides(shape: Sequence[int]) -> list[int]:
    """Return how many elements apart neighbours along each axis are."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return strides


def _offsets(data: np.ndarray, indices: np.ndarray, axis: int) -> list[np.ndarray]:
    """Return what every other axis adds to an element's flat position, each as a thin array."""
    strides = _element_strides(data.shape)
    return [
        (np.arange(indices.shape[i], dtype=np.int64) * strides[i]).reshape(
            [-1 if j == i else 1 for j in range(data.ndim)]
        )
        for i in range(data.ndim)
        if i != axis and indices.shape[i] > 1
    ]


class _Positions:
    """Flat positions in `data` of elements that are indexed along one axis, tile by tile."""

    def __init__(
        self,
        request: KernelRequest,
        data: np.ndarray,
        indices: np.ndarray,
        axis: int,
        scratch: np.ndarray,
        is_known: bool,
    ) -> None:
        self._request = request
        self._indices = indices
        self._size = data.shape[axis]
        self._stride = _element_strides(data.shape)[axis]
        self._scratch = scratch
        self._is_known = is_known
        self.offsets = _offsets(data, indices, axis)

    def check(self) -> None:
        """Refuse indices outside of the axis."""
        if not self._is_known:
            check_indices(self._request, self._indices, self._size)

    def compute(self, indices: np.ndarray, offsets: Sequence[np.ndarray]) -> np.ndarray:
        """Return the positions of one tile, flat; they hold until the next tile."""
        tile = self._scratch[: indices.size].reshape(indices.shape)
        np.copyto(tile, indices, casting="unsafe")
        np.mod(tile, self._size, out=tile)
        np.multiply(tile, self._stride, out=tile)
        for offset in offsets:
            np.add(tile, offset, out=tile)
        return tile.reshape(-1)


def _tile_scratch(request: KernelRequest) -> list[TensorSpec]:
    return [TensorSpec(_INT64, (tile_size(operands.input_spec(request, 1).shape),))]


def _bind_gather_elements(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, indices = operands.required(inputs), operands.required(inputs, 1)
    result, axis = operands.required(outputs), operands.integer(request, "axis")
    positions = _positions(request, data, indices, axis, scratch)
    tiles = list(tile_views(indices.shape, [indices, result, *positions.offsets]))
    flat = data.reshape(-1)

    def run() -> None:
        positions.check()
        for read, written, *offsets in tiles:
            taken = positions.compute(read, offsets)
            np.take(flat, taken, out=written.reshape(-1), mode="clip")

    return run


def _positions(
    request: KernelRequest,
    data: np.ndarray,
    indices: np.ndarray,
    axis: int,
    scratch: Sequence[np.ndarray],
) -> _Positions:
    is_known = 1 in request.constants
    if is_known:
        check_indices(request, request.constants[1], data.shape[axis])
    return _Positions(request, data, indices, axis, scratch[0], is_known)


_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _bind_scatter_elements(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, indices, updates = (operands.required(inputs, i) for i in range(3))
    result, axis = operands.required(outputs), operands.integer(request, "axis")
    positions = _positions(request, data, indices, axis, scratch)
    tiles = list(tile_views(indices.shape, [indices, updates, *positions.offsets]))
    flat = result.reshape(-1)
    combine = _COMBINE.get(operands.text(request, "reduction"))

    def run() -> None:
        positions.check()
        np.copyto(result, data)
        for read, update, *offsets in tiles:
            _scatter(flat, positions.compute(read, offsets), update.reshape(-1), combine)

    return run


def _scatter(
    target: np.ndarray, positions: np.ndarray, updates: np.ndarray, combine: np.ufunc | None
) -> None:
    """Write updates to positions, later ones over earlier ones, or combine them in order."""
    if combine is None:
        target[positions] = updates
    else:
        combine.at(target, positions, updates)


def _row_scratch(request: KernelRequest) -> list[TensorSpec]:
    """Return specs: flat row positions, and one column of the indices."""
    rows = operands.input_spec(request, 1).shape[:-1]
    return [TensorSpec(_INT64, rows), TensorSpec(_INT64, rows)]


def _row_positions(
    request: KernelRequest,
    indices: np.ndarray,
    indexed: Sequence[int],
    batch: Sequence[int],
    scratch: Sequence[np.ndarray],
) -> Callable[[], np.ndarray]:
    """Return a call that computes which row of the data each index tuple means.

    `batch` are leading dimensions that data and indices share, `indexed` the sizes of those that
    the tuples count in.
    """
    rows, column = scratch
    strides = _element_strides(indexed)
    count = int(np.prod(batch, dtype=np.int64))
    step = int(np.prod(indexed, dtype=np.int64))
    start = (np.arange(count, dtype=np.int64) * step).reshape(
        *batch, *[1] * (rows.ndim - len(batch))
    )

    def compute() -> np.ndarray:
        np.copyto(rows, start)
        for axis, size in enumerate(indexed):
            check_indices(request, indices[..., axis], size)
            np.copyto(column, indices[..., axis], casting="unsafe")
            if rows.size:
                np.mod(column, size, out=column)
            np.multiply(column, strides[axis], out=column)
            np.add(rows, column, out=rows)
        return rows.reshape(-1)

    return compute


def _bind_gather_nd(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, indices = operands.required(inputs), operands.required(inputs, 1)
    result, batch = operands.required(outputs), operands.integer(request, "batch_dims")
    end = batch + indices.shape[-1]
    positions = _row_positions(request, indices, data.shape[batch:end], data.shape[:batch], scratch)
    width = int(np.prod(data.shape[end:], dtype=np.int64))
    source = data.reshape(int(np.prod(data.shape[:end], dtype=np.int64)), width)
    target = result.reshape(scratch[0].size, width)

    def run() -> None:
        rows = positions()
        if target.size:
            np.take(source, rows, axis=0, out=target, mode="clip")

    return run


def _bind_scatter_nd(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, indices, updates = (operands.required(inputs, i) for i in range(3))
    result = operands.required(outputs)
    depth = indices.shape[-1]
    positions = _row_positions(request, indices, data.shape[:depth], (), scratch)
    width = int(np.prod(data.shape[depth:], dtype=np.int64))
    target = result.reshape(int(np.prod(data.shape[:depth], dtype=np.int64)), width)
    rows_of_updates = updates.reshape(scratch[0].size, width)
    combine = _COMBINE.get(operands.text(request, "reduction"))

    def run() -> None:
        rows = positions()
        np.copyto(result, data)
        if rows_of_updates.size:
            _scatter(target, rows, rows_of_updates, combine)

    return run


def _accepts_scatter(request: KernelRequest) -> bool:
    combines = operands.text(request, "reduction") in _COMBINE
    dtype = operands.output_spec(request).dtype
    return anything_numeric(request) and (dtype.kind in "fiu" or not combines)


def _one_hot_scratch(request: KernelRequest) -> list[TensorSpec]:
    indices = operands.input_spec(request, 0)
    return [TensorSpec(_INT64, indices.shape), TensorSpec(np.dtype(np.bool_), indices.shape)]


def _bind_one_hot(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    indices, values = operands.required(inputs), operands.required(inputs, 1)
    axis, depth = operands.integer(request, "axis"), operands.integer(request, "depth")
    places = np.moveaxis(operands.required(outputs), axis, 0)
    wide, is_on = scratch

    def run() -> None:
        np.copyto(places, values[0])
        np.copyto(wide, indices, casting="unsafe")
        np.add(wide, depth, out=wide, where=np.less(wide, 0, out=is_on))
        for place in range(depth):
            np.copyto(places[place, ...], values[1], where=np.equal(wide, place, out=is_on))

    return run


def _bind_compress(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    axis, kept = request.attributes["axis"], request.attributes["indices"]
    assert isinstance(kept, np.ndarray)
    source = data if isinstance(axis, int) else data.reshape(-1)

    def run() -> None:
        if result.size:
            np.take(source, kept, axis=axis or 0, out=result, mode="clip")  # type: ignore[call-overload]  # an int, or None

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    kernel_with_scratch("Gather", _bind_gather, scratch=_gather_scratch),
    kernel_with_scratch("GatherElements", _bind_gather_elements, scratch=_tile_scratch),
    kernel_with_scratch("GatherND", _bind_gather_nd, scratch=_row_scratch),
    kernel_with_scratch(
        "ScatterElements",
        _bind_scatter_elements,
        accepts=_accepts_scatter,
        scratch=_tile_scratch,
        in_place=((0, 0),),
    ),
    kernel_with_scratch(
        "ScatterND",
        _bind_scatter_nd,
        accepts=_accepts_scatter,
        scratch=_row_scratch,
        in_place=((0, 0),),
    ),
    kernel_with_scratch("OneHot", _bind_one_hot, scratch=_one_hot_scratch),
    kernel_with_scratch("Compress", _bind_compress),
)
