"""Attention and rotary embeddings.

Canonical form:

    Attention(Q, K, V, attn_mask?, past_key?, past_value?, nonpad_kv_seqlen[batch]?)
        -> Y, present_key?, present_value?, qk_matmul_output?
        Q, K, V are all [batch, heads, length, size] or all [batch, length, heads * size]
        `q_num_heads`, `kv_num_heads`, `scale` (of Q K^T), `is_causal`, `softcap` (0 for none),
        `left_window_size`, `right_window_size` (-1 for unbounded), `qk_matmul_output_mode`:
        0 raw product, 1 after softcap, 2 after mask, 3 after softmax
        The softmax is taken in float32 at least. Rows that attend to nothing are 0.
        com.microsoft.MultiHeadAttention without bias and padding mask becomes this; with them, and
        com.microsoft.Attention, the pass `expand_attention` makes it of most forms
    aegis.StridedAttention(Q, K, V, mask?)                  made by our own pass
        Attention whose operands are views of dense tensors of any shape: `q_view`, `k_view`,
        `v_view` and `y_view` are batch, heads, length, size, the strides of the first three, and
        the offset of the first element; `scale`. The mask is added to the scores
    com.microsoft.Attention(X[batch, length, inputs], W[inputs, hidden], B[hidden]?, mask?)
        Q, K and V, side by side, are X W + B; `widths` of the three; mask [batch, keys] of 0 and 1,
        where 0 adds `mask_filter_value`; `num_heads`, `scale`, `is_causal`
    RotaryEmbedding(X, cos_cache, sin_cache, position_ids[batch, length]?)
        X as Q above; `num_heads`, `rotary_embedding_dim` (how much of a head turns), `interleaved`
"""

from __future__ import annotations

import math

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec


def _heads(context: OperatorContext, position: int, attribute: str) -> tuple[int, int, int, int]:
    """Return (batch, heads, length, size) of an operand in either layout."""
    spec = reading.operand(context, position, "QKV"[position])
    if len(spec.shape) == 4:
        batch, heads, length, size = spec.shape
        return batch, heads, length, size
    reading.require(len(spec.shape) == 3, context, f"{spec} has neither 3 nor 4 dimensions")
    batch, length, width = spec.shape
    heads = reading.integer(context, attribute, 0)
    reading.require(
        heads > 0 and width % heads == 0, context, f"{attribute} {heads} does not divide {width}"
    )
    return batch, heads, length, width // heads


def _infer_attention(context: OperatorContext) -> list[TensorSpec]:
    query = reading.operand(context, 0, "Q")
    value = reading.operand(context, 2, "V")
    batch, heads, length, size = _heads(context, 0, "q_num_heads")
    _, kv_heads, kv_length, key_size = _heads(context, 1, "kv_num_heads")
    *_, value_size = _heads(context, 2, "kv_num_heads")
    reading.require(
        size == key_size and heads % kv_heads == 0,
        context,
        f"{heads} query heads of {size} do not fit {kv_heads} key heads of {key_size}",
    )
    past = reading.optional_operand(context, 4)
    total = kv_length + (past.shape[2] if past else 0)
    flat = (batch, length, heads * value_size)
    result = (batch, heads, length, value_size) if len(query.shape) == 4 else flat
    results = [
        reading.like(query, result),
        reading.like(reading.operand(context, 1, "K"), (batch, kv_heads, total, key_size)),
        reading.like(value, (batch, kv_heads, total, value_size)),
        reading.like(query, (batch, heads, length, total)),
    ]
    return results[: len(context.node.outputs)]


def _lower_attention(context: OperatorContext) -> Lowered:
    _, heads, _, size = _heads(context, 0, "q_num_heads")
    _, kv_heads, _, _ = _heads(context, 1, "kv_num_heads")
    attributes = {
        "q_num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": reading.number(context, "scale", 1 / math.sqrt(max(size, 1))),
        "is_causal": reading.integer(context, "is_causal", 0),
        "softcap": reading.number(context, "softcap", 0.0),
        "left_window_size": reading.integer(context, "left_window_size", -1),
        "right_window_size": reading.integer(context, "right_window_size", -1),
        "qk_matmul_output_mode": reading.integer(context, "qk_matmul_output_mode", 0),
    }
    return Lowered("Attention", attributes, reading.data_positions(context, 7))


def _multi_head(context: OperatorContext) -> tuple[TensorSpec, TensorSpec, TensorSpec, int]:
    """Return specs of Q, K, V and the number of heads."""
    query = reading.operand(context, 0, "query")
    key, value = reading.operand(context, 1, "key"), reading.operand(context, 2, "value")
    reading.require(
        len(query.shape) == len(key.shape) == len(value.shape) == 3,
        context,
        f"query {query}, key {key} and value {value} have to be [batch, length, hidden]",
    )
    return query, key, value, reading.integer(context, "num_heads")


def _infer_multi_head(context: OperatorContext) -> list[TensorSpec]:
    query, key, value, heads = _multi_head(context)
    past = reading.optional_operand(context, 6)
    batch, length, _ = query.shape
    total = key.shape[1] + (past.shape[2] if past else 0)
    results = [
        reading.like(query, (batch, length, value.shape[2])),
        reading.like(key, (batch, heads, total, key.shape[2] // heads)),
        reading.like(value, (batch, heads, total, value.shape[2] // heads)),
        reading.like(query, (batch, heads, length, total)),
    ]
    return results[: len(context.node.outputs)]


def _lower_multi_head(context: OperatorContext) -> Lowered:
    query, _, _, heads = _multi_head(context)
    attributes: dict[str, Attribute] = {
        "q_num_heads": heads,
        "kv_num_heads": heads,
        "scale": _scale(context, query.shape[2] // heads),
        "is_causal": reading.integer(context, "unidirectional", 0),
        "softcap": 0.0,
        "left_window_size": -1,
        "right_window_size": -1,
        "qk_matmul_output_mode": 0,
    }
    positions = reading.data_positions(context, 8)
    if positions[3] >= 0 or positions[4] >= 0:
        return Lowered(context.node.qualified_operator, attributes, positions)
    return Lowered("Attention", attributes, (0, 1, 2, *positions[5:8], -1))


def _scale(context: OperatorContext, size: int) -> float:
    """Return the attribute of the contributed operators, for which 0 is the default."""
    return reading.number(context, "scale", 0.0) or 1 / math.sqrt(max(size, 1))


def _projected_widths(context: OperatorContext) -> tuple[int, ...]:
    weights = reading.operand(context, 1, "weights")
    widths = reading.integers(context, "qkv_hidden_sizes", (weights.shape[1] // 3,) * 3)
    reading.require(
        sum(widths) == weights.shape[1], context, f"weights {weights} do not hold {widths}"
    )
    return widths


def _infer_projected(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "input")
    widths = _projected_widths(context)
    heads = reading.integer(context, "num_heads")
    past = reading.optional_operand(context, 4)
    batch, length, _ = data.shape
    total = length + (past.shape[3] if past else 0)
    present = reading.like(data, (2, batch, heads, total, widths[1] // heads))
    return [reading.like(data, (batch, length, widths[2])), present][: len(context.node.outputs)]


def _lower_projected(context: OperatorContext) -> Lowered:
    widths = _projected_widths(context)
    heads = reading.integer(context, "num_heads")
    attributes: dict[str, Attribute] = {
        "num_heads": heads,
        "widths": widths,
        "scale": _scale(context, widths[0] // heads),
        "is_causal": reading.integer(context, "unidirectional", 0),
        "mask_filter_value": reading.number(context, "mask_filter_value", -10000.0),
        "do_rotary": reading.integer(context, "do_rotary", 0),
    }
    positions = reading.data_positions(context, 7)
    return Lowered(context.node.qualified_operator, attributes, positions)


_VIEWS = ("q_view", "k_view", "v_view", "y_view")


def _infer_strided(context: OperatorContext) -> list[TensorSpec]:
    shape = reading.integers(context, "shape", ())
    return [reading.like(reading.operand(context, 0, "Q"), shape)]


def _lower_strided(context: OperatorContext) -> Lowered:
    attributes: dict[str, Attribute] = {
        name: reading.integers(context, name, ()) for name in _VIEWS
    }
    attributes["scale"] = reading.number(context, "scale", 1.0)
    operator = context.node.qualified_operator
    return Lowered(operator, attributes, reading.data_positions(context, 4))


def _infer_rotary(context: OperatorContext) -> list[TensorSpec]:
    return [reading.operand(context, 0, "X")]


def _lower_rotary(context: OperatorContext) -> Lowered:
    _, heads, _, size = _heads(context, 0, "num_heads")
    attributes = {
        "num_heads": heads,
        "interleaved": reading.integer(context, "interleaved", 0),
        "rotary_embedding_dim": reading.integer(context, "rotary_embedding_dim", 0) or size,
    }
    return Lowered("RotaryEmbedding", attributes, reading.data_positions(context, 4))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("Attention", _infer_attention, _lower_attention),
    OperatorEntry("aegis.StridedAttention", _infer_strided, _lower_strided),
    OperatorEntry("com.microsoft.MultiHeadAttention", _infer_multi_head, _lower_multi_head),
    OperatorEntry("com.microsoft.Attention", _infer_projected, _lower_projected),
    OperatorEntry("RotaryEmbedding", _infer_rotary, _lower_rotary),
)
