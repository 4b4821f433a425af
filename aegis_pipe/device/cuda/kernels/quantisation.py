"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, in float32 as on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from aegis_pipe.device.cuda.kernels import small_types
from aegis_pipe.device.cuda.kernels.each import each, given, launch, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, operand, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.small_types import FLOAT4, FLOAT8, SMALL, SMALL_INTEGERS
from aegis_pipe.device.cuda.kernels.source import ALL, FLOAT32, FLOAT64, FLOATS, literal, stored
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_INT32 = np.dtype(np.int32)
_INTEGERS = SMALL_INTEGERS | {np.dtype(kind) for kind in ("i1", "u1", "i2", "u2")}
_QUANTISED = _INTEGERS | FLOAT8 | {FLOAT4}
_UINT8 = np.dtype(np.uint8)
_THREADS = 1024


def limits(dtype: np.dtype) -> tuple[int, int]:
    """Return the least and the greatest value of an integer type."""
    info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


def saturated(real: str, kind: str, dtype: np.dtype, levels: Sequence[int] = ()) -> str:
    """Return a C expression of a number brought into the range of an integer type."""
    low, high = (literal(float(each_one), kind) for each_one in levels or limits(dtype))
    return f"fmin(fmax({real}, {low}), {high})"


def _scale_place(request: KernelRequest) -> str:
    """Return a C expression: which scale the element at `i` has."""
    shape, scale = required(request).shape, required(request, 1)
    axis, block = integer(request, "axis"), integer(request, "block_size")
    if scale.element_count == 1 and not block:
        return "0"
    inner, size = max(1, math.prod(shape[axis + 1 :])), max(1, shape[axis])
    if not block:
        return f"i / {inner} % {size}"
    count = scale.shape[axis]
    return (
        f"(i / {inner * size} * {count} + i / {inner} % {size} / {block}) * {inner} + i % {inner}"
    )


def _computed(request: KernelRequest, *others: TensorSpec) -> str:
    specs = [spec for spec in (*request.inputs, *others) if spec is not None]
    return "double" if any(spec.dtype == FLOAT64 for spec in specs) else "float"


def _accepts_quantise(request: KernelRequest) -> bool:
    return (
        required(request).dtype in FLOATS | {_INT32}
        and required(request, 1).dtype in FLOATS
        and request.attributes["precision"] in ("", "float32")
        and result(request).dtype in _QUANTISED
    )


def _bind_quantise(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    target, kind = result(request), _computed(request)
    value = "(A)get(x[i]) / (A)get(scale[s])"
    zero = " + (A)get(zero[s])" if operand(request, 2) is not None else ""
    written = stored(target.dtype)
    if target.dtype in _INTEGERS:
        value = saturated(f"rint({value}){zero}", kind, target.dtype)
        if target.dtype in SMALL_INTEGERS:
            value = f"(int){value}"
    else:
        value += zero
        if target.dtype in FLOAT8 and integer(request, "saturate"):
            written = small_types.saturating(target.dtype)
    statements = f"""
  typedef {kind} A;
  const long long s = {_scale_place(request)};
  y[i] = To<{written}>::of({value});"""
    (_, address) = results(binding, {"y": 0})[0]
    parameters = [*given(binding, {"x": 0, "scale": 1, "zero": 2}), (f"{written}* y", address)]
    return each(binding, target.element_count, statements, parameters)


def _accepts_dequantise(request: KernelRequest) -> bool:
    floats = {required(request, 1).dtype, result(request).dtype}
    return required(request).dtype in _QUANTISED | {_INT32} and floats <= FLOATS


def _bind_dequantise(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    target = result(request)
    zero = " - (A)get(zero[s])" if operand(request, 2) is not None else ""
    statements = f"""
  typedef {_computed(request, target)} A;
  const long long s = {_scale_place(request)};
  y[i] = To<{stored(target.dtype)}>::of(((A)get(x[i]){zero}) * (A)get(scale[s]));"""
    parameters = [*given(binding, {"x": 0, "scale": 1, "zero": 2}), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters)


def launch_range(
    binding: Binding, count: int, source: tuple[str, int], scale: int, zero: int, zero_type: str
) -> list[Enqueue]:
    """Launch what writes the scale (float) and zero point of the 8-bit grid of float32 data.

    The range always holds 0, so that 0 is exact; data without a range has the scale 1.
    """
    body = f"""
  __shared__ float lows[{_THREADS}], highs[{_THREADS}];
  const int t = threadIdx.x;
  float low = 0, high = 0;
  for (long long i = t; i < {count}LL; i += {_THREADS}) {{
    const float v = x[i]; low = fminf(low, v); high = fmaxf(high, v); }}
  lows[t] = low; highs[t] = high; __syncthreads();
  for (int m = {_THREADS // 2}; m; m /= 2) {{
    if (t < m) {{
      lows[t] = fminf(lows[t], lows[t + m]); highs[t] = fmaxf(highs[t], highs[t + m]); }}
    __syncthreads(); }}
  if (t) return;
  low = lows[0]; high = highs[0];
  const float step = high > low ? (high - low) / 255.0f : 1.0f;
  *scale = step;
  *zero = ({zero_type})rintf(fminf(fmaxf(-low / step, 0.0f), 255.0f));"""
    parameters = [source, ("float* scale", scale), (f"{zero_type}* zero", zero)]
    return launch(binding, body, parameters, grid=1, threads=_THREADS)


def _accepts_dynamic(request: KernelRequest) -> bool:
    return required(request).dtype == FLOAT32 and all(
        spec is not None for spec in request.outputs[:3]
    )


def _bind_dynamic(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    count = required(request).element_count
    target, scale, zero = binding.outputs[:3]
    assert target is not None
    assert scale is not None
    assert zero is not None
    (source,) = given(binding, {"x": 0})
    statements = "y[i] = (u8)fminf(fmaxf(rintf(x[i] / *scale) + (float)*zero, 0.0f), 255.0f);"
    parameters = [
        source,
        ("const float* scale", scale),
        ("const u8* zero", zero),
        ("u8* y", target),
    ]
    return [
        *launch_range(binding, count, source, scale, zero, "u8"),
        *each(binding, count, statements, parameters),
    ]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "quantise",
        ("QuantizeLinear",),
        _bind_quantise,
        accepts=_accepts_quantise,
        dtypes=ALL | SMALL,
    ),
    simple_kernel(
        "dequantise",
        ("DequantizeLinear",),
        _bind_dequantise,
        accepts=_accepts_dequantise,
        dtypes=ALL | SMALL,
    ),
    simple_kernel(
        "quantise.dynamic", ("DynamicQuantizeLinear",), _bind_dynamic, accepts=_accepts_dynamic
    ),
)
