"""Normalisations: centre into the output, measure there, scale there.

Variance is the mean square of the centred values (two passes over the data, as stable as the
data allows), taken with `np.vecdot`, which needs no temporary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_MEAN_VARIANCE_EPSILON = 1e-9


def _accepts_batch(request: KernelRequest) -> bool:
    specs = [spec for spec in request.inputs if spec]
    only_result = all(spec is None for spec in request.outputs[1:])
    return (
        all(spec.dtype in _FLOATS for spec in specs)
        and specs[0].dtype == operands.output_spec(request).dtype
        and only_result
        and not operands.integer(request, "training_mode")
    )


def _batch_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    variance = operands.input_spec(request, 4)
    data = operands.input_spec(request, 0)
    return (TensorSpec(data.dtype, variance.shape), TensorSpec(data.dtype, variance.shape))


def _per_channel(array: np.ndarray, rank: int) -> np.ndarray:
    return array.reshape(-1, *(1,) * (rank - 2)) if rank >= 2 else array


def _bind_batch(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, scale, bias, mean, variance = (operands.required(inputs, i) for i in range(5))
    result = operands.required(outputs)
    epsilon = operands.number(request, "epsilon")
    slope, offset = scratch
    slopes, offsets = _per_channel(slope, data.ndim), _per_channel(offset, data.ndim)

    def run() -> None:
        np.add(variance, epsilon, out=slope)
        np.sqrt(slope, out=slope)
        np.divide(scale, slope, out=slope)
        np.multiply(mean, slope, out=offset)
        np.subtract(bias, offset, out=offset)
        np.multiply(data, slopes, out=result)
        np.add(result, offsets, out=result)

    return run


def _group_count(request: KernelRequest) -> int:
    if request.operator == "GroupNormalization":
        return operands.integer(request, "num_groups")
    return operands.input_spec(request, 0).shape[1]


def _group_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    rows = (data.shape[0] * _group_count(request),)
    return (TensorSpec(data.dtype, rows), TensorSpec(data.dtype, rows))


def _bind_group(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    """Bind instance and group normalisation: rows are (image, group) pairs."""
    data, scale, bias = (operands.required(inputs, i) for i in range(3))
    result = operands.required(outputs)
    groups = _group_count(request)
    rows = data.reshape(data.shape[0] * groups, -1)
    target = result.reshape(rows.shape)
    lead = groups if scale.size == groups else data.shape[1]
    channels = result.reshape(data.shape[0], lead, -1)
    epsilon = operands.number(request, "epsilon")

    def run() -> None:
        standardise(rows, target, *scratch, epsilon=epsilon)
        np.multiply(channels, scale[:, None], out=channels)
        np.add(channels, bias[:, None], out=channels)

    return run


def standardise(
    rows: np.ndarray,
    target: np.ndarray,
    mean: np.ndarray,
    deviation: np.ndarray,
    *,
    epsilon: float,
    centre: bool = True,
) -> None:
    """Write rows [r, n] with mean 0 (if `centre`) and variance 1 into `target`.

    `mean` [r] is left with the means, `deviation` [r] with sqrt(variance + epsilon).
    `target` may be `rows`.
    """
    count = rows.shape[1]
    if centre:
        np.add.reduce(rows, axis=1, out=mean)
        np.divide(mean, count, out=mean)
        np.subtract(rows, mean[:, None], out=target)
        np.vecdot(target, target, out=deviation)
    else:
        np.vecdot(rows, rows, out=deviation)
    np.divide(deviation, count, out=deviation)
    np.add(deviation, epsilon, out=deviation)
    np.sqrt(deviation, out=deviation)
    np.divide(target if centre else rows, deviation[:, None], out=target)


def _layer_rows(request: KernelRequest) -> int:
    axis = operands.integer(request, "axis")
    return math.prod(operands.input_spec(request, 0).shape[:axis])


def _accepts_layer(request: KernelRequest) -> bool:
    specs = [spec for spec in request.inputs if spec]
    return specs[0].dtype in _FLOATS and len({spec.dtype for spec in specs}) == 1


def _layer_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    rows = (_layer_rows(request),)
    return (TensorSpec(data.dtype, rows), TensorSpec(data.dtype, rows))


def _bind_layer(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, scale = operands.required(inputs, 0), operands.required(inputs, 1)
    bias = operands.optional(inputs, 2)
    result = operands.required(outputs)
    rows = data.reshape(_layer_rows(request), -1)
    target = result.reshape(rows.shape)
    mean, deviation = scratch
    statistics = [_flat(operands.optional(outputs, position)) for position in (1, 2)]
    epsilon = operands.number(request, "epsilon")
    centre = request.operator == "LayerNormalization"

    def run() -> None:
        standardise(rows, target, mean, deviation, epsilon=epsilon, centre=centre)
        np.multiply(result, scale, out=result)
        if bias is not None:
            np.add(result, bias, out=result)
        _write_statistics(statistics, mean, deviation)

    return run


def _flat(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.reshape(-1)


def _write_statistics(
    wanted: Sequence[np.ndarray | None], mean: np.ndarray, deviation: np.ndarray
) -> None:
    if wanted[0] is not None:
        np.copyto(wanted[0], mean)
    if wanted[1] is not None:
        np.divide(1, deviation, out=wanted[1])


def _skip_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    rows = (math.prod(data.shape[:-1]),)
    return (TensorSpec(data.dtype, rows), TensorSpec(data.dtype, rows))


def _bind_skip(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, skip, gamma = (operands.required(inputs, i) for i in range(3))
    beta, bias = operands.optional(inputs, 3), operands.optional(inputs, 4)
    result = operands.required(outputs)
    total = operands.optional(outputs, 3)
    total = result if total is None else total
    rows = total.reshape(-1, data.shape[-1])
    target = result.reshape(rows.shape)
    mean, deviation = scratch
    statistics = [_flat(operands.optional(outputs, position)) for position in (1, 2)]
    epsilon = operands.number(request, "epsilon")
    centre = request.operator == "com.microsoft.SkipLayerNormalization"

    def run() -> None:
        np.add(data, skip, out=total)
        if bias is not None:
            np.add(total, bias, out=total)
        standardise(rows, target, mean, deviation, epsilon=epsilon, centre=centre)
        np.multiply(result, gamma, out=result)
        if beta is not None:
            np.add(result, beta, out=result)
        _write_statistics(statistics, mean, deviation)

    return run


def _lp_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    axis = operands.integer(request, "axis")
    norms = (*data.shape[:axis], 1, *data.shape[axis + 1 :])
    return (TensorSpec(data.dtype, norms), TensorSpec(np.dtype(np.bool_), norms))


def _bind_lp(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    axis, order = operands.integer(request, "axis"), operands.integer(request, "p")
    norms, is_zero = scratch

    def run() -> None:
        if order == 1:
            np.abs(data, out=result)
        else:
            np.multiply(data, data, out=result)
        np.add.reduce(result, axis=axis, keepdims=True, out=norms)
        if order == 2:
            np.sqrt(norms, out=norms)
        np.equal(norms, 0, out=is_zero)
        # A vector of norm 0 stays 0.
        np.copyto(norms, 1, where=is_zero)
        np.divide(data, norms, out=result)

    return run


def _mean_variance_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    data = operands.input_spec(request, 0)
    axes = operands.integers(request, "axes")
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(data.shape))
    return (data, TensorSpec(data.dtype, kept))


def _bind_mean_variance(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    axes = operands.integers(request, "axes")
    count = math.prod(data.shape[axis] for axis in axes)
    squares, statistic = scratch

    def run() -> None:
        np.add.reduce(data, axis=axes, keepdims=True, out=statistic)
        np.divide(statistic, count, out=statistic)
        np.subtract(data, statistic, out=result)
        np.multiply(result, result, out=squares)
        np.add.reduce(squares, axis=axes, keepdims=True, out=statistic)
        np.divide(statistic, count, out=statistic)
        np.sqrt(statistic, out=statistic)
        np.add(statistic, _MEAN_VARIANCE_EPSILON, out=statistic)
        np.divide(result, statistic, out=result)

    return run


def _lrn_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    return (operands.input_spec(request, 0),)


def _bind_lrn(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    squares = scratch[0]
    size, channels = operands.integer(request, "size"), data.shape[1]
    before, after = (size - 1) // 2, size // 2
    sums = []
    for shift in range(-before, after + 1):
        first, last = max(0, -shift), min(channels, channels - shift)
        if first < last:
            sums.append((result[:, first:last], squares[:, first + shift : last + shift]))
    alpha, bias = operands.number(request, "alpha") / size, operands.number(request, "bias")
    beta = operands.number(request, "beta")

    def run() -> None:
        np.multiply(data, data, out=squares)
        result.fill(0)
        for total, square in sums:
            np.add(total, square, out=total)
        np.multiply(result, alpha, out=result)
        np.add(result, bias, out=result)
        np.power(result, -beta, out=result)
        np.multiply(result, data, out=result)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "batch_normalisation",
        ("BatchNormalization",),
        _bind_batch,
        accepts=_accepts_batch,
        scratch=_batch_scratch,
        in_place=((0, 0),),
    ),
    planned_kernel(
        "group_normalisation",
        ("InstanceNormalization", "GroupNormalization"),
        _bind_group,
        scratch=_group_scratch,
        in_place=((0, 0),),
    ),
    planned_kernel(
        "layer_normalisation",
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        _bind_layer,
        accepts=_accepts_layer,
        scratch=_layer_scratch,
        in_place=((0, 0),),
    ),
    planned_kernel(
        "skip_layer_normalisation",
        (
            "com.microsoft.SkipLayerNormalization",
            "com.microsoft.SkipSimplifiedLayerNormalization",
        ),
        _bind_skip,
        accepts=_accepts_layer,
        scratch=_skip_scratch,
    ),
    planned_kernel("lp_normalisation", ("LpNormalization",), _bind_lp, scratch=_lp_scratch),
    planned_kernel(
        "mean_variance_normalisation",
        ("MeanVarianceNormalization",),
        _bind_mean_variance,
        scratch=_mean_variance_scratch,
        in_place=((0, 0),),
    ),
    planned_kernel("lrn", ("LRN",), _bind_lrn, scratch=_lrn_scratch),
)
