"""Fourier transforms by their definition: one thread a bin, summed in double precision.

The angles are exact: the product of place and bin is taken modulo the length before it is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, operand, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import FLOAT32, FLOAT64, stored
from aegis_pipe.kernel import KernelRequest


def _accepts(request: KernelRequest) -> bool:
    specs = [spec for spec in request.inputs if spec is not None]
    return all(spec.dtype in {FLOAT32, FLOAT64} and spec.element_count for spec in specs)


def _dft(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, target = required(request), result(request)
    axis, length = integer(request, "axis"), integer(request, "dft_length")
    inverse, onesided = bool(integer(request, "inverse")), bool(integer(request, "onesided"))
    parts = data.shape[-1]
    inner = math.prod(data.shape[axis + 1 : -1])
    size, bins = data.shape[axis], target.shape[axis]
    element = stored(target.dtype)
    sign = "" if inverse else "-"
    scale = f" * (1.0 / {length})" if inverse else ""
    known = min(size, length)
    mirror = ""
    if inverse and onesided:
        # Half of the spectrum is given: the other half is its conjugate.
        known = min(size, length // 2 + 1)
        last = f"|| 2 * t == {length}" if length % 2 == 0 else ""
        mirror = f"if (!(t == 0 {last})) {{ re *= 2; im *= 2; }} else im = 0;"
    imaginary = "x[at + 1]" if parts == 2 else "0"
    written = f"y[place] = ({element})(a{scale});"
    if target.shape[-1] == 2:
        written = f"y[2 * place] = ({element})(a{scale}); y[2 * place + 1] = ({element})(b{scale});"
    statements = f"""
  const long long low = i % {inner}, f = i / {inner} % {bins}, high = i / {inner * bins};
  double a = 0, b = 0;
  for (long long t = 0; t < {known}; ++t) {{
    const long long at = ((high * {size} + t) * {inner} + low) * {parts};
    double re = x[at], im = {imaginary}; {mirror}
    const double angle = {sign}2.0 * (double)(f * t % {length}) / {length};
    const double c = cospi(angle), s = sinpi(angle);
    a += re * c - im * s; b += re * s + im * c; }}
  const long long place = i; (void)b;
  {written}"""
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, target.element_count // target.shape[-1], statements, parameters)


def _stft(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    signal, target = required(request), result(request)
    length, step = integer(request, "frame_length"), integer(request, "frame_step")
    _, frames, bins, _ = target.shape
    size = signal.shape[1]
    parts = signal.shape[2] if len(signal.shape) == 3 else 1
    element = stored(target.dtype)
    window = "(double)window[t]" if operand(request, 1) is not None else "1.0"
    imaginary = "x[at + 1]" if parts == 2 else "0"
    statements = f"""
  const long long f = i % {bins}, frame = i / {bins} % {frames}, n = i / {bins * frames};
  double a = 0, b = 0;
  for (long long t = 0; t < {length}; ++t) {{
    const long long at = (n * {size} + frame * {step} + t) * {parts};
    const double w = {window}, re = w * x[at], im = w * {imaginary};
    const double angle = -2.0 * (double)(f * t % {length}) / {length};
    const double c = cospi(angle), s = sinpi(angle);
    a += re * c - im * s; b += re * s + im * c; }}
  y[2 * i] = ({element})a; y[2 * i + 1] = ({element})b;"""
    parameters = [*given(binding, {"x": 0, "window": 1}), *results(binding, {"y": 0})]
    return each(binding, target.element_count // 2, statements, parameters)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel("dft", ("DFT",), _dft, accepts=_accepts),
    simple_kernel("stft", ("STFT",), _stft, accepts=_accepts),
)
