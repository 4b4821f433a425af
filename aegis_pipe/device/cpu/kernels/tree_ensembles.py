"""Ensembles of decision trees: all trees of a block of rows take a step at a time.

Every (row, tree) holds the node it has reached. A step looks up the node's feature and threshold,
compares, and looks up the next node; leaves lead to themselves, so no path ends early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import learned_scores, operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_BLOCK_ELEMENTS = 16 << 10
_INDEX = np.dtype(np.intp)
_BOOL = np.dtype(np.bool_)


def _block_rows(request: KernelRequest) -> int:
    """Return how many rows are walked together."""
    targets = int(operands.array(request, "weights").shape[1])
    per_row = len(operands.array(request, "roots")) * targets
    return max(
        1, min(learned_scores.rows_and_width(request)[0], _BLOCK_ELEMENTS // max(per_row, 1))
    )


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    dtype = operands.array(request, "thresholds").dtype
    rows, trees = _block_rows(request), len(operands.array(request, "roots"))
    targets = operands.array(request, "weights").shape[1]
    return (
        TensorSpec(dtype, (rows, learned_scores.rows_and_width(request)[1])),
        TensorSpec(_INDEX, (rows, trees)),
        TensorSpec(_INDEX, (rows, trees)),
        TensorSpec(dtype, (rows, trees)),
        TensorSpec(dtype, (rows, trees)),
        TensorSpec(_BOOL, (rows, trees)),
        TensorSpec(_BOOL, (rows, trees)),
        TensorSpec(dtype, (rows, trees, targets)),
        TensorSpec(dtype, (rows, targets)),
    )


def _with_leaves(inner: np.ndarray, count: int, value: float) -> np.ndarray:
    """Extend an array over inner nodes by what leaves answer."""
    return np.concatenate([inner, np.full(count - len(inner), value, inner.dtype)])


_Reduce = Callable[[np.ndarray, np.ndarray], None]


def _reduction(request: KernelRequest) -> _Reduce:
    """Return the aggregation of [rows, trees, targets] into [rows, targets]."""
    aggregate = operands.text(request, "aggregate")
    ufunc = {"MIN": np.minimum, "MAX": np.maximum}.get(aggregate, np.add)
    trees = len(operands.array(request, "roots"))

    def reduce(found: np.ndarray, out: np.ndarray) -> None:
        ufunc.reduce(found, axis=1, out=out)
        if aggregate == "AVERAGE":
            np.divide(out, trees, out=out)
        elif ufunc is not np.add:
            # No tree has a weight for this target.
            np.copyto(out, 0, where=np.isinf(out))

    return reduce


def _walk(
    request: KernelRequest, data: np.ndarray, scores: np.ndarray, scratch: Sequence[np.ndarray]
) -> Callable[[], None]:
    """Return a call that writes aggregate and base values of data[N, F] to scores[N, targets]."""
    children = operands.array(request, "children")
    inner = len(operands.array(request, "features"))
    features = _with_leaves(operands.array(request, "features"), len(children), 0).astype(_INDEX)
    thresholds = _with_leaves(operands.array(request, "thresholds"), len(children), math.inf)
    goes_on = _with_leaves(operands.array(request, "missing_goes_on"), len(children), False)
    any_missing = bool(goes_on.any())
    following = children.astype(_INDEX).reshape(-1)
    roots, weights = operands.array(request, "roots"), operands.array(request, "weights")
    base, depth = operands.array(request, "base_values"), operands.integer(request, "depth")
    reduce = _reduction(request)
    step = _block_rows(request)
    blocks = [
        (data[first : first + step], scores[first : first + step])
        for first in range(0, len(data), step)
    ]
    offsets = np.arange(step, dtype=_INDEX)[:, None] * data.shape[1]

    def run() -> None:
        for rows, target in blocks:
            count = len(rows)
            wide, node, index, value, limit, holds, is_missing, found, total = (
                array[:count] for array in scratch
            )
            np.copyto(wide, rows, casting="unsafe")
            np.copyto(node, roots)
            for _ in range(depth):
                np.take(features, node, out=index, mode="clip")
                np.add(index, offsets[:count], out=index)
                np.take(wide, index, out=value, mode="clip")
                np.take(thresholds, node, out=limit, mode="clip")
                np.less_equal(value, limit, out=holds)
                if any_missing:
                    np.take(goes_on, node, out=is_missing, mode="clip")
                    np.logical_and(is_missing, np.isnan(value), out=is_missing)
                    np.logical_or(holds, is_missing, out=holds)
                np.multiply(node, 2, out=index)
                np.add(index, holds, out=index)
                np.take(following, index, out=node, mode="clip")
            np.subtract(node, inner, out=node)
            np.take(weights, node, axis=0, out=found, mode="clip")
            reduce(found, total)
            np.add(total, base, out=total)
            np.copyto(target, total, casting="unsafe")

    return run


def _accepts(request: KernelRequest) -> bool:
    return operands.input_spec(request, 0).dtype.kind in "fiu" and (
        len(operands.array(request, "roots")) > 0
    )


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    result = operands.required(outputs)
    data = operands.required(inputs).reshape(learned_scores.rows_and_width(request))
    walk = _walk(request, data, result, scratch)
    transform = learned_scores.transform_rows(request, result)

    def run() -> None:
        walk()
        transform()

    return run


def _accepts_classifier(request: KernelRequest) -> bool:
    return (
        _accepts(request)
        and operands.integer(request, "is_clear") == 1
        and len(operands.array(request, "classes")) > 0
        and learned_scores.accepts_finish(request)
    )


def _classifier_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    # Someone may want only the labels, or only the scores.
    rows, _ = learned_scores.rows_and_width(request)
    scores = TensorSpec(np.dtype(np.float32), (rows, len(operands.array(request, "classes"))))
    labels = TensorSpec(np.dtype(np.int64), (rows,))
    return (*_scratch(request), *(spec for _, spec in _unwanted(request, labels, scores)))


def _unwanted(
    request: KernelRequest, labels: TensorSpec, scores: TensorSpec
) -> list[tuple[int, TensorSpec]]:
    pairs = enumerate((labels, scores))
    return [(i, spec) for i, spec in pairs if not operands.has_output(request, i)]


def _bind_classifier(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    spare = iter(scratch[9:])
    labels, scores = (
        next(spare) if (array := operands.optional(outputs, i)) is None else array for i in range(2)
    )
    classes, threshold = operands.array(request, "classes"), operands.number(request, "threshold")
    data = operands.required(inputs).reshape(learned_scores.rows_and_width(request))
    has_one_score = bool(operands.text(request, "second_class"))
    walk = _walk(request, data, scores[:, 1:] if has_one_score else scores, scratch)
    if math.isnan(threshold):
        choose = learned_scores.choose_labels(scores, classes, labels)
    else:
        choose = learned_scores.choose_of_two(scores[:, 1], threshold, classes, labels)
    finish = (
        learned_scores.expand_to_second_class if has_one_score else learned_scores.transform_rows
    )(request, scores)

    def run() -> None:
        walk()
        choose()
        finish()

    return run


def _cost(request: KernelRequest) -> float:
    rows, _ = learned_scores.rows_and_width(request)
    return float(rows * len(operands.array(request, "roots")) * operands.integer(request, "depth"))


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "tree_ensemble",
        ("ai.onnx.ml.TreeEnsemble",),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
        cost=_cost,
    ),
    planned_kernel(
        "tree_ensemble.classifier",
        ("ai.onnx.ml.TreeEnsembleClassifier",),
        _bind_classifier,
        accepts=_accepts_classifier,
        scratch=_classifier_scratch,
        cost=_cost,
    ),
)
