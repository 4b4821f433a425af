"""ONNX's element types by number, for operators that name a dtype (`to`, `dtype`)."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from aegis_pipe.execution.operators import reading
from aegis_pipe.execution.operators.table import OperatorContext

_DTYPES: tuple[object, ...] = (
    None,
    np.float32,
    np.uint8,
    np.int8,
    np.uint16,
    np.int16,
    np.int32,
    np.int64,
    np.object_,
    np.bool_,
    np.float16,
    np.float64,
    np.uint32,
    np.uint64,
    np.complex64,
    np.complex128,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.uint4,
    ml_dtypes.int4,
    ml_dtypes.float4_e2m1fn,
    ml_dtypes.float8_e8m0fnu,
    ml_dtypes.uint2,
    ml_dtypes.int2,
    ml_dtypes.float6_e2m3fn,
    ml_dtypes.float6_e3m2fn,
)
"""Position = the number in the file format, which never changes; strings are objects."""


def element_type(context: OperatorContext, name: str, default: int | None = None) -> np.dtype:
    """Return the dtype that an integer attribute stands for."""
    number = reading.integer(context, name, default)
    reading.require(
        0 < number < len(_DTYPES), context, f"attribute `{name}` is {number}, not an element type"
    )
    return np.dtype(_DTYPES[number])  # type: ignore[call-overload]  # a tuple of dtype-likes


INT64 = np.dtype(np.int64)
FLOAT32 = np.dtype(np.float32)
UINT8 = np.dtype(np.uint8)
BOOL = np.dtype(np.bool_)
