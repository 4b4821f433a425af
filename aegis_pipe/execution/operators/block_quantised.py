"""Weights quantised in blocks to few bits, as language models have them.

Canonical form; weights are packed, the lowest bits of a byte first:

    com.microsoft.MatMulNBits(A[..., K], B[N, blocks, bytes], scales[N, blocks], zeros?, bias[N]?)
        A times the transpose of the weights[N, K]
    com.microsoft.GatherBlockQuantized(data[rows, ..., bytes], indices, scales, zeros?)
        rows of the weights, as of Gather with axis 0

`bits` 2, 4 or 8, `block_size` elements share a scale and a zero point. Zero points are packed
likewise, or of the scales' dtype; left out they are half of the range. One byte holds one element
where `bits` is 8 and where the dtype itself has fewer bits.
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_UINT8 = np.dtype(np.uint8)


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def _sizes(context: OperatorContext, default_bits: int) -> dict[str, Attribute]:
    bits, size = (
        reading.integer(context, "bits", default_bits),
        reading.integer(context, "block_size", 128),
    )
    reading.require(bits in (2, 4, 8), context, f"weights of {bits} bits are unknown")
    reading.require(
        size >= 16 and size & (size - 1) == 0, context, f"block_size {size} is no power of 2"
    )
    return {"bits": bits, "block_size": size}


def _infer_matmul(context: OperatorContext) -> list[TensorSpec]:
    data, weights = reading.operand(context, 0, "A"), reading.operand(context, 1, "B")
    scales = reading.operand(context, 2, "scales")
    columns, depth = reading.integer(context, "N"), reading.integer(context, "K")
    sizes = _sizes(context, 4)
    bits, size = sizes["bits"], sizes["block_size"]
    assert isinstance(bits, int)
    assert isinstance(size, int)
    blocks = _blocks(depth, size)
    reading.require(
        data.shape[-1:] == (depth,)
        and weights.element_count == columns * blocks * size * bits // 8
        and scales.element_count == columns * blocks,
        context,
        f"A {data}, B {weights} and scales {scales} do not fit N {columns} and K {depth}",
    )
    return [reading.like(data, (*data.shape[:-1], columns))]


def _lower_matmul(context: OperatorContext) -> Lowered:
    data, weights, scales, zeros, order, bias = reading.data_positions(context, 6)
    attributes = _sizes(context, 4)
    attributes["is_reordered"] = int(order >= 0)
    attributes["accuracy_level"] = reading.integer(context, "accuracy_level", 0)
    attributes["is_prepacked"] = reading.integer(context, "weight_prepacked", 0)
    return Lowered(
        context.node.qualified_operator, attributes, (data, weights, scales, zeros, bias)
    )


def _infer_gather(context: OperatorContext) -> list[TensorSpec]:
    data, indices = reading.operand(context, 0, "data"), reading.operand(context, 1, "indices")
    scales = reading.operand(context, 2, "scales")
    rank = len(data.shape)
    reading.require(rank > 1, context, f"data {data} is no matrix")
    axis = reading.resolve_axis(context, reading.integer(context, "gather_axis", 0), rank)
    width = data.shape[-1] * _elements_per_byte(context)
    shape = (*data.shape[:-1], width)
    return [reading.like(scales, (*shape[:axis], *indices.shape, *shape[axis + 1 :]))]


def _elements_per_byte(context: OperatorContext) -> int:
    """Return how many elements a byte of data holds; 4-bit dtypes hold one each."""
    is_packed = reading.operand(context, 0, "data").dtype == _UINT8
    return 8 // reading.integer(context, "bits", 4) if is_packed else 1


def _lower_gather(context: OperatorContext) -> Lowered:
    rank = len(reading.operand(context, 0, "data").shape)
    attributes: dict[str, Attribute] = {
        **_sizes(context, 4),
        "gather_axis": reading.resolve_axis(
            context, reading.integer(context, "gather_axis", 0), rank
        ),
        "quantize_axis": reading.resolve_axis(
            context, reading.integer(context, "quantize_axis", 1), rank
        ),
    }
    positions = reading.data_positions(context, 4)
    return Lowered(context.node.qualified_operator, attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("com.microsoft.MatMulNBits", _infer_matmul, _lower_matmul),
    OperatorEntry("com.microsoft.GatherBlockQuantized", _infer_gather, _lower_gather),
)
