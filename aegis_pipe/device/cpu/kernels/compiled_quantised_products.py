"""Compiled products of quantised matrices (`c/quantised_products.c`).

native.bytes.gemm          B known at load: packed once
native.bytes.gemm_dynamic  B computed at run time: packed into the workspace, matrix by matrix

Both for QGemm with all that becomes it, QLinearMatMul and MatMulInteger.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import byte_units, compiled, native, operands
from aegis_pipe.device.cpu.kernels.native import INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.record import record
from aegis_pipe.tensor import TensorSpec

_PACKING_PAYS_ROWS = 4
"""With fewer rows, packing B at run time costs more than it saves."""
_NOWHERE = 99
"""Position of an operand that an operator does not have."""


@record(eq=True)
class _Positions:
    """Where an operator has its operands."""

    b: int
    a_scale: int = _NOWHERE
    a_zero: int = _NOWHERE
    b_scale: int = _NOWHERE
    b_zero: int = _NOWHERE
    bias: int = _NOWHERE
    y_scale: int = _NOWHERE
    y_zero: int = _NOWHERE


_POSITIONS = {
    "MatMulInteger": _Positions(b=1, a_zero=2, b_zero=3),
    "QLinearMatMul": _Positions(a_scale=1, a_zero=2, b=3, b_scale=4, b_zero=5, y_scale=6, y_zero=7),
    "com.microsoft.QGemm": _Positions(
        b=1, a_scale=2, a_zero=3, b_scale=4, b_zero=5, bias=6, y_scale=7, y_zero=8
    ),
}


class _Gemm(ctypes.Structure):
    """`byte_gemm` of `c/quantised_products.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("a", "b", "y", "workspace", "a_offsets", "b_offsets")),
        *((name, INTEGER) for name in ("batch", "rows", "columns", "depth")),
        *((name, INTEGER) for name in ("b_step", "b_column")),
        *((name, INTEGER) for name in ("b_is_plain", "a_is_float", "a_bytes")),
        ("scales", byte_units.Scales),
    )


@record(eq=True)
class _Product:
    """A batch of products Y[i] = A[i] B[i]."""

    rows: int
    columns: int
    depth: int
    b_flipped: bool
    a_matrices: np.ndarray
    """Index of each product's A."""
    b_matrices: np.ndarray
    b_count: int

    @property
    def multiply_adds(self) -> float:
        """Work of all products."""
        return float(len(self.a_matrices) * self.rows * self.columns * self.depth)


def _product(request: KernelRequest) -> _Product:
    at = _POSITIONS[request.operator]
    left, right = operands.input_spec(request, 0).shape, operands.input_spec(request, at.b).shape
    left = left if len(left) > 1 else (1, *left)
    right = right if len(right) > 1 else (*right, 1)
    flipped = bool(request.attributes.get("transB", 0))
    rows, depth = left[-2:]
    columns = right[-2] if flipped else right[-1]
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    a_matrices, b_matrices = (_matrices(shape[:-2], batch) for shape in (left, right))
    b_count = math.prod(right[:-2])
    if b_count == 1:
        # All matrices of A meet the same B: together they are one tall matrix.
        rows *= len(a_matrices)
        a_matrices = b_matrices = np.zeros(1, np.int64)
    return _Product(rows, columns, depth, flipped, a_matrices, b_matrices, b_count)


def _matrices(own: tuple[int, ...], batch: tuple[int, ...]) -> np.ndarray:
    """Return for each product of a batch the index of its operand."""
    indices = np.arange(math.prod(own), dtype=np.int64).reshape(own)
    return np.broadcast_to(indices, batch).reshape(-1)


def _accepts(request: KernelRequest) -> bool:
    at = _POSITIONS[request.operator]
    left, right = operands.input_spec(request, 0), operands.input_spec(request, at.b)
    result = operands.output_spec(request)
    if native.LIBRARY is None or request.attributes.get("transA", 0):
        return False
    if not all(spec.element_count for spec in (left, right, result)):
        return False
    is_dynamic = left.dtype == compiled.FLOAT32 and not operands.has_input(request, at.a_scale)
    has_y_scale = operands.has_input(request, at.y_scale)
    return (
        right.dtype in byte_units.EIGHT_BITS
        and (left.dtype in byte_units.EIGHT_BITS or is_dynamic)
        and byte_units.is_single(request, at.a_scale, at.a_zero, at.y_scale, at.y_zero)
        and all(_is_by_column(request, p) for p in (at.b_scale, at.b_zero, at.bias))
        and result.dtype in (byte_units.EIGHT_BITS if has_y_scale else (np.float32, np.int32))
        and not (has_y_scale and _has_float_bias(request))
    )


def _is_by_column(request: KernelRequest, position: int) -> bool:
    """Return whether an operand is left out, or one value, or one value a column."""
    if not operands.has_input(request, position):
        return True
    columns = operands.output_spec(request).shape[-1:]
    shape = operands.input_spec(request, position).shape
    is_bias = position == _POSITIONS[request.operator].bias
    return shape == columns or (not is_bias and math.prod(shape) == 1)


def _has_float_bias(request: KernelRequest) -> bool:
    position = _POSITIONS[request.operator].bias
    return operands.has_input(request, position) and (
        operands.input_spec(request, position).dtype.kind == "f"
    )


def _choose_packed(request: KernelRequest) -> KernelChoice | None:
    at = _POSITIONS[request.operator]
    if at.b not in request.constants or not _accepts(request):
        return None
    product = _product(request)
    matrix_bytes = byte_units.panels_bytes(product.depth, product.columns)
    packed = PackedConstant.filled(
        layout=f"byte_panels.{'nk' if product.b_flipped else 'kn'}",
        size_bytes=product.b_count * matrix_bytes,
        fill=lambda array, panels: _pack(product, array, panels),
    )
    return KernelChoice(
        kernel="native.bytes.gemm",
        workspace_bytes=_workspace_bytes(product, plain=False),
        packed={at.b: packed},
        cost=product.multiply_adds / 4,
    )


def _pack(product: _Product, array: np.ndarray, panels: np.ndarray) -> None:
    matrices = array.reshape(product.b_count, *array.shape[-2:] if array.ndim > 1 else (-1, 1))
    for matrix, into in zip(matrices, panels.reshape(product.b_count, -1), strict=True):
        byte_units.pack(matrix.T if product.b_flipped else matrix, into)


def _choose_dynamic(request: KernelRequest) -> KernelChoice | None:
    if not _accepts(request):
        return None
    product = _product(request)
    if product.rows < _PACKING_PAYS_ROWS:
        return None
    return KernelChoice(
        kernel="native.bytes.gemm_dynamic",
        workspace_bytes=_workspace_bytes(product, plain=True),
        cost=product.multiply_adds / 4,
    )


def _workspace_bytes(product: _Product, *, plain: bool) -> int:
    assert native.LIBRARY is not None
    return native.LIBRARY.byte_gemm_workspace(product.depth, product.columns, plain)


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    at, product = _POSITIONS[request.operator], _product(request)
    left = operands.input_spec(request, 0)
    matrix_bytes = product.depth * product.columns
    b_strides = (1, product.depth) if product.b_flipped else (product.columns, 1)
    if choice.packed:
        matrix_bytes = byte_units.panels_bytes(product.depth, product.columns)
    a_offsets = product.a_matrices * product.rows * product.depth
    b_offsets = product.b_matrices * matrix_bytes
    is_float = left.dtype == compiled.FLOAT32
    arguments = _Gemm(
        native.address(operands.required(inputs, 0)),
        native.address(operands.required(inputs, at.b)),
        native.address(operands.required(outputs)),
        native.address(workspace),
        native.address(a_offsets),
        native.address(b_offsets),
        len(a_offsets),
        *(product.rows, product.columns, product.depth),
        *b_strides,
        not choice.packed,
        is_float,
        left.size_bytes,
        _scales(request, at, inputs),
    )
    kept = (*inputs, *outputs, workspace, a_offsets, b_offsets)
    return native.call("aegis_byte_gemm", arguments, kept)


def _scales(
    request: KernelRequest, at: _Positions, inputs: Sequence[np.ndarray | None]
) -> byte_units.Scales:
    result = operands.output_spec(request)
    given = {
        name: operands.optional(inputs, getattr(at, name))
        for name in ("a_zero", "b_zero", "a_scale", "b_scale", "y_scale", "y_zero", "bias")
    }
    bias = given.pop("bias")
    is_float_bias = bias is not None and bias.dtype.kind == "f"
    return byte_units.Scales(
        *(native.address(array) for array in given.values()),
        None if is_float_bias else native.address(bias),
        native.address(bias) if is_float_bias else None,
        *_signs(request, at, result),
        byte_units.size_of(given["b_zero"]),
        byte_units.size_of(given["b_scale"]),
        byte_units.result_kind(result),
        operands.number(request, "alpha") if "alpha" in request.attributes else 1.0,
        byte_units.has_zeros(request, at.b, at.b_zero),
        *byte_units.result_bounds(request),
    )


def _signs(request: KernelRequest, at: _Positions, result: TensorSpec) -> Sequence[bool]:
    specs = (operands.input_spec(request, 0), operands.input_spec(request, at.b), result)
    return [byte_units.is_signed(spec) for spec in specs]


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(tuple(_POSITIONS), _choose_packed, _bind, shares_work=True),
    CpuKernel(tuple(_POSITIONS), _choose_dynamic, _bind, shares_work=True),
)
