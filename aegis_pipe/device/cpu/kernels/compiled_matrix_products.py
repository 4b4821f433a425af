"""Compiled matrix products (`c/gemm.c`).

native.gemm          B known at load: packed once into panels
native.gemm_dynamic  B computed at run time: packed into the workspace, matrix by matrix

Both end with an activation if `product_endings.py` knows it: the bits are those of its own kernel.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import (
    compiled,
    compiled_elementwise,
    native,
    operands,
    product_endings,
)
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.record import record

_OPERATORS = ("MatMul", "com.microsoft.FusedMatMul", "Gemm", "com.microsoft.FusedGemm")
_PACKING_PAYS_ROWS = 4
"""With fewer rows, packing B at run time costs more than it saves."""
_COLUMNS_MIN = 4
"""With fewer columns, most lanes of a panel would be idle."""


class _Gemm(ctypes.Structure):
    """`gemm` of `c/gemm.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("a", "b", "y", "workspace", "a_offsets", "b_offsets")),
        *((name, INTEGER) for name in ("batch", "rows", "columns", "depth")),
        *((name, INTEGER) for name in ("a_row", "a_step", "b_step", "b_column", "b_is_plain")),
        ("end", compiled.Epilogue),
        *(("function", POINTER), ("p", FLOAT), ("q", FLOAT)),
    )


@record(eq=True)
class _Product:
    """A batch of products Y[i] = A[i] B[i]; offsets and strides in elements."""

    rows: int
    columns: int
    depth: int
    a_strides: tuple[int, int]
    """Between rows, along the depth."""
    b_strides: tuple[int, int]
    """Along the depth, between columns."""
    a_offsets: np.ndarray
    b_offsets: np.ndarray
    b_matrices: int

    @property
    def panel_floats(self) -> int:
        """Floats of one packed B."""
        assert native.LIBRARY is not None
        return self.depth * compiled.round_up(self.columns, native.LIBRARY.panel_columns)

    def workspace_bytes(self, b_is_plain: bool) -> int:
        """Bytes that one thread works in."""
        assert native.LIBRARY is not None
        floats = native.LIBRARY.gemm_workspace(self.rows, self.columns, self.depth, b_is_plain)
        return 4 * int(floats)


def _flag(request: KernelRequest, name: str) -> bool:
    return bool(request.attributes.get(name, 0))


def _product(request: KernelRequest) -> _Product:
    left, right = operands.input_spec(request, 0).shape, operands.input_spec(request, 1).shape
    left = left if len(left) > 1 else (1, *left)
    right = right if len(right) > 1 else (*right, 1)
    a_flipped = _flag(request, "transA") and len(operands.input_spec(request, 0).shape) > 1
    b_flipped = _flag(request, "transB") and len(operands.input_spec(request, 1).shape) > 1
    rows, depth = left[:-3:-1] if a_flipped else left[-2:]
    columns = right[-2] if b_flipped else right[-1]
    a_strides = (1, left[-1]) if a_flipped else (left[-1], 1)
    b_strides = (1, right[-1]) if b_flipped else (right[-1], 1)
    a_offsets, b_offsets = _batch_offsets(left, right)
    b_matrices = math.prod(right[:-2])
    if b_matrices == 1 and not a_flipped:
        # All matrices of A meet the same B: together they are one tall matrix.
        rows *= len(a_offsets)
        a_offsets = b_offsets = np.zeros(1, np.int64)
    return _Product(rows, columns, depth, a_strides, b_strides, a_offsets, b_offsets, b_matrices)


def _batch_offsets(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each product's A and B begin, in elements; batch dimensions broadcast."""
    if len(left) == len(right) == 2:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    batch = np.broadcast_shapes(left[:-2], right[:-2])
    offsets = []
    for shape in (left, right):
        firsts = np.arange(math.prod(shape[:-2]), dtype=np.int64) * math.prod(shape[-2:])
        offsets.append(np.broadcast_to(firsts.reshape(shape[:-2]), batch).reshape(-1).copy())
    return offsets[0], offsets[1]


def _addend_strides(request: KernelRequest) -> tuple[int, int] | None:
    """Return C's strides between rows and columns of [M, N]; None if its form is not known."""
    shape = operands.input_spec(request, 2).shape
    rows, columns = operands.output_spec(request).shape
    high, wide = (1, 1, *shape)[-2:]
    if len(shape) > 2 or high not in (1, rows) or wide not in (1, columns):
        return None
    return (wide if high > 1 else 0), (1 if wide > 1 else 0)


def _accepts(request: KernelRequest) -> bool:
    if native.LIBRARY is None or not compiled.is_float32(request):
        return False
    if _flag(request, "transBatchA") or _flag(request, "transBatchB"):
        return False
    if operands.has_input(request, 2) and _addend_strides(request) is None:
        return False
    return compiled.clip_bounds(request) is not None or _function(request) is not None


def _function(request: KernelRequest) -> tuple[str, tuple[float, float]] | None:
    """Return the function that ends the product, and its parameters; None without one."""
    end = product_endings.ending(request)
    return None if end is None else compiled_elementwise.map_function(end)


def _choose_packed(request: KernelRequest) -> KernelChoice | None:
    if 1 not in request.constants or not _accepts(request):
        return None
    product = _product(request)
    if product.columns < _COLUMNS_MIN:
        return None
    assert native.LIBRARY is not None
    packed = PackedConstant.filled(
        layout=f"panels.{native.LIBRARY.name}.{'nk' if _flag(request, 'transB') else 'kn'}",
        size_bytes=product.b_matrices * product.panel_floats * 4,
        fill=lambda array, panels: _pack(product, array, panels),
    )
    return KernelChoice(
        kernel="native.gemm",
        workspace_bytes=product.workspace_bytes(b_is_plain=False),
        packed={1: packed},
        cost=_multiply_adds(product),
    )


def _pack(product: _Product, array: np.ndarray, panels: np.ndarray) -> None:
    assert native.LIBRARY is not None
    plain = np.ascontiguousarray(array, dtype=np.float32)
    matrix_bytes = plain.nbytes // product.b_matrices
    for index, matrix in enumerate(panels.reshape(product.b_matrices, -1)):
        native.LIBRARY.pack_panels(
            plain.ctypes.data + index * matrix_bytes,
            *product.b_strides,
            product.depth,
            product.columns,
            matrix.ctypes.data,
        )


def _choose_dynamic(request: KernelRequest) -> KernelChoice | None:
    if not _accepts(request):
        return None
    product = _product(request)
    if product.columns < _COLUMNS_MIN or product.rows < _PACKING_PAYS_ROWS:
        return None
    return KernelChoice(
        kernel="native.gemm_dynamic",
        workspace_bytes=product.workspace_bytes(b_is_plain=True),
        cost=_multiply_adds(product),
    )


def _multiply_adds(product: _Product) -> float:
    return float(len(product.a_offsets) * product.rows * product.columns * product.depth)


def _epilogue(request: KernelRequest, addend: np.ndarray | None) -> compiled.Epilogue:
    strides = _addend_strides(request) if addend is not None else None
    bounds = compiled.clip_bounds(request) or compiled.UNBOUNDED
    return compiled.Epilogue(
        None,
        native.address(addend),
        *(strides or (0, 0)),
        operands.number(request, "alpha") if "alpha" in request.attributes else 1.0,
        operands.number(request, "beta") if "beta" in request.attributes else 1.0,
        *bounds,
        bounds != compiled.UNBOUNDED,
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    assert native.LIBRARY is not None
    product, function = _product(request), _function(request)
    addend = operands.optional(inputs, 2)
    b_offsets = product.b_offsets
    if choice.packed:
        b_offsets = b_offsets // (product.depth * product.columns) * product.panel_floats
    arguments = _Gemm(
        native.address(operands.required(inputs, 0)),
        native.address(operands.required(inputs, 1)),
        native.address(operands.required(outputs)),
        native.address(workspace),
        native.address(product.a_offsets),
        native.address(b_offsets),
        len(product.a_offsets),
        *(product.rows, product.columns, product.depth),
        *product.a_strides,
        *product.b_strides,
        not choice.packed,
        _epilogue(request, addend),
        native.LIBRARY.address_of(f"aegis_{function[0]}_rows") if function else None,
        *(function[1] if function else (0.0, 0.0)),
    )
    kept = (*inputs, *outputs, workspace, product.a_offsets, b_offsets)
    return native.call("aegis_gemm", arguments, kept)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(_OPERATORS, _choose_packed, _bind, shares_work=True),
    CpuKernel(_OPERATORS, _choose_dynamic, _bind, shares_work=True),
)
