"""Lists of copies between views as one compiled kernel (`c/moves.c`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import native
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER, NativeCall

Copies = Sequence[tuple[np.ndarray, np.ndarray]]
"""(target, source) views, in the order they have to be copied; a source may broadcast."""

_RANK = 5
_PARTS = 8
_LARGE_BYTES = 1 << 15
"""A move of more than this without outer dimensions is cut, so that threads can share it."""

_Dimension = tuple[int, int, int]
"""Size, stride of the target, stride of the source."""


_Move = tuple[int, ...]
"""`move` of `c/moves.c` as its words: two addresses, then shape and strides of both."""
_MOVE_WORDS = 2 + 3 * _RANK


class _Moving(ctypes.Structure):
    """`moving` of `c/moves.c`."""

    _fields_ = (("moves", POINTER), ("count", INTEGER), ("item", INTEGER))


def bind_moves(copies: Copies, *, in_order: bool) -> Callable[[], None]:
    """Return a call that makes all copies; `in_order` if some read what earlier ones wrote."""
    wanted = [(target, source) for target, source in copies if target.size]
    compiled = _compiled(wanted, in_order)
    if compiled is not None:
        return compiled

    def run() -> None:
        for target, source in wanted:
            np.copyto(target, source)

    return run


def _compiled(copies: Copies, in_order: bool) -> NativeCall | None:
    library = native.LIBRARY
    if library is None or not copies:
        return None
    moves: list[_Move] = []
    for target, source in copies:
        if source.shape != target.shape:
            source = np.broadcast_to(source, target.shape)
        dimensions = _dimensions(target, source)
        if len(dimensions) > _RANK or source.dtype != target.dtype:
            return None
        moves += _moves(target.ctypes.data, source.ctypes.data, dimensions, target.itemsize)
    if not in_order:
        # A thread then writes one stretch of the results, made of what it computed itself: rows are
        # shared the same way by the kernels around.
        moves.sort(key=lambda move: move[0])
    table = np.array(moves, np.int64)
    assert table.shape == (len(moves), _MOVE_WORDS), table.shape
    arguments = _Moving(native.address(table), len(moves), copies[0][0].itemsize)
    function = "aegis_move_in_order" if in_order else "aegis_move_apart"
    call = NativeCall(library, function, arguments, [array for pair in copies for array in pair])
    call.keep(table)
    return call


def _dimensions(target: np.ndarray, source: np.ndarray) -> list[_Dimension]:
    """Return the dimensions, the target's longest steps first, neighbours merged where they can."""
    dimensions = [
        (size, to, of)
        for size, to, of in zip(target.shape, target.strides, source.strides, strict=True)
        if size > 1
    ]
    dimensions.sort(key=lambda one: -abs(one[1]))
    merged: list[_Dimension] = []
    for size, to, of in dimensions:
        if merged and merged[-1][1:] == (to * size, of * size):
            size *= merged.pop()[0]
        merged.append((size, to, of))
    if len(merged) > 2:
        # What is contiguous in the source comes next to what is contiguous in the target.
        nearest = min(range(len(merged) - 1), key=lambda i: abs(merged[i][2]) or 1 << 62)
        if abs(merged[nearest][2]) < abs(merged[-1][2]):
            merged.insert(len(merged) - 2, merged.pop(nearest))
    return merged


def _moves(to: int, of: int, dimensions: list[_Dimension], item: int) -> list[_Move]:
    total = item
    for size, _, _ in dimensions:
        total *= size
    if len(dimensions) in (1, 2) and total > _LARGE_BYTES:
        return _cut(to, of, dimensions, 16 if item == 1 else 8)
    return [_move(to, of, dimensions)]


def _cut(to: int, of: int, dimensions: list[_Dimension], block: int) -> list[_Move]:
    """Cut the first dimension, in whole blocks as they are turned round."""
    (size, to_step, of_step), *rest = dimensions
    part = max(block, -(-size // _PARTS) // block * block)
    return [
        _move(
            to + start * to_step,
            of + start * of_step,
            [(min(part, size - start), to_step, of_step), *rest],
        )
        for start in range(0, size, part)
    ]


def _move(to: int, of: int, dimensions: list[_Dimension]) -> _Move:
    padded = [(1, 0, 0)] * (_RANK - len(dimensions)) + dimensions
    shape, to_strides, from_strides = zip(*padded, strict=True)
    return (to, of, *shape, *to_strides, *from_strides)
