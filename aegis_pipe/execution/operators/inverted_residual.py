"""Inverted residual blocks of images with channels last (Sandler et al. 2018); made by a pass.

Canonical form:

    aegis.InvertedResidual(X[N, H, W, C], U[E, C, 1, 1]?, a[E]?, D[E, 1, kernel...], b[E]?,
                           V[M, E, 1, 1], c[M]?, Z[like Y]?) -> Y[N, H', W', M]

        Y = clip(conv(clip(depthwise(clip(conv(X, U) + a), D) + b), V) + c + Z)

    Without U the depthwise convolution reads X. `bounds` are low and high of each clip in turn,
    infinite where there is none; strides, dilations and pads are those of the depthwise one.
"""

from __future__ import annotations

from aegis_pipe.execution.operators import reading, windows
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_OPERANDS = 8


def _windows(context: OperatorContext) -> tuple[windows.Windows, TensorSpec]:
    data = reading.operand(context, 0, "X")
    taps = reading.operand(context, 3, "D")
    is_sound = len(data.shape) == len(taps.shape) == 4
    reading.require(is_sound, context, f"input {data} and weights {taps} are not of images")
    return windows.read_windows(context, data.shape[1:3], taps.shape[2:]), data


def _infer(context: OperatorContext) -> list[TensorSpec]:
    geometry, data = _windows(context)
    widening = reading.optional_operand(context, 1)
    taps, narrowing = reading.operand(context, 3, "D"), reading.operand(context, 5, "V")
    channels = data.shape[-1]
    if widening is not None:
        fits = widening.shape[1:] == (channels, 1, 1)
        reading.require(fits, context, f"input {data} and weights {widening} do not fit")
        channels = widening.shape[0]
    fits = taps.shape[:2] == (channels, 1) and narrowing.shape[1:] == (channels, 1, 1)
    reading.require(fits, context, f"weights {taps} and {narrowing} do not fit {channels} channels")
    spatial = geometry.output_shape(data.shape[1:3])
    windows.require_windows(context, data, spatial)
    return [reading.like(data, (data.shape[0], *spatial, narrowing.shape[0]))]


def _lower(context: OperatorContext) -> Lowered:
    geometry, _ = _windows(context)
    bounds = reading.numbers(context, "bounds")
    reading.require(len(bounds) == 6, context, f"{len(bounds)} bounds are not those of three clips")
    attributes: dict[str, Attribute] = {**geometry.attributes(), "bounds": bounds}
    positions = reading.data_positions(context, _OPERANDS)
    return Lowered(context.node.qualified_operator, attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = (OperatorEntry("aegis.InvertedResidual", _infer, _lower),)
