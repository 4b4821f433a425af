"""Einsum: two operands as one batched matrix product where they allow it.

einsum.matmul    operands arranged as [batch, rows, depth] and [batch, depth, columns]
einsum           everything else, by NumPy's loop over all letters; no temporaries
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec


@dataclass(frozen=True, slots=True)
class _Contraction:
    """Letters by role; each operand's shape is its letters' sizes."""

    left: str
    right: str
    result: str
    batch: str
    rows: str
    depth: str
    columns: str
    sizes: dict[str, int]

    def shape(self, *roles: str) -> tuple[int, ...]:
        """Return one dimension a role: the product of its letters' sizes."""
        return tuple(math.prod(self.sizes[letter] for letter in role) for role in roles)

    def letter_shape(self, letters: str) -> tuple[int, ...]:
        return tuple(self.sizes[letter] for letter in letters)


def _contraction(request: KernelRequest) -> _Contraction | None:
    """Return the roles, or None if this is not a plain product of two matrices."""
    left_terms, _, result = operands.text(request, "equation").partition("->")
    terms = left_terms.split(",")
    if len(terms) != 2:
        return None
    sizes: dict[str, int] = {}
    for position, term in enumerate(terms):
        for letter, size in zip(term, operands.input_spec(request, position).shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                return None
    left, right = terms
    repeats = any(len(set(term)) < len(term) for term in (left, right, result))
    lonely = (set(left) ^ set(right)) - set(result)
    if repeats or lonely:
        return None
    return _Contraction(
        left,
        right,
        result,
        batch="".join(x for x in result if x in left and x in right),
        rows="".join(x for x in result if x not in right),
        depth="".join(x for x in left if x in right and x not in result),
        columns="".join(x for x in result if x not in left),
        sizes=sizes,
    )


def _accepts_matmul(request: KernelRequest) -> bool:
    return _accepts(request) and _contraction(request) is not None


def _accepts(request: KernelRequest) -> bool:
    return len({spec.dtype for spec in request.inputs if spec}) == 1


def _required_contraction(request: KernelRequest) -> _Contraction:
    contraction = _contraction(request)
    assert contraction is not None
    return contraction


def _scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return an array for each operand that is not already in order, and for the result."""
    parts = _required_contraction(request)
    dtype = operands.output_spec(request).dtype
    wanted = (
        (parts.left, parts.batch + parts.rows + parts.depth),
        (parts.right, parts.batch + parts.depth + parts.columns),
        (parts.result, parts.batch + parts.rows + parts.columns),
    )
    return [
        TensorSpec(dtype, (0,) if given == order else parts.letter_shape(order))
        for given, order in wanted
    ]


def _cost(request: KernelRequest) -> float:
    parts = _required_contraction(request)
    return float(math.prod(parts.sizes.values()))


def _bind_matmul(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    parts = _required_contraction(request)
    left, right = operands.required(inputs, 0), operands.required(inputs, 1)
    result = operands.required(outputs)
    gathers: list[tuple[np.ndarray, np.ndarray]] = []

    def in_order(array: np.ndarray, given: str, order: str, spare: np.ndarray) -> np.ndarray:
        if given == order:
            return array
        gathers.append((spare, array.transpose([given.index(letter) for letter in order])))
        return spare

    left_order = parts.batch + parts.rows + parts.depth
    right_order = parts.batch + parts.depth + parts.columns
    result_order = parts.batch + parts.rows + parts.columns
    left = in_order(left, parts.left, left_order, scratch[0])
    right = in_order(right, parts.right, right_order, scratch[1])
    is_ordered = parts.result == result_order
    product = result if is_ordered else scratch[2]
    scattered = product.transpose([result_order.index(letter) for letter in parts.result])
    left = left.reshape(parts.shape(parts.batch, parts.rows, parts.depth))
    right = right.reshape(parts.shape(parts.batch, parts.depth, parts.columns))
    matrices = product.reshape(parts.shape(parts.batch, parts.rows, parts.columns))

    def run() -> None:
        for target, source in gathers:
            np.copyto(target, source)
        np.matmul(left, right, out=matrices)
        if not is_ordered:
            np.copyto(result, scattered)

    return run


def _bind_loop(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    equation = operands.text(request, "equation")
    arrays = [array for array in inputs if array is not None]
    result = operands.required(outputs)

    def run() -> None:
        np.einsum(equation, *arrays, out=result, optimize=False)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "einsum.matmul",
        ("Einsum",),
        _bind_matmul,
        accepts=_accepts_matmul,
        scratch=_scratch,
        cost=_cost,
    ),
    planned_kernel("einsum", ("Einsum",), _bind_loop, accepts=_accepts),
)
