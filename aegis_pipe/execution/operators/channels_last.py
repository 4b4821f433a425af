"""Operators on images with channels last: N, spatial..., C.

Canonical form: the attributes and operands of the operator with channels first, weights included:

    com.microsoft.NhwcMaxPool(X)                        as MaxPool
    aegis.NhwcAveragePool(X)                            as AveragePool; made by our own pass
    com.microsoft.NhwcFusedConv(X, W[M, C / group, kernel...], B?, Z?)
        as com.microsoft.FusedConv; Z, channels last too, is added before the activation
    aegis.PlanarConv(X, W[M, C, kernel...], B?)         as com.microsoft.FusedConv, but that X has
        its channels first and may be float32 where all else is of half precision; our own pass
"""

from __future__ import annotations

from dataclasses import replace

from aegis_pipe.execution.graph import OperatorNode
from aegis_pipe.execution.operators import convolution, pooling, reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_CHANNELS_FIRST = {entry.name: entry for entry in (*pooling.ENTRIES, *convolution.ENTRIES)}
_IMAGES = {"NhwcMaxPool": (0,), "NhwcAveragePool": (0,), "NhwcFusedConv": (0, 3)}


def channels_first(spec: TensorSpec) -> TensorSpec:
    """Return the spec with the last dimension moved to position 1."""
    return reading.like(spec, (*spec.shape[:1], *spec.shape[-1:], *spec.shape[1:-1]))


def channels_last(spec: TensorSpec) -> TensorSpec:
    """Return the spec with dimension 1 moved to the end."""
    return reading.like(spec, (*spec.shape[:1], *spec.shape[2:], *spec.shape[1:2]))


def as_channels_first(
    context: OperatorContext, operator: str, domain: str, images: tuple[int, ...]
) -> OperatorContext:
    """Return the context of another operator, with these operands as channels first."""
    for position in images:
        spec = reading.optional_operand(context, position)
        if spec is not None and len(spec.shape) < 3:
            raise reading.invalid(context, f"input {spec} is not N, spatial..., C")
    specs = [
        channels_first(spec) if spec is not None and position in images else spec
        for position, spec in enumerate(context.inputs)
    ]
    old = context.node
    node = OperatorNode(
        old.name, operator, domain, old.opset, old.attributes, old.inputs, old.outputs
    )
    return OperatorContext(node, tuple(specs), context.constants)


def _counterpart(context: OperatorContext) -> tuple[OperatorEntry, OperatorContext]:
    images = _IMAGES[context.node.operator]
    pool = context.node.operator.removeprefix("Nhwc")
    if pool in ("MaxPool", "AveragePool"):
        return _CHANNELS_FIRST[pool], as_channels_first(context, pool, "", images)
    inner = as_channels_first(context, "FusedConv", "com.microsoft", images)
    return _CHANNELS_FIRST["com.microsoft.FusedConv"], inner


def _infer(context: OperatorContext) -> list[TensorSpec]:
    entry, inner = _counterpart(context)
    return [channels_last(spec) for spec in entry.infer(inner)]


def _lower(context: OperatorContext) -> Lowered:
    entry, inner = _counterpart(context)
    lowered = entry.lower(inner)
    return Lowered(context.node.qualified_operator, lowered.attributes, lowered.data_inputs)


def _planar(context: OperatorContext) -> OperatorContext:
    """Return the context of the convolution with channels first, X in the type of the weights."""
    data, weights = (reading.operand(context, at, name) for at, name in ((0, "X"), (1, "W")))
    node = replace(context.node, operator="FusedConv", domain="com.microsoft")
    inputs = (TensorSpec(weights.dtype, data.shape), *context.inputs[1:])
    return replace(context, node=node, inputs=inputs)


def _infer_planar(context: OperatorContext) -> list[TensorSpec]:
    entry = _CHANNELS_FIRST["com.microsoft.FusedConv"]
    return [channels_last(spec) for spec in entry.infer(_planar(context))]


def _lower_planar(context: OperatorContext) -> Lowered:
    lowered = _CHANNELS_FIRST["com.microsoft.FusedConv"].lower(_planar(context))
    return Lowered(context.node.qualified_operator, lowered.attributes, lowered.data_inputs)


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("com.microsoft.NhwcMaxPool", _infer, _lower),
    OperatorEntry("aegis.NhwcAveragePool", _infer, _lower),
    OperatorEntry("com.microsoft.NhwcFusedConv", _infer, _lower),
    OperatorEntry("aegis.PlanarConv", _infer_planar, _lower_planar),
)
