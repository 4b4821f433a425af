"""CumSum and CumProd: one thread a line, from its start to its end."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, required
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import NUMBERS, computed, stored


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec, axis = required(request), integer(request, "axis")
    size, inner = spec.shape[axis], math.prod(spec.shape[axis + 1 :])
    lines = spec.element_count // max(1, size)
    is_sum = request.operator == "CumSum"
    place = f"{size - 1} - t" if integer(request, "reverse") else "t"
    combine = "a + v" if is_sum else "a * v"
    write = f"y[at] = To<{stored(spec.dtype)}>::of(a);"
    take = f"a = {combine};"
    steps = f"{write} {take}" if integer(request, "exclusive") else f"{take} {write}"
    statements = f"""
  typedef {computed(spec.dtype)} A;
  const long long base = i / {max(1, inner)} * {size * inner}LL + i % {max(1, inner)};
  A a = {0 if is_sum else 1};
  for (long long t = 0; t < {size}; ++t) {{
    const long long at = base + ({place}) * {inner}; const A v = get(x[at]); {steps} }}"""
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, lines if size else 0, statements, parameters, threads=64)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel("scan", ("CumSum", "CumProd"), _bind, dtypes=NUMBERS),
)
