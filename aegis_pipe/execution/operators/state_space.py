"""Layers that mix a sequence through a state of fixed size, and their gates.

Canonical form:

    SwiGLU(A, B)        A sigmoid(`alpha` A) B
    CausalConvWithState(X[N, C, length], W[C, 1, k], bias[C]?, past[N, C, k - 1]?)
        -> Y, present?; depthwise; `activation` none or silu
    LinearAttention(Q[N, length, q_heads * size], K, V, past?, decay?, beta?) -> Y, present?
        `q_num_heads`, `kv_num_heads`, `scale`; the state S[N, kv_heads, size, value_size] becomes
        exp(decay) S + k (x) v, where a layer with beta takes beta (v - S k) for v
"""

from __future__ import annotations

import math

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.kernel import Attribute
from aegis_pipe.tensor import TensorSpec

_RULES = {"linear": (False, False), "gated": (True, False), "delta": (False, True)}
_RULES |= {"gated_delta": (True, True)}
"""Whether a rule has a decay, and whether it has a beta."""


def _infer_swiglu(context: OperatorContext) -> list[TensorSpec]:
    gate, value = reading.operand(context, 0, "A"), reading.operand(context, 1, "B")
    reading.require(gate == value, context, f"A {gate} and B {value} differ")
    return [gate]


def _lower_swiglu(context: OperatorContext) -> Lowered:
    return Lowered("SwiGLU", {"alpha": reading.number(context, "alpha", 1.0)}, (0, 1))


def _infer_conv(context: OperatorContext) -> list[TensorSpec]:
    data, weights = reading.operand(context, 0, "input"), reading.operand(context, 1, "weight")
    fits = len(data.shape) == len(weights.shape) == 3 and weights.shape[:2] == (data.shape[1], 1)
    reading.require(fits, context, f"weight {weights} does not fit input {data}")
    past = reading.optional_operand(context, 3)
    state = reading.like(data, (*data.shape[:2], weights.shape[2] - 1))
    reading.require(past in (None, state), context, f"past_state has to be {state}")
    return [data, state][: len(context.node.outputs)]


def _lower_conv(context: OperatorContext) -> Lowered:
    activation = reading.text(context, "activation", "none").replace("swish", "silu")
    known = activation in ("none", "silu")
    reading.require(known, context, f"activation `{activation}` is unknown")
    positions = reading.data_positions(context, 4)
    return Lowered("CausalConvWithState", {"activation": activation}, positions)


def _heads(context: OperatorContext) -> tuple[int, int, int, int]:
    """Return (query heads, key heads, size, value size)."""
    query, key, value = (reading.operand(context, i, name) for i, name in enumerate("QKV"))
    heads = reading.integer(context, "q_num_heads")
    kv_heads = reading.integer(context, "kv_num_heads")
    is_sequence = len(query.shape) == len(key.shape) == len(value.shape) == 3
    reading.require(
        is_sequence
        and heads > 0
        and kv_heads > 0
        and heads % kv_heads == query.shape[2] % heads == value.shape[2] % kv_heads == 0
        and key.shape[2] == kv_heads * (query.shape[2] // heads),
        context,
        f"query {query}, key {key} and value {value} do not fit {heads} and {kv_heads} heads",
    )
    return heads, kv_heads, query.shape[2] // heads, value.shape[2] // kv_heads


def _infer_attention(context: OperatorContext) -> list[TensorSpec]:
    heads, kv_heads, size, value_size = _heads(context)
    query, past = reading.operand(context, 0, "query"), reading.optional_operand(context, 3)
    state = reading.like(past or query, (query.shape[0], kv_heads, size, value_size))
    reading.require(past in (None, state), context, f"past_state has to be {state}")
    result = reading.like(query, (*query.shape[:2], heads * value_size))
    return [result, state][: len(context.node.outputs)]


def _lower_attention(context: OperatorContext) -> Lowered:
    heads, kv_heads, size, _ = _heads(context)
    rule = reading.text(context, "update_rule", "gated_delta")
    positions = reading.data_positions(context, 6)
    given = tuple([position >= 0 for position in positions[4:]])
    fits = _RULES.get(rule) == given
    reading.require(fits, context, f"update_rule `{rule}` does not fit the operands given")
    attributes: dict[str, Attribute] = {
        "q_num_heads": heads,
        "kv_num_heads": kv_heads,
        "scale": reading.number(context, "scale", 0.0) or 1 / math.sqrt(max(size, 1)),
    }
    return Lowered("LinearAttention", attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("SwiGLU", _infer_swiglu, _lower_swiglu),
    OperatorEntry("CausalConvWithState", _infer_conv, _lower_conv),
    OperatorEntry("LinearAttention", _infer_attention, _lower_attention),
)
