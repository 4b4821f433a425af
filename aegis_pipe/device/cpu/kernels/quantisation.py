"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, computed in float32.

Scales and zero points hold for the whole tensor, for each position of an axis, or for blocks
along an axis; the latter two are the tensor cut into parts for which they broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import ml_dtypes
import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.casting import FLOAT8, SMALL_INTEGERS, finite_range
from aegis_pipe.device.cpu.kernels.pointwise import FLOAT32, FLOATS
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.scratch import kernel_with_scratch
from aegis_pipe.device.cpu.kernels.tiles import tile_size, tile_views
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_INT32 = np.dtype(np.int32)
_QUANTISED_INTEGERS = SMALL_INTEGERS | {
    np.dtype(kind) for kind in (np.int8, np.uint8, np.int16, np.uint16)
}
_FLOAT4 = np.dtype(ml_dtypes.float4_e2m1fn)
_QUANTISED = _QUANTISED_INTEGERS | FLOAT8 | {_FLOAT4}


def _parts(
    request: KernelRequest, tensor: np.ndarray, others: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Yield parts of the tensor, each with the parts of the others that broadcast to it."""
    block_size = operands.integer(request, "block_size")
    axis = operands.integer(request, "axis")
    if not block_size:
        shape = [-1 if i == axis else 1 for i in range(tensor.ndim)]
        yield tensor, [a.reshape(shape if a.size > 1 else ()) for a in others]
        return
    along = [slice(None)] * axis
    for block in range(others[0].shape[axis]):
        covered = slice(block * block_size, (block + 1) * block_size)
        single = slice(block, block + 1)
        yield tensor[(*along, covered)], [other[(*along, single)] for other in others]


def _tiles(
    request: KernelRequest, source: np.ndarray, target: np.ndarray, others: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, ...]]:
    """Return (source, target, *others) views of at most a tile each."""
    targets = [part for part, _ in _parts(request, target, others)]
    return [
        tile
        for (part, fitting), written in zip(_parts(request, source, others), targets, strict=True)
        for tile in tile_views(part.shape, [part, written, *fitting])
    ]


def _parameter_specs(request: KernelRequest) -> list[TensorSpec]:
    """Return float32 specs of scale and, if there is one, zero point."""
    given = [operands.input_spec(request, i) for i in (1, 2) if operands.has_input(request, i)]
    return [TensorSpec(FLOAT32, spec.shape) for spec in given]


def _scratch(request: KernelRequest) -> list[TensorSpec]:
    tile = TensorSpec(FLOAT32, (tile_size(operands.output_spec(request).shape),))
    return [tile, *_parameter_specs(request)]


def _accepts_quantise(request: KernelRequest) -> bool:
    source, scale = operands.input_spec(request, 0).dtype, operands.input_spec(request, 1).dtype
    return (
        source in FLOATS | {_INT32}
        and scale in FLOATS
        and request.attributes["precision"] in ("", "float32")
        and operands.output_spec(request).dtype in _QUANTISED
        and np.dtype(np.float64) not in (source, scale)
    )


def _range(dtype: np.dtype, saturate: bool) -> tuple[float, float] | None:
    return None if dtype in FLOAT8 and not saturate else finite_range(dtype)


def _bind_quantise(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    source, target = operands.required(inputs), operands.required(outputs)
    tile, *parameters = scratch
    given = [array for array in inputs[1:] if array is not None]
    limits = _range(target.dtype, bool(operands.integer(request, "saturate")))
    is_integer = target.dtype in _QUANTISED_INTEGERS
    steps = [
        (read, tile[: read.size].reshape(read.shape), written, fitting)
        for read, written, *fitting in _tiles(request, source, target, parameters)
    ]

    def run() -> None:
        for to, parameter in zip(parameters, given, strict=True):
            np.copyto(to, parameter, casting="unsafe")
        for read, wide, written, (scale, *zero_point) in steps:
            if read.dtype != FLOAT32:
                np.copyto(wide, read, casting="unsafe")
                read = wide
            np.divide(read, scale, out=wide)
            if is_integer:
                np.rint(wide, out=wide)
            for zero in zero_point:
                np.add(wide, zero, out=wide)
            if limits is not None:
                wide.clip(*limits, out=wide)
            np.copyto(written, wide, casting="unsafe")

    return run


def _accepts_dequantise(request: KernelRequest) -> bool:
    source = operands.input_spec(request, 0).dtype
    floats = {operands.input_spec(request, 1).dtype, operands.output_spec(request).dtype}
    return source in _QUANTISED | {_INT32} and floats <= FLOATS - {np.dtype(np.float64)}


def _bind_dequantise(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    source, target = operands.required(inputs), operands.required(outputs)
    tile, *parameters = scratch
    given = [array for array in inputs[1:] if array is not None]
    steps = [
        (read, tile[: read.size].reshape(read.shape), written, fitting)
        for read, written, *fitting in _tiles(request, source, target, parameters)
    ]

    def run() -> None:
        for to, parameter in zip(parameters, given, strict=True):
            np.copyto(to, parameter, casting="unsafe")
        for read, wide, written, (scale, *zero_point) in steps:
            np.copyto(wide, read, casting="unsafe")
            for zero in zero_point:
                np.subtract(wide, zero, out=wide)
            np.multiply(wide, scale, out=wide)
            np.copyto(written, wide, casting="unsafe")

    return run


def _dynamic_scratch(request: KernelRequest) -> list[TensorSpec]:
    return [TensorSpec(FLOAT32, (tile_size(operands.output_spec(request).shape),))]


def _bind_dynamic(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    source = operands.required(inputs)
    target, scale, zero_point = (operands.required(outputs, i) for i in range(3))
    steps = [
        (read, scratch[0][: read.size].reshape(read.shape), written)
        for read, written in tile_views(source.shape, [source, target])
    ]

    def run() -> None:
        # The range always holds 0, so that 0 is exact.
        low = np.minimum.reduce(source, axis=None, initial=0)
        high = np.maximum.reduce(source, axis=None, initial=0)
        # Nothing but zeros has no range; any scale will do.
        step = (high - low) / np.float32(255) if high > low else np.float32(1)
        offset = np.rint(np.clip(-low / step, 0, 255))
        scale[...] = step
        zero_point[...] = offset
        for read, wide, written in steps:
            np.divide(read, step, out=wide)
            np.rint(wide, out=wide)
            np.add(wide, offset, out=wide)
            wide.clip(0, 255, out=wide)
            np.copyto(written, wide, casting="unsafe")

    return run


def _accepts_dynamic(request: KernelRequest) -> bool:
    has_all = all(operands.has_output(request, i) for i in range(3))
    return has_all and operands.input_spec(request, 0).dtype == FLOAT32


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    kernel_with_scratch(
        "QuantizeLinear", _bind_quantise, accepts=_accepts_quantise, scratch=_scratch
    ),
    kernel_with_scratch(
        "DequantizeLinear", _bind_dequantise, accepts=_accepts_dequantise, scratch=_scratch
    ),
    kernel_with_scratch(
        "DynamicQuantizeLinear", _bind_dynamic, accepts=_accepts_dynamic, scratch=_dynamic_scratch
    ),
)
