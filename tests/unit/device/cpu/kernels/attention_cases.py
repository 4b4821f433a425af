"""Attention: heads of every layout, masks that broadcast, keys above and below a panel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node

_KERNEL = "native.attention"
_OPSET = 23
"""The first with Attention."""


def _attention(
    q: Sequence[int],
    k: Sequence[int],
    v: Sequence[int],
    mask: Sequence[int] | None = None,
    *,
    like_onnxruntime: bool = True,
    **attributes: object,
) -> Case:
    values = [random(*q), random(*k), random(*v)] + ([random(*mask)] if mask else [])
    node = make_node("Attention", len(values), **attributes)
    return Case(_KERNEL, node, values, (), _OPSET, like_onnxruntime)


def _strided(
    bases: Sequence[Sequence[int]],
    views: Sequence[tuple[int, ...]],
    shape: tuple[int, ...],
    mask: Sequence[int] | None = None,
) -> Case:
    values = [random(*base) for base in bases] + ([random(*mask)] if mask else [])
    names = ("q_view", "k_view", "v_view", "y_view")
    node: onnx.NodeProto = make_node(
        "StridedAttention",
        len(values),
        domain="aegis",
        scale=0.3,
        shape=shape,
        **dict(zip(names, views, strict=True)),
    )
    return Case(_KERNEL, node, values, like_onnxruntime=False)


def _multi_head(q: Sequence[int], k: Sequence[int], v: Sequence[int], heads: int) -> Case:
    node = make_node("MultiHeadAttention", 3, domain="com.microsoft", num_heads=heads)
    return Case(_KERNEL, node, [random(*q), random(*k), random(*v)])


def _side_by_side() -> Case:
    """Queries, keys and values in one tensor [length, 3 * heads * size]: merged projections."""
    packed = random(70, 3 * 4 * 24)
    views = [(1, 4, 70, 24, 0, 24, 288, 96 * place) for place in range(3)]
    case = _strided([(1,)] * 3, [*views, (1, 4, 70, 24, 0, 24, 96, 0)], (70, 96))
    return Case(case.kernel, case.node, [packed] * 3, like_onnxruntime=False)


ATTENTION: dict[str, Case] = {
    "attention": _attention((2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)),
    "attention of a block": _attention((1, 2, 197, 64), (1, 2, 197, 64), (1, 2, 197, 64)),
    "attention of long keys": _attention((1, 2, 40, 33), (1, 2, 1201, 33), (1, 2, 1201, 70)),
    "attention of one query": _attention((2, 2, 1, 20), (2, 2, 65, 20), (2, 2, 65, 3)),
    "attention in rows": _attention(
        (2, 9, 24), (2, 64, 24), (2, 64, 40), q_num_heads=4, kv_num_heads=4
    ),
    "attention of shared keys": _attention((2, 6, 13, 16), (2, 2, 30, 16), (2, 2, 30, 16)),
    "attention of shared keys in rows": _attention(
        (1, 9, 48), (1, 11, 16), (1, 11, 24), q_num_heads=6, kv_num_heads=2
    ),
    "attention masked": _attention((2, 3, 21, 8), (2, 3, 70, 8), (2, 3, 70, 8), (21, 70)),
    "attention masked by heads": _attention(
        (2, 3, 21, 8), (2, 3, 17, 8), (2, 3, 17, 8), (1, 3, 21, 17)
    ),
    # ONNX Runtime wants a row for every query.
    "attention masked by batch": _attention(
        (2, 3, 21, 8), (2, 3, 17, 8), (2, 3, 17, 8), (2, 1, 1, 17), like_onnxruntime=False
    ),
    "attention causal": _attention(
        (1, 2, 130, 16), (1, 2, 130, 16), (1, 2, 130, 16), is_causal=1, scale=0.7
    ),
    "attention causal masked": _attention(
        (1, 2, 33, 16), (1, 2, 20, 16), (1, 2, 20, 16), (33, 20), is_causal=1
    ),
    "attention of several heads": _multi_head((2, 5, 24), (2, 9, 24), (2, 9, 36), 3),
    "strided attention side by side": _side_by_side(),
    "strided attention": _strided(
        [(2, 6, 3, 10), (2, 40, 3, 10), (3, 40, 2, 12)],
        [
            (2, 3, 6, 10, 180, 10, 30, 0),
            (2, 3, 40, 10, 1200, 10, 30, 0),
            (2, 3, 40, 12, 12, 960, 24, 0),
            (2, 3, 6, 12, 216, 12, 36, 0),
        ],
        (2, 6, 36),
        (2, 1, 6, 40),
    ),
}


def masked_rows() -> tuple[list[np.ndarray], np.ndarray]:
    """Operands of two heads, and a mask that leaves row 1 nothing and row 2 a NaN."""
    mask = np.zeros((4, 20), np.float32)
    mask[0, 3:] = -np.inf
    mask[1] = -np.inf
    mask[2, 5] = np.nan
    return [random(1, 2, 4, 8), random(1, 2, 20, 8), random(1, 2, 20, 8)], mask
