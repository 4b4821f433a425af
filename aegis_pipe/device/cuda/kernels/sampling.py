"""Sampling of images at positions that data tell: one thread a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel, unravel
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    operand,
    required,
    result,
    text,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT32,
    FLOAT64,
    FLOATS,
    PRODUCT,
    computed,
    dense_strides,
    stored,
)
from aegis_pipe.kernel import KernelRequest

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}

_WEIGHTS = """
// Keys' cubic convolution (1981), a = -0.75, of the distances to four elements.
template <typename A> __device__ __forceinline__ void weigh(A f, A (&w)[4]) {
  const A a = (A)-0.75; A x = f + 1;
  w[0] = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
  x = f; w[1] = ((a + 2) * x - (a + 3)) * x * x + 1;
  x = 1 - f; w[2] = ((a + 2) * x - (a + 3)) * x * x + 1;
  x = 2 - f; w[3] = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a; }
template <typename A> __device__ __forceinline__ void weigh(A f, A (&w)[2]) {
  w[0] = 1 - f; w[1] = f; }
template <typename A> __device__ __forceinline__ void weigh(A f, A (&w)[1]) { w[0] = 1; }
"""
_FARTHEST = 1 << 22
"""Points are cut off this many elements from the image; float32 still tells its neighbours."""


def _axis_taps(axis: int, size: int, mode: str, padding: str, *, align: bool) -> str:
    """Return statements that set `x<axis>` and `w<axis>`, from the position `p`."""
    taps = _TAPS[mode]
    pad = ""
    if padding == "zeros":
        pad = f"if (q < 0 || q >= {size}) w{axis}[k] = 0;"
    elif padding == "reflection":
        # About the outermost elements, or about their outer edges.
        period = max(2 * (size - 1), 1) if align else 2 * size
        mirrored = f"{period if align else period - 1} - q"
        pad = f"q = ((q % {period}) + {period}) % {period}; if ({mirrored} < q) q = {mirrored};"
    return f"""
  p = fmin(fmax(p, (A){-_FARTHEST}), (A){_FARTHEST});
  const A first{axis} = {"rint(p)" if mode == "nearest" else "floor(p)"};
  A w{axis}[{taps}]; int x{axis}[{taps}];
  weigh(p - first{axis}, w{axis});
  for (int k = 0; k < {taps}; ++k) {{
    int q = (int)first{axis} + k - {1 if taps == 4 else 0}; {pad}
    x{axis}[k] = q < 0 ? 0 : q >= {size} ? {size - 1} : q; }}"""


def _sum_taps(sizes: Sequence[int], taps: int, image: str) -> str:
    """Return statements that set `a` to the sample of `image`, a pointer."""
    strides = dense_strides(sizes)
    rank = len(sizes)
    loops = "".join(f"for (int k{axis} = 0; k{axis} < {taps}; ++k{axis}) " for axis in range(rank))
    place = " + ".join(f"x{axis}[k{axis}] * {strides[axis]}LL" for axis in range(rank))
    weight = " * ".join(f"w{axis}[k{axis}]" for axis in range(rank))
    return f"A a = 0; {loops} a += (A)get(({image})[{place}]) * ({weight});"


def _accepts_grid(request: KernelRequest) -> bool:
    data, grid = required(request), required(request, 1)
    return data.dtype in FLOATS and grid.dtype in FLOATS and 0 not in data.shape


def _bind_grid(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, target = required(request), result(request)
    _, channels, *sizes = data.shape
    rank, points = len(sizes), math.prod(target.shape[2:])
    align = bool(integer(request, "align_corners"))
    mode, padding = text(request, "mode"), text(request, "padding_mode")
    lines = []
    for axis, size in enumerate(sizes):
        # -1 and 1 are the outermost elements, or their outer edges.
        shift = "" if align else " - (A)0.5"
        lines.append(
            f"p = product((A)get(grid[(n * {points} + point) * {rank} + {rank - 1 - axis}]) + 1, "
            f"(A){(size - 1 if align else size) / 2}){shift};"
            + _axis_taps(axis, size, mode, padding, align=align)
        )
    image = f"x + (n * {channels} + c) * {math.prod(sizes)}LL"
    statements = f"""
  typedef {computed(data.dtype)} A;
  {unravel((data.shape[0], channels, points), ("n", "c", "point"))}
  A p; {"".join(lines)}
  {_sum_taps(sizes, _TAPS[mode], image)}
  y[i] = To<{stored(data.dtype)}>::of(a);"""
    parameters = [*given(binding, {"x": 0, "grid": 1}), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters, extra=PRODUCT + _WEIGHTS)


def _bind_affine(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    target = result(request)
    _, *sizes, rank = target.shape
    align = bool(integer(request, "align_corners"))
    names = [f"o{axis}" for axis in range(rank)]
    terms = []
    for axis, size in enumerate(sizes):
        # The outermost elements are at -1 and 1, or their outer edges are; a single one is at 0.
        along = max(size - 1, 1) if align else size
        at = f"(A)((double)(2 * {names[axis]} - {size - 1}) / {along})"
        terms.append(f"(A)get(theta[row + {rank - 1 - axis}]) * {at}")
    statements = f"""
  typedef {computed(target.dtype)} A;
  {unravel(target.shape, ("n", *names, "r"))}
  const long long row = (n * {rank} + r) * {rank + 1};
  A a = get(theta[row + {rank}]);
  {" ".join(f"a += {term};" for term in reversed(terms))}
  y[i] = To<{stored(target.dtype)}>::of(a);"""
    parameters = [*given(binding, {"theta": 0}), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters)


def _accepts_deform(request: KernelRequest) -> bool:
    dtypes = {spec.dtype for spec in request.inputs if spec}
    return len(dtypes) == 1 and dtypes <= {FLOAT32, FLOAT64} and 0 not in required(request).shape


def _bind_deform(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, weights, target = required(request), required(request, 1), result(request)
    _, channels, *sizes = data.shape
    kernel = integers(request, "kernel_shape")
    group, parts = integer(request, "group"), integer(request, "offset_group")
    strides, dilations, pads = (integers(request, n) for n in ("strides", "dilations", "pads"))
    taps, points = math.prod(kernel), math.prod(target.shape[2:])
    per_group = weights.shape[1]
    offset = f"((n * {parts} + part) * {taps} + tap)"
    lines = []
    for axis in range(2):
        start = f"o{axis} * {strides[axis]} - {pads[axis]} + t{axis} * {dilations[axis]}"
        lines.append(
            f"p = (A)get(offset[({offset} * 2 + {axis}) * {points}LL + point]) + (A)({start});"
            + _axis_taps(axis, sizes[axis], "linear", "zeros", align=False)
        )
    mask = f" * (A)get(mask[{offset} * {points}LL + point])" if operand(request, 4) else ""
    image = f"x + (n * {channels} + in) * {math.prod(sizes)}LL"
    statements = f"""
  typedef {computed(data.dtype)} A;
  {unravel(target.shape, ("n", "c", "o0", "o1"))}
  const long long point = o0 * {target.shape[3]} + o1;
  const long long g = c / {weights.shape[0] // group};
  A total = {"get(bias[c])" if operand(request, 3) else "0"};
  for (int t0 = 0; t0 < {kernel[0]}; ++t0) for (int t1 = 0; t1 < {kernel[1]}; ++t1) {{
    const int tap = t0 * {kernel[1]} + t1;
    for (int q = 0; q < {per_group}; ++q) {{
      const long long in = g * {per_group} + q, part = in / {channels // parts};
      A p; {"".join(lines)}
      {_sum_taps(sizes, 2, image)}
      total += a{mask} * (A)get(w[(c * {per_group} + q) * {taps} + tap]); }} }}
  y[i] = To<{stored(data.dtype)}>::of(total);"""
    parameters = [
        *given(binding, {"x": 0, "w": 1, "offset": 2, "bias": 3, "mask": 4}),
        *results(binding, {"y": 0}),
    ]
    return each(binding, target.element_count, statements, parameters, extra=_WEIGHTS)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel("grid_sample", ("GridSample",), _bind_grid, accepts=_accepts_grid),
    simple_kernel("affine_grid", ("AffineGrid",), _bind_affine, dtypes=FLOATS),
    simple_kernel("deform_conv", ("DeformConv",), _bind_deform, accepts=_accepts_deform),
)
