"""Results of planned size with the length that is true: what lies beyond the length is 0."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import each, given, launch, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, operand, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import ALL, FLOAT32, PRODUCT, dense_strides
from aegis_pipe.kernel import KernelRequest

_THREADS = 1024
_BOX_THREADS = 256


def _list_bytes(count: int) -> int:
    """Return room for a length and as many places."""
    return 8 + 8 * count


def _listing(
    binding: Binding, source: tuple[str, int], count: int, condition: str
) -> list[Enqueue]:
    """Launch what lists the places where a condition of `x[i]` holds, in order, in one block.

    Every thread counts in a stretch of its own, learns how many come before, and writes.
    """
    body = f"""
  __shared__ long long counts[{_THREADS}];
  const int t = threadIdx.x;
  const long long share = ({count}LL + {_THREADS - 1}) / {_THREADS};
  const long long from = t * share, to = from + share < {count}LL ? from + share : {count}LL;
  long long many = 0;
  for (long long i = from; i < to; ++i) many += ({condition});
  counts[t] = many; __syncthreads();
  for (int m = 1; m < {_THREADS}; m *= 2) {{
    const long long before = t >= m ? counts[t - m] : 0;
    __syncthreads(); counts[t] += before; __syncthreads(); }}
  long long place = counts[t] - many;
  if (t == {_THREADS - 1}) list[0] = counts[t];
  for (long long i = from; i < to; ++i) if ({condition}) list[1 + place++] = i;"""
    parameters = [source, ("long long* list", binding.workspace)]
    return launch(binding, body, parameters, grid=1, threads=_THREADS)


def _with_length(binding: Binding, position: int) -> list[Enqueue]:
    target = results(binding, {"length": position})
    listed = ("const long long* list", binding.workspace)
    return each(binding, len(target), "*length = list[0];", [listed, *target], threads=32)


def _nonzero_workspace(request: KernelRequest) -> int:
    return _list_bytes(required(request).element_count)


def _bind_nonzero(binding: Binding) -> Sequence[Enqueue]:
    spec = required(binding.request)
    count = spec.element_count
    launches = _listing(binding, given(binding, {"x": 0})[0], count, "get(x[i]) != 0")
    target = results(binding, {"y": 0})
    if target and spec.shape and count:
        strides = dense_strides(spec.shape)
        coordinates = " : ".join(
            f"axis == {axis} ? at / {max(1, stride)}LL % {max(1, size)}LL"
            for axis, (size, stride) in enumerate(zip(spec.shape, strides, strict=True))
        )
        statements = f"""
  const long long place = i % {count}, axis = i / {count};
  if (place >= list[0]) {{ y[i] = 0; return; }}
  const long long at = list[1 + place];
  y[i] = {coordinates} : 0;"""
        parameters = [("const long long* list", binding.workspace), *target]
        launches += each(binding, count * len(spec.shape), statements, parameters)
    return launches + _with_length(binding, 1)


def _compressed(request: KernelRequest) -> tuple[int, int, int]:
    """Return (outer, along the axis, inner) of X."""
    spec, axis = required(request), request.attributes["axis"]
    if axis is None:
        return 1, spec.element_count, 1
    assert isinstance(axis, int)
    return math.prod(spec.shape[:axis]), spec.shape[axis], math.prod(spec.shape[axis + 1 :])


def _compress_workspace(request: KernelRequest) -> int:
    return _list_bytes(required(request, 1).element_count)


def _bind_compress(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    outer, size, inner = _compressed(request)
    known = min(size, required(request, 1).element_count)
    (condition,) = given(binding, {"x": 1})
    launches = _listing(binding, condition, known, "x[i]")
    target = results(binding, {"y": 0})
    if target:
        room = result(request).element_count // max(1, outer * inner)
        written = target[0][0].partition("*")[0]
        statements = f"""
  const long long k = i % {inner}, place = i / {inner} % {max(1, room)};
  const long long o = i / {max(1, inner * room)};
  y[i] = place < list[0] ? x[(o * {size} + list[1 + place]) * {inner}LL + k]
                         : To<{written}>::of(0);"""
        parameters = [
            *given(binding, {"x": 0}),
            ("const long long* list", binding.workspace),
            *target,
        ]
        launches += each(binding, result(request).element_count, statements, parameters)
    return launches + _with_length(binding, 1)


def _bind_kept(binding: Binding) -> Sequence[Enqueue]:
    """Copy the slices that a condition known at load keeps."""
    request = binding.request
    outer, size, inner = _compressed(request)
    kept = request.attributes["indices"]
    target = result(request)
    count = target.element_count // max(1, outer * inner)
    table = ", ".join(map(str, getattr(kept, "tolist", list)())) or "0"
    statements = f"""
  const long long k = i % {inner}, place = i / {inner} % {max(1, count)};
  const long long o = i / {max(1, inner * count)};
  y[i] = x[(o * {size} + KEPT[place]) * {inner}LL + k];"""
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    extra = f"static __device__ const int KEPT[] = {{{table}}};"
    return each(binding, target.element_count, statements, parameters, extra=extra)


# --- Suppression of overlapping boxes ---------------------------------------------------------

_OVERLAP = """
struct Box { float a, b, c, d; };
__device__ __forceinline__ Box box_of(const float* p, bool centred) {
  Box r;
  if (centred) {
    r.a = p[0] - p[2] / 2; r.b = p[1] - p[3] / 2; r.c = p[0] + p[2] / 2; r.d = p[1] + p[3] / 2;
  } else {
    r.a = fminf(p[0], p[2]); r.b = fminf(p[1], p[3]);
    r.c = fmaxf(p[0], p[2]); r.d = fmaxf(p[1], p[3]); }
  return r; }
__device__ __forceinline__ float overlap(Box p, Box q) {
  const float h = fmaxf(fminf(p.c, q.c) - fmaxf(p.a, q.a), 0.0f);
  const float w = fmaxf(fminf(p.d, q.d) - fmaxf(p.b, q.b), 0.0f);
  const float common = product(h, w);
  const float all = product(p.c - p.a, p.d - p.b) + product(q.c - q.a, q.d - q.b) - common;
  return all > 0 ? common / all : 0.0f; }
"""


def _boxes(request: KernelRequest) -> tuple[int, int, int, int]:
    """Return (images, classes, boxes, most of a class)."""
    images, classes, boxes = required(request, 1).shape
    return images, classes, boxes, integer(request, "boxes_per_class")


def _suppression_workspace(request: KernelRequest) -> int:
    """Return room for what each class keeps, how many that are, and what is out."""
    images, classes, boxes, most = _boxes(request)
    return max(8, images * classes * (8 * most + 8 + boxes))


def _accepts_suppression(request: KernelRequest) -> bool:
    return all(required(request, at).dtype == FLOAT32 for at in range(2))


def _bind_suppression(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    images, classes, boxes, planned = _boxes(request)
    groups = images * classes
    limit = str(planned)
    if operand(request, 4) is not None:
        limit = f"(*most < 0 ? 0 : *most < {planned} ? *most : {planned})"
    overlap = "*iou" if operand(request, 2) is not None else "0.0f"
    least = "*least" if operand(request, 3) is not None else "-INF()"
    centred = "true" if integer(request, "center_point_box") else "false"
    counts = binding.workspace + 8 * groups * planned
    body = f"""
  __shared__ float best[{_BOX_THREADS}]; __shared__ int place[{_BOX_THREADS}];
  const int t = threadIdx.x;
  const long long group = blockIdx.x, image = group / {classes};
  const float* own = scores + group * {boxes}LL;
  const float* all = boxes + image * {boxes * 4}LL;
  out += group * {boxes}LL; kept += group * {planned}LL;
  for (int b = t; b < {boxes}; b += {_BOX_THREADS}) out[b] = !(own[b] > {least});
  __syncthreads();
  const long long limit = {limit};
  long long count = 0;
  for (; count < limit; ++count) {{
    float high = 0; int at = -1;
    for (int b = t; b < {boxes}; b += {_BOX_THREADS})
      if (!out[b] && (at < 0 || own[b] > high)) {{ high = own[b]; at = b; }}
    best[t] = high; place[t] = at; __syncthreads();
    for (int m = {_BOX_THREADS // 2}; m; m /= 2) {{
      if (t < m && place[t + m] >= 0 && (place[t] < 0 || best[t + m] > best[t]
          || (best[t + m] == best[t] && place[t + m] < place[t]))) {{
        best[t] = best[t + m]; place[t] = place[t + m]; }}
      __syncthreads(); }}
    at = place[0];
    __syncthreads();
    if (at < 0) break;
    if (t == 0) {{ kept[count] = at; out[at] = 1; }}
    const Box chosen = box_of(all + at * 4LL, {centred});
    for (int b = t; b < {boxes}; b += {_BOX_THREADS})
      if (!out[b] && b != at
          && !(overlap(chosen, box_of(all + b * 4LL, {centred})) <= {overlap})) out[b] = 1;
    __syncthreads(); }}
  if (t == 0) counts[group] = count;"""
    names = {"boxes": 0, "scores": 1, "iou": 2, "least": 3, "most": 4}
    work = [
        ("long long* kept", binding.workspace),
        ("long long* counts", counts),
        ("u8* out", counts + 8 * groups),
    ]
    launches: list[Enqueue] = []
    if groups and boxes:
        launches = launch(
            binding,
            body,
            [*given(binding, names), *work],
            grid=groups,
            threads=_BOX_THREADS,
            extra=PRODUCT + _OVERLAP,
        )
    else:
        launches = each(binding, groups, "counts[i] = 0;", work[1:2])
    target = results(binding, {"y": 0})
    if target:
        statements = f"""
  long long place = i / 3, group = 0;
  while (group < {groups} && place >= counts[group]) place -= counts[group++];
  const long long what = i % 3;
  y[i] = group >= {groups} ? 0 : what == 0 ? group / {classes} : what == 1 ? group % {classes}
       : kept[group * {planned}LL + place];"""
        count = groups * planned * 3
        launches += each(binding, count, statements, [*work[:2], *target])
    length = results(binding, {"length": 1})
    total = f"long long n = 0; for (int g = 0; g < {groups}; ++g) n += counts[g]; *length = n;"
    return launches + each(binding, len(length), total, [work[1], *length], threads=32)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "nonzero", ("aegis.NonZero",), _bind_nonzero, workspace=_nonzero_workspace, dtypes=ALL
    ),
    simple_kernel(
        "compress", ("aegis.Compress",), _bind_compress, workspace=_compress_workspace, dtypes=ALL
    ),
    simple_kernel("compress.known", ("Compress",), _bind_kept, dtypes=ALL),
    simple_kernel(
        "non_max_suppression",
        ("aegis.NonMaxSuppression",),
        _bind_suppression,
        accepts=_accepts_suppression,
        workspace=_suppression_workspace,
    ),
)
