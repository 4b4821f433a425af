"""Contributed operators of transformer encoders.

Canonical form:

    com.microsoft.BiasGelu(X, bias[last]?)    `approximate` "none" (exact) or "tanh";
                                              also what Gelu and FastGelu of that domain become
    com.microsoft.EmbedLayerNormalization(
        input_ids[batch, length], segment_ids?, words[n, hidden], positions[n, hidden],
        segments[n, hidden]?, gamma[hidden], beta[hidden], mask[batch, length]?,
        position_ids[batch or 1, length]?)    `epsilon`
        -> Y[batch, length, hidden], mask_index[batch]? (ones of the mask), embedding_sum?
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec


def _infer_gelu(context: OperatorContext) -> list[TensorSpec]:
    return [reading.operand(context, 0, "X")]


def _lower_gelu(context: OperatorContext) -> Lowered:
    approximate = "tanh" if context.node.operator == "FastGelu" else "none"
    positions = reading.data_positions(context, 2)
    return Lowered("com.microsoft.BiasGelu", {"approximate": approximate}, positions)


def _infer_embedding(context: OperatorContext) -> list[TensorSpec]:
    ids = reading.operand(context, 0, "input_ids")
    words = reading.operand(context, 2, "word_embedding")
    reading.require(
        len(ids.shape) == len(words.shape) == 2, context, f"{ids} and {words} are no matrices"
    )
    result = reading.like(words, (*ids.shape, words.shape[1]))
    counts = TensorSpec(np.dtype(np.int32), ids.shape[:1])
    return [result, counts, result][: len(context.node.outputs)]


def _lower_embedding(context: OperatorContext) -> Lowered:
    attributes = {"epsilon": reading.number(context, "epsilon", 1e-12)}
    positions = reading.data_positions(context, 9)
    return Lowered(context.node.qualified_operator, attributes, positions)


ENTRIES: tuple[OperatorEntry, ...] = (
    OperatorEntry("com.microsoft.Gelu", _infer_gelu, _lower_gelu),
    OperatorEntry("com.microsoft.FastGelu", _infer_gelu, _lower_gelu),
    OperatorEntry("com.microsoft.BiasGelu", _infer_gelu, _lower_gelu),
    OperatorEntry("com.microsoft.EmbedLayerNormalization", _infer_embedding, _lower_embedding),
)
