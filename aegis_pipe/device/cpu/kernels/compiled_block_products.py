"""Compiled products with weights quantised in blocks to 4 or 8 bits.

native.gemm.blocks        MatMulNBits (`c/block_products.c`); constant weights, packed as they come
native.gemm.blocks.bytes  the same with A quantised by blocks, accuracy_level 4 (`c/block_bytes.c`)
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.device.cpu.kernels import compiled, native, operands
from aegis_pipe.device.cpu.kernels.block_quantised import quantises_left
from aegis_pipe.device.cpu.kernels.native import FLOAT, INTEGER, POINTER
from aegis_pipe.device.cpu.kernels.planned import carve, scratch_bytes
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant
from aegis_pipe.tensor import TensorSpec

_LANES = 16
_UINT8 = np.dtype(np.uint8)
_WORD_BYTES = 4
_BYTES_FASTER = 4
"""Multiply-adds of bytes in the time of one of floats."""


class _BlockProduct(ctypes.Structure):
    """`block_product` of `c/block_products.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("a", "words", "scales", "zeros", "bias", "y", "workspace")),
        *((name, INTEGER) for name in ("rows", "columns", "depth", "block")),
        *((name, INTEGER) for name in ("bits", "zeros_are_floats")),
        ("zero", FLOAT),
    )


class _BlockProductOfBytes(ctypes.Structure):
    """`block_product` of `c/block_bytes.c`."""

    _fields_ = (
        *((name, POINTER) for name in ("a", "words", "scales", "zeros", "bias", "y")),
        *((name, POINTER) for name in ("levels", "a_scales", "a_sums", "place")),
        *((name, INTEGER) for name in ("rows", "columns", "depth", "block", "bits", "zero")),
    )


def _sizes(request: KernelRequest) -> tuple[int, int, int, int]:
    """Return rows, columns, depth and blocks along the depth."""
    data, columns = operands.input_spec(request, 0), operands.output_spec(request).shape[-1]
    depth = data.shape[-1]
    blocks = -(-depth // operands.integer(request, "block_size"))
    return data.element_count // depth, columns, depth, blocks


def _in_lanes(layout: str, columns: int, row_items: int, dtype: np.dtype) -> PackedConstant:
    """Return the packing of [columns, row_items] into [groups, row_items, 16 columns]."""
    groups = -(-columns // _LANES)

    def fill(array: np.ndarray, packed: np.ndarray) -> None:
        rows = array.reshape(columns, -1).view(dtype)
        target = packed.view(dtype).reshape(groups, row_items, _LANES)
        whole = columns // _LANES
        np.copyto(
            target[:whole], rows[: whole * _LANES].reshape(whole, _LANES, row_items).swapaxes(1, 2)
        )
        for rest in target[whole:]:
            rest.fill(0)
            np.copyto(rest[:, : columns - whole * _LANES], rows[whole * _LANES :].T)

    size_bytes = groups * row_items * _LANES * dtype.itemsize
    return PackedConstant.filled(f"lanes.{layout}", size_bytes, fill)


def _zeros(request: KernelRequest, columns: int, blocks: int) -> PackedConstant:
    """Return the packing of zero points: bytes, one each, or floats."""
    spec, bits = operands.input_spec(request, 3), operands.integer(request, "bits")
    inner = _in_lanes(f"zeros.{bits}", columns, blocks, spec.dtype)
    if spec.dtype == compiled.FLOAT32 or bits == 8:
        return inner

    def pack(array: np.ndarray) -> np.ndarray:
        rows = array.reshape(columns, -1)
        levels = np.stack([rows & 15, rows >> 4], axis=-1).reshape(columns, -1)
        return inner.pack(np.ascontiguousarray(levels[:, :blocks]))

    return PackedConstant(inner.layout, inner.size_bytes, pack)


def _choose(request: KernelRequest) -> KernelChoice | None:
    library = native.LIBRARY
    data, weights, scales, zeros, bias = request.inputs
    assert data is not None
    assert weights is not None
    assert scales is not None
    constants = {1, 2} | ({3} if zeros is not None else set())
    if library is None or not constants <= set(request.constants) or not data.element_count:
        return None
    floats = [data, scales, operands.output_spec(request), *([bias] if bias else [])]
    if any(spec.dtype != compiled.FLOAT32 for spec in floats) or weights.dtype != _UINT8:
        return None
    if zeros is not None and zeros.dtype not in (_UINT8, compiled.FLOAT32):
        return None
    bits, size = operands.integer(request, "bits"), operands.integer(request, "block_size")
    is_moved = operands.integer(request, "is_reordered") or operands.integer(
        request, "is_prepacked"
    )
    if bits not in (4, 8) or is_moved:
        return None
    rows, columns, depth, blocks = _sizes(request)
    words = blocks * size * bits // 8 // _WORD_BYTES
    packed = {
        1: _in_lanes("words", columns, words, np.dtype(np.int32)),
        2: _in_lanes("scales", columns, blocks, compiled.FLOAT32),
    }
    if zeros is not None:
        packed[3] = _zeros(request, columns, blocks)
    return KernelChoice(
        kernel="native.gemm.blocks",
        workspace_bytes=4 * library.block_product_workspace(rows, size),
        packed=packed,
        cost=float(rows + 1) * columns * depth,
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    rows, columns, depth, _ = _sizes(request)
    bits, zeros = operands.integer(request, "bits"), request.inputs[3]
    arguments = _BlockProduct(
        *map(native.address, (*inputs, *outputs, workspace)),
        *(rows, columns, depth, operands.integer(request, "block_size")),
        *(bits, zeros is not None and zeros.dtype == compiled.FLOAT32),
        1 << (bits - 1),
    )
    kept = (*inputs, *outputs, workspace)
    return native.call("aegis_block_product", arguments, kept)


def _left_specs(request: KernelRequest) -> list[TensorSpec]:
    """Return what A becomes: levels, and for each block a scale and the sum of its levels."""
    rows, _, _, blocks = _sizes(request)
    size = operands.integer(request, "block_size")
    return [
        TensorSpec(np.dtype(np.int8), (rows, blocks * size)),
        TensorSpec(compiled.FLOAT32, (rows, blocks)),
        TensorSpec(np.dtype(np.int32), (rows, blocks)),
    ]


def _choose_bytes(request: KernelRequest) -> KernelChoice | None:
    choice = _choose(request) if quantises_left(request) else None
    if choice is None:
        return None
    # All of a team quantise A for each other: the workspace is the team's.
    return replace(
        choice,
        kernel="native.gemm.blocks.bytes",
        workspace_bytes=scratch_bytes(_left_specs(request)),
        cost=choice.cost / _BYTES_FASTER,
    )


def _bind_bytes(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    rows, columns, depth, _ = _sizes(request)
    bits, left = operands.integer(request, "bits"), carve(workspace, _left_specs(request))
    lines, place = native.meeting_place()
    arguments = _BlockProductOfBytes(
        *map(native.address, (*inputs, *outputs, *left)),
        place,
        *(rows, columns, depth, operands.integer(request, "block_size"), bits, 1 << (bits - 1)),
    )
    function, kept = "aegis_block_product_of_bytes", (*inputs, *outputs, workspace, lines)
    return native.call(function, arguments, kept)


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("com.microsoft.MatMulNBits",), _choose_bytes, _bind_bytes),
    CpuKernel(("com.microsoft.MatMulNBits",), _choose, _bind, shares_work=True),
)
