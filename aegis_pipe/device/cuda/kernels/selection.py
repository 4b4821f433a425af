"""TopK and Unique by counting: an element's place is how many come before it.

Every element is compared with all of its line: quadratic, but all at once, and without a sort's
steps one after the other. NaN comes after infinity, and is equal to itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, required
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import ALL, NUMBERS, computed, stored
from aegis_pipe.kernel import KernelRequest

_ORDER = """
template <typename T> __device__ __forceinline__ bool below(T a, T b) {
  return a < b || (b != b && a == a); }
template <typename T> __device__ __forceinline__ bool same(T a, T b) {
  return a == b || (a != a && b != b); }
"""


def _bind_top_k(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec, axis, k = required(request), integer(request, "axis"), integer(request, "k")
    size, inner = spec.shape[axis], math.prod(spec.shape[axis + 1 :])
    comes_first = "below(v, own)" if not integer(request, "largest") else "below(own, v)"
    target = results(binding, {"y": 0, "at": 1})
    names = {text.rpartition(" ")[2] for text, _ in target}
    place = f"(line * {k} + rank) * {inner} + low"
    writes = [
        f"y[{place}] = x[i];" if "y" in names else "",
        f"at[{place}] = (i64)t;" if "at" in names else "",
    ]
    statements = f"""
  typedef {computed(spec.dtype)} A;
  const long long low = i % {max(1, inner)}, t = i / {max(1, inner)} % {size};
  const long long line = i / {max(1, inner * size)};
  const A own = get(x[i]);
  long long rank = 0;
  for (long long q = 0; q < {size}; ++q) {{
    const A v = get(x[(line * {size} + q) * {inner} + low]);
    rank += {comes_first} || (q < t && same(v, own)); }}
  if (rank < {k}) {{ {" ".join(writes)} }}"""
    parameters = [*given(binding, {"x": 0}), *target]
    count = spec.element_count if k else 0
    return each(binding, count, statements, parameters, extra=_ORDER)


def _axis(request: KernelRequest) -> int | None:
    axis = request.attributes["axis"]
    assert axis is None or isinstance(axis, int)
    return axis


def _slices(request: KernelRequest) -> tuple[int, int, int]:
    """Return (outer, along the axis, inner)."""
    spec, axis = required(request), _axis(request)
    if axis is None:
        return 1, spec.element_count, 1
    shape = spec.shape
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _unique_workspace(request: KernelRequest) -> int:
    return max(8, 16 * _slices(request)[1])


def _bind_unique(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec = required(request)
    outer, size, inner = _slices(request)
    if size == 0:
        lengths = results(binding, {"length": 4})
        return each(binding, len(lengths), "*length = 0;", lengths)
    element = f"get(x[(o * {size} + {{0}}) * {inner}LL + k])"
    compare = f"""
__device__ int order(const {stored(spec.dtype)}* x, long long a, long long b) {{
  for (long long o = 0; o < {outer}; ++o) for (long long k = 0; k < {inner}; ++k) {{
    const {computed(spec.dtype)} u = {element.format("a")}, v = {element.format("b")};
    if (!same(u, v)) return below(u, v) ? -1 : 1; }}
  return 0; }}
"""
    extra = _ORDER + compare
    places, ranks = binding.workspace, binding.workspace + 8 * size
    own = given(binding, {"x": 0})
    # Where each slice occurs first, and how often.
    counts = results(binding, {"counts": 3})
    first = f"""
  long long found = i, many = 0;
  for (long long q = 0; q < {size}; ++q) if (order(x, i, q) == 0) {{
    if (q < found) found = q; ++many; }}
  first[i] = found; rank[i] = many;"""
    launches = each(
        binding,
        size,
        first,
        [*own, ("i64* first", places), ("i64* rank", ranks)],
        extra=extra,
        threads=64,
    )
    # Results are as long as the input; what is beyond the true length is 0.
    pads = [
        *((0, outer * size * inner, "values"), (1, size, "places"), (3, size, "counts")),
    ]
    for position, count, name in pads:
        for text, address in results(binding, {name: position}):
            zero = f"{name}[i] = To<{text.partition('*')[0]}>::of(0);"
            launches += each(binding, count, zero, [(text, address)])
    ahead = "order(x, q, i) < 0" if integer(request, "sorted") else "q < i"
    target = results(binding, {"values": 0, "places": 1, "inverse": 2, "length": 4})
    names = {text.rpartition(" ")[2] for text, _ in (*target, *counts)}
    place = f"""
  const long long head = first[i];
  long long place = 0, many = 0;
  for (long long q = 0; q < {size}; ++q) if (first[q] == q) {{
    ++many; place += {ahead.replace("i)", "head)").replace("q < i", "q < head")}; }}
  {"inverse[i] = place;" if "inverse" in names else ""}
  if (head != i) return;
  {"places[place] = i;" if "places" in names else ""}
  {"counts[place] = rank[i];" if "counts" in names else ""}
  {"*length = many;" if "length" in names else ""}
  {
        f'''for (long long o = 0; o < {outer}; ++o) for (long long k = 0; k < {inner}; ++k)
    values[(o * {size} + place) * {inner}LL + k] = x[(o * {size} + i) * {inner}LL + k];'''
        if "values" in names
        else ""
    }"""
    parameters = [
        *own,
        ("const i64* first", places),
        ("const i64* rank", ranks),
        *target,
        *counts,
    ]
    return launches + each(binding, size, place, parameters, extra=extra, threads=64)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel("top_k", ("TopK",), _bind_top_k, dtypes=NUMBERS),
    simple_kernel(
        "unique", ("aegis.Unique",), _bind_unique, workspace=_unique_workspace, dtypes=ALL
    ),
)
