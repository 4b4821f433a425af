"""What decoders attend with: rotary embeddings, and grouped queries over a cache."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE
from aegis_pipe.device.cuda.kernels.each import (
    each,
    given,
    results,
    simple_kernel,
    unravel,
)
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    number,
    operand,
    required,
    result,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.scored_attention import (
    Attend,
    Operand,
    aligned,
    attend,
    scores_bytes,
)
from aegis_pipe.device.cuda.kernels.source import (
    FLOATS,
    INTEGERS,
    Walk,
    broadcast_strides,
    computed,
    stored,
)
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

# --- Rotary embeddings ------------------------------------------------------------------------


def _turn(source: str, cosine: str, sine: str, turned: int, interleaved: bool) -> str:
    """Return a C expression of dimension `d`, turned.

    `source` is an expression of `d`, cosine and sine of `pair`; all stand in a lambda.
    """
    half = turned // 2
    pair, other, imaginary = (
        ("d / 2", "d ^ 1", "d & 1")
        if interleaved
        else (f"d % {half}", f"d < {half} ? d + {half} : d - {half}", f"d >= {half}")
    )
    return (
        f"([&](int d) -> S {{ const S own = {source}; if (d >= {turned}) return own; "
        f"const int pair = {pair}; const bool imaginary = {imaginary}; "
        f"const S c = {cosine}, n = {sine}; d = {other}; const S other = {source}; "
        f"return imaginary ? other * n + own * c : own * c - other * n; }}(d))"
    )


def _accepts_rotary(request: KernelRequest) -> bool:
    listed = operand(request, 3)
    return all(required(request, at).dtype in FLOATS for at in range(3)) and (
        listed is None or listed.dtype in INTEGERS
    )


def _bind_rotary(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec, cosine = required(request), required(request, 1)
    x = Operand.of(spec, integer(request, "num_heads"))
    batch, turned = spec.shape[0], integer(request, "rotary_embedding_dim")
    kind, half = computed(spec.dtype), cosine.shape[-1]
    positions = operand(request, 3)
    if positions is None:
        first = "b" if cosine.shape[0] > 1 else "0"
        row = f"const long long at = {first} * {x.length} + t;"
    else:
        one = f"pos[b * {x.length} + t]" if positions.element_count > 1 else "pos[0]"
        listed = len(positions.shape) == 2 and positions.shape == (batch, x.length)
        position = one if listed else "pos[0] + t"
        row = (
            f"long long at = (long long)({position}); "
            f"if (at < 0 || at >= {cosine.shape[0]}) {{ *fault = {INDEX_OUT_OF_RANGE}; at = 0; }}"
        )
    turn = _turn(
        f"(S)get(x[{x.at('h', 't')}])",
        f"(S)get(cosine[at * {half} + pair])",
        f"(S)get(sine[at * {half} + pair])",
        turned,
        bool(integer(request, "interleaved")),
    )
    statements = f"""
  typedef {kind} S;
  {unravel((batch, x.heads, x.length, x.size), ("b", "h", "t", "e"))}
  {row} const int d = (int)e;
  y[{x.at("h", "t")}] = To<{stored(spec.dtype)}>::of({turn});"""
    parameters = [
        *given(binding, {"x": 0, "cosine": 1, "sine": 2, "pos": 3}),
        *results(binding, {"y": 0}),
    ]
    return each(binding, spec.element_count, statements, parameters, faults=positions is not None)


# --- Grouped queries over a cache -------------------------------------------------------------

_KEY, _VALUE, _OLD_KEY, _OLD_VALUE, _LENGTHS, _COS, _SIN, _POSITIONS, _BIAS = range(1, 10)


def _accepts_grouped(request: KernelRequest) -> bool:
    bias = operand(request, _BIAS)
    return (
        bool(integer(request, "is_plain"))
        and required(request).dtype in FLOATS
        and (not integer(request, "do_rotary") or operand(request, _COS) is not None)
        and (bias is None or bias.dtype in FLOATS)
    )


def _cache_spec(request: KernelRequest) -> TensorSpec:
    """Return what the cache of keys is, and that of values."""
    for position in (1, 2):
        if position < len(request.outputs) and (spec := request.outputs[position]) is not None:
            return spec
    query = required(request)
    batch, length, _ = query.shape
    kv_heads = integer(request, "kv_num_heads")
    size = result(request).shape[2] // integer(request, "num_heads")
    past = operand(request, _OLD_KEY)
    total = length if past is None else max(length, past.shape[2])
    return TensorSpec(query.dtype, (batch, kv_heads, total, size))


def _grouped_workspace(request: KernelRequest) -> int:
    cache = _cache_spec(request)
    batch, length, _ = required(request).shape
    rows = batch * integer(request, "num_heads") * length
    kind = computed(required(request).dtype)
    spared = sum(at >= len(request.outputs) or request.outputs[at] is None for at in (1, 2))
    return spared * aligned(cache.size_bytes) + scores_bytes(rows, cache.shape[2], kind)


def _bind_grouped(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    query, cache = required(request), _cache_spec(request)
    batch, kv_heads, total, size = cache.shape
    length, heads = query.shape[1], integer(request, "num_heads")
    kind, element = computed(query.dtype), stored(query.dtype)
    is_packed = operand(request, _KEY) is None
    width = query.shape[2]
    free, caches = binding.workspace, []
    for position in (1, 2):
        address = binding.outputs[position] if position < len(binding.outputs) else None
        if address is None:
            address, free = free, free + aligned(cache.size_bytes)
        caches.append(address)
    is_prompt = bool(integer(request, "is_prompt"))
    valid = (
        f"const long long valid = {length}, start = 0;"
        if is_prompt
        else f"long long valid = (long long)lengths[b] + 1; "
        f"if (valid < {length} || valid > {total}) "
        f"{{ *fault = {INDEX_OUT_OF_RANGE}; valid = {length}; }} "
        f"const long long start = valid - {length};"
    )
    listed = operand(request, _POSITIONS) is not None
    does_turn = bool(integer(request, "do_rotary"))
    cosine = operand(request, _COS)
    half, rows = cosine.shape if cosine is not None and does_turn else (0, 0)
    if cosine is not None:
        rows, half = cosine.shape

    def turned(source: str, step: str) -> str:
        if not does_turn:
            return source
        position = f"(long long)pos[b * {length} + {step}]" if listed else f"start + {step}"
        safe = (
            f"([&]() -> long long {{ const long long at = {position}; "
            f"if (at >= 0 && at < {rows}) return at; *fault = {INDEX_OUT_OF_RANGE}; return 0; }}())"
        )
        return _turn(
            source,
            f"(S)get(cosine[{safe} * {half} + pair])",
            f"(S)get(sine[{safe} * {half} + pair])",
            2 * half,
            bool(integer(request, "rotary_interleaved")),
        )

    launches: list[Enqueue] = []
    tables = {"lengths": _LENGTHS, "cosine": _COS, "sine": _SIN, "pos": _POSITIONS}
    for which, address in enumerate(caches):
        first = heads + which * kv_heads if is_packed else 0
        row = width if is_packed else kv_heads * size
        new = f"(S)get(x[(b * {length} + (j - start)) * {row}LL + ({first} + g) * {size} + d])"
        fresh = turned(new, "(j - start)") if which == 0 else new
        past = operand(request, (_OLD_KEY, _OLD_VALUE)[which])
        old = "0"
        if past is not None:
            room = past.shape[2]
            old = (
                f"(j < {room} ? (S)get(p[((b * {kv_heads} + g) * {room}LL + j) * {size} + d]) "
                ": (S)0)"
            )
        statements = f"""
  typedef {kind} S;
  {unravel(cache.shape, ("b", "g", "j", "e"))} const int d = (int)e;
  {valid}
  y[i] = To<{element}>::of(j < start ? (S){old} : j < valid ? {fresh} : (S)0);"""
        source = 0 if is_packed else (_KEY, _VALUE)[which]
        parameters = [
            *given(binding, {"x": source, "p": (_OLD_KEY, _OLD_VALUE)[which], **tables}),
            (f"{element}* y", address),
        ]
        launches += each(binding, cache.element_count, statements, parameters, faults=True)

    hidden = ["j >= valid", "j > i + start"]
    if integer(request, "left_window_size") >= 0:
        hidden.append(f"j < i + start - {integer(request, 'left_window_size')}")
    bias, mask = operand(request, _BIAS), ""
    if bias is not None:
        known = bias.shape[-1] if bias.shape[-1] not in (1, total) else total
        shape = (batch, heads, length, known)
        walk = Walk.of(shape, [broadcast_strides(bias.shape, shape)])
        where = walk.offset(0, f"((unsigned)row * {known}u + j)")
        mask = f"if (j < {known}) s += (S)get(bias[{where}]);"
    own = f"(S)get(q[(b * {length} + i) * {width}LL + h * {size} + d])"
    kept = f"[((b * {kv_heads} + g) * {total}LL + j) * {size} + d]"
    what = Attend(
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        length=length,
        total=total,
        size=size,
        value_size=size,
        query=turned(own, "i"),
        key=f"get(keys{kept})",
        value=f"get(values{kept})",
        target=f"(b * {length} + i) * {heads * size}LL + h * {size} + d",
        scale=number(request, "scale"),
        softcap=number(request, "softcap"),
        mask=f"{mask} if ({' || '.join(hidden)}) s = -INF();",
        before=valid,
    )
    parameters = [
        *given(binding, {"q": 0, "bias": _BIAS, **tables}),
        (f"const {element}* keys", caches[0]),
        (f"const {element}* values", caches[1]),
        *results(binding, {"y": 0}),
        ("int* fault", binding.fault()),
    ]
    return launches + attend(binding, what, query, free, parameters)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "attention.group_query",
        ("com.microsoft.GroupQueryAttention",),
        _bind_grouped,
        accepts=_accepts_grouped,
        workspace=_grouped_workspace,
    ),
    simple_kernel(
        "rotary_embedding",
        ("RotaryEmbedding", "com.microsoft.RotaryEmbedding"),
        _bind_rotary,
        accepts=_accepts_rotary,
    ),
)
