"""Dropout.

Canonical form: Dropout(data) -> output, mask? at inference, where it passes data on and the mask is
all true. If `training_mode` is not known to be false, all operands (data, ratio?, training_mode)
stay, `training` is 1, and `seed` says which elements are dropped.
"""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.random_values import seed_of
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorEntry
from aegis_pipe.tensor import TensorSpec

_BOOL_MASK_OPSET = 10


def _infer(context: OperatorContext) -> list[TensorSpec]:
    data = reading.operand(context, 0, "data")
    is_bool = context.node.opset >= _BOOL_MASK_OPSET
    mask = TensorSpec(np.dtype(np.bool_) if is_bool else data.dtype, data.shape)
    return [data, mask][: len(context.node.outputs)]


def _lower(context: OperatorContext) -> Lowered:
    training = context.constants.get(2)
    is_open = reading.optional_operand(context, 2) is not None and training is None
    if is_open or (training is not None and bool(training.reshape(-1)[0])):
        attributes = {"training": 1, "seed": seed_of(context)}
        return Lowered("Dropout", attributes, reading.data_positions(context, 3))
    return Lowered("Dropout", {"training": 0}, (0,))


ENTRIES: tuple[OperatorEntry, ...] = (OperatorEntry("Dropout", _infer, _lower),)
