"""Layers that mix a sequence through a state of fixed size."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    number,
    operand,
    required,
    result,
    text,
)
from aegis_pipe.device.cuda.kernels.pointwise import Pointwise, pointwise_kernel
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import FLOATS, computed, literal, stored
from aegis_pipe.kernel import KernelRequest


def _swiglu(request: KernelRequest) -> Pointwise | None:
    dtype = required(request).dtype
    if dtype not in FLOATS:
        return None
    alpha = literal(number(request, "alpha"), computed(dtype))
    return Pointwise(f"{{0}} * {{1}} / (1 + exp(-{alpha} * {{0}}))")


def _bind_conv(binding: Binding) -> Sequence[Enqueue]:
    """Every thread one position of one channel; then the last positions are kept."""
    request = binding.request
    spec = result(request)
    _, channels, length = spec.shape
    taps = required(request, 1).shape[2]
    kind, element = computed(spec.dtype), stored(spec.dtype)
    past = f"get(past[row * {taps - 1} + at + {taps - 1}])" if operand(request, 3) else "0"
    final = "a / (1 + exp(-a))" if text(request, "activation") == "silu" else "a"
    look = f"(A)(at >= 0 ? get(x[row * {length}LL + at]) : {past})"
    statements = f"""
  typedef {kind} A;
  const long long row = i / {length}; const int t = (int)(i % {length});
  const int c = (int)(row % {channels});
  A a = {"get(bias[c])" if operand(request, 2) else "0"};
  for (int k = 0; k < {taps}; ++k) {{
    const int at = t + k - {taps - 1}; a += {look} * (A)get(w[c * {taps} + k]); }}
  y[i] = To<{element}>::of({final});"""
    names = given(binding, {"x": 0, "w": 1, "bias": 2, "past": 3})
    launches = each(binding, spec.element_count, statements, [*names, *results(binding, {"y": 0})])
    present = results(binding, {"present": 1})
    if present and taps > 1:
        statements = f"""
  typedef {kind} A;
  const long long row = i / {taps - 1}; const int at = {length - taps + 1} + (int)(i % {taps - 1});
  present[i] = To<{element}>::of({look});"""
        count = required(request).element_count // max(length, 1) * (taps - 1)
        launches += each(binding, count, statements, [*names, *present])
    return launches


def _state_shape(request: KernelRequest) -> tuple[int, int, int, int]:
    """Return batch, key heads, size and value size."""
    query, value = required(request), required(request, 2)
    heads, kv_heads = integer(request, "q_num_heads"), integer(request, "kv_num_heads")
    return query.shape[0], kv_heads, query.shape[2] // heads, value.shape[2] // kv_heads


def _state_bytes(request: KernelRequest) -> int:
    """Return the size of all states in the type they are computed in."""
    batch, kv_heads, size, value_size = _state_shape(request)
    width = 8 if computed(required(request).dtype) == "double" else 4
    return batch * kv_heads * size * value_size * width


def _bind_attention(binding: Binding) -> Sequence[Enqueue]:
    """Every thread keeps one column of one head's state: columns do not know of each other."""
    request = binding.request
    query = required(request)
    batch, kv_heads, size, value_size = _state_shape(request)
    length, repeats = query.shape[1], integer(request, "q_num_heads") // kv_heads
    kind, element = computed(query.dtype), stored(query.dtype)
    state = f"(((b * {kv_heads} + h) * {size} + d) * {value_size} + e)"

    def per_head(position: int, name: str) -> str:
        spec = operand(request, position)
        if spec is None:
            return ""
        width = spec.shape[2]
        heads = kv_heads if width % kv_heads == 0 else 1
        each_size = width // heads
        head = "h" if heads > 1 else "0"
        inner = f" + d % {each_size}" if each_size > 1 else ""
        return f"(A)get({name}[(b * {length} + t) * {width} + {head} * {each_size}{inner}])"

    decay, beta = per_head(4, "decay"), per_head(5, "beta")
    forget = f"s[{state}] *= exp({decay});" if decay else ""
    key = f"(A)get(k[((b * {length} + t) * {kv_heads} + h) * {size} + d])"
    start = f"(A)get(past[{state}])" if operand(request, 3) else "0"
    update = ""
    if beta:
        update = f"""
    A known = 0;
    for (int d = 0; d < {size}; ++d) known += {key} * s[{state}];
    {{ const int d = 0; (void)d; w = (w - known) * {beta}; }}"""
    statements = f"""
  typedef {kind} A;
  const long long e = i % {value_size}, h = i / {value_size} % {kv_heads};
  const long long b = i / {value_size * kv_heads};
  for (int d = 0; d < {size}; ++d) s[{state}] = {start};
  for (long long t = 0; t < {length}; ++t) {{
    for (int d = 0; d < {size}; ++d) {{ {forget} }}
    A w = get(v[((b * {length} + t) * {kv_heads} + h) * {value_size} + e]);{update}
    for (int d = 0; d < {size}; ++d) s[{state}] += {key} * w;
    for (int r = 0; r < {repeats}; ++r) {{
      A a = 0; const long long row = ((b * {length} + t) * {kv_heads} + h) * {repeats} + r;
      for (int d = 0; d < {size}; ++d) a += (A)get(q[row * {size} + d]) * s[{state}];
      y[row * {value_size} + e] =
        To<{element}>::of(a * {literal(number(request, "scale"), kind)}); }} }}"""
    present = results(binding, {"present": 1})
    if present:
        stored_as = present[0][0].partition("*")[0]
        statements += (
            f"\n  for (int d = 0; d < {size}; ++d) "
            f"present[{state}] = To<{stored_as}>::of(s[{state}]);"
        )
    parameters = [
        *given(binding, {"q": 0, "k": 1, "v": 2, "past": 3, "decay": 4, "beta": 5}),
        (f"{kind}* s", binding.workspace),
        *results(binding, {"y": 0}),
        *present,
    ]
    return each(binding, batch * kv_heads * value_size, statements, parameters, threads=64)


def _accepts_attention(request: KernelRequest) -> bool:
    return all(size for size in _state_shape(request))


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    pointwise_kernel("SwiGLU", _swiglu),
    simple_kernel("causal_conv", ("CausalConvWithState",), _bind_conv, dtypes=FLOATS),
    simple_kernel(
        "linear_attention",
        ("LinearAttention",),
        _bind_attention,
        accepts=_accepts_attention,
        workspace=_state_bytes,
        dtypes=FLOATS,
    ),
)
