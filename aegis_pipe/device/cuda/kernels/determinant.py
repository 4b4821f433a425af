"""Determinants: elimination with pivots by one thread a matrix, in double precision."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import FLOATS, stored
from aegis_pipe.kernel import KernelRequest


def _workspace(request: KernelRequest) -> int:
    return max(8, 8 * required(request).element_count)


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    size = required(request).shape[-1]
    statements = f"""
  double* m = work + i * {size * size}LL;
  for (int at = 0; at < {size * size}; ++at) m[at] = (double)get(x[i * {size * size}LL + at]);
  double d = 1;
  for (int c = 0; c < {size}; ++c) {{
    int best = c;
    for (int r = c + 1; r < {size}; ++r)
      if (fabs(m[r * {size} + c]) > fabs(m[best * {size} + c])) best = r;
    const double pivot = m[best * {size} + c];
    d *= best == c ? pivot : -pivot;
    if (pivot == 0) break;
    if (best != c) for (int k = c; k < {size}; ++k) {{
      const double v = m[c * {size} + k];
      m[c * {size} + k] = m[best * {size} + k]; m[best * {size} + k] = v; }}
    for (int r = c + 1; r < {size}; ++r) {{
      const double f = m[r * {size} + c] / pivot;
      for (int k = c + 1; k < {size}; ++k) m[r * {size} + k] -= f * m[c * {size} + k]; }} }}
  y[i] = To<{stored(result(request).dtype)}>::of(d);"""
    parameters = [
        *given(binding, {"x": 0}),
        ("double* work", binding.workspace),
        *results(binding, {"y": 0}),
    ]
    return each(binding, result(request).element_count, statements, parameters, threads=32)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel("determinant", ("Det",), _bind, workspace=_workspace, dtypes=FLOATS),
)
