"""Layers on quantised tensors.

quantised.table          functions of one 8-bit element: a table of its 256 values, made each call
quantised.through_float  dequantise, run the kernel for real numbers, quantise
quantised.lstm           the LSTM with products of bytes; X and the state are quantised too
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.device.cpu.kernels import activations, operands, recurrent
from aegis_pipe.device.cpu.kernels.channels_last import first_shape
from aegis_pipe.device.cpu.kernels.nested import (
    accepts_nested,
    bind_nested,
    nested_cost,
    nested_scratch,
)
from aegis_pipe.device.cpu.kernels.planned import FLOAT32, carve, planned_kernel, scratch_bytes
from aegis_pipe.device.cpu.kernels.quantised_products import quantise_dynamically
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.requantise import exact_float, subtract_zero
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_EIGHT_BITS = (np.dtype(np.int8), np.dtype(np.uint8))
_BLOCK = 8 << 10
"""Elements a block: indices are widened to 8 bytes on the way."""
_CONCAT = "com.microsoft.QLinearConcat"
_W, _R, _W_SCALE, _R_SCALE = 1, 2, 8, 10


def _scalar(inputs: Sequence[np.ndarray | None], position: int) -> np.ndarray | None:
    array = operands.optional(inputs, position)
    return None if array is None else array.reshape(())


def quantise(
    real: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, result: np.ndarray
) -> None:
    """Write real numbers on a scale, rounded to even and saturated; `real` is destroyed."""
    limits = np.iinfo(result.dtype)
    np.divide(real, scale, out=real)
    np.rint(real, out=real)
    if zero is not None:
        np.add(real, zero, out=real, dtype=FLOAT32)
    np.clip(real, limits.min, limits.max, out=real)
    np.copyto(result, real, casting="unsafe")


def _groups(request: KernelRequest) -> list[tuple[int, int, int]]:
    """Return the positions (X, its scale, its zero point) of each part."""
    if request.operator == _CONCAT:
        return [(i, i + 1, i + 2) for i in range(2, len(request.inputs), 3)]
    return [(0, 1, 2)]


def _scale_positions(request: KernelRequest) -> tuple[int, int]:
    """Return the positions of the result's scale and zero point."""
    return (0, 1) if request.operator == _CONCAT else (3, 4)


def _accepts_table(request: KernelRequest) -> bool:
    data = {i for i, _, _ in _groups(request)}
    parameters = [spec for i, spec in enumerate(request.inputs) if i not in data and spec]
    return all(spec.element_count == 1 for spec in parameters) and all(
        spec.dtype in _EIGHT_BITS
        for spec in (
            operands.output_spec(request),
            *(operands.input_spec(request, i) for i in data),
        )
    )


def _table_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    return (
        TensorSpec(FLOAT32, (256,)),
        TensorSpec(operands.output_spec(request).dtype, (256,)),
    )


def _function(request: KernelRequest) -> Callable[[np.ndarray], None] | None:
    if request.operator.endswith("Sigmoid"):
        return activations.sigmoid
    if request.operator.endswith("LeakyRelu"):
        return activations.activation("LeakyRelu", [operands.number(request, "alpha")])
    return None


def _bind_table(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    real, table = scratch
    scale_at, zero_at = _scale_positions(request)
    scale, zero = operands.required(inputs, scale_at).reshape(()), _scalar(inputs, zero_at)
    function = _function(request)
    bounds = operands.integers(request, "levels") if "levels" in request.attributes else ()
    result = operands.required(outputs)
    axis = operands.integer(request, "axis") if request.operator == _CONCAT else 0
    parts = []
    start = 0
    for data_at, part_scale_at, part_zero_at in _groups(request):
        data = operands.required(inputs, data_at)
        size = data.shape[axis] if data.ndim else 1
        target = result[(slice(None),) * axis + (slice(start, start + size),)]
        target = result if request.operator != _CONCAT else target
        start += size
        levels = np.arange(256, dtype=np.uint8).view(data.dtype)
        part_scale = operands.required(inputs, part_scale_at).reshape(())
        part_zero = _scalar(inputs, part_zero_at)
        parts.append((levels, part_scale, part_zero, _blocks(data.view(np.uint8), target)))

    def run() -> None:
        for levels, part_scale, part_zero, blocks in parts:
            subtract_zero(levels, part_zero, real)
            np.multiply(real, part_scale, out=real)
            if function is not None:
                function(real)
            quantise(real, scale, zero, table)
            if bounds:
                np.clip(table, *bounds, out=table)
            for source, target in blocks:
                target[...] = table[source]

    return run


def _blocks(source: np.ndarray, target: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cut both along their first long dimensions into views of about _BLOCK elements."""
    if source.size <= _BLOCK:
        return [(source, target)]
    step = max(1, _BLOCK // (source.size // source.shape[0]))
    pieces = [
        (source[first : first + step], target[first : first + step])
        for first in range(0, source.shape[0], step)
    ]
    if step > 1:
        return pieces
    return [block for a, b in pieces for block in _blocks(a[0], b[0])]


def _real_request(request: KernelRequest) -> KernelRequest:
    """Return the request between real numbers, channels first."""
    data, result = operands.input_spec(request, 0), operands.output_spec(request)
    turn = first_shape if request.attributes.get("channels_last") else tuple
    return replace(
        request,
        operator=request.operator.removeprefix("com.microsoft.QLinear"),
        inputs=(TensorSpec(FLOAT32, turn(data.shape)),),
        outputs=(TensorSpec(FLOAT32, turn(result.shape)),),
        constants={},
        reference=None,
    )


def _accepts_real(request: KernelRequest) -> bool:
    return _accepts_table(request) and accepts_nested(_real_request(request))


def _real_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    real = _real_request(request)
    return (operands.input_spec(real, 0), operands.output_spec(real), nested_scratch(real))


def _real_cost(request: KernelRequest) -> float:
    return nested_cost(_real_request(request))


def _bind_real(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    real_data, real_result, workspace = scratch
    data, result = operands.required(inputs), operands.required(outputs)
    if request.attributes.get("channels_last"):
        data, result = np.moveaxis(data, -1, 1), np.moveaxis(result, -1, 1)
    scale, zero = operands.required(inputs, 1).reshape(()), _scalar(inputs, 2)
    result_scale, result_zero = operands.required(inputs, 3).reshape(()), _scalar(inputs, 4)
    call = bind_nested(_real_request(request), [real_data], [real_result], workspace)

    def run() -> None:
        subtract_zero(data, zero, real_data)
        np.multiply(real_data, scale, out=real_data)
        call()
        quantise(real_result, result_scale, result_zero, result)

    return run


def _lstm_request(request: KernelRequest) -> KernelRequest:
    inputs = list(request.inputs[:8])
    for position in (_W, _R):
        directions, rows, columns = operands.input_spec(request, position).shape
        inputs[position] = TensorSpec(FLOAT32, (directions, columns, rows))
    return replace(request, operator="LSTM", inputs=tuple(inputs), constants={}, reference=None)


def _accepts_lstm(request: KernelRequest) -> bool:
    weights = all(operands.input_spec(request, i).dtype in _EIGHT_BITS for i in (_W, _R))
    return weights and recurrent.accepts(_lstm_request(request))


def _lstm_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return scales of X and H; centred weights, levels and sums of both; the layer's own."""
    real = _lstm_request(request)
    time, batch, _ = operands.input_spec(request, 0).shape
    specs = [TensorSpec(FLOAT32, (2,))]
    for position, rows in ((_W, time * batch), (_R, batch)):
        weights = operands.input_spec(request, position).shape
        dtype = exact_float(weights[1], None)
        shapes = (weights, (rows, weights[1]), (rows, weights[2]))
        specs += [TensorSpec(dtype, shape) for shape in shapes]
    layer = scratch_bytes(recurrent.layer_scratch(real))
    return (*specs, TensorSpec(np.dtype(np.uint8), (layer,)))


def _lstm_cost(request: KernelRequest) -> float:
    return recurrent.layer_cost(_lstm_request(request))


def _by_column(inputs: Sequence[np.ndarray | None], position: int) -> np.ndarray | None:
    """Return [D] or [D, 4 H] parameters as they broadcast to weights [D, inputs, 4 H]."""
    array = operands.optional(inputs, position)
    if array is None:
        return None
    return array.reshape(-1, 1, 1) if array.ndim < 2 else array[:, None, :]


def _bind_lstm(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    """Bind as ONNX Runtime computes it: each product on one grid, over the range of its rows."""
    real = _lstm_request(request)
    own_scales, *working, workspace = scratch
    prepared = []
    multiplied = []
    for index, (position, scale_at) in enumerate(((_W, _W_SCALE), (_R, _R_SCALE))):
        weights, levels, sums = working[3 * index : 3 * index + 3]
        prepared.append(
            (operands.required(inputs, position), _by_column(inputs, scale_at + 1), weights)
        )
        scale = _by_column(inputs, scale_at)
        assert scale is not None
        multiplied.append((weights, scale, levels, sums, own_scales[index : index + 1]))

    def products(direction: int) -> tuple[recurrent.Product, recurrent.Product]:
        of_inputs, of_states = (
            _product(weights[direction], scale[min(direction, len(scale) - 1), 0], *rest)
            for weights, scale, *rest in multiplied
        )
        return of_inputs, of_states

    layer = carve(workspace, recurrent.layer_scratch(real))
    # The layer's own weights are not there: the products replace what would read them.
    call = recurrent.bind_layer(
        real, [inputs[0], None, None, *inputs[3:8]], outputs, layer, products
    )

    def run() -> None:
        for quantised, zero, weights in prepared:
            subtract_zero(quantised, zero, weights)
        call()

    return run


def _product(
    weights: np.ndarray, scale: np.ndarray, levels: np.ndarray, sums: np.ndarray, own: np.ndarray
) -> recurrent.Product:
    """Return the product of rows, quantised over their range, with weights on a scale."""

    def multiply(rows: np.ndarray, results: np.ndarray, counted: np.ndarray | None) -> None:
        count = len(rows)
        quantise_dynamically(rows, levels[:count], own, counted)
        np.matmul(levels[:count], weights, out=sums[:count])
        np.copyto(results, sums[:count], casting="same_kind")
        np.multiply(results, scale * own, out=results)

    return multiply


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "quantised.table",
        (
            "aegis.QLinearClip",
            "com.microsoft.QLinearLeakyRelu",
            "com.microsoft.QLinearSigmoid",
            _CONCAT,
        ),
        _bind_table,
        accepts=_accepts_table,
        scratch=_table_scratch,
    ),
    planned_kernel(
        "quantised.through_float",
        (
            "com.microsoft.QLinearSoftmax",
            "com.microsoft.QLinearAveragePool",
            "com.microsoft.QLinearGlobalAveragePool",
        ),
        _bind_real,
        accepts=_accepts_real,
        scratch=_real_scratch,
        cost=_real_cost,
    ),
    planned_kernel(
        "quantised.lstm",
        ("com.microsoft.DynamicQuantizeLSTM",),
        _bind_lstm,
        accepts=_accepts_lstm,
        scratch=_lstm_scratch,
        cost=_lstm_cost,
    ),
)
