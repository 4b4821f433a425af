"""ONNX's element types as NumPy dtypes.

The numbers are part of the file format and never change, so reading them needs no `onnx`.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

STRING = np.dtype(object)
"""Stands for ONNX strings; no kernel takes them."""

DTYPE_OF_ELEMENT_TYPE: dict[int, np.dtype] = {
    1: np.dtype(np.float32),
    2: np.dtype(np.uint8),
    3: np.dtype(np.int8),
    4: np.dtype(np.uint16),
    5: np.dtype(np.int16),
    6: np.dtype(np.int32),
    7: np.dtype(np.int64),
    8: STRING,
    9: np.dtype(np.bool_),
    10: np.dtype(np.float16),
    11: np.dtype(np.float64),
    12: np.dtype(np.uint32),
    13: np.dtype(np.uint64),
    14: np.dtype(np.complex64),
    15: np.dtype(np.complex128),
    16: np.dtype(ml_dtypes.bfloat16),
    17: np.dtype(ml_dtypes.float8_e4m3fn),
    18: np.dtype(ml_dtypes.float8_e4m3fnuz),
    19: np.dtype(ml_dtypes.float8_e5m2),
    20: np.dtype(ml_dtypes.float8_e5m2fnuz),
    21: np.dtype(ml_dtypes.uint4),
    22: np.dtype(ml_dtypes.int4),
    23: np.dtype(ml_dtypes.float4_e2m1fn),
    24: np.dtype(ml_dtypes.float8_e8m0fnu),
    25: np.dtype(ml_dtypes.uint2),
    26: np.dtype(ml_dtypes.int2),
    27: np.dtype(ml_dtypes.float6_e2m3fn),
    28: np.dtype(ml_dtypes.float6_e3m2fn),
}

ELEMENT_TYPE_OF_DTYPE = {dtype: number for number, dtype in DTYPE_OF_ELEMENT_TYPE.items()}
DTYPE_OF_NAME = {dtype.name: dtype for dtype in ELEMENT_TYPE_OF_DTYPE}

SUB_BYTE_TYPES = frozenset({21, 22, 23, 25, 26, 27, 28})
"""Element types that ONNX packs several to a byte; NumPy holds one in each byte."""
