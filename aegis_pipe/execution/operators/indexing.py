"""Operators whose data says what goes where.

Canonical form; indices stay data operands, may count from the end, and are checked at run time:

    Gather(X, indices)                          `axis`
    GatherElements(X, indices)                  `axis`
    GatherND(X, indices)                        `batch_dims`
    ScatterElements(X, indices, updates)        `axis`; `reduction` "none", "add", "mul", "max",
                                                "min"; also what Scatter becomes
    ScatterND(X, indices, updates)              `reduction`
    OneHot(indices, values[off, on])            `axis` in the output, `depth`; indices outside of
                                                the depth are off everywhere
    ArrayFeatureExtractor                       becomes Gather along the last axis
    Compress(X)                                 `axis` (None: X counts as flat), `indices`: what
                                                the constant condition keeps, ascending
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec


def _require_integers(context: OperatorContext, indices: TensorSpec) -> None:
    if not np.issubdtype(indices.dtype, np.integer):
        raise reading.invalid(context, f"indices {indices} are no integers")


def _axis(context: OperatorContext) -> int:
    rank = len(reading.operand(context, 0, "data").shape)
    reading.require(rank > 0, context, "a scalar has no axis")
    return reading.resolve_axis(context, reading.integer(context, "axis", 0), rank)


def _infer_gather(context: OperatorContext) -> list[TensorSpec]:
    data, indices = reading.operand(context, 0, "data"), reading.operand(context, 1, "indices")
    _require_integers(context, indices)
    axis = _axis(context)
    return [reading.like(data, (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))]


def _lower_gather(context: OperatorContext) -> Lowered:
    return Lowered("Gather", {"axis": _axis(context)}, (0, 1))


def _infer_gather_elements(context: OperatorContext) -> list[TensorSpec]:
    data, indices = reading.operand(context, 0, "data"), reading.operand(context, 1, "indices")
    _require_integers(context, indices)
    _require_within(context, data, indices, _axis(context))
    return [reading.like(data, indices.shape)]


def _require_within(
    context: OperatorContext, data: TensorSpec, indices: TensorSpec, axis: int
) -> None:
    if not (
        len(indices.shape) == len(data.shape)
        and all(
            n <= m or i == axis
            for i, (n, m) in enumerate(zip(indices.shape, data.shape, strict=False))
        )
    ):
        raise reading.invalid(context, f"indices {indices} do not fit {data} along axis {axis}")


def _lower_gather_elements(context: OperatorContext) -> Lowered:
    return Lowered("GatherElements", {"axis": _axis(context)}, (0, 1))


def _infer_gather_nd(context: OperatorContext) -> list[TensorSpec]:
    data, indices = reading.operand(context, 0, "data"), reading.operand(context, 1, "indices")
    _require_integers(context, indices)
    batch = reading.integer(context, "batch_dims", 0)
    depth = indices.shape[-1] if indices.shape else 0
    if not (
        0 <= batch < max(len(indices.shape), 1)
        and 0 < depth <= len(data.shape) - batch
        and indices.shape[:batch] == data.shape[:batch]
    ):
        raise reading.invalid(
            context, f"indices {indices} do not fit {data} with batch_dims {batch}"
        )
    return [reading.like(data, (*indices.shape[:-1], *data.shape[batch + depth :]))]


def _lower_gather_nd(context: OperatorContext) -> Lowered:
    return Lowered("GatherND", {"batch_dims": reading.integer(context, "batch_dims", 0)}, (0, 1))


def _infer_scatter_elements(context: OperatorContext) -> list[TensorSpec]:
    data, indices = reading.operand(context, 0, "data"), reading.operand(context, 1, "indices")
    updates = reading.operand(context, 2, "updates")
    _require_integers(context, indices)
    _require_within(context, data, indices, _axis(context))
    if updates != reading.like(data, indices.shape):
        raise reading.invalid(context, f"updates {updates} do not fit indices {indices} and {data}")
    return [data]


def _reduction(context: OperatorContext) -> str:
    reduction = reading.text(context, "reduction", "none")
    known = ("none", "add", "mul", "max", "min")
    if reduction not in known:
        raise reading.invalid(context, f"reduction `{reduction}` is none of {known}")
    return reduction


def _lower_scatter_elements(context: OperatorContext) -> Lowered:
    axis, reduction = _axis(context), _reduction(context)
    return Lowered("ScatterElements", {"axis": axis, "reduction": reduction}, (0, 1, 2))


def _infer_scatter_nd(context: OperatorContext) -> list[TensorSpec]:
    data, indices = reading.operand(context, 0, "data"), reading.operand(context, 1, "indices")
    updates = reading.operand(context, 2, "updates")
    _require_integers(context, indices)
    depth = indices.shape[-1] if indices.shape else 0
    if not (
        0 < depth <= len(data.shape)
        and updates == reading.like(data, (*indices.shape[:-1], *data.shape[depth:]))
    ):
        raise reading.invalid(context, f"updates {updates} do not fit indices {indices} and {data}")
    return [data]


def _lower_scatter_nd(context: OperatorContext) -> Lowered:
    return Lowered("ScatterND", {"reduction": _reduction(context)}, (0, 1, 2))


def _one_hot_axis(context: OperatorContext) -> int:
    rank = len(reading.operand(context, 0, "indices").shape)
    return reading.resolve_axis(context, reading.integer(context, "axis", -1), rank + 1)


def _depth(context: OperatorContext) -> int:
    depth = int(reading.static_value(context, 1, "depth").reshape(-1)[0])
    if depth < 0:
        raise reading.invalid(context, f"depth {depth} is negative")
    return depth


def _infer_one_hot(context: OperatorContext) -> list[TensorSpec]:
    indices, values = reading.operand(context, 0, "indices"), reading.operand(context, 2, "values")
    if values.shape != (2,):
        raise reading.invalid(context, f"values {values} are not off and on")
    axis = _one_hot_axis(context)
    shape = (*indices.shape[:axis], _depth(context), *indices.shape[axis:])
    return [reading.like(values, shape)]


def _lower_one_hot(context: OperatorContext) -> Lowered:
    attributes = {"axis": _one_hot_axis(context), "depth": _depth(context)}
    return Lowered("OneHot", attributes, (0, 2))


def _infer_extractor(context: OperatorContext) -> list[TensorSpec]:
    data, indices = reading.operand(context, 0, "X"), reading.operand(context, 1, "Y")
    _require_integers(context, indices)
    reading.require(len(data.shape) > 0, context, "a scalar has no features")
    # A vector counts as one row.
    rows = data.shape[:-1] or (1,)
    return [reading.like(data, (*rows, indices.element_count))]


def _lower_extractor(context: OperatorContext) -> Lowered:
    rank = len(reading.operand(context, 0, "X").shape)
    return Lowered("Gather", {"axis": rank - 1}, (0, 1))


def _compressed(context: OperatorContext) -> tuple[int | None, np.ndarray]:
    """Return the axis (None: of the flattened data) and the indices that are kept."""
    data = reading.operand(context, 0, "input")
    (kept,) = np.nonzero(reading.static_value(context, 1, "condition").reshape(-1))
    if "axis" not in context.node.attributes:
        size, axis = data.element_count, None
    else:
        axis = _axis(context)
        size = data.shape[axis]
    if not (kept.size == 0 or int(kept[-1]) < size):
        raise reading.invalid(context, f"the condition is longer than {data}")
    return axis, kept


def _infer_compress(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    axis, kept = _compressed(context)
    if axis is None:
        return [reading.like(data, (kept.size,))]
    return [reading.like(data, (*data.shape[:axis], kept.size, *data.shape[axis + 1 :]))]


def _lower_compress(context: OperatorContext) -> Lowered:
    axis, kept = _compressed(context)
    return Lowered("Compress", {"axis": axis, "indices": kept.astype(np.int64)}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("Gather", _infer_gather, _lower_gather),
    OperatorEntry("GatherElements", _infer_gather_elements, _lower_gather_elements),
    OperatorEntry("GatherND", _infer_gather_nd, _lower_gather_nd),
    OperatorEntry("Scatter", _infer_scatter_elements, _lower_scatter_elements),
    OperatorEntry("ScatterElements", _infer_scatter_elements, _lower_scatter_elements),
    OperatorEntry("ScatterND", _infer_scatter_nd, _lower_scatter_nd),
    OperatorEntry("OneHot", _infer_one_hot, _lower_one_hot, static_inputs=(1,)),
    OperatorEntry("Compress", _infer_compress, _lower_compress, static_inputs=(1,)),
    OperatorEntry("ai.onnx.ml.ArrayFeatureExtractor", _infer_extractor, _lower_extractor),
)
