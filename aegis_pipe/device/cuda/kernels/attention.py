"""Attention: by cuDNN in half precision, otherwise by a kernel with one block a row of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aegis_pipe.device.cuda.cudnn_attention import AttentionPlan, FusedAttention
from aegis_pipe.device.cuda.kernels.operands import integer, number, operand, required, wanted
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    BOOL,
    FLOATS,
    HALF_FLOATS,
    Walk,
    broadcast_strides,
    computed,
    kernel_source,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_THREADS = 128
_KEYS_MAX = 4096
"""Scores of a row are kept in shared memory."""
_SIZE_STEP, _SIZE_MAX = 8, 128


@dataclass(frozen=True, slots=True)
class _Heads:
    """One operand in either layout: [batch, heads, length, size], or heads behind each other."""

    batch: int
    heads: int
    length: int
    size: int
    strides: tuple[int, int, int]
    """Of batch, head and position."""

    @classmethod
    def of(cls, shape: Sequence[int], heads: int) -> _Heads:
        """Read a shape."""
        if len(shape) == 4:
            batch, heads, length, size = shape
            return cls(batch, heads, length, size, (heads * length * size, length * size, size))
        batch, length, width = shape
        size = width // heads
        return cls(batch, heads, length, size, (length * width, size, width))


def _all_heads(request: KernelRequest) -> tuple[_Heads, _Heads, _Heads, _Heads] | None:
    """Return Q, K, V and Y, if this is attention that the kernels here do."""
    query = required(request)
    if query.dtype not in FLOATS or wanted(request) != [0]:
        return None
    if any(operand(request, position) is not None for position in (4, 5, 6)):
        return None
    if any(integer(request, f"{side}_window_size") >= 0 for side in ("left", "right")):
        return None
    heads, kv_heads = integer(request, "q_num_heads"), integer(request, "kv_num_heads")
    q = _Heads.of(query.shape, heads)
    k, v = (_Heads.of(required(request, at).shape, kv_heads) for at in (1, 2))
    result = request.outputs[0]
    assert result is not None
    y = _Heads.of(result.shape, heads)
    if 0 in query.shape or not 0 < k.length <= _KEYS_MAX:
        return None
    mask = operand(request, 3)
    if mask is not None and (mask.shape[-1:] != (k.length,) or mask.dtype not in FLOATS | {BOOL}):
        return None
    return q, k, v, y


# --- cuDNN ------------------------------------------------------------------------------------


def _fused(request: KernelRequest) -> FusedAttention | None:
    heads = _all_heads(request)
    query = required(request)
    if heads is None or query.dtype not in HALF_FLOATS or number(request, "softcap"):
        return None
    q, k, v, y = heads
    if any(size % _SIZE_STEP or size > _SIZE_MAX for size in (q.size, v.size)):
        return None
    mask = operand(request, 3)
    extents = None
    if mask is not None:
        if mask.dtype != query.dtype:
            return None
        rows = (1,) * (4 - len(mask.shape)) + mask.shape
        extents = (rows[0], rows[1], rows[2], rows[3])
    return FusedAttention(
        batch=q.batch,
        heads=q.heads,
        kv_heads=k.heads,
        length=q.length,
        kv_length=k.length,
        size=q.size,
        value_size=v.size,
        q_strides=q.strides,
        k_strides=k.strides,
        v_strides=v.strides,
        y_strides=y.strides,
        dtype=query.dtype.name,
        scale=number(request, "scale"),
        is_causal=bool(integer(request, "is_causal")),
        mask=extents,
    )


def _planned(machine: Machine, attention: FusedAttention) -> AttentionPlan | None:
    assert machine.cudnn is not None
    if attention not in machine.attentions:
        try:
            plan = AttentionPlan(machine.cudnn, attention)
        except (RuntimeError, machine.cudnn.library.cudnnGraphNotSupportedError):
            machine.attentions[attention] = None
        else:
            machine.attentions[attention] = plan
    return machine.attentions[attention]


def _choose_fused(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    attention = None if machine.cudnn is None else _fused(request)
    plan = None if attention is None else _planned(machine, attention)
    if plan is None:
        return None
    return KernelChoice("attention.cudnn", workspace_bytes=plan.workspace_bytes)


def _bind_fused(binding: Binding) -> Sequence[Enqueue]:
    attention = _fused(binding.request)
    assert attention is not None
    plan = _planned(binding.machine, attention)
    assert plan is not None
    names = ("q", "k", "v", "mask")
    addresses = {
        name: address
        for name, address in zip(names, binding.inputs, strict=False)
        if address is not None
    }
    assert binding.outputs[0] is not None
    addresses["y"] = binding.outputs[0]

    def enqueue(stream: int) -> None:
        plan.enqueue(stream, addresses, binding.workspace)

    return [enqueue]


# --- Row by row -------------------------------------------------------------------------------


def _choose_rows(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    return None if _all_heads(request) is None else KernelChoice("attention.rows")


def _bind_rows(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    heads = _all_heads(request)
    assert heads is not None
    q, k, v, y = heads
    query, mask = required(request), operand(request, 3)
    kind, element = computed(query.dtype), stored(query.dtype)
    cap = number(request, "softcap")
    capped = f"s = {literal(cap, kind)} * tanh(s / {literal(cap, kind)});" if cap else ""
    masked = ""
    parameters = [f"const {element}* {name}" for name in "qkv"]
    arguments = list(binding.inputs[:3])
    if mask is not None:
        shape = (q.batch, q.heads, q.length, k.length)
        walk = Walk.of(shape, [broadcast_strides(mask.shape, shape)])
        where = walk.offset(0, f"((unsigned)row * {k.length}u + j)")
        value = f"get(mask[{where}])"
        masked = f"if (!{value}) s = -INF();" if mask.dtype == BOOL else f"s += {value};"
        parameters.append(f"const {stored(mask.dtype)}* mask")
        arguments.append(binding.inputs[3])
    if integer(request, "is_causal"):
        masked += " if (j > i) s = -INF();"
    body = f"""
  typedef {kind} S;
  __shared__ S scores[{k.length}];
  __shared__ S parts[{_THREADS}];
  const int row = blockIdx.x, t = threadIdx.x;
  const int i = row % {q.length}, h = row / {q.length} % {q.heads};
  const long long b = row / {q.length * q.heads}, g = h / {q.heads // k.heads};
  q += b * {q.strides[0]} + (long long)h * {q.strides[1]} + (long long)i * {q.strides[2]};
  k += b * {k.strides[0]} + g * {k.strides[1]};
  v += b * {v.strides[0]} + g * {v.strides[1]};
  y += b * {y.strides[0]} + (long long)h * {y.strides[1]} + (long long)i * {y.strides[2]};
  S most = -INF();
  for (int j = t; j < {k.length}; j += {_THREADS}) {{
    S s = 0;
    const {element}* key = k + (long long)j * {k.strides[2]};
    for (int d = 0; d < {q.size}; ++d) s += (S)get(q[d]) * (S)get(key[d]);
    s *= {literal(number(request, "scale"), kind)};
    {capped} {masked}
    scores[j] = s; most = s > most ? s : most;
  }}
  parts[t] = most; __syncthreads();
  for (int m = {_THREADS // 2}; m; m /= 2) {{
    if (t < m) parts[t] = parts[t + m] > parts[t] ? parts[t + m] : parts[t];
    __syncthreads(); }}
  most = parts[0]; __syncthreads();
  const bool nothing = most == -INF();
  S sum = 0;
  for (int j = t; j < {k.length}; j += {_THREADS}) {{
    const S e = nothing ? (S)0 : exp(scores[j] - most); scores[j] = e; sum += e; }}
  parts[t] = sum; __syncthreads();
  for (int m = {_THREADS // 2}; m; m /= 2) {{
    if (t < m) parts[t] += parts[t + m];
    __syncthreads(); }}
  const S f = nothing ? (S)0 : 1 / parts[0];
  for (int d = t; d < {v.size}; d += {_THREADS}) {{
    S a = 0;
    for (int j = 0; j < {k.length}; ++j)
      a += scores[j] * (S)get(v[(long long)j * {v.strides[2]} + d]);
    y[d] = To<{element}>::of(a * f);
  }}"""
    code = kernel_source([*parameters, f"{element}* y"], body, threads=_THREADS)
    rows = q.batch * q.heads * q.length
    arguments.append(binding.outputs[0])
    return [binding.kernel(code, arguments, grid=rows, block=_THREADS)]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("Attention",), _choose_fused, _bind_fused),
    CudaKernel(("Attention",), _choose_rows, _bind_rows),
)
