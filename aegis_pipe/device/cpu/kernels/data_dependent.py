"""Results of planned size with the length that is true: what lies beyond the length is 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.pointwise import FLOAT32, NUMBERS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest

_ELEMENTS = NUMBERS | {np.dtype(np.bool_)}


def _accepts(request: KernelRequest) -> bool:
    return operands.input_spec(request, 0).dtype in _ELEMENTS


def _write(result: np.ndarray | None, values: np.ndarray, axis: int = 0) -> None:
    """Write values from the start of an axis on, and 0 behind them."""
    if result is None:
        return
    by_slice = np.moveaxis(result, axis, 0)
    found = np.moveaxis(values, axis, 0)
    by_slice[: len(found)] = found
    by_slice[len(found) :] = 0


def _bind_nonzero(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data = operands.required(inputs)
    result, length = operands.optional(outputs, 0), operands.optional(outputs, 1)

    def run() -> None:
        # A scalar has no index, but counts as one element.
        found = np.flatnonzero(data) if data.ndim == 0 else np.stack(np.nonzero(data))
        if data.ndim:
            _write(result, found, axis=1)
        if length is not None:
            length[...] = found.shape[-1]

    return run


def _bind_unique(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, axis = operands.required(inputs), request.attributes["axis"]
    assert axis is None or isinstance(axis, int)
    values, first, inverse, counts, length = (operands.optional(outputs, i) for i in range(5))
    is_sorted = operands.integer(request, "sorted")
    given = data.reshape(-1) if axis is None else data
    along = axis or 0

    def run() -> None:
        found, places, numbers, occurrences = np.unique(
            given, return_index=True, return_inverse=True, return_counts=True, axis=along
        )
        numbers = numbers.reshape(-1)
        if not is_sorted:
            order = np.argsort(places, kind="stable")
            found, places, occurrences = (
                np.take(found, order, axis=along),
                places[order],
                occurrences[order],
            )
            numbers = np.argsort(order, kind="stable")[numbers]
        _write(values, found, along)
        for result, array in ((first, places), (inverse, numbers), (counts, occurrences)):
            _write(result, array)
        if length is not None:
            length[...] = len(places)

    return run


def _bind_compress(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, condition = operands.required(inputs, 0), operands.required(inputs, 1)
    result, length = operands.optional(outputs, 0), operands.optional(outputs, 1)
    axis = request.attributes["axis"]
    assert axis is None or isinstance(axis, int)
    given = data.reshape(-1) if axis is None else data
    along = axis or 0

    def run() -> None:
        kept = np.flatnonzero(condition[: given.shape[along]])
        _write(result, np.take(given, kept, axis=along), along)
        if length is not None:
            length[...] = len(kept)

    return run


def _accepts_suppression(request: KernelRequest) -> bool:
    return all(operands.input_spec(request, i).dtype == FLOAT32 for i in range(2))


def _corners(boxes: np.ndarray, is_centred: bool) -> np.ndarray:
    """Return boxes as (low, low, high, high); the axes' order does not matter."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if is_centred:
        return np.concatenate([first - second / 2, first + second / 2], axis=-1)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return np.asarray((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]))


def _overlaps(box: np.ndarray, others: np.ndarray, area: float, areas: np.ndarray) -> np.ndarray:
    """Return intersection over union of a box with others; 0 where there is no union."""
    low = np.maximum(box[:2], others[:, :2])
    sides = np.maximum(np.minimum(box[2:], others[:, 2:]) - low, 0)
    common = sides[:, 0] * sides[:, 1]
    union = area + areas - common
    return np.asarray(np.divide(common, union, out=np.zeros_like(common), where=union > 0))


def _kept(boxes: np.ndarray, scores: np.ndarray, threshold: float, most: int) -> list[int]:
    """Return the boxes that no better one overlaps by more than the threshold, best first."""
    areas = _areas(boxes)
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        overlap = _overlaps(boxes[best], boxes[rest], float(areas[best]), areas[rest])
        order = rest[overlap <= threshold]
    return kept


def _bind_suppression(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    boxes, scores = operands.required(inputs, 0), operands.required(inputs, 1)
    overlap, least, most = (operands.optional(inputs, i) for i in (2, 3, 4))
    result, length = operands.optional(outputs, 0), operands.optional(outputs, 1)
    is_centred = bool(operands.integer(request, "center_point_box"))
    planned = operands.integer(request, "boxes_per_class")

    def run() -> None:
        threshold = 0.0 if overlap is None else float(overlap.item())
        limit = planned if most is None else min(max(int(most.item()), 0), planned)
        selected: list[tuple[int, int, int]] = []
        for image, by_class in enumerate(scores):
            corners = _corners(boxes[image], is_centred)
            for number, score in enumerate(by_class):
                # NaN is no better than a threshold, and so never a candidate.
                able = np.flatnonzero(score > (-np.inf if least is None else least.item()))
                chosen = _kept(corners[able], score[able], threshold, limit)
                selected += [(image, number, int(able[index])) for index in chosen]
        _write(result, np.array(selected, np.int64).reshape(-1, 3))
        if length is not None:
            length[...] = len(selected)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("nonzero", ("aegis.NonZero",), _bind_nonzero, accepts=_accepts),
    planned_kernel("unique", ("aegis.Unique",), _bind_unique, accepts=_accepts),
    planned_kernel("compress", ("aegis.Compress",), _bind_compress, accepts=_accepts),
    planned_kernel(
        "non_max_suppression",
        ("aegis.NonMaxSuppression",),
        _bind_suppression,
        accepts=_accepts_suppression,
    ),
)
