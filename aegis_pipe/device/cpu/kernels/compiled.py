"""What the compiled families share: acceptance tests, packing, epilogues."""

from __future__ import annotations

import ctypes
import math

import numpy as np

from aegis_pipe.device.cpu.kernels import native, operands
from aegis_pipe.kernel import KernelRequest

FLOAT32 = np.dtype(np.float32)

UNBOUNDED = (-math.inf, math.inf)
"""Clip bounds of a kernel that does not clip."""


def is_float32(request: KernelRequest) -> bool:
    """Return whether all operands and results are float32 and none is empty."""
    for spec in (*request.inputs, *request.outputs):
        if spec is not None and (spec.dtype != FLOAT32 or 0 in spec.shape):
            return False
    return True


def clip_bounds(request: KernelRequest) -> tuple[float, float] | None:
    """Return the bounds of a fused activation that is a clip; None if it is another one."""
    name = str(request.attributes.get("activation", "")).lower()
    if not name:
        return UNBOUNDED
    if name == "relu":
        return 0.0, math.inf
    if name == "clip":
        low, high = operands.numbers(request, "activation_params")
        return low, high
    return None


class Epilogue(ctypes.Structure):
    """`epilogue` of `c/tile.h`."""

    _fields_ = (
        ("residual", native.POINTER),
        ("addend", native.POINTER),
        ("addend_row", native.INTEGER),
        ("addend_column", native.INTEGER),
        ("scale", native.FLOAT),
        ("addend_scale", native.FLOAT),
        ("low", native.FLOAT),
        ("high", native.FLOAT),
        ("clips", native.INTEGER),
    )


def round_up(value: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-value // multiple) * multiple


def in_tiles(matrices: np.ndarray, width: int) -> np.ndarray:
    """Cut the last axis into tiles: [..., depth, n] to [..., n / width, depth, width], padded."""
    *batch, depth, n = matrices.shape
    whole = n // width
    tiles = np.zeros((*batch, -(-n // width), depth, width), matrices.dtype)
    within = matrices[..., : whole * width].reshape(*batch, depth, whole, width)
    tiles[..., :whole, :, :] = within.swapaxes(-2, -3)
    if n % width:
        tiles[..., whole, :, : n % width] = matrices[..., whole * width :]
    return tiles
