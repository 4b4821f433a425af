"""Dtypes that operators name by ONNX's numbers (`to`, `dtype`), and those that entries name."""

from __future__ import annotations

import numpy as np

from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE
from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import OperatorContext

INT64: np.dtype = np.dtype(np.int64)
FLOAT32: np.dtype = np.dtype(np.float32)
UINT8: np.dtype = np.dtype(np.uint8)
BOOL: np.dtype = np.dtype(np.bool_)


def element_type(context: OperatorContext, name: str) -> np.dtype:
    """Return the dtype that an integer attribute stands for."""
    number = reading.integer(context, name)
    dtype = DTYPE_OF_ELEMENT_TYPE.get(number)
    if dtype is None:
        raise reading.invalid(context, f"attribute `{name}` is {number}, not an element type")
    return dtype
