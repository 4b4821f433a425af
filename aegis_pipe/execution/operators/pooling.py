"""Pools. Layout is N, C, spatial....

Canonical form: the attributes of `windows.Windows`; the output's shape says how many windows
there are, and a last one may reach beyond the pads (ceil mode).

    MaxPool(X) -> Y, Indices?      plus `storage_order`; taps in the padding do not take part;
                                   Indices count through the whole of X
    AveragePool(X)                 plus `count_include_pad`: whether pads count in the divisor
    LpPool(X)                      plus `p`; pads count as 0
    GlobalAveragePool(X), GlobalMaxPool(X), GlobalLpPool(X) with `p`: over all of space
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aegis_pipe.execution.operators import reading, windows
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _geometry(context: OperatorContext) -> windows.Windows:
    data = reading.operand(context, 0, "X")
    if len(data.shape) < 2:
        raise reading.invalid(context, f"input {data} has no channels")
    kernel_shape = reading.integers(context, "kernel_shape", ())
    return windows.read_windows(context, data.shape[2:], kernel_shape)


def _infer_pool(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    # SAME already has room for exactly ceil(size / stride) windows.
    ceil_mode = bool(reading.integer(context, "ceil_mode", 0))
    geometry = _geometry(context)
    counts = geometry.output_shape(data.shape[2:], ceil_mode=ceil_mode)
    missing = geometry.missing(data.shape[2:])
    # ONNX's own inference divides towards zero: a single window that lacks less than a stride
    # counts, with or without ceil mode. Models rely on it when they are given small images.
    spatial = tuple(
        [
            1 if 0 < lacking < stride else count
            for count, lacking, stride in zip(counts, missing, geometry.strides, strict=True)
        ]
    )
    windows.require_windows(context, data, spatial)
    pooled = reading.like(data, (*data.shape[:2], *spatial))
    return [pooled, TensorSpec(np.dtype(np.int64), pooled.shape)][: len(context.node.outputs)]


def _lower_pool(context: OperatorContext) -> Lowered:
    defaults = {"MaxPool": ("storage_order", 0), "LpPool": ("p", 2)}
    name, default = defaults.get(context.node.operator, ("count_include_pad", 0))
    extra: Mapping[str, Attribute] = {name: reading.integer(context, name, default)}
    attributes = {**_geometry(context).attributes(), **extra}
    return Lowered(context.node.operator, attributes, (0,))


def _infer_global_pool(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    if len(data.shape) < 2:
        raise reading.invalid(context, f"input {data} has no channels")
    return [reading.like(data, (*data.shape[:2], *(1 for _ in data.shape[2:])))]


def _lower_global_pool(context: OperatorContext) -> Lowered:
    is_lp = context.node.operator == "GlobalLpPool"
    attributes = {"p": reading.integer(context, "p", 2)} if is_lp else {}
    return Lowered(context.node.operator, attributes, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("MaxPool", _infer_pool, _lower_pool),
    OperatorEntry("AveragePool", _infer_pool, _lower_pool),
    OperatorEntry("LpPool", _infer_pool, _lower_pool),
    OperatorEntry("GlobalAveragePool", _infer_global_pool, _lower_global_pool),
    OperatorEntry("GlobalMaxPool", _infer_global_pool, _lower_global_pool),
    OperatorEntry("GlobalLpPool", _infer_global_pool, _lower_global_pool),
)
