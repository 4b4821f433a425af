"""Attention: by cuDNN in half precision, otherwise by a kernel with one block a row of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.cudnn_attention import AttentionPlan, FusedAttention
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    number,
    operand,
    required,
    result,
    wanted,
)
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
from aegis_pipe.device.heads import Heads
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_THREADS = 128
_SCORES_BYTES_MAX = 32 << 10
"""Scores of a row are kept in shared memory."""
STRIDED = "aegis.StridedAttention"
"""Operands by strides; the others are dense."""
_SIZE_STEP, _SIZE_MAX = 8, 128


@dataclass(frozen=True, slots=True)
class Attention:
    """What is asked for, however it is written."""

    q: Heads
    k: Heads
    v: Heads
    y: Heads
    scale: float
    is_causal: bool
    softcap: float
    mask: TensorSpec | None


def attention_of(request: KernelRequest) -> Attention | None:
    """Return the request if it is something that the kernels here do."""
    found = _strided(request) if request.operator == STRIDED else _of_shapes(request)
    if found is None or required(request).dtype not in FLOATS:
        return None
    if 0 in (*found.q.shape, *found.k.shape):
        return None
    mask = found.mask
    keys = found.k.length
    if mask is not None and (mask.shape[-1:] != (keys,) or mask.dtype not in FLOATS | {BOOL}):
        return None
    return found


def _strided(request: KernelRequest) -> Attention:
    q, k, v, y = (Heads.of_view(request, f"{name}_view") for name in "qkvy")
    return Attention(q, k, v, y, number(request, "scale"), False, 0.0, operand(request, 3))


def _of_shapes(request: KernelRequest) -> Attention | None:
    if wanted(request) != [0]:
        return None
    if any(operand(request, position) is not None for position in (4, 5, 6)):
        return None
    if any(integer(request, f"{side}_window_size") >= 0 for side in ("left", "right")):
        return None
    heads, kv_heads = integer(request, "q_num_heads"), integer(request, "kv_num_heads")
    return Attention(
        Heads.of(required(request).shape, heads),
        Heads.of(required(request, 1).shape, kv_heads),
        Heads.of(required(request, 2).shape, kv_heads),
        Heads.of(result(request).shape, heads),
        number(request, "scale"),
        bool(integer(request, "is_causal")),
        number(request, "softcap"),
        operand(request, 3),
    )


def cost_of(request: KernelRequest) -> float:
    """Return the multiply-adds of both products."""
    attention = attention_of(request)
    assert attention is not None
    return 2.0 * math.prod(attention.q.shape) * attention.k.length


def addresses_of(binding: Binding, attention: Attention) -> dict[str, int]:
    """Return where Q, K, V and Y begin, and the mask if there is one."""
    places = (*binding.inputs[:3], binding.outputs[0])
    itemsize = required(binding.request).dtype.itemsize
    addresses = {}
    for name, address in zip("qkvy", places, strict=True):
        assert address is not None
        addresses[name] = address + itemsize * getattr(attention, name).offset
    mask = binding.inputs[3] if len(binding.inputs) > 3 else None
    return addresses if mask is None else {**addresses, "mask": mask}


# --- cuDNN ------------------------------------------------------------------------------------


def fused(request: KernelRequest) -> FusedAttention | None:
    """Return what cuDNN would be asked for; None if it does not do that."""
    attention = attention_of(request)
    dtype = required(request).dtype
    if attention is None or dtype not in HALF_FLOATS or attention.softcap:
        return None
    q, k, v, y = attention.q, attention.k, attention.v, attention.y
    if any(size % _SIZE_STEP or size > _SIZE_MAX for size in (q.size, v.size)):
        return None
    if any(place % _SIZE_STEP for each in (q, k, v, y) for place in (*each.strides, each.offset)):
        # Rows are read sixteen bytes at a time.
        return None
    mask = attention.mask
    extents = None
    if mask is not None:
        if mask.dtype != dtype:
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
        dtype=dtype.name,
        scale=attention.scale,
        is_causal=attention.is_causal,
        mask=extents,
    )


def planned_attention(machine: Machine, attention: FusedAttention) -> AttentionPlan | None:
    """Return cuDNN's plan; None if it has none."""
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
    attention = None if machine.cudnn is None else fused(request)
    plan = None if attention is None else planned_attention(machine, attention)
    if plan is None:
        return None
    return KernelChoice(
        "attention.cudnn", workspace_bytes=plan.workspace_bytes, cost=cost_of(request)
    )


def _bind_fused(binding: Binding) -> Sequence[Enqueue]:
    attention = fused(binding.request)
    assert attention is not None
    plan = planned_attention(binding.machine, attention)
    assert plan is not None
    found = attention_of(binding.request)
    assert found is not None
    addresses = addresses_of(binding, found)
    binding.reads_unwaited(*range(len(binding.inputs)))

    def enqueue(stream: int) -> None:
        plan.enqueue(stream, addresses, binding.workspace)

    return [enqueue]


# --- Row by row -------------------------------------------------------------------------------


def _choose_rows(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    attention = attention_of(request)
    if attention is None:
        return None
    scores_bytes = attention.k.length * _itemsize(required(request).dtype)
    if scores_bytes > _SCORES_BYTES_MAX:
        return None
    return KernelChoice("attention.rows", cost=cost_of(request))


def _itemsize(dtype: np.dtype) -> int:
    return 8 if computed(dtype) == "double" else 4


def _bind_rows(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    attention = attention_of(request)
    assert attention is not None
    q, k, v, y = attention.q, attention.k, attention.v, attention.y
    query, mask = required(request), attention.mask
    kind, element = computed(query.dtype), stored(query.dtype)
    cap = attention.softcap
    capped = f"s = {literal(cap, kind)} * tanh(s / {literal(cap, kind)});" if cap else ""
    masked = ""
    parameters = [f"const {element}* {name}" for name in "qkv"]
    addresses = addresses_of(binding, attention)
    if mask is not None:
        shape = (q.batch, q.heads, q.length, k.length)
        walk = Walk.of(shape, [broadcast_strides(mask.shape, shape)])
        where = walk.offset(0, f"((unsigned)row * {k.length}u + j)")
        value = f"get(mask[{where}])"
        masked = f"if (!{value}) s = -INF();" if mask.dtype == BOOL else f"s += {value};"
        parameters.append(f"const {stored(mask.dtype)}* mask")
    if attention.is_causal:
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
    s *= {literal(attention.scale, kind)};
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
    arguments = [addresses[name] for name in ("q", "k", "v", "mask", "y") if name in addresses]
    return [binding.kernel(code, arguments, grid=rows, block=_THREADS)]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("Attention", STRIDED), _choose_fused, _bind_fused),
    CudaKernel(("Attention", STRIDED), _choose_rows, _bind_rows),
)
