"""Inverted residual blocks as the three convolutions they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.nested import (
    accepts_nested,
    bind_nested,
    nested_cost,
    nested_scratch,
)
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import Attribute, KernelRequest
from aegis_pipe.tensor import TensorSpec

_POINTWISE: dict[str, Attribute] = {
    "kernel_shape": (1, 1),
    "strides": (1, 1),
    "dilations": (1, 1),
    "pads": (0, 0, 0, 0),
    "group": 1,
}
_WEIGHTS = (1, 3, 5)
"""Positions of the layers' weights; each has its bias behind it."""
_RESIDUAL = 7


def _layers(request: KernelRequest) -> list[tuple[KernelRequest, int]]:
    """Return the convolutions in order, each with the position of its weights."""
    data, result = operands.input_spec(request, 0), operands.output_spec(request)
    bounds = operands.numbers(request, "bounds")
    window = {key: value for key, value in request.attributes.items() if key != "bounds"}
    layers = []
    for index, position in enumerate(_WEIGHTS):
        if not operands.has_input(request, position):
            continue
        weights = operands.input_spec(request, position)
        is_depthwise, is_last = position == _WEIGHTS[1], position == _WEIGHTS[2]
        spatial = result.shape[1:3] if position > _WEIGHTS[0] else data.shape[1:3]
        low, high = bounds[2 * index : 2 * index + 2]
        is_clipped = not (math.isinf(low) and math.isinf(high))
        attributes: dict[str, Attribute] = {
            **(window if is_depthwise else _POINTWISE),
            "group": weights.shape[0] if is_depthwise else 1,
            "activation": "Clip" if is_clipped else "",
            "activation_params": (low, high) if is_clipped else (),
        }
        output = TensorSpec(data.dtype, (data.shape[0], *spatial, weights.shape[0]))
        residual = request.inputs[_RESIDUAL:] if is_last else (None,)
        inputs = (data, weights, request.inputs[position + 1], *(residual or (None,)))
        layers.append(
            (
                KernelRequest(
                    "com.microsoft.NhwcFusedConv", request.node, attributes, inputs, (output,)
                ),
                position,
            )
        )
        data = output
    return layers


def _accepts(request: KernelRequest) -> bool:
    return all(accepts_nested(layer) for layer, _ in _layers(request))


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    layers = [layer for layer, _ in _layers(request)]
    images = [operands.output_spec(layer) for layer in layers[:-1]]
    return (*map(nested_scratch, layers), *images)


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    layers = _layers(request)
    images = [*scratch[len(layers) :], operands.required(outputs)]
    data = operands.required(inputs)
    calls = []
    for (layer, position), workspace, image in zip(layers, scratch, images, strict=False):
        is_last = position == _WEIGHTS[2]
        residual = operands.optional(inputs, _RESIDUAL) if is_last else None
        arrays = [data, inputs[position], operands.optional(inputs, position + 1), residual]
        calls.append(bind_nested(layer, arrays, [image], workspace))
        data = image

    def run() -> None:
        for call in calls:
            call()

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "inverted_residual",
        ("aegis.InvertedResidual",),
        _bind,
        accepts=_accepts,
        scratch=_scratch,
        cost=lambda request: sum(nested_cost(layer) for layer, _ in _layers(request)),
    ),
)
