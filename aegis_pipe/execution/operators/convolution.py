"""Convolutions. Layout is N, C, spatial...; 1 to 3 spatial dimensions and more.

Canonical form: the attributes of `windows.Windows` plus `group`, and

    Conv(X[N, C, ...], W[M, C/group, kernel...], B[M]?)
    ConvTranspose(X[N, C, ...], W[C, M/group, kernel...], B[M]?)
        `pads` crop the full result; what lies beyond the last tap (output padding) is bias or 0
    com.microsoft.FusedConv(X, W, B?, Z[like Y]?): activation(Conv(X, W, B) + Z) with
        `activation` ("" for none) and `activation_params` (floats)
    ConvInteger(X, W, x_zero_point?, w_zero_point[1 or M]?) -> int32
    QLinearConv(X, x_scale, x_zero_point, W, w_scale, w_zero_point, y_scale, y_zero_point, B?)
        scales and zero points are scalars; those of W may be [M]; B is int32
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from aegis_pipe.execution.operators import reading, windows
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_Infer = Callable[[OperatorContext], list[TensorSpec]]
_Lower = Callable[[OperatorContext], Lowered]


def _geometry(context: OperatorContext, weights_at: int) -> tuple[windows.Windows, TensorSpec]:
    data = reading.operand(context, 0, "X")
    weights = reading.operand(context, weights_at, "W")
    if not len(data.shape) == len(weights.shape) >= 2:
        raise reading.invalid(context, f"input {data} and weights {weights} differ in rank")
    kernel_shape = reading.integers(context, "kernel_shape", weights.shape[2:])
    if kernel_shape != weights.shape[2:]:
        raise reading.invalid(context, f"kernel_shape does not fit weights {weights}")
    return windows.read_windows(context, data.shape[2:], kernel_shape), data


def _infer_conv(weights_at: int, result: np.dtype | None) -> _Infer:
    def infer(context: OperatorContext) -> list[TensorSpec]:
        geometry, data = _geometry(context, weights_at)
        weights = reading.operand(context, weights_at, "W")
        group = reading.integer(context, "group", 1)
        is_sound = group > 0 and data.shape[1] == weights.shape[1] * group
        if not is_sound or weights.shape[0] % group != 0:
            raise reading.invalid(
                context, f"input {data}, weights {weights} and group {group} do not fit"
            )
        spatial = geometry.output_shape(data.shape[2:])
        windows.require_windows(context, data, spatial)
        dtype = result or data.dtype
        return [TensorSpec(dtype, (data.shape[0], weights.shape[0], *spatial))]

    return infer


def _infer_qlinear_conv(context: OperatorContext) -> list[TensorSpec]:
    return _infer_conv(3, reading.operand(context, 7, "y_zero_point").dtype)(context)


def _lower_conv(weights_at: int, operand_count: int) -> _Lower:
    def lower(context: OperatorContext) -> Lowered:
        geometry, _ = _geometry(context, weights_at)
        attributes = {**geometry.attributes(), "group": reading.integer(context, "group", 1)}
        return Lowered(
            context.node.qualified_operator,
            attributes,
            reading.data_positions(context, operand_count),
        )

    return lower


def _lower_fused_conv(context: OperatorContext) -> Lowered:
    plain = _lower_conv(1, 4)(context)
    fused: dict[str, Attribute] = {
        "activation": reading.text(context, "activation", ""),
        "activation_params": reading.numbers(context, "activation_params"),
    }
    return Lowered(plain.operator, {**plain.attributes, **fused}, plain.data_inputs)


def _transposed(context: OperatorContext) -> tuple[windows.Windows, tuple[int, ...]]:
    """Return the windows, pads resolved, and the output's spatial dimensions."""
    geometry, data = _geometry(context, 1)
    spatial = data.shape[2:]
    output_padding = reading.integers(context, "output_padding", (0,) * len(spatial))
    full = tuple(
        [
            (size - 1) * stride + extra + extent
            for size, stride, extra, extent in zip(
                spatial, geometry.strides, output_padding, geometry.extents, strict=True
            )
        ]
    )
    auto_pad = reading.text(context, "auto_pad", "NOTSET")
    wanted = reading.integers(context, "output_shape", ())[-len(spatial) :]
    if not wanted and auto_pad.startswith("SAME"):
        wanted = tuple(
            [size * stride for size, stride in zip(spatial, geometry.strides, strict=True)]
        )
    if wanted:
        totals = [max(0, size - want) for size, want in zip(full, wanted, strict=True)]
        more_at_end = auto_pad == "SAME_UPPER"
        return windows.with_total_pads(geometry, totals, more_at_end=more_at_end), wanted
    pads = zip(full, geometry.pads_begin, geometry.pads_end, strict=True)
    return geometry, tuple([size - begin - end for size, begin, end in pads])


def _infer_conv_transpose(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "X")
    weights = reading.operand(context, 1, "W")
    if weights.shape[0] != data.shape[1]:
        raise reading.invalid(context, f"input {data} and weights {weights} do not fit")
    _, spatial = _transposed(context)
    maps = weights.shape[1] * reading.integer(context, "group", 1)
    return [reading.like(data, (data.shape[0], maps, *spatial))]


def _lower_conv_transpose(context: OperatorContext) -> Lowered:
    geometry, _ = _transposed(context)
    attributes = {**geometry.attributes(), "group": reading.integer(context, "group", 1)}
    return Lowered("ConvTranspose", attributes, reading.data_positions(context, 3))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("Conv", _infer_conv(1, None), _lower_conv(1, 3)),
    OperatorEntry("com.microsoft.FusedConv", _infer_conv(1, None), _lower_fused_conv),
    OperatorEntry("ConvTranspose", _infer_conv_transpose, _lower_conv_transpose),
    OperatorEntry("ConvInteger", _infer_conv(1, np.dtype(np.int32)), _lower_conv(1, 4)),
    OperatorEntry("QLinearConv", _infer_qlinear_conv, _lower_conv(3, 9)),
)
