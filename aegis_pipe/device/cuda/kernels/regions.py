"""Pools over regions of interest: one thread a bin of a channel."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE
from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel, unravel
from aegis_pipe.device.cuda.kernels.operands import integer, number, required, result, text
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT32,
    FLOAT64,
    FLOATS,
    computed,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelRequest

_SAMPLES_MAX = 16 << 10
"""Samples of a region along one side."""


def _checked_image(value: str, count: int) -> str:
    return (
        f"long long image = (long long)({value}); "
        f"if (image < 0 || image >= {count}) {{ *fault = {INDEX_OUT_OF_RANGE}; image = 0; }}"
    )


def _accepts_align(request: KernelRequest) -> bool:
    data = required(request)
    return (
        data.dtype in {FLOAT32, FLOAT64}
        and required(request, 1).dtype == data.dtype
        and text(request, "mode") in ("avg", "max")
        and 0 not in data.shape
    )


def _bind_align(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, target = required(request), result(request)
    images, channels, height, width = data.shape
    half_pixel = bool(integer(request, "half_pixel"))
    ratio, scale = integer(request, "sampling_ratio"), number(request, "spatial_scale")
    is_mean = text(request, "mode") == "avg"
    lines = ""
    sides = ((1, height, "h", target.shape[2]), (0, width, "w", target.shape[3]))
    for corner, _, name, bins in sides:
        shift = " - 0.5" if half_pixel else ""
        extent = f"end_{name} - start_{name}"
        lines += f"""
  const double start_{name} = (double)rois[r * 4 + {corner}] * {scale!r}{shift};
  const double end_{name} = (double)rois[r * 4 + {corner + 2}] * {scale!r}{shift};
  const double extent_{name} = {extent if half_pixel else f"fmax({extent}, 1.0)"};
  double many_{name} = {float(ratio) if ratio > 0 else f"fmax(ceil(extent_{name} / {bins}), 0.0)"};
  if (!(many_{name} * {bins} <= {_SAMPLES_MAX})) {{
    *fault = {INDEX_OUT_OF_RANGE}; many_{name} = 0; }}
  const int count_{name} = (int)many_{name};"""

    def sample(name: str, size: int, bins: int) -> str:
        return f"""
    double p_{name} = start_{name} + (bin_{name} * count_{name} + s_{name} + 0.5)
                      * (extent_{name} / {bins} / count_{name});
    const bool in_{name} = p_{name} >= -1 && p_{name} <= {size};
    p_{name} = fmin(fmax(p_{name}, 0.0), (double){size - 1});
    const int low_{name} = (int)p_{name} < {size - 1} ? (int)p_{name} : {size - 1};
    const int high_{name} = low_{name} + 1 < {size} ? low_{name} + 1 : {size - 1};
    const A far_{name} = (A)(p_{name} - low_{name}), near_{name} = 1 - far_{name};"""

    def weighted(a: str, b: str) -> str:
        side = {"near": "low", "far": "high"}
        return f"{a}_h * {b}_w * (A)part[{side[a]}_h * {width}LL + {side[b]}_w]"

    corners = [weighted(a, b) for a in ("near", "far") for b in ("near", "far")]
    if is_mean:
        start = "A a = 0;"
        step = f"if (in_h && in_w) a += {' + '.join(corners)};"
        final = "count_h * count_w > 0 ? a / (A)(count_h * count_w) : (A)0"
    else:
        start = "A a = -INF();"
        step = " ".join(
            f"{{ const A v = in_h && in_w ? {each_one} : (A)0; a = v > a ? v : a; }}"
            for each_one in corners
        )
        final = "count_h * count_w > 0 ? a : (A)0"
    statements = f"""
  typedef {computed(data.dtype)} A;
  {unravel(target.shape, ("r", "c", "bin_h", "bin_w"))}
  {_checked_image("at[r]", images)}
  const A* part = x + (image * {channels} + c) * {height * width}LL; {lines}
  {start}
  for (int s_h = 0; s_h < count_h; ++s_h) for (int s_w = 0; s_w < count_w; ++s_w) {{
    {sample("h", height, target.shape[2])} {sample("w", width, target.shape[3])}
    {step} }}
  y[i] = {final};"""
    parameters = [*given(binding, {"x": 0, "rois": 1, "at": 2}), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters, faults=True)


_ROUNDED = """
// Half away from 0, as the operator's implementations do.
__device__ __forceinline__ int rounded(double v) {
  return (int)(v < 0 ? -floor(-v + 0.5) : floor(v + 0.5)); }
__device__ __forceinline__ int within(double v, int size) {
  return v < 0 ? 0 : v > size ? size : (int)v; }
"""


def _bind_max(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, target = required(request), result(request)
    images, channels, height, width = data.shape
    scale = number(request, "spatial_scale")
    lines = ""
    for name, corner, size, bins in (
        ("h", 2, height, target.shape[2]),
        ("w", 1, width, target.shape[3]),
    ):
        lines += f"""
  const int start_{name} = rounded((double)get(rois[r * 5 + {corner}]) * {scale!r});
  const int end_{name} = rounded((double)get(rois[r * 5 + {corner + 2}]) * {scale!r});
  const int extent_{name} = end_{name} - start_{name} + 1;
  const double bin_size_{name} = (extent_{name} > 1 ? extent_{name} : 1) / (double){bins};
  const int from_{name} = within(floor(bin_{name} * bin_size_{name}) + start_{name}, {size});
  const int to_{name} = within(ceil((bin_{name} + 1) * bin_size_{name}) + start_{name}, {size});"""
    kind = computed(data.dtype)
    statements = f"""
  typedef {kind} A;
  {unravel(target.shape, ("r", "c", "bin_h", "bin_w"))}
  {_checked_image("get(rois[r * 5])", images)} {lines}
  const long long base = (image * {channels} + c) * {height * width}LL;
  A a = {literal(float("-inf"), kind)}; bool any = false;
  for (int h = from_h; h < to_h; ++h) for (int w = from_w; w < to_w; ++w) {{
    const A v = get(x[base + h * {width}LL + w]); any = true; a = v > a || v != v ? v : a; }}
  y[i] = To<{stored(data.dtype)}>::of(any ? a : (A)0);"""
    parameters = [*given(binding, {"x": 0, "rois": 1}), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters, extra=_ROUNDED, faults=True)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel("roi_align", ("RoiAlign",), _bind_align, accepts=_accepts_align),
    simple_kernel("max_roi_pool", ("MaxRoiPool",), _bind_max, dtypes=FLOATS),
)
