"""The engine of elementwise kernels: a function over tiles, in the dtype it computes in.

A `Pointwise` function gets matching tiles of its operands, the tile of its result and scratch
tiles, and may find the result's tile to be one of the operands' tiles: it writes the result only
once it has read what it needs. Half-precision operands are widened to float32 tile by tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import carve, scratch_bytes
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.tiles import tile_size, tile_views
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec

Dtypes = frozenset[np.dtype]

FLOAT32: np.dtype = np.dtype(np.float32)
FLOAT64: np.dtype = np.dtype(np.float64)
BOOL: np.dtype = np.dtype(np.bool_)
HALF_FLOATS: Dtypes = frozenset({np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)})
WIDE_FLOATS: Dtypes = frozenset({FLOAT32, FLOAT64})
FLOATS: Dtypes = HALF_FLOATS | WIDE_FLOATS
SIGNED: Dtypes = frozenset(np.dtype(f"i{width}") for width in (1, 2, 4, 8))
UNSIGNED: Dtypes = frozenset(np.dtype(f"u{width}") for width in (1, 2, 4, 8))
INTEGERS: Dtypes = SIGNED | UNSIGNED
NUMBERS: Dtypes = FLOATS | INTEGERS


@record()
class Pointwise:
    """An elementwise function `compute(*operands, result, *scratch)` over tiles."""

    compute: Callable[..., object]
    scratch: int = 0
    """Scratch tiles it wants, of the dtype it computes in."""
    whole: bool = False
    """A single pass over the operands, for which tiles would be in the way."""
    dtype: np.dtype | None = None
    """Dtype that operands are converted to; None: their own, float32 for half precision."""
    in_place: tuple[int, ...] = (0, 1)
    """Operands whose storage the result may take, if their specs are the same."""


Define = Callable[[KernelRequest], Pointwise | None]
"""Picks the function for a request, by dtypes and attributes; None if there is none."""


def widened(dtype: np.dtype) -> np.dtype:
    """Return float32 for half precision, otherwise the dtype itself."""
    return FLOAT32 if dtype in HALF_FLOATS else dtype


def integer_range(dtype: np.dtype) -> tuple[int, int]:
    """Return the least and the greatest integer of a dtype."""
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def as_mask(scratch: np.ndarray) -> np.ndarray:
    """Return the first bytes of a scratch tile as a boolean tile."""
    return scratch.reshape(-1).view(np.bool_)[: scratch.size].reshape(scratch.shape)


def pointwise_kernel(operator: str, define: Define) -> CpuKernel:
    """Return the kernel of an elementwise operator."""

    def choose(request: KernelRequest) -> KernelChoice | None:
        function = define(request)
        if function is None:
            return None
        result = operands.output_spec(request)
        return KernelChoice(
            kernel=f"elementwise.{operator}",
            workspace_bytes=scratch_bytes(_scratch(request, function)),
            in_place=tuple(
                (i, 0)
                for i in function.in_place
                if i < len(request.inputs) and request.inputs[i] == result
            ),
            cost=float(result.element_count * (len(request.inputs) + 1)),
        )

    def bind(
        request: KernelRequest,
        choice: KernelChoice,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        workspace: np.ndarray | None,
    ) -> Callable[[], None]:
        function = define(request)
        assert function is not None
        arrays = [array for array in inputs if array is not None]
        scratch = carve(workspace, _scratch(request, function))
        return _bind_tiles(request, function, arrays, operands.required(outputs), scratch)

    return CpuKernel((operator,), choose, bind)


def _compute_dtypes(request: KernelRequest, function: Pointwise) -> tuple[list[np.dtype], np.dtype]:
    """Return the dtypes of the tiles the function sees: operands, result."""
    result = operands.output_spec(request).dtype
    reads = [spec.dtype for spec in request.inputs if spec is not None]
    if function.dtype is None:
        return [widened(dtype) for dtype in reads], widened(result)
    return [function.dtype for _ in reads], BOOL if result == BOOL else function.dtype


def _scratch(request: KernelRequest, function: Pointwise) -> list[TensorSpec]:
    """Return specs: a tile per converted operand, one for a converted result, the function's."""
    result = operands.output_spec(request)
    tile = (tile_size(result.shape),)
    reads, written = _compute_dtypes(request, function)
    given = [spec.dtype for spec in request.inputs if spec is not None]
    own = function.dtype or (reads[0] if reads else written)
    return [
        *(TensorSpec(to, tile) for to, dtype in zip(reads, given, strict=True) if to != dtype),
        *([TensorSpec(written, tile)] if written != result.dtype else []),
        *(TensorSpec(own, tile) for _ in range(function.scratch)),
    ]


def _bind_tiles(
    request: KernelRequest,
    function: Pointwise,
    arrays: Sequence[np.ndarray],
    result: np.ndarray,
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    reads, written = _compute_dtypes(request, function)
    is_converted = [*(a.dtype != to for a, to in zip(arrays, reads, strict=True))]
    narrows = written != result.dtype
    if function.whole and not narrows and not any(is_converted):
        return functools.partial(function.compute, *arrays, result)  # type: ignore[return-value]  # result ignored
    steps = [
        _bind_tile(function, tile, is_converted, narrows, scratch)
        for tile in tile_views(result.shape, [*arrays, result])
    ]
    if len(steps) == 1:
        return steps[0]

    def run() -> None:
        for step in steps:
            step()

    return run


def _bind_tile(
    function: Pointwise,
    tile: Sequence[np.ndarray],
    is_converted: Sequence[bool],
    narrows: bool,
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    *reads, result = tile
    fitting = iter([array[: result.size].reshape(result.shape) for array in scratch])
    sources = [next(fitting) if converted else None for converted in is_converted]
    target = next(fitting) if narrows else result
    widenings = [(to, read) for to, read in zip(sources, reads, strict=True) if to is not None]
    seen = [read if to is None else to for to, read in zip(sources, reads, strict=True)]
    call = functools.partial(function.compute, *seen, target, *fitting)
    if not widenings and not narrows:
        return call  # type: ignore[return-value]  # result ignored

    def run() -> None:
        for to, read in widenings:
            np.copyto(to, read, casting="unsafe")
        call()
        if narrows:
            np.copyto(result, target, casting="unsafe")

    return run
