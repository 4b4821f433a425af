"""Cast and BitCast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import carve, scratch_bytes
from aegis_pipe.device.cpu.kernels.pointwise import BOOL, FLOAT32, FLOATS, INTEGERS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.tiles import tile_size, tile_views
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

FLOAT8 = frozenset(
    np.dtype(kind)
    for kind in (
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
    )
)
SMALL_INTEGERS = frozenset(
    np.dtype(kind) for kind in (ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4)
)
_FLOAT4 = frozenset({np.dtype(ml_dtypes.float4_e2m1fn)})
_POWER_OF_TWO: np.dtype = np.dtype(ml_dtypes.float8_e8m0fnu)
_NATIVE = INTEGERS | {BOOL}
_SOURCES = _NATIVE | FLOATS | FLOAT8 | SMALL_INTEGERS | _FLOAT4


def _accepts(source: np.dtype, target: np.dtype) -> bool:
    if _POWER_OF_TWO in (source, target):
        return (source if target == _POWER_OF_TWO else target) in FLOATS
    if target in FLOAT8 | _FLOAT4 | SMALL_INTEGERS:
        return source in _SOURCES
    return source in _SOURCES and target in _NATIVE | FLOATS


def _scratch(request: KernelRequest) -> list[TensorSpec]:
    source, target = operands.input_spec(request, 0), operands.output_spec(request)
    through = FLOAT8 | _FLOAT4 | SMALL_INTEGERS
    is_direct = source.dtype not in through and target.dtype not in through
    return [] if is_direct else [TensorSpec(FLOAT32, (tile_size(target.shape),))]


def _choose(request: KernelRequest) -> KernelChoice | None:
    source, target = operands.input_spec(request, 0), operands.output_spec(request)
    if not _accepts(source.dtype, target.dtype):
        return None
    return KernelChoice(
        kernel="cast",
        workspace_bytes=scratch_bytes(_scratch(request)),
        cost=2.0 * target.element_count,
    )


def _bind(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    source, target = operands.required(inputs), operands.required(outputs)
    scratch = carve(workspace, _scratch(request))
    if not scratch:

        def convert() -> None:
            np.copyto(target, source, casting="unsafe")

        return convert
    low, high = _limits(target.dtype, bool(operands.integer(request, "saturate")))
    tiles = [
        (read, scratch[0][: read.size].reshape(read.shape), written)
        for read, written in tile_views(target.shape, [source, target])
    ]

    def convert_through_float32() -> None:
        for read, wide, written in tiles:
            np.copyto(wide, read, casting="unsafe")
            if high is not None:
                np.clip(wide, low, high, out=wide)
            np.copyto(written, wide, casting="unsafe")

    return convert_through_float32


def _choose_power_of_two(request: KernelRequest) -> KernelChoice | None:
    source, target = operands.input_spec(request, 0), operands.output_spec(request)
    if target.dtype != _POWER_OF_TWO or source.dtype not in FLOATS:
        return None
    scratch = [TensorSpec(FLOAT32, source.shape), TensorSpec(FLOAT32, source.shape)]
    return KernelChoice(
        "cast.power_of_two", scratch_bytes(scratch), cost=4.0 * source.element_count
    )


def _bind_power_of_two(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    """Keep a float32's exponent, which is a float8e8m0's bits, after rounding to a power of two.

    Adding to the bits carries out of the fraction into the exponent: all ones round up whatever
    is not 0, the highest bit rounds to nearest. 255 is NaN in both formats.
    """
    source, target = operands.required(inputs), operands.required(outputs).view(np.uint8)
    spec = TensorSpec(FLOAT32, source.shape)
    wide, spare = carve(workspace, [spec, spec])
    bits, magnitudes = wide.view(np.uint32), spare.view(np.uint32)
    added = {"up": 0x7FFFFF, "nearest": 0x400000, "down": 0}
    carry = np.uint32(added[operands.text(request, "round_mode")])
    top = np.uint32(254 if operands.integer(request, "saturate") else 255)

    def run() -> None:
        np.copyto(wide, source, casting="unsafe")
        np.bitwise_and(bits, np.uint32(0x7FFFFFFF), out=bits)
        np.add(bits, carry, out=magnitudes)
        np.right_shift(magnitudes, 23, out=magnitudes)
        np.minimum(magnitudes, top, out=magnitudes)
        np.right_shift(bits, 23, out=bits)
        # Infinity and NaN stay what they are, whatever was added.
        np.copyto(magnitudes, np.uint32(255), where=bits == 255)
        np.copyto(target, magnitudes, casting="unsafe")

    return run


def finite_range(dtype: np.dtype) -> tuple[float, float]:
    """Return the least and the greatest finite value."""
    is_integer = dtype in INTEGERS | SMALL_INTEGERS
    info = (ml_dtypes.iinfo if is_integer else ml_dtypes.finfo)(dtype)
    return float(info.min), float(info.max)


def _limits(dtype: np.dtype, saturate: bool) -> tuple[float | None, float | None]:
    """Return what to clip to before converting, or None; integers keep their lowest bits."""
    if dtype in FLOAT8 and saturate:
        return finite_range(dtype)
    return None, None


def _choose_view(request: KernelRequest) -> KernelChoice | None:
    return KernelChoice("view", view=(0, 0))


def _bind_view(
    request: KernelRequest,
    choice: KernelChoice,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    workspace: np.ndarray | None,
) -> Callable[[], None]:
    """Bind for a planner that could not give both the same bytes (a graph output, say): copy."""
    source = operands.required(inputs).reshape(-1).view(np.uint8)
    target = operands.required(outputs).reshape(-1).view(np.uint8)

    def run() -> None:
        np.copyto(target, source)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    CpuKernel(("Cast",), _choose_power_of_two, _bind_power_of_two),
    CpuKernel(("Cast",), _choose, _bind),
    CpuKernel(("Reshape", "BitCast"), _choose_view, _bind_view),
)
