"""Kernels that move elements to places known at load."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.moves import bind_moves
from aegis_pipe.device.cpu.kernels.planned import elements_moved
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelChoice, KernelRequest

Copies = list[tuple[np.ndarray, np.ndarray]]

PlanCopies = Callable[[KernelRequest, Sequence[np.ndarray], Sequence[np.ndarray | None]], Copies]


def _moving_kernel(operator: str, plan: PlanCopies) -> CpuKernel:
    """Return a kernel that is a list of copies between views."""

    def choose(request: KernelRequest) -> KernelChoice | None:
        if any(spec is not None and spec.dtype.hasobject for spec in request.outputs):
            return None
        return KernelChoice(operator.lower(), cost=elements_moved(request))

    def bind(
        request: KernelRequest,
        choice: KernelChoice,
        inputs: Sequence[np.ndarray | None],
        outputs: Sequence[np.ndarray | None],
        workspace: np.ndarray | None,
    ) -> Callable[[], None]:
        copies = plan(request, [array for array in inputs if array is not None], outputs)
        # A padding's borders are copied from what is there already.
        return bind_moves(copies, in_order=operator == "Pad")

    return CpuKernel((operator,), choose, bind)


def along(axis: int, part: slice | int) -> tuple[slice | int, ...]:
    """Return the index that takes a part of one axis and all of those before it."""
    return (*[slice(None)] * axis, part)


_CACHED_BYTES = 1 << 20
_COLUMNS = 16
"""Columns of a large result that are filled at a time: each is a cache line apart in the source,
and the lines are still there when the next row wants their next elements."""


def _transpose(
    request: KernelRequest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None]
) -> Copies:
    result = operands.required(outputs)
    source = inputs[0].transpose(operands.integers(request, "perm"))
    size = result.shape[-1]
    width = _COLUMNS if result.nbytes > _CACHED_BYTES and source.strides[-1] > 64 else size
    parts = [(..., slice(start, start + width)) for start in range(0, size, max(width, 1))]
    return [(result[part], source[part]) for part in parts]


def _concat(
    request: KernelRequest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None]
) -> Copies:
    axis = operands.integer(request, "axis")
    result = operands.required(outputs)
    ends = list(itertools.accumulate(array.shape[axis] for array in inputs))
    return [
        (result[along(axis, slice(end - array.shape[axis], end))], array)
        for end, array in zip(ends, inputs, strict=True)
    ]


def _split(
    request: KernelRequest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None]
) -> Copies:
    axis, sizes = operands.integer(request, "axis"), operands.integers(request, "split")
    return [
        (target, inputs[0][along(axis, slice(end - size, end))])
        for target, size, end in zip(outputs, sizes, itertools.accumulate(sizes), strict=True)
        if target is not None
    ]


def _slice(
    request: KernelRequest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None]
) -> Copies:
    result = operands.required(outputs)
    starts, steps = operands.integers(request, "starts"), operands.integers(request, "steps")
    index = tuple(
        [
            _steps(start, step, count)
            for start, step, count in zip(starts, steps, result.shape, strict=True)
        ]
    )
    return [(result, inputs[0][index])]


def _steps(start: int, step: int, count: int) -> slice:
    end = start + step * count
    return slice(start, end if end >= 0 else None, step)


def _expand(
    request: KernelRequest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None]
) -> Copies:
    return [(operands.required(outputs), inputs[0])]


def _tile(
    request: KernelRequest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None]
) -> Copies:
    (source,), repeats = inputs, operands.integers(request, "repeats")
    pairs = zip(repeats, source.shape, strict=True)
    target = operands.required(outputs).reshape([size for pair in pairs for size in pair])
    return [(target, source.reshape([size for n in source.shape for size in (1, n)]))]


def _pad(
    request: KernelRequest, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray | None]
) -> Copies:
    """Copy the core, then fill the border axis by axis, from what is already there.

    Before axis i is filled, the axes after it hold their core only; afterwards all of axis i is
    there, so later axes copy whole borders with it.
    """
    source, result = inputs[0], operands.required(outputs)
    before, after = operands.integers(request, "before"), operands.integers(request, "after")
    core = tuple(
        [
            slice(max(b, 0), size - max(a, 0))
            for b, a, size in zip(before, after, result.shape, strict=True)
        ]
    )
    cropped = source[
        tuple(
            [
                slice(max(-b, 0), size - max(-a, 0))
                for b, a, size in zip(before, after, source.shape, strict=True)
            ]
        )
    ]
    value = inputs[1] if len(inputs) > 1 else np.array(request.attributes["value"], source.dtype)
    mode = operands.text(request, "mode")
    copies: Copies = [(result[core], cropped)]
    for axis in range(result.ndim):
        part = result[(*[slice(None)] * axis, slice(None), *core[axis + 1 :])]
        copies += _pad_axis(part, axis, core[axis], mode, value)
    return copies


def _pad_axis(part: np.ndarray, axis: int, core: slice, mode: str, value: np.ndarray) -> Copies:
    size = part.shape[axis]
    if mode == "constant":
        borders = (slice(0, core.start), slice(core.stop, size))
        return [(part[along(axis, border)], value.reshape(())) for border in borders]
    border = (*range(core.start), *range(core.stop, size))
    length = core.stop - core.start
    return [
        (
            part[along(axis, slice(i, i + 1))],
            part[
                along(axis, slice(j := core.start + _mirror(i - core.start, length, mode), j + 1))
            ],
        )
        for i in border
        if length
    ]


def _mirror(index: int, length: int, mode: str) -> int:
    """Return which element of the core stands at an index outside of it."""
    if mode == "edge":
        return min(max(index, 0), length - 1)
    if mode == "wrap":
        return index % length
    period = max(2 * (length - 1), 1)
    index %= period
    return index if index < length else period - index


def _choose_trilu(request: KernelRequest) -> KernelChoice | None:
    spec = operands.output_spec(request)
    if spec.dtype.hasobject:
        return None
    return KernelChoice("trilu", in_place=((0, 0),), cost=2.0 * spec.element_count)


def _bind_trilu(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    source, result = operands.required(inputs), operands.required(outputs)
    k, is_upper = operands.integer(request, "k"), operands.integer(request, "upper")
    rows, columns = result.shape[-2:]
    zero = np.zeros((), result.dtype)
    cleared = [
        result[..., row, : min(max(row + k, 0), columns)]
        if is_upper
        else result[..., row, min(max(row + k + 1, 0), columns) :]
        for row in range(rows)
    ]

    def run() -> None:
        np.copyto(result, source)
        for part in cleared:
            np.copyto(part, zero)

    return run


def _choose_reverse(request: KernelRequest) -> KernelChoice | None:
    if operands.output_spec(request).dtype.hasobject:
        return None
    return KernelChoice("reverse_sequence", cost=elements_moved(request))


def _bind_reverse(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    axes = operands.integer(request, "time_axis"), operands.integer(request, "batch_axis")
    lengths = operands.required(inputs, 1)
    source, result = (
        np.moveaxis(array, axes, (0, 1))
        for array in (operands.required(inputs), operands.required(outputs))
    )
    node, most = request.node, source.shape[0]

    def run() -> None:
        np.copyto(result, source)
        for row, count in enumerate(lengths.tolist()):
            if not 0 <= count <= most:
                raise KernelError(
                    f"sequence {row} has length {count}, but there are {most} steps",
                    context=f"node `{node}` (ReverseSequence)",
                    hint="check the lengths that the request or the operator before gives",
                )
            np.copyto(result[:count, row], source[:count, row][::-1])

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    _moving_kernel("Transpose", _transpose),
    _moving_kernel("Concat", _concat),
    _moving_kernel("Split", _split),
    _moving_kernel("Slice", _slice),
    _moving_kernel("Expand", _expand),
    _moving_kernel("Tile", _tile),
    _moving_kernel("Pad", _pad),
    CpuKernel(("Trilu",), _choose_trilu, _bind_trilu),
    CpuKernel(("ReverseSequence",), _choose_reverse, _bind_reverse),
)
