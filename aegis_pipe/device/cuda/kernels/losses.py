"""Losses of classifiers: log-softmax where it is asked for, one look-up a label, one sum.

The sum is taken by one block, each thread adding up its own share in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE
from aegis_pipe.device.cuda.kernels.each import each, given, launch, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, operand, required, text
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import FLOATS, INTEGERS, computed, stored
from aegis_pipe.kernel import KernelRequest

_THREADS = 256


def _is_softmax(request: KernelRequest) -> bool:
    return request.operator.startswith("Softmax")


def _accepts(request: KernelRequest) -> bool:
    floats = {spec.dtype for at, spec in enumerate(request.inputs) if spec and at != 1}
    return len(floats) == 1 and floats <= FLOATS and required(request, 1).dtype in INTEGERS


def _workspace(request: KernelRequest) -> int:
    """Return room for the log-probabilities, where nobody wants them but the loss."""
    spared = len(request.outputs) > 1 and request.outputs[1] is not None
    return required(request).size_bytes if _is_softmax(request) and not spared else 0


def _log_softmax(binding: Binding, target: int) -> list[Enqueue]:
    spec = required(binding.request)
    batch, classes, *space = spec.shape
    positions = math.prod(space)
    statements = f"""
  typedef {computed(spec.dtype)} A;
  const long long at = i / {positions} * {classes * positions}LL + i % {positions};
  A m = -INF(), s = 0;
  for (int c = 0; c < {classes}; ++c) {{
    const A v = get(x[at + c * {positions}LL]); m = v > m || v != v ? v : m; }}
  for (int c = 0; c < {classes}; ++c) s += exp((A)get(x[at + c * {positions}LL]) - m);
  s = log(s);
  for (int c = 0; c < {classes}; ++c)
    y[at + c * {positions}LL] =
      To<{stored(spec.dtype)}>::of((A)get(x[at + c * {positions}LL]) - m - s);"""
    parameters = [*given(binding, {"x": 0}), (f"{stored(spec.dtype)}* y", target)]
    return each(binding, batch * positions, statements, parameters)


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec = required(request)
    batch, classes, *space = spec.shape
    positions = math.prod(space)
    source, launches = binding.inputs[0], []
    if _is_softmax(request):
        source = binding.workspace or binding.outputs[1]
        assert source is not None
        launches = _log_softmax(binding, source)
    if binding.outputs[0] is None:
        return launches
    assert source is not None
    parameters = [
        (f"const {stored(spec.dtype)}* p", source),
        *given(binding, {"labels": 1, "weights": 2}),
        *results(binding, {"y": 0}),
    ]
    weight = "get(weights[c])" if operand(request, 2) is not None else "1"
    ignored = (
        f"label == {integer(request, 'ignore_index')}LL" if integer(request, "ignores") else "false"
    )
    kind, element = computed(spec.dtype), stored(spec.dtype)
    lines = f"""
  const long long label = (long long)labels[i];
  const bool ignored = {ignored};
  long long c = ignored ? 0 : label;
  if (c < 0 || c >= {classes}) {{ *fault = {INDEX_OUT_OF_RANGE}; c = 0; }}
  const A w = ignored ? (A)0 : (A){weight};
  const A loss = -w * (A)get(p[(i / {positions} * {classes} + c) * {positions}LL
                               + i % {positions}]);"""
    count = batch * positions
    reduction = text(request, "reduction")
    if reduction == "none":
        statements = f"typedef {kind} A; {lines}\n  y[i] = To<{element}>::of(loss);"
        return launches + each(binding, count, statements, parameters, faults=True)
    final = "a / b" if reduction == "mean" else "a"
    body = f"""
  typedef {kind} A;
  __shared__ A losses[{_THREADS}], shares[{_THREADS}];
  const int t = threadIdx.x;
  A a = 0, b = 0;
  for (long long i = t; i < {count}LL; i += {_THREADS}) {{ {lines}
    a += loss; b += w; }}
  losses[t] = a; shares[t] = b; __syncthreads();
  for (int m = {_THREADS // 2}; m; m /= 2) {{
    if (t < m) {{ losses[t] += losses[t + m]; shares[t] += shares[t + m]; }}
    __syncthreads(); }}
  a = losses[0]; b = shares[0]; (void)b;
  if (t == 0) *y = To<{element}>::of({final});"""
    return launches + launch(binding, body, parameters, grid=1, threads=_THREADS, faults=True)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "classification_loss",
        ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
        _bind,
        accepts=_accepts,
        workspace=_workspace,
    ),
)
