"""Resize in one kernel: every result is the weighted sum of its taps along all changing axes.

Positions and weights are known at load and stand in the source as tables, one pair for each axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.operands import number, required, result, text
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    FLOAT64,
    FLOATS,
    blocks_for,
    dense_strides,
    kernel_source,
    literal,
    stored,
)
from aegis_pipe.device.resampling import COORDINATES, AxisTaps, changing_axes
from aegis_pipe.kernel import KernelChoice, KernelRequest

_THREADS = 256
_TABLE_MAX = 65_536
"""Entries of all tables; more would be read from memory better than compiled."""


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    source = required(request)
    dtypes = ALL if text(request, "mode") == "nearest" else FLOATS
    if (
        source.dtype not in dtypes
        or not source.element_count
        or text(request, "coordinate_transformation_mode") not in COORDINATES
    ):
        return None
    axes = changing_axes(request)
    if sum(taps.positions.size for taps in axes) > _TABLE_MAX:
        return None
    reads = math.prod(taps.positions.shape[1] for taps in axes)
    return KernelChoice("resizing.Resize", cost=float(result(request).element_count * reads))


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source, target = required(request), result(request)
    if not target.element_count:
        return []
    ctype = "double" if source.dtype == FLOAT64 else "float"
    axes = sorted(changing_axes(request), key=lambda taps: taps.axis)
    tables = "\n".join(_table(taps, ctype) for taps in axes)
    stored_type = stored(source.dtype)
    lines = [
        f"const long long i = (long long)blockIdx.x * {_THREADS} + threadIdx.x;",
        f"if (i >= {target.element_count}LL) return;",
    ]
    strides = dense_strides(source.shape)
    fixed = ["0LL"]
    changed = {taps.axis: taps for taps in axes}
    for axis, step in enumerate(dense_strides(target.shape)):
        coordinate = f"(i / {step}LL) % {target.shape[axis]}"
        if axis in changed:
            lines.append(f"const int c{axis} = (int)({coordinate});")
        else:
            fixed.append(f"({coordinate}) * {strides[axis]}LL")
    lines.append(f"const {stored_type}* from = x + ({' + '.join(fixed)});")
    outside = [f"OUTSIDE{taps.axis}[c{taps.axis}]" for taps in axes if taps.outside.size]
    if outside:
        value = literal(number(request, "extrapolation_value"), ctype)
        lines.append(
            f"if ({' || '.join(outside)}) {{ y[i] = To<{stored_type}>::of({value}); return; }}"
        )
    lines += _sum(axes, strides, stored_type, ctype)
    parameters = [f"const {stored_type}* x", f"{stored_type}* y"]
    code = kernel_source(parameters, "\n  ".join(lines), threads=_THREADS, extra=tables)
    grid = blocks_for(target.element_count, _THREADS)
    arguments = [*binding.inputs[:1], binding.outputs[0]]
    return [binding.kernel(code, arguments, grid=grid, block=_THREADS)]


def _sum(
    axes: Sequence[AxisTaps], strides: Sequence[int], stored_type: str, ctype: str
) -> list[str]:
    """Return statements that write the result: a copy, or nested loops over the taps."""
    if all(taps.is_copy for taps in axes):
        terms = [f"P{taps.axis}[c{taps.axis}] * {strides[taps.axis]}LL" for taps in axes]
        return [f"y[i] = from[{' + '.join(terms) or '0'}];"]
    lines = [f"{ctype} sum = 0;"]
    offset, weight = "0LL", f"({ctype})1"
    for taps in axes:
        axis, count = taps.axis, taps.positions.shape[1]
        lines.append(f"#pragma unroll\n  for (int t{axis} = 0; t{axis} < {count}; ++t{axis}) {{")
        at = f"c{axis} * {count} + t{axis}"
        lines.append(f"const long long o{axis} = {offset} + P{axis}[{at}] * {strides[axis]}LL;")
        lines.append(f"const {ctype} w{axis} = {weight} * W{axis}[{at}];")
        offset, weight = f"o{axis}", f"w{axis}"
    lines.append(f"sum += ({ctype})get(from[{offset}]) * {weight};")
    lines += ["}"] * len(axes)
    return [*lines, f"y[i] = To<{stored_type}>::of(sum);"]


def _table(taps: AxisTaps, ctype: str) -> str:
    """Return an axis's positions, weights, and what lies outside, [size, taps] each."""
    positions = ", ".join(map(str, taps.positions.reshape(-1).tolist()))
    weights = ", ".join(literal(weight, ctype) for weight in taps.weights.reshape(-1).tolist())
    lines = [
        f"static __device__ const int P{taps.axis}[] = {{{positions}}};",
        f"static __device__ const {ctype} W{taps.axis}[] = {{{weights}}};",
    ]
    if taps.outside.size:
        flags = ["0"] * taps.size
        for position in taps.outside.tolist():
            flags[position] = "1"
        table = ", ".join(flags)
        lines.append(f"static __device__ const bool OUTSIDE{taps.axis}[] = {{{table}}};")
    return "\n".join(lines)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel(("Resize",), _choose, _bind),)
