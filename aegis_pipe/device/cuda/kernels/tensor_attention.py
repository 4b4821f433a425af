"""Attention in half precision by a kernel of our own, for lengths at which cuDNN's is half idle.

Softmax on line (Dao et al. 2022) over tiles of 32 keys. A warp has sixteen queries; the warps of a
block are so many groups of queries (`rows`) times so many that share a group's keys (`keys`) and
combine what they found at the end, in a fixed order. Nothing is staged in shared memory: a sum may
take its terms in any order as long as both factors agree on it, so that every thread loads sixteen
bytes where they lie, and they are its operands of the tensor cores' m16n8k16.

Which shape of block, or cuDNN after all, is decided by measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.kernels.attention import (
    STRIDED,
    Attention,
    addresses_of,
    attention_of,
    cost_of,
    fused,
    planned_attention,
)
from aegis_pipe.device.cuda.kernels.operands import required
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT16,
    HALF_FLOATS,
    Walk,
    broadcast_strides,
    kernel_source,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_CAPABILITY_MIN = 80
_SIZES = (64, 128)
_ROWS = 16
"""Queries of a warp."""
_BLOCKS = ((1, 4), (2, 2), (4, 1), (1, 8))
"""Groups of queries, and warps that share a group."""
_ADJOINING = 8
"""Elements that are loaded at once."""

_FUNCTIONS = """
__device__ __forceinline__ float power(float x) {
  float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ u32 both(float low, float high) {
  u32 r; asm("cvt.rn.<kind>x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
__device__ __forceinline__ void multiply(float* c, const u32* a, u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.<kind>.<kind>.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); }
__device__ __forceinline__ float greatest(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1)); return fmaxf(x, __shfl_xor_sync(~0u, x, 2)); }
__device__ __forceinline__ float total(float x) {
  x += __shfl_xor_sync(~0u, x, 1); return x + __shfl_xor_sync(~0u, x, 2); }
struct alignas(16) Words { u32 w[4]; };
"""


def _source(request: KernelRequest, a: Attention, rows: int, keys: int) -> str:
    """Return the kernel for one shape of block; a grid of (groups of queries, heads, batch)."""
    element = stored(required(request).dtype)
    size, count = a.q.size, a.k.length
    log2e = 1.4426950408889634
    parameters = [f"const {element}* {name}" for name in "qkv"]
    score = f"s[n][e] * {a.scale * log2e!r}f"
    if a.mask is not None:
        shape = (a.q.batch, a.q.heads, a.q.length, count)
        walk = Walk.of(shape, [broadcast_strides(a.mask.shape, shape)])
        index = f"((blockIdx.z * {a.q.heads}u + blockIdx.y) * {a.q.length}u + i) * {count}u + j"
        score += f" + (j < {count} ? get(mask[{walk.offset(0, f'({index})')}]) * {log2e!r}f : 0.0f)"
        parameters.append(f"const {element}* mask")
    hidden = f"j >= {count}" + (" || j > i" if a.is_causal else "")

    def start(name: str, head: str) -> str:
        strides = getattr(a, name).strides
        return f"{name} += (long long)blockIdx.z * {strides[0]} + (long long){head} * {strides[1]};"

    group = f"(blockIdx.y / {a.q.heads // a.k.heads})"
    body = f"""
  const int D = {size}, C = D / 32, H = D / 64, L = {a.q.length}, K = {count};
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int wk = threadIdx.x / 32 % {keys}, wr = threadIdx.x / {32 * keys};
  const int first = (blockIdx.x * {rows} + wr) * {_ROWS};
  {start("q", "blockIdx.y")} {start("k", group)} {start("v", group)} {start("y", "blockIdx.y")}
  u32 a[2 * C][4];
  #pragma unroll
  for (int r = 0; r < 2; ++r) {{
    const int i = first + g + 8 * r < L ? first + g + 8 * r : L - 1;
    #pragma unroll
    for (int c = 0; c < C; ++c) {{
      const Words u = *(const Words*)(q + (long long)i * {a.q.strides[2]} + c * 32 + t * 8);
      a[2 * c][r] = u.w[0]; a[2 * c][r + 2] = u.w[1];
      a[2 * c + 1][r] = u.w[2]; a[2 * c + 1][r + 2] = u.w[3];
    }}
  }}
  float o[8 * H][4] = {{}}, most[2] = {{-INF(), -INF()}}, sum[2] = {{}};
  for (int base = wk * 32; base < K; base += {32 * keys}) {{
    float s[4][4] = {{}};
    #pragma unroll
    for (int n = 0; n < 4; ++n) {{
      const int j = base + n * 8 + g < K ? base + n * 8 + g : K - 1;
      #pragma unroll
      for (int c = 0; c < C; ++c) {{
        const Words u = *(const Words*)(k + (long long)j * {a.k.strides[2]} + c * 32 + t * 8);
        multiply(s[n], a[2 * c], u.w[0], u.w[1]);
        multiply(s[n], a[2 * c + 1], u.w[2], u.w[3]);
      }}
    }}
    Words values[2][H][4];
    #pragma unroll
    for (int p = 0; p < 2; ++p)
      #pragma unroll
      for (int z = 0; z < 4; ++z) {{
        int j = base + p * 16 + 2 * t + z % 2 + z / 2 * 8;
        j = j < K ? j : K - 1;
        #pragma unroll
        for (int h = 0; h < H; ++h)
          values[p][h][z] =
              *(const Words*)(v + (long long)j * {a.v.strides[2]} + h * 64 + g * 8);
      }}
    float now[2] = {{most[0], most[1]}};
    #pragma unroll
    for (int n = 0; n < 4; ++n)
      #pragma unroll
      for (int e = 0; e < 4; ++e) {{
        const int j = base + n * 8 + 2 * t + e % 2;
        int i = first + g + e / 2 * 8; i = i < L ? i : L - 1;
        s[n][e] = {hidden} ? -INF() : {score};
        now[e / 2] = fmaxf(now[e / 2], s[n][e]);
      }}
    float shift[2], fade[2];
    #pragma unroll
    for (int r = 0; r < 2; ++r) {{
      now[r] = greatest(now[r]);
      shift[r] = now[r] == -INF() ? 0.0f : now[r];
      fade[r] = power(most[r] - shift[r]);
      most[r] = now[r]; sum[r] *= fade[r];
    }}
    #pragma unroll
    for (int n = 0; n < 4; ++n)
      #pragma unroll
      for (int e = 0; e < 4; ++e) {{
        s[n][e] = power(s[n][e] - shift[e / 2]); sum[e / 2] += s[n][e]; }}
    #pragma unroll
    for (int d = 0; d < 8 * H; ++d)
      #pragma unroll
      for (int e = 0; e < 4; ++e) o[d][e] *= fade[e / 2];
    #pragma unroll
    for (int p = 0; p < 2; ++p) {{
      const u32 w[4] = {{
        both(s[2 * p][0], s[2 * p][1]), both(s[2 * p][2], s[2 * p][3]),
        both(s[2 * p + 1][0], s[2 * p + 1][1]), both(s[2 * p + 1][2], s[2 * p + 1][3])}};
      #pragma unroll
      for (int h = 0; h < H; ++h)
        #pragma unroll
        for (int d = 0; d < 8; ++d) {{
          const u32 pick = d % 2 ? 0x7632u : 0x5410u;
          multiply(o[8 * h + d], w,
            __byte_perm(values[p][h][0].w[d / 2], values[p][h][1].w[d / 2], pick),
            __byte_perm(values[p][h][2].w[d / 2], values[p][h][3].w[d / 2], pick));
        }}
    }}
  }}
  sum[0] = total(sum[0]); sum[1] = total(sum[1]);
  {_alone(a) if keys == 1 else _together(a, rows, keys)}"""
    kind = "f16" if required(request).dtype == FLOAT16 else "bf16"
    return kernel_source(
        [*parameters, f"{element}* y"],
        body,
        threads=32 * rows * keys,
        extra=_FUNCTIONS.replace("<kind>", kind),
    )


def _alone(a: Attention) -> str:
    """Return the end of a kernel whose warps have all keys of their queries."""
    return f"""
  #pragma unroll
  for (int r = 0; r < 2; ++r) {{
    const int i = first + g + 8 * r;
    const float f = sum[r] > 0 ? 1 / sum[r] : 0.0f;
    if (i < L)
      #pragma unroll
      for (int h = 0; h < H; ++h)
        #pragma unroll
        for (int z = 0; z < 2; ++z) {{
          Words out;
          #pragma unroll
          for (int d = 0; d < 4; ++d)
            out.w[d] = both(o[8 * h + 2 * d][2 * r + z] * f, o[8 * h + 2 * d + 1][2 * r + z] * f);
          *(Words*)(y + (long long)i * {a.y.strides[2]} + h * 64 + (2 * t + z) * 8) = out;
        }}
  }}"""


def _together(a: Attention, rows: int, keys: int) -> str:
    """Return the end of a kernel whose warps share the keys of their queries."""
    return f"""
  __shared__ float parts[{rows}][{keys}][{_ROWS}][D + 4];
  __shared__ float mosts[{rows}][{keys}][{_ROWS}], sums[{rows}][{keys}][{_ROWS}];
  if (t == 0)
    for (int r = 0; r < 2; ++r) {{
      mosts[wr][wk][g + 8 * r] = most[r]; sums[wr][wk][g + 8 * r] = sum[r]; }}
  #pragma unroll
  for (int h = 0; h < H; ++h)
    #pragma unroll
    for (int d = 0; d < 8; ++d)
      #pragma unroll
      for (int e = 0; e < 4; ++e)
        parts[wr][wk][g + e / 2 * 8][h * 64 + (2 * t + e % 2) * 8 + d] = o[8 * h + d][e];
  __syncthreads();
  for (int z = threadIdx.x; z < {rows * _ROWS} * D / 8; z += {32 * rows * keys}) {{
    const int d = z % (D / 8) * 8, row = z / (D / 8) % {_ROWS}, w = z / (D / 8) / {_ROWS};
    const int i = (blockIdx.x * {rows} + w) * {_ROWS} + row;
    if (i >= L) continue;
    float m = -INF(), all = 0, x[8] = {{}};
    for (int n = 0; n < {keys}; ++n) m = fmaxf(m, mosts[w][n][row]);
    m = m == -INF() ? 0.0f : m;
    for (int n = 0; n < {keys}; ++n) {{
      const float f = power(mosts[w][n][row] - m);
      all += sums[w][n][row] * f;
      #pragma unroll
      for (int c = 0; c < 8; ++c) x[c] += parts[w][n][row][d + c] * f;
    }}
    const float f = all > 0 ? 1 / all : 0.0f;
    Words out;
    #pragma unroll
    for (int c = 0; c < 4; ++c) out.w[c] = both(x[2 * c] * f, x[2 * c + 1] * f);
    *(Words*)(y + (long long)i * {a.y.strides[2]} + d) = out;
  }}"""


def _suited(request: KernelRequest, machine: Machine) -> Attention | None:
    attention = attention_of(request)
    dtype = required(request).dtype
    if attention is None or dtype not in HALF_FLOATS or machine.capability < _CAPABILITY_MIN:
        return None
    a = attention
    if a.softcap or a.q.size not in _SIZES or a.v.size != a.q.size or a.q.length == 0:
        return None
    if any(
        place % _ADJOINING
        for each in (a.q, a.k, a.v, a.y)
        for place in (*each.strides, each.offset)
    ):
        return None
    return None if a.mask is not None and a.mask.dtype != dtype else a


def _shapes(a: Attention) -> list[tuple[int, int]]:
    """Return the shapes of block whose partial results fit into shared memory."""
    return [
        (rows, keys)
        for rows, keys in _BLOCKS
        if keys == 1 or rows * keys * _ROWS * (a.q.size + 6) * 4 <= 48 << 10
    ]


def _grid(a: Attention, rows: int) -> tuple[int, int, int]:
    return -(-a.q.length // (rows * _ROWS)), a.q.heads, a.q.batch


def _measured(request: KernelRequest, machine: Machine, a: Attention) -> tuple[int, int] | None:
    """Return the fastest shape of block; None where cuDNN is faster."""
    if machine.tuner is None or machine.cudnn is None:
        return _shapes(a)[0]
    what = f"attention {a} {required(request).dtype}"
    library = f"own kernels and cudnn {machine.cudnn.version}"
    known = machine.tuner.remembered(what, library)
    if known is None:
        shapes = _shapes(a)
        ways = [_way(request, machine, a, *shape) for shape in shapes]
        theirs = fused(request)
        plan = None if theirs is None else planned_attention(machine, theirs)
        if plan is not None:

            def cudnn(stream: int, addresses: Sequence[int]) -> None:
                names = ("q", "k", "v", "mask", "y")
                given = dict(zip(names, addresses, strict=False))
                plan.enqueue(stream, given, addresses[5])

            ways.append(cudnn)
        workspace_bytes = 0 if plan is None else plan.workspace_bytes
        sizes = [*_sizes(request, a), workspace_bytes]
        found = machine.tuner.fastest(ways, sizes, result=4)
        assert found is not None, "the kernel gives the same bits every time"
        best, microseconds = found
        rows, keys = shapes[best] if best < len(shapes) else (0, 0)
        known = {"rows": rows, "keys": keys, "microseconds": microseconds}
        machine.tuner.remember(what, library, known)
    rows, keys = (int(str(known[name])) for name in ("rows", "keys"))
    return (rows, keys) if rows else None


def _sizes(request: KernelRequest, a: Attention) -> list[int]:
    """Return how many bytes Q, K, V, mask and Y reach over."""
    item = required(request).dtype.itemsize
    reaches = []
    for each in (a.q, a.k, a.v, a.y):
        last = [(n - 1) * s for n, s in zip(each.shape, (*each.strides, 1), strict=True)]
        reaches.append(item * (sum(last) + 1))
    return [*reaches[:3], a.mask.size_bytes if a.mask is not None else 0, reaches[3]]


def _way(
    request: KernelRequest, machine: Machine, a: Attention, rows: int, keys: int
) -> Callable[[int, Sequence[int]], None]:
    function = machine.compiler.function(_source(request, a, rows, keys))

    def enqueue(stream: int, addresses: Sequence[int]) -> None:
        used = [*addresses[:3], *(addresses[3:4] if a.mask is not None else ()), addresses[4]]
        block = (32 * rows * keys, 1, 1)
        driver.launch(function, _grid(a, rows), block, 0, stream, driver.Arguments(used))

    return enqueue


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    attention = _suited(request, machine)
    if attention is None or _measured(request, machine, attention) is None:
        return None
    return KernelChoice("attention.tensor", cost=cost_of(request))


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    attention = _suited(request, binding.machine)
    assert attention is not None
    shape = _measured(request, binding.machine, attention)
    assert shape is not None
    rows, keys = shape
    addresses = addresses_of(binding, attention)
    arguments = [addresses[name] for name in ("q", "k", "v", "mask", "y") if name in addresses]
    code = _source(request, attention, rows, keys)
    grid = _grid(attention, rows)
    return [binding.kernel(code, arguments, grid=grid, block=32 * rows * keys)]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel(("Attention", STRIDED), _choose, _bind),)
