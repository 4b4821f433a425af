"""What the compiled families for bytes share: their unit, packed panels, and scales of results.

The library holds its loops over bytes once for each kind of instruction (`c/byte_products.c`); the
best one that the processor has is chosen here, once. All give the same integers.
"""

from __future__ import annotations

import ctypes
import hashlib

import numpy as np

from aegis_pipe.device.cpu.kernels import native, operands
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

UNITS = ("plain", "vnni", "amx")
INTEGER_RESULT, FLOAT_RESULT, BYTE_RESULT = range(3)
ALIGNMENT = 64

EIGHT_BITS = (np.dtype(np.int8), np.dtype(np.uint8))


def choose_unit(library: native.NativeLibrary, highest: str = UNITS[-1]) -> str:
    """Use the library's best unit up to `highest` that the processor has; return its name."""
    return UNITS[library.choose_byte_unit(UNITS.index(highest))]


def is_signed(spec: TensorSpec | np.ndarray) -> bool:
    """Return whether bytes are signed."""
    return bool(spec.dtype == np.int8)


def level_bounds(dtype: np.dtype) -> tuple[float, float]:
    """Return the lowest and highest level of an 8-bit type."""
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)


def panels_bytes(depth: int, columns: int) -> int:
    """Return the bytes of one packed matrix with the sums of its columns."""
    assert native.LIBRARY is not None
    return native.LIBRARY.byte_panels_size(depth, columns)


def pack(matrix: np.ndarray, into: np.ndarray) -> None:
    """Pack an 8-bit [depth, columns] matrix of any strides into uint8[panels_bytes]."""
    assert native.LIBRARY is not None
    step, column = matrix.strides
    depth, columns = matrix.shape
    native.LIBRARY.pack_byte_panels(
        matrix.ctypes.data, step, column, depth, columns, matrix.dtype == np.uint8, into.ctypes.data
    )


class Scales(ctypes.Structure):
    """`byte_scales` of `c/byte_results.h`."""

    _fields_ = (
        *((name, POINTER) for name in ("a_zero", "b_zero", "a_scale", "b_scale", "y_scale")),
        *((name, POINTER) for name in ("y_zero", "bias", "addend")),
        *((name, INTEGER) for name in ("a_is_signed", "b_is_signed", "y_is_signed")),
        *((name, INTEGER) for name in ("b_zeros", "b_scales", "kind")),
        ("alpha", FLOAT),
        ("has_zeros", ctypes.c_int32),
        *((name, FLOAT) for name in ("low", "high")),
    )


def is_single(request: KernelRequest, *positions: int) -> bool:
    """Return whether these operands, where they are there, hold one value each."""
    return all(
        operands.input_spec(request, position).element_count == 1
        for position in positions
        if operands.has_input(request, position)
    )


def has_zeros(request: KernelRequest, weights_at: int, zero_at: int) -> bool:
    """Return whether weights may have a zero point other than the middle of their range."""
    middle = 0 if is_signed(operands.input_spec(request, weights_at)) else 128
    if not operands.has_input(request, zero_at):
        return middle != 0
    zero = request.constants.get(zero_at)
    return zero is None or bool((zero.astype(np.int32) != middle).any())


def size_of(array: np.ndarray | None) -> int:
    """Return how many elements there are; 0 for None."""
    return 0 if array is None else array.size


def digest(*arrays: np.ndarray | None) -> str:
    """Return a short name for the content of constants that packing depends on."""
    content = b"".join(b"-" if a is None else np.ascontiguousarray(a).tobytes() for a in arrays)
    return hashlib.sha256(content).hexdigest()[:16]


def result_kind(result: TensorSpec) -> int:
    """Return how a kernel writes results of this spec."""
    if result.dtype.itemsize == 1:
        return BYTE_RESULT
    return FLOAT_RESULT if result.dtype.kind == "f" else INTEGER_RESULT


def result_bounds(request: KernelRequest) -> tuple[float, float]:
    """Return the lowest and highest level of the result: of its type, or of a fused activation."""
    result = operands.output_spec(request)
    if result.dtype.itemsize != 1:
        return 0.0, 0.0
    if not request.attributes.get("levels"):
        return level_bounds(result.dtype)
    low, high = operands.integers(request, "levels")
    return float(low), float(high)
