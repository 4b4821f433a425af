"""Normalisations at inference.

Canonical form (`epsilon` where listed is added to the variance):

    BatchNormalization(X[N, C, ...], scale[C], B[C], mean[C], var[C])   `epsilon`, `training_mode`,
                                                                        `momentum`
    InstanceNormalization(X[N, C, ...], scale[C], B[C])                 `epsilon`
    GroupNormalization(X[N, C, ...], scale, bias)                       `epsilon`, `num_groups`
        scale and bias are [C], or [num_groups] (opset 18)
    LayerNormalization(X, scale, B?) -> Y, Mean?, InvStdDev?            `epsilon`, `axis`
        over axes axis..rank-1; scale and B broadcast to X
    RMSNormalization(X, scale) and SimplifiedLayerNormalization: as above, without mean
    com.microsoft.SkipLayerNormalization(X, skip, gamma, beta?, bias?)  `epsilon`
        -> Y, mean?, inv_std_var?, sum?; LayerNormalization of the last axis of X + skip + bias
    com.microsoft.SkipSimplifiedLayerNormalization(X, skip, gamma, -, bias?)   likewise, no mean
    LpNormalization(X)                                                  `axis`, `p` 1 or 2
    MeanVarianceNormalization(X)                                        `axes`, ascending
    LRN(X[N, C, ...])                                   `size`, `alpha`, `beta`, `bias`
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_FLOAT32 = np.dtype(np.float32)


def _same(context: OperatorContext) -> list[TensorSpec]:
    return [reading.operand(context, 0, "X")]


def _infer_batch(context: OperatorContext) -> list[TensorSpec]:
    data, mean = reading.operand(context, 0, "X"), reading.operand(context, 3, "mean")
    channels = data.shape[1:2] or (1,)
    if mean.shape != channels:
        raise reading.invalid(context, f"mean {mean} does not fit input {data}")
    return [data, mean, mean, mean, mean][: max(1, len(context.node.outputs))]


def _lower_batch(context: OperatorContext) -> Lowered:
    attributes = {
        "epsilon": reading.number(context, "epsilon", 1e-5),
        "momentum": reading.number(context, "momentum", 0.9),
        "training_mode": reading.integer(context, "training_mode", 0),
    }
    return Lowered("BatchNormalization", attributes, tuple(range(5)))


def _lower_channels(context: OperatorContext) -> Lowered:
    return Lowered(
        context.node.operator, {"epsilon": reading.number(context, "epsilon", 1e-5)}, (0, 1, 2)
    )


def _lower_group(context: OperatorContext) -> Lowered:
    attributes = {
        "epsilon": reading.number(context, "epsilon", 1e-5),
        "num_groups": reading.integer(context, "num_groups"),
    }
    return Lowered("GroupNormalization", attributes, (0, 1, 2))


def _axis(context: OperatorContext, default: int = -1) -> int:
    rank = len(reading.operand(context, 0, "X").shape)
    return reading.resolve_axis(context, reading.integer(context, "axis", default), rank)


def _infer_layer(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    axis = _axis(context)
    ones = (1,) * (len(data.shape) - axis)
    statistic = TensorSpec(_FLOAT32, (*data.shape[:axis], *ones))
    return [data, statistic, statistic][: len(context.node.outputs)]


def _lower_layer(operand_count: int) -> Callable[[OperatorContext], Lowered]:
    def lower(context: OperatorContext) -> Lowered:
        attributes = {
            "axis": _axis(context),
            "epsilon": reading.number(context, "epsilon", 1e-5),
        }
        positions = reading.data_positions(context, operand_count)
        return Lowered(context.node.operator, attributes, positions)

    return lower


def _infer_skip(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    statistic = TensorSpec(_FLOAT32, (*data.shape[:-1], 1))
    return [data, statistic, statistic, data][: len(context.node.outputs)]


def _lower_skip(context: OperatorContext) -> Lowered:
    positions = reading.data_positions(context, 5)
    if "Simplified" in context.node.operator:
        positions = (*positions[:3], -1, positions[3])
    attributes = {"epsilon": reading.number(context, "epsilon", 1e-12)}
    return Lowered(context.node.qualified_operator, attributes, positions)


def _lower_lp(context: OperatorContext) -> Lowered:
    attributes = {"axis": _axis(context), "p": reading.integer(context, "p", 2)}
    return Lowered("LpNormalization", attributes, (0,))


def _lower_mean_variance(context: OperatorContext) -> Lowered:
    rank = len(reading.operand(context, 0, "X").shape)
    axes = reading.integers(context, "axes", (0, 2, 3))
    resolved = sorted(reading.resolve_axis(context, axis, rank) for axis in axes)
    return Lowered("MeanVarianceNormalization", {"axes": tuple(resolved)}, (0,))


def _lower_lrn(context: OperatorContext) -> Lowered:
    attributes = {
        "size": reading.integer(context, "size"),
        "alpha": reading.number(context, "alpha", 1e-4),
        "beta": reading.number(context, "beta", 0.75),
        "bias": reading.number(context, "bias", 1.0),
    }
    return Lowered("LRN", attributes, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("BatchNormalization", _infer_batch, _lower_batch),
    OperatorEntry("InstanceNormalization", _same, _lower_channels),
    OperatorEntry("GroupNormalization", _same, _lower_group),
    OperatorEntry("LayerNormalization", _infer_layer, _lower_layer(3)),
    OperatorEntry("RMSNormalization", _infer_layer, _lower_layer(2)),
    OperatorEntry("SimplifiedLayerNormalization", _infer_layer, _lower_layer(2)),
    OperatorEntry("com.microsoft.SkipLayerNormalization", _infer_skip, _lower_skip),
    OperatorEntry("com.microsoft.SkipSimplifiedLayerNormalization", _infer_skip, _lower_skip),
    OperatorEntry("LpNormalization", _same, _lower_lp),
    OperatorEntry("MeanVarianceNormalization", _same, _lower_mean_variance),
    OperatorEntry("LRN", _same, _lower_lrn),
)
