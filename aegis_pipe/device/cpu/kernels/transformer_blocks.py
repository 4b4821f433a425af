"""GELU and embedding lookups of transformer encoders."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial, chebyshev

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.normalisation import standardise
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_BLOCK = 16 << 10
"""Elements a block: what a GELU works on stays in the first-level cache or close to it."""
_DEGREES = {np.dtype(np.float32): 10, np.dtype(np.float64): 20}
_TAIL_START = 1 / 14
"""1 / (1 + z / 2) at z = 26, beyond which erfc(z) is 0 in float64."""
_INT32 = np.dtype(np.int32)


@functools.cache
def tail_coefficients(degree: int) -> tuple[float, ...]:
    """Return P, lowest power first, with erfc(z) = t exp(P(t) - z^2) and t = 1 / (1 + z / 2).

    Interpolated at Chebyshev points. The relative error for z in [0, 26] is 5e-8 at degree 10 and
    2e-13 at degree 20.
    """
    half = (1 - _TAIL_START) / 2

    t = (chebyshev.chebpts1(degree + 1) + 1) * half + _TAIL_START
    z = 2 / t - 2
    exponents = [math.log(math.erfc(a) / b) + a * a for a, b in zip(z, t, strict=True)]
    series = Chebyshev.fit(t, exponents, degree, domain=[_TAIL_START, 1])
    return tuple(map(float, series.convert(kind=Polynomial).coef))


def _gelu_exact(x: np.ndarray, z: np.ndarray, t: np.ndarray, out: np.ndarray) -> None:
    """Write max(x, 0) - |x| erfc(|x| / sqrt 2) / 2, which is accurate on both sides."""
    highest, *others = reversed(tail_coefficients(_DEGREES[x.dtype]))
    np.abs(x, out=z)
    np.multiply(z, math.sqrt(0.5), out=z)
    np.multiply(z, 0.5, out=t)
    np.add(t, 1, out=t)
    np.divide(1, t, out=t)
    # Horner's scheme, accumulated in the output.
    np.multiply(t, highest, out=out)
    for coefficient in others[:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, t, out=out)
    np.add(out, others[-1], out=out)
    np.multiply(t, z, out=t)
    np.multiply(z, z, out=z)
    np.subtract(out, z, out=out)
    np.exp(out, out=out)
    # t holds t |x| / sqrt 2 by now, and |x| / 2 = sqrt(1/2) |x| / sqrt 2.
    np.multiply(t, math.sqrt(0.5), out=t)
    np.multiply(out, t, out=out)
    np.maximum(x, 0, out=z)
    np.subtract(z, out, out=out)


def _gelu_tanh(x: np.ndarray, z: np.ndarray, t: np.ndarray, out: np.ndarray) -> None:
    """Write x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 (Hendrycks and Gimpel 2016)."""
    scale = math.sqrt(2 / math.pi)
    np.multiply(x, x, out=z)
    np.multiply(z, 0.044715 * scale, out=z)
    np.add(z, scale, out=z)
    np.multiply(z, x, out=z)
    np.tanh(z, out=z)
    np.add(z, 1, out=z)
    np.multiply(z, 0.5, out=z)
    np.multiply(z, x, out=out)


def _block_rows(request: KernelRequest) -> tuple[int, int]:
    """Return (rows of a block, width); rows are those the bias is added to."""
    data = operands.input_spec(request, 0)
    width = data.shape[-1] if data.shape else 1
    rows = max(1, min(data.element_count, _BLOCK) // max(width, 1))
    return rows, width


def _gelu_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    block = TensorSpec(operands.input_spec(request, 0).dtype, _block_rows(request))
    return (block, block, block)


def _bind_gelu(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    rows, width = _block_rows(request)
    data = operands.required(inputs).reshape(-1, width)
    result = operands.required(outputs).reshape(-1, width)
    bias = operands.optional(inputs, 1)
    gelu = _gelu_tanh if operands.text(request, "approximate") == "tanh" else _gelu_exact
    blocks = []
    for first in range(0, data.shape[0], rows):
        source = data[first : first + rows]
        x, z, t = (array[: source.shape[0]] for array in scratch)
        blocks.append((source, x, z, t, result[first : first + rows]))

    def run() -> None:
        for source, x, z, t, target in blocks:
            if bias is None:
                np.copyto(x, source)
            else:
                np.add(source, bias, out=x)
            gelu(x, z, t, target)

    return run


def _accepts_embedding(request: KernelRequest) -> bool:
    return operands.input_spec(request, 2).dtype in _DEGREES


def _embedding_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    result = operands.output_spec(request)
    rows = (math.prod(result.shape[:2]),)
    statistic = TensorSpec(result.dtype, rows)
    return (result, statistic, statistic)


def _bind_embedding(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    ids, words = operands.required(inputs, 0), operands.required(inputs, 2)
    positions, gamma, beta = (operands.required(inputs, i) for i in (3, 5, 6))
    position_ids = operands.optional(inputs, 8)
    looked_up = [(words, ids)]
    for table_at, ids_at in ((4, 1), (3, 8)):
        table, indices = operands.optional(inputs, table_at), operands.optional(inputs, ids_at)
        if table is not None and indices is not None:
            looked_up.append((table, indices))
    result = operands.required(outputs)
    total = operands.optional(outputs, 2)
    total = result if total is None else total
    found, mean, deviation = scratch
    rows = total.reshape(-1, total.shape[-1])
    target = result.reshape(rows.shape)
    epsilon = operands.number(request, "epsilon")
    mask, counts = operands.optional(inputs, 7), operands.optional(outputs, 1)

    def run() -> None:
        total.fill(0)
        for table, indices in looked_up:
            _check_indices(request, indices, table.shape[0])
            part = found[: indices.shape[0]]
            np.take(table, indices, axis=0, out=part, mode="clip")
            np.add(total, part, out=total)
        if position_ids is None:
            np.add(total, positions[: ids.shape[1]], out=total)
        standardise(rows, target, mean, deviation, epsilon=epsilon)
        np.multiply(result, gamma, out=result)
        np.add(result, beta, out=result)
        if counts is not None:
            counts.fill(0)
            if mask is not None:
                np.add.reduce(mask, axis=1, dtype=_INT32, out=counts)

    return run


def _check_indices(request: KernelRequest, indices: np.ndarray, count: int) -> None:
    if indices.size and not 0 <= indices.min() <= indices.max() < count:
        raise KernelError(
            f"ids reach from {indices.min()} to {indices.max()}, but the table has {count} rows",
            context=f"node `{request.node}` ({request.operator})",
            hint="check that the tokeniser belongs to this model",
        )


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("gelu", ("com.microsoft.BiasGelu",), _bind_gelu, scratch=_gelu_scratch),
    planned_kernel(
        "embed_layer_normalisation",
        ("com.microsoft.EmbedLayerNormalization",),
        _bind_embedding,
        accepts=_accepts_embedding,
        scratch=_embedding_scratch,
    ),
)
