"""Compiled Resize (`c/resizing.c`), along one or two neighbouring dimensions at once.

native.resize.interpolate  float32: linear, cubic, with or without antialiasing
native.resize.repeat       nearest, elements of 1 to 8 bytes

Along others each dimension is a pass, from one part of the workspace to the next: `..._in_turn`.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import carve, elements_moved, scratch_bytes
from aegis_pipe.device.cpu.kernels.pointwise import FLOATS, INTEGERS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.resampling import COORDINATES, AxisTaps, changing_axes
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec

_LANES = 16
_TAPS_MAX = 64
"""`TAPS` of `c/resizing.c`."""
_UNITS_WANTED = 8
"""Fewer planes are cut into bands, so that a team has something to share."""
_INDEX_MAX = 2**31 - 1


class _Taps(ctypes.Structure):
    """`taps` of `c/resizing.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("positions", "weights")),
        *((name, INTEGER) for name in ("count", "size")),
    )


class _Interpolation(ctypes.Structure):
    """`interpolation` of `c/resizing.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y", "workspace", "outside")),
        *((name, INTEGER) for name in ("planes", "rows_in", "columns_in", "rows", "columns")),
        *((name, INTEGER) for name in ("inner", "bands", "held", "outside_count")),
        *((name, _Taps) for name in ("down", "along")),
        ("value", FLOAT),
    )


class _Passes(ctypes.Structure):
    """`interpolations` and `repetitions` of `c/resizing.c`."""

    _fields_ = (("passes", POINTER), ("count", INTEGER), ("place", POINTER))


class _Repetition(ctypes.Structure):
    """`repetition` of `c/resizing.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "y", "down", "along", "outside")),
        *((name, INTEGER) for name in ("planes", "rows_in", "columns_in", "rows", "columns")),
        *((name, INTEGER) for name in ("bands", "outside_count", "item", "doubles")),
        ("value", ctypes.c_uint64),
    )


@record(eq=True)
class _Planes:
    """The tensor as [planes, rows, columns, inner]; an axis that does not change has no taps."""

    planes: int
    rows_in: int
    columns_in: int
    rows: int
    columns: int
    inner: int
    down: AxisTaps | None
    along: AxisTaps | None

    @property
    def bands(self) -> int:
        """Into how many parts each plane is cut."""
        return min(self.rows, max(1, _UNITS_WANTED // max(self.planes, 1)))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Planes and rows as the kernels take them."""
        return self.planes, self.rows_in, self.columns_in, self.rows, self.columns


def _planes(request: KernelRequest) -> _Planes | None:
    """Return the tensor as planes, or None if the changing axes are not neighbours."""
    shape = operands.input_spec(request, 0).shape
    axes = sorted(changing_axes(request), key=lambda taps: taps.axis)
    if not 1 <= len(axes) <= 2:
        return None
    first, last = axes[0].axis, axes[-1].axis
    before, inner = math.prod(shape[:first]), math.prod(shape[last + 1 :])
    if len(axes) == 2:
        if math.prod(shape[first + 1 : last]) != 1:
            return None
        down, along = axes
        return _Planes(before, shape[first], shape[last], down.size, along.size, inner, down, along)
    return _planes_along(shape, axes[0])


def _planes_along(shape: Sequence[int], taps: AxisTaps) -> _Planes:
    """Return the tensor as planes of which one axis changes."""
    size = shape[taps.axis]
    before, inner = math.prod(shape[: taps.axis]), math.prod(shape[taps.axis + 1 :])
    if inner >= _LANES:
        # Whole rows are blended.
        return _Planes(before, size, inner, taps.size, inner, 1, taps, None)
    return _Planes(before, 1, size, 1, taps.size, inner, None, taps)


@record()
class _Pass:
    """One axis resized; the others have been, or will be."""

    planes: _Planes
    shape: tuple[int, ...]
    """Of the result."""


def _passes(request: KernelRequest) -> list[_Pass]:
    shape = list(operands.input_spec(request, 0).shape)
    passes = []
    for taps in changing_axes(request):
        planes = _planes_along(shape, taps)
        shape[taps.axis] = taps.size
        passes.append(_Pass(planes, tuple(shape)))
    return passes


def _is_short(planes: _Planes) -> bool:
    return planes.columns_in * planes.inner <= _INDEX_MAX


def _accepts(request: KernelRequest) -> bool:
    spec = operands.input_spec(request, 0)
    coordinates = operands.text(request, "coordinate_transformation_mode")
    return native.LIBRARY is not None and coordinates in COORDINATES and spec.element_count > 0


def _held(down: AxisTaps | None) -> int:
    """Return how many input rows one result row reaches over, at most."""
    if down is None:
        return 1
    return int((down.positions.max(axis=1) - down.positions.min(axis=1)).max()) + 1


def _stretches_rows(planes: _Planes) -> bool:
    """Return whether stretched rows are held until they are blended."""
    return planes.along is not None and planes.down is not None and not planes.down.is_copy


def _choose_interpolation(request: KernelRequest) -> KernelChoice | None:
    if not compiled.is_float32(request) or not _accepts(request):
        return None
    planes = None if operands.text(request, "mode") == "nearest" else _planes(request)
    if planes is None or not _is_short(planes):
        return None
    taps = [0 if axis is None else axis.positions.shape[1] for axis in (planes.down, planes.along)]
    held = _held(planes.down)
    if held > _TAPS_MAX:
        return None
    row = planes.columns * planes.inner
    return KernelChoice(
        kernel="native.resize.interpolate",
        workspace_bytes=4 * held * row if _stretches_rows(planes) else 0,
        cost=float(sum(taps)) * operands.output_spec(request).element_count,
    )


def _outside(axis: AxisTaps | None, inner: int) -> np.ndarray:
    """Return the elements of a row that lie outside, int32."""
    if axis is None:
        return np.zeros(0, np.int32)
    return (axis.outside[:, None] * inner + np.arange(inner)).astype(np.int32).reshape(-1)


def _row_positions(down: AxisTaps) -> np.ndarray:
    """Return int32[taps, rows]; -1 in front where a row lies outside."""
    positions = down.positions.T.astype(np.int32, order="C")
    positions[0, down.outside] = -1
    return positions


def _row_taps(down: AxisTaps | None) -> tuple[np.ndarray, np.ndarray]:
    if down is None:
        return np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32)
    return _row_positions(down), down.weights.T.astype(np.float32, order="C")


def _column_taps(along: AxisTaps | None, inner: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and weights [taps, size]: of each float, or of blocks of `inner` floats."""
    if along is None:
        return _row_taps(None)
    positions, weights = along.positions.T * inner, along.weights.T
    if inner < _LANES:
        positions = (positions[:, :, None] + np.arange(inner)).reshape(len(positions), -1)
        weights = np.repeat(weights, inner, axis=1)
        padding = ((0, 0), (0, -positions.shape[1] % _LANES))
        positions, weights = np.pad(positions, padding), np.pad(weights, padding)
    return positions.astype(np.int32, order="C"), weights.astype(np.float32, order="C")


def _taps_of(tables: tuple[np.ndarray, np.ndarray]) -> _Taps:
    return _Taps(*map(native.address, tables), *tables[0].shape)


def _bind_interpolation(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    planes = _planes(request)
    assert planes is not None, request.node
    x, y = operands.required(inputs), operands.required(outputs)
    arguments, kept = _interpolation(request, planes, x, y, workspace)
    return native.call("aegis_interpolate", arguments, kept)


def _interpolation(
    request: KernelRequest,
    planes: _Planes,
    x: np.ndarray,
    y: np.ndarray,
    workspace: np.ndarray | None,
) -> tuple[_Interpolation, tuple[np.ndarray | None, ...]]:
    """Return the arguments, and what they point to."""
    inner = planes.inner
    down, along = _row_taps(planes.down), _column_taps(planes.along, inner)
    outside = _outside(planes.along, inner)
    arguments = _Interpolation(
        *map(native.address, (x, y, workspace, outside)),
        *(planes.planes, planes.rows_in, planes.columns_in * inner),
        *(planes.rows, planes.columns * inner),
        inner if inner >= _LANES else 1,
        *(planes.bands, _held(planes.down), outside.size),
        *(_taps_of(down), _taps_of(along)),
        operands.number(request, "extrapolation_value"),
    )
    return arguments, (x, y, workspace, outside, *down, *along)


def _choose_repetition(request: KernelRequest) -> KernelChoice | None:
    if not _accepts(request) or operands.text(request, "mode") != "nearest":
        return None
    planes, dtype = _planes(request), operands.input_spec(request, 0).dtype
    if planes is None or dtype not in FLOATS | INTEGERS or not _is_short(planes):
        return None
    return KernelChoice(kernel="native.resize.repeat", cost=elements_moved(request))


def _bind_repetition(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    planes = _planes(request)
    assert planes is not None, request.node
    x, y = operands.required(inputs), operands.required(outputs)
    arguments, kept = _repetition(request, planes, x, y)
    return native.call("aegis_repeat", arguments, kept)


def _repetition(
    request: KernelRequest, planes: _Planes, x: np.ndarray, y: np.ndarray
) -> tuple[_Repetition, tuple[np.ndarray | None, ...]]:
    """Return the arguments, and what they point to."""
    down = None if planes.down is None else _row_positions(planes.down)[0]
    outside = _outside(planes.along, planes.inner)
    item, along = x.itemsize, None
    columns_in, columns = planes.columns_in * planes.inner, planes.columns * planes.inner
    doubles = False
    if planes.along is not None:
        source = planes.along.positions[:, 0]
        even = np.array_equal(source, np.arange(source.size) // 2)
        doubles = even and source.size == 2 * planes.columns_in and planes.inner == 1
        has_outside = outside.size or (planes.down is not None and planes.down.outside.size)
        if _moves_as_one(item * planes.inner) and not has_outside:
            # Neighbours that keep together are one element.
            item, columns_in, columns = item * planes.inner, planes.columns_in, planes.columns
            along = source.astype(np.int32)
        else:
            each = source[:, None] * planes.inner + np.arange(planes.inner)
            along = each.reshape(-1).astype(np.int32)
    value = np.zeros(8, np.uint8)
    value[: x.itemsize] = _extrapolation(request, x.dtype)
    arguments = _Repetition(
        *map(native.address, (x, y, down, along, outside)),
        *(planes.planes, planes.rows_in, columns_in, planes.rows, columns),
        *(planes.bands, outside.size, item, doubles),
        int(value.view(np.uint64)[0]),
    )
    return arguments, (x, y, down, along, outside)


def _moves_as_one(size_bytes: int) -> bool:
    return size_bytes in (1, 2, 4, 8) or size_bytes >= _LANES


def _extrapolation(request: KernelRequest, dtype: np.dtype) -> np.ndarray:
    value = np.zeros(1, dtype)
    value[...] = operands.number(request, "extrapolation_value")
    return value.view(np.uint8)


def _between(request: KernelRequest) -> list[TensorSpec]:
    """Return what lies between the passes."""
    dtype = operands.input_spec(request, 0).dtype
    return [TensorSpec(dtype, one.shape) for one in _passes(request)[:-1]]


def _choose_in_turn(request: KernelRequest) -> KernelChoice | None:
    dtype, mode = operands.input_spec(request, 0).dtype, operands.text(request, "mode")
    if not _accepts(request) or dtype not in FLOATS | INTEGERS:
        return None
    passes = _passes(request)
    is_short = all(_is_short(one.planes) for one in passes)
    if len(passes) < 2 or _planes(request) is not None or not is_short:
        return None
    if mode == "nearest":
        kernel, cost = "native.resize.repeat_in_turn", 2.0
    else:
        # What lies outside of the input would be blended by a later pass.
        axes = [axis for one in passes for axis in (one.planes.down, one.planes.along) if axis]
        is_inside = not any(axis.outside.size for axis in axes)
        is_held = all(_held(one.planes.down) <= _TAPS_MAX for one in passes)
        if not compiled.is_float32(request) or not is_inside or not is_held:
            return None
        kernel = "native.resize.interpolate_in_turn"
        cost = float(max(axis.positions.shape[1] for axis in axes))
    elements = sum(math.prod(one.shape) for one in passes)
    # Passes read what other workers wrote: the workspace is the team's.
    return KernelChoice(
        kernel=kernel, workspace_bytes=scratch_bytes(_between(request)), cost=cost * elements
    )


def _bind_in_turn(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    arrays = [
        operands.required(inputs),
        *carve(workspace, _between(request)),
        operands.required(outputs),
    ]
    pairs = zip(_passes(request), arrays[:-1], arrays[1:], strict=True)
    passes: ctypes.Array[_Repetition] | ctypes.Array[_Interpolation]
    kept: list[np.ndarray | None] = [*arrays, workspace]
    if choice.kernel.endswith("repeat_in_turn"):
        moved = [_repetition(request, one.planes, x, y) for one, x, y in pairs]
        passes = (_Repetition * len(moved))(*(arguments for arguments, _ in moved))
        kept += itertools.chain.from_iterable(tables for _, tables in moved)
    else:
        blended = [_interpolation(request, one.planes, x, y, None) for one, x, y in pairs]
        passes = (_Interpolation * len(blended))(*(arguments for arguments, _ in blended))
        kept += itertools.chain.from_iterable(tables for _, tables in blended)
    lines, place = native.meeting_place()
    arguments = _Passes(ctypes.addressof(passes), len(passes), place)
    function = f"aegis_{choice.kernel.rpartition('.')[2]}"
    return native.call(function, arguments, (passes, lines, *kept))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("Resize",), _choose_interpolation, _bind_interpolation, shares_work=True),
    CpuKernel(("Resize",), _choose_repetition, _bind_repetition, shares_work=True),
    CpuKernel(("Resize",), _choose_in_turn, _bind_in_turn),
)
