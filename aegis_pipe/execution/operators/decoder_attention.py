"""Attention and positions of language models, as ONNX Runtime's exporter writes them.

Canonical form:

    com.microsoft.GroupQueryAttention(
        query[batch, length, heads * size], key?, value?, past_key?, past_value?,
        seqlens_k[batch], cos_cache?, sin_cache?, position_ids[batch, length]?, bias?)
        -> Y, present_key[batch, kv_heads, total, size]?, present_value?
        `num_heads`, `kv_num_heads`, `scale`, `softcap`, `do_rotary`, `rotary_interleaved`,
        `left_window_size` (-1 for unbounded), `is_prompt`: all keys are those of this call

    Without key and value, query holds all three side by side, head after head. Each image has
    seqlens_k + 1 valid keys, the last `length` of which are new; the past holds those before.
    com.microsoft.RotaryEmbedding becomes RotaryEmbedding where positions are given one by one.
"""

from __future__ import annotations

import math

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_PAST_KEY, _TOTAL = 3, 6
_LATER_INPUTS = range(11, 17)
"""Attention sinks, quantised caches and norms of single heads: not in the canonical form."""


def _heads(context: OperatorContext) -> tuple[int, int, int]:
    """Return (query heads, key heads, size of a head)."""
    query = reading.operand(context, 0, "query")
    heads = reading.integer(context, "num_heads")
    kv_heads = reading.integer(context, "kv_num_heads")
    side_by_side = reading.optional_operand(context, 1) is None
    all_heads = heads + 2 * kv_heads if side_by_side else heads
    fits = len(query.shape) == 3 and heads > 0 and kv_heads > 0 and heads % kv_heads == 0
    reading.require(
        fits and query.shape[2] % all_heads == 0,
        context,
        f"query {query} does not hold {heads} heads for {kv_heads} key heads",
    )
    return heads, kv_heads, query.shape[2] // all_heads


def _total(context: OperatorContext) -> int:
    return int(reading.static_value(context, _TOTAL, "total_sequence_length").reshape(-1)[0])


def _infer_group_query(context: OperatorContext) -> list[TensorSpec]:
    query = reading.operand(context, 0, "query")
    heads, kv_heads, size = _heads(context)
    past = reading.optional_operand(context, _PAST_KEY)
    batch, length, _ = query.shape
    total = max(_total(context), past.shape[2] if past else 0)
    reading.require(total >= length, context, f"{total} keys are less than {length} queries")
    present = reading.like(query, (batch, kv_heads, total, size))
    results = [reading.like(query, (batch, length, heads * size)), present, present]
    reading.require(len(context.node.outputs) <= 3, context, "output_qk is not supported")
    return results[: len(context.node.outputs)]


def _lower_group_query(context: OperatorContext) -> Lowered:
    heads, kv_heads, size = _heads(context)
    length = reading.operand(context, 0, "query").shape[1]
    window = reading.integer(context, "local_window_size", -1)
    has_later = any(reading.optional_operand(context, i) for i in _LATER_INPUTS)
    attributes: dict[str, Attribute] = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": reading.number(context, "scale", 0.0) or 1 / math.sqrt(max(size, 1)),
        "softcap": reading.number(context, "softcap", 0.0),
        "do_rotary": reading.integer(context, "do_rotary", 0),
        "rotary_interleaved": reading.integer(context, "rotary_interleaved", 0),
        "left_window_size": window - 1 if window > 0 else -1,
        "is_prompt": int(_total(context) == length),
        "is_plain": int(not has_later and not reading.integer(context, "smooth_softmax", 0)),
    }
    query, key, value, past_key, past_value, lengths, _, *others = reading.data_positions(
        context, 11
    )
    positions = (query, key, value, past_key, past_value, lengths, *others)
    return Lowered(context.node.qualified_operator, attributes, positions)


def _infer_rotary(context: OperatorContext) -> list[TensorSpec]:
    return [reading.operand(context, 0, "input")]


def _lower_rotary(context: OperatorContext) -> Lowered:
    data, cache = reading.operand(context, 0, "input"), reading.operand(context, 2, "cos_cache")
    turned = reading.integer(context, "rotary_embedding_dim", 0)
    heads = reading.integer(context, "num_heads", 0)
    reading.require(
        len(data.shape) in (3, 4) and len(cache.shape) == 2, context, f"input {data} has no heads"
    )
    size = turned or 2 * cache.shape[1]
    if len(data.shape) == 4:
        heads = data.shape[1]
    elif not heads:
        heads = data.shape[2] // size
    attributes: dict[str, Attribute] = {
        "num_heads": heads,
        "interleaved": reading.integer(context, "interleaved", 0),
        "rotary_embedding_dim": size,
    }
    reading.require(
        reading.number(context, "scale", 1.0) == 1, context, "a scale of positions is not supported"
    )
    positions = reading.operand(context, 1, "position_ids")
    # One position is that of the first token of each image.
    is_listed = len(positions.shape) == 2
    name = "RotaryEmbedding" if is_listed else context.node.qualified_operator
    return Lowered(name, attributes, (0, 2, 3, 1))


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry(
        "com.microsoft.GroupQueryAttention",
        _infer_group_query,
        _lower_group_query,
        static_inputs=(_TOTAL,),
    ),
    OperatorEntry("com.microsoft.RotaryEmbedding", _infer_rotary, _lower_rotary),
)
