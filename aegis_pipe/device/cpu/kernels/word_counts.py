"""Counts of n-grams: every window of a row is looked up in a dictionary made when binding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest


def _accepts(request: KernelRequest) -> bool:
    return operands.input_spec(request, 0).dtype in (np.int32, np.int64)


def _windows(words: list[int], request: KernelRequest) -> Iterator[tuple[int, ...]]:
    """Yield all n-grams of the wanted lengths; with skips, also of words further apart."""
    shortest = operands.integer(request, "shortest")
    for length in range(shortest, operands.integer(request, "longest") + 1):
        # A single word has no gap to widen.
        gaps = range(1, operands.integer(request, "skips") + 2) if length > 1 else (1,)
        for gap in gaps:
            reach = (length - 1) * gap
            for start in range(len(words) - reach):
                yield tuple(words[start : start + reach + 1 : gap])


def _bind(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    rows, counts = data.reshape(-1, data.shape[-1]), result.reshape(-1, result.shape[-1])
    grams, columns = operands.array(request, "grams"), operands.array(request, "columns")
    column_of = {
        tuple(gram[1 : gram[0] + 1].tolist()): int(column)
        for gram, column in zip(grams, columns, strict=True)
    }
    weights, is_binary = operands.array(request, "weights"), operands.integer(request, "binary")

    def run() -> None:
        result.fill(0)
        for words, count in zip(rows, counts, strict=True):
            for window in _windows(words.tolist(), request):
                column = column_of.get(window)
                if column is not None:
                    count[column] += 1
        if is_binary:
            np.minimum(result, 1, out=result)
        np.multiply(result, weights, out=result)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("word_counts", ("TfIdfVectorizer",), _bind, accepts=_accepts),
)
