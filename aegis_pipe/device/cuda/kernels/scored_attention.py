"""Attention in full: past and present, windows, lengths, scores as a result; and projections.

Slower than the fused kernels, which are asked first: one block a row of scores, which are kept in
the workspace, so that there may be any number of keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aegis_pipe.device.cuda.kernels import products
from aegis_pipe.device.cuda.kernels.each import (
    each,
    given,
    launch,
    results,
    simple_kernel,
    unravel,
)
from aegis_pipe.device.cuda.kernels.nested import bind_nested
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    number,
    operand,
    required,
    result,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import (
    BOOL,
    FLOATS,
    INTEGERS,
    Walk,
    broadcast_strides,
    computed,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_THREADS = 128
_MASK, _PAST_KEY, _PAST_VALUE, _VALID = 3, 4, 5, 6


@dataclass(frozen=True, slots=True)
class Attend:
    """What is attended to.

    Expressions are of batch `b`, head `h`, key head `g`, positions `i` of the query and `j` of the
    key, and dimension `d`; statements change the score `s`.
    """

    batch: int
    heads: int
    kv_heads: int
    length: int
    total: int
    size: int
    value_size: int
    query: str
    key: str
    value: str
    target: str
    """Where in `y` the result goes."""
    scale: float
    softcap: float
    mask: str
    before: str = "const int offset = 0; (void)offset;"
    """Statements for each row."""
    scores_mode: int = -1
    """Which scores `shown` is for, -1 for none."""
    shown: str = "float"

    @property
    def rows(self) -> int:
        """Number of rows of scores."""
        return self.batch * self.heads * self.length


def scores_bytes(rows: int, total: int, kind: str) -> int:
    """Return what a row of scores for each of `rows` takes in the workspace."""
    return rows * total * (8 if kind == "double" else 4)


def attend(
    binding: Binding,
    what: Attend,
    spec: TensorSpec,
    scores: int,
    parameters: Sequence[tuple[str, int]],
) -> list[Enqueue]:
    """Launch a block a row; `scores` is where the workspace for them is."""
    if what.rows == 0 or what.total == 0:
        return []
    kind, element = computed(spec.dtype), stored(spec.dtype)
    cap = literal(what.softcap, kind)
    capped = f"s = {cap} * tanh(s / {cap});" if what.softcap > 0 else ""

    def show(mode: int, value: str) -> str:
        if mode != what.scores_mode:
            return ""
        return f"shown[row * {what.total}LL + j] = To<{what.shown}>::of({value});"

    steps = f"for (int j = t; j < {what.total}; j += {_THREADS})"
    body = f"""
  typedef {kind} S;
  __shared__ S parts[{_THREADS}];
  const int t = threadIdx.x;
  const long long row = blockIdx.x;
  const int i = (int)(row % {what.length}), h = (int)(row / {what.length} % {what.heads});
  const long long b = row / {what.length * what.heads}, g = h / {what.heads // what.kv_heads};
  (void)b; (void)g;
  scores += row * {what.total}LL;
  {what.before}
  S most = -INF();
  {steps} {{
    S s = 0;
    for (int d = 0; d < {what.size}; ++d) s += (S)({what.query}) * (S)({what.key});
    s *= {literal(what.scale, kind)}; {show(0, "s")}
    {capped} {show(1, "s")}
    {what.mask} {show(2, "s")}
    scores[j] = s; most = s > most ? s : most;
  }}
  parts[t] = most; __syncthreads();
  for (int m = {_THREADS // 2}; m; m /= 2) {{
    if (t < m) parts[t] = parts[t + m] > parts[t] ? parts[t + m] : parts[t];
    __syncthreads(); }}
  most = parts[0]; __syncthreads();
  const bool nothing = most == -INF();
  S sum = 0;
  {steps} {{
    const S e = nothing ? (S)0 : exp(scores[j] - most); scores[j] = e; sum += e; }}
  parts[t] = sum; __syncthreads();
  for (int m = {_THREADS // 2}; m; m /= 2) {{
    if (t < m) parts[t] += parts[t + m];
    __syncthreads(); }}
  const S f = nothing ? (S)0 : 1 / parts[0];
  {f"{steps} {{ {show(3, 'scores[j] * f')} }}" if what.scores_mode == 3 else ""}
  for (int d = t; d < {what.value_size}; d += {_THREADS}) {{
    S a = 0;
    for (int j = 0; j < {what.total}; ++j) a += scores[j] * (S)({what.value});
    y[{what.target}] = To<{element}>::of(a * f);
  }}"""
    return launch(
        binding,
        body,
        [*parameters, (f"{kind}* scores", scores)],
        grid=what.rows,
        threads=_THREADS,
    )


# --- Attention --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operand:
    """Q, K, V or Y in either layout."""

    heads: int
    length: int
    size: int
    strides: tuple[int, int, int]

    @classmethod
    def of(cls, spec: TensorSpec, heads: int) -> Operand:
        """Read the layout off a spec; `heads` counts where there is no axis of heads."""
        if len(spec.shape) == 4:
            _, heads, length, size = spec.shape
            return cls(heads, length, size, (heads * length * size, length * size, size))
        _, length, width = spec.shape
        return cls(heads, length, width // heads, (length * width, width // heads, width))

    def at(self, head: str, position: str) -> str:
        """Return the C expression of element `d`'s place, of batch `b`."""
        batch, one, step = self.strides
        return f"b * {batch}LL + {head} * {one}LL + ({position}) * {step}LL + d"


def _operands(request: KernelRequest) -> tuple[Operand, Operand, Operand, Operand, int]:
    """Return Q, K, V, Y and the length of the past."""
    heads, kv_heads = integer(request, "q_num_heads"), integer(request, "kv_num_heads")
    past = operand(request, _PAST_KEY)
    return (
        Operand.of(required(request), heads),
        Operand.of(required(request, 1), kv_heads),
        Operand.of(required(request, 2), kv_heads),
        Operand.of(result(request), heads),
        0 if past is None else past.shape[2],
    )


def _accepts(request: KernelRequest) -> bool:
    if not request.outputs or request.outputs[0] is None:
        return False
    kinds = {spec.dtype for spec in request.inputs[:3] if spec}
    mask = operand(request, _MASK)
    masks = FLOATS | {BOOL}
    has_both = (operand(request, _PAST_KEY) is None) == (operand(request, _PAST_VALUE) is None)
    return kinds <= FLOATS and has_both and (mask is None or mask.dtype in masks)


def _workspace(request: KernelRequest) -> int:
    q, k, _, _, past = _operands(request)
    kind = computed(required(request).dtype)
    rows = required(request).shape[0] * q.heads * q.length
    return scores_bytes(rows, k.length + past, kind)


def _frontier(request: KernelRequest, past: int, length: int) -> tuple[str, str]:
    """Return statements for a row, and for a score: what positions and lengths hide."""
    causal = bool(integer(request, "is_causal"))
    left, right = integer(request, "left_window_size"), integer(request, "right_window_size")
    before, hidden = f"const long long offset = {past}; (void)offset;", []
    if operand(request, _VALID) is not None:
        before = (
            f"const long long valid = (long long)lengths[b], offset = valid - {length}; "
            "(void)offset;"
        )
        hidden.append("j >= (valid < 0 ? 0 : valid)")
    ahead = min(0, right) if causal and right >= 0 else 0 if causal else right
    if ahead >= 0:
        hidden.append(f"j > i + offset + {ahead}")
    if left >= 0:
        hidden.append(f"j < i + offset - {left}")
    return before, f"if ({' || '.join(hidden)}) s = -INF();" if hidden else ""


def _masking(request: KernelRequest, rows: tuple[int, int, int], total: int) -> str:
    """Return statements that apply a mask, which may name the first keys only."""
    mask = operand(request, _MASK)
    if mask is None:
        return ""
    width = mask.shape[-1] if mask.shape else 1
    known = width if width not in (1, total) else total
    shape = (*rows, known)
    walk = Walk.of(shape, [broadcast_strides(mask.shape, shape)])
    where = walk.offset(0, f"((unsigned)row * {known}u + j)")
    value = f"get(mask[{where}])"
    apply = f"if (!{value}) s = -INF();" if mask.dtype == BOOL else f"s += (S){value};"
    return apply if known == total else f"if (j < {known}) {{ {apply} }} else s = -INF();"


def _join(
    binding: Binding, new: Operand, past: int, names: tuple[int, int, int], batch: int
) -> list[Enqueue]:
    """Launch the copies that make the present of past and new keys or values."""
    present_at, new_at, past_at = names
    target = results(binding, {"y": present_at})
    if not target:
        return []
    total = new.length + past
    shape = (batch, new.heads, total, new.size)
    fresh = f"x[{new.at('g', f'j - {past}')}]"
    old = f"p[((b * {new.heads} + g) * {past} + j) * {new.size} + d]"
    statements = unravel(shape, ("b", "g", "j", "d"))
    statements += f" y[i] = {f'j < {past} ? {old} : {fresh}' if past else fresh};"
    parameters = [*given(binding, {"x": new_at, "p": past_at}), *target]
    return each(binding, math.prod(shape), statements, parameters)


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    query = required(request)
    q, k, v, y, past = _operands(request)
    batch, total = query.shape[0], k.length + past
    launches = _join(binding, k, past, (1, 1, _PAST_KEY), batch)
    launches += _join(binding, v, past, (2, 2, _PAST_VALUE), batch)

    def element(name: str, what: Operand) -> str:
        fresh = f"get({name}[{what.at('g', f'j - {past}')}])"
        if not past:
            return fresh
        old = f"get(past_{name}[((b * {what.heads} + g) * {past}LL + j) * {what.size} + d])"
        return f"(j < {past} ? {old} : {fresh})"

    before, hides = _frontier(request, past, q.length)
    shown = results(binding, {"shown": 3})
    what = Attend(
        batch=batch,
        heads=q.heads,
        kv_heads=k.heads,
        length=q.length,
        total=total,
        size=q.size,
        value_size=v.size,
        query=f"get(q[{q.at('h', 'i')}])",
        key=element("k", k),
        value=element("v", v),
        target=y.at("h", "i"),
        scale=number(request, "scale"),
        softcap=number(request, "softcap"),
        mask=f"{_masking(request, (batch, q.heads, q.length), total)} {hides}",
        before=before,
        scores_mode=integer(request, "qk_matmul_output_mode") if shown else -1,
        shown=shown[0][0].partition("*")[0] if shown else "float",
    )
    names = {"q": 0, "k": 1, "v": 2, "mask": _MASK, "past_k": 4, "past_v": 5, "lengths": _VALID}
    parameters = [*given(binding, names), *results(binding, {"y": 0}), *shown]
    return launches + attend(binding, what, query, binding.workspace, parameters)


# --- Attention with its projection ------------------------------------------------------------


def _accepts_projected(request: KernelRequest) -> bool:
    mask = operand(request, 3)
    return (
        required(request).dtype in FLOATS
        and (mask is None or (len(mask.shape) == 2 and mask.dtype in INTEGERS))
        and not any(operand(request, position) is not None for position in (4, 5, 6))
        and (len(request.outputs) < 2 or request.outputs[1] is None)
        and not integer(request, "do_rotary")
    )


def _projected_spec(request: KernelRequest) -> TensorSpec:
    """Return Q, K and V side by side."""
    data = required(request)
    batch, length, _ = data.shape
    return TensorSpec(data.dtype, (batch * length, sum(integers(request, "widths"))))


def aligned(size: int) -> int:
    """Return where in the workspace something can begin behind `size` bytes."""
    return -(-size // 256) * 256


def _projected_workspace(request: KernelRequest) -> int:
    batch, length, _ = required(request).shape
    rows = batch * integer(request, "num_heads") * length
    kind = computed(required(request).dtype)
    return aligned(_projected_spec(request).size_bytes) + scores_bytes(rows, length, kind)


def _bind_projected(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, weights, projected = required(request), required(request, 1), _projected_spec(request)
    batch, length, width = data.shape
    product = KernelRequest(
        "Gemm",
        request.node,
        {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0},
        (TensorSpec(data.dtype, (batch * length, width)), weights, operand(request, 2)),
        (projected,),
    )
    launches = bind_nested(
        binding, products.KERNEL_FAMILY, product, binding.inputs[:3], [binding.workspace]
    )
    heads, widths = integer(request, "num_heads"), integers(request, "widths")
    whole, size, value_size = sum(widths), widths[0] // heads, widths[2] // heads

    def part(position: str, start: int, each_size: int) -> str:
        return f"get(p[(b * {length} + {position}) * {whole}LL + {start} + h * {each_size} + d])"

    kind = computed(data.dtype)
    filtered = literal(number(request, "mask_filter_value"), kind)
    mask = ""
    if operand(request, 3) is not None:
        mask = f"s += (S)(1 - (int)mask[b * {length} + j]) * {filtered};"
    if integer(request, "is_causal"):
        mask += " if (j > i) s = -INF();"
    what = Attend(
        batch=batch,
        heads=heads,
        kv_heads=heads,
        length=length,
        total=length,
        size=size,
        value_size=value_size,
        query=part("i", 0, size),
        key=part("j", widths[0], size),
        value=part("j", widths[0] + widths[1], value_size),
        target=f"(b * {length} + i) * {widths[2]}LL + h * {value_size} + d",
        scale=number(request, "scale"),
        softcap=0.0,
        mask=mask,
    )
    parameters = [
        (f"const {stored(data.dtype)}* p", binding.workspace),
        *given(binding, {"mask": 3}),
        *results(binding, {"y": 0}),
    ]
    scores = binding.workspace + aligned(projected.size_bytes)
    return launches + attend(binding, what, data, scores, parameters)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "attention.scored", ("Attention",), _bind, accepts=_accepts, workspace=_workspace
    ),
    simple_kernel(
        "attention.projected",
        ("com.microsoft.Attention",),
        _bind_projected,
        accepts=_accepts_projected,
        workspace=_projected_workspace,
    ),
)
