"""The kernel of attention on tensor cores, its keys and values in shared memory.

A block has some groups of sixteen queries, and loads what its head has of keys and values with all
copies in flight at once (`cp.async`), so that memory is waited for once: as many keys as fit are
one page, longer sequences are several. The warps of a block are so many groups of queries (`rows`)
times so many that share a group's keys (`keys`); these combine what they found at the end, in a
fixed order. Softmax is taken on line (Dao et al. 2022), in powers of two, in registers.

Rows lie in shared memory in units of sixteen bytes that are swapped by row, so that a warp meets
every bank once (`ldmatrix`, transposed for values).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.kernels.attention import Attention
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT16,
    Walk,
    broadcast_strides,
    index_type,
    kernel_source,
    stored,
)
from aegis_pipe.device.cuda.kernels.tensor_instructions import (
    INSTRUCTIONS,
    SHARED,
    WAIT_FOR_COPIES,
)

GROUP = 16
"""Queries of a warp, and keys of a step."""
_SHARED_BYTES_MAX = 96 << 10
"""What a block may have on every GPU from compute 8.0 on, less a little."""
_STEPS_MAX, _STEPS_LIGHT = 3, 7
"""Most steps whose scores are in registers at once; and with little else to hold there."""
_SIZE_LIGHT, _WARPS_LIGHT = 64, 12
"""Of heads, and warps that a multiprocessor is then to have at once."""

FUNCTIONS = (
    INSTRUCTIONS
    + WAIT_FOR_COPIES
    + """\
__device__ __forceinline__ void read_transposed(u32* r, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory"); }
__device__ __forceinline__ u32 both(float low, float high) {
  u32 r; asm("cvt.rn.<kind>x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low)); return r; }
"""
)
"""What tests on the host have in another form."""
_FURTHER = """
__device__ __forceinline__ float power_of_two(float x) {
  float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
__device__ __forceinline__ float greatest(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1)); return fmaxf(x, __shfl_xor_sync(~0u, x, 2)); }
__device__ __forceinline__ float total(float x) {
  x += __shfl_xor_sync(~0u, x, 1); return x + __shfl_xor_sync(~0u, x, 2); }
struct alignas(16) Four { float v[4]; };
struct alignas(16) Words { u32 w[4]; };
struct alignas(8) Pair { u32 w[2]; };
struct alignas(8) Two { float x, y; };
struct alignas(8) Found { float most, sum; };
"""


@dataclass(frozen=True, slots=True)
class Block:
    """The shape of a block for one attention."""

    rows: int
    """Groups of queries."""
    keys: int
    """Warps that share a group."""
    size: int
    """Of a head."""
    key_count: int
    is_masked: bool = False

    @property
    def is_light(self) -> bool:
        """Whether registers are left: small heads, no mask, and one page has all keys."""
        is_one_page = -(-self.key_count // (GROUP * self.keys)) <= self._most
        return self.size == _SIZE_LIGHT and not self.is_masked and is_one_page

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.rows * self.keys

    @property
    def queries(self) -> int:
        """Queries of a block."""
        return GROUP * self.rows

    @property
    def rounds(self) -> int:
        """How often a warp takes `steps` steps in a page."""
        return -(-self._shares // (_STEPS_LIGHT if self.is_light else _STEPS_MAX))

    @property
    def steps(self) -> int:
        """Steps that a warp takes at once."""
        return min(-(-self._shares // self.rounds), max(1, self._most // self.rounds))

    @property
    def page(self) -> int:
        """Keys that are in shared memory at once."""
        return GROUP * self.keys * self.rounds * self.steps

    @property
    def pages(self) -> int:
        """Pages of all keys."""
        return -(-self.key_count // self.page)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block: queries, a page of keys and values; in the end partial sums."""
        parts = 4 * (self.size + 8) + 8 if self.keys > 1 else 0
        row_bytes = 2 * self.size
        return max(row_bytes * (self.queries + 2 * self.page), parts * self.keys * self.queries)

    @property
    def _shares(self) -> int:
        """Most steps of a warp in a page."""
        return min(self._most, -(-self.key_count // (GROUP * self.keys)))

    @property
    def _most(self) -> int:
        """Most steps of a warp for which keys and values are in shared memory at once."""
        left = _SHARED_BYTES_MAX - 2 * self.size * self.queries
        return left // (4 * self.size * GROUP * self.keys)


def source_of(a: Attention, dtype: np.dtype, block: Block) -> str:
    """Return the kernel for one shape of block; a grid of (groups of queries, heads, batch)."""
    element = stored(dtype)
    rows, keys, steps = block.rows, block.keys, block.steps
    count = a.k.length
    log2e = 1.4426950408889634
    parameters = [f"const {element}* {name}" for name in "qkv"]
    factor, score, hidden = a.scale * log2e, "", ""
    if a.mask is not None or a.scale <= 0:
        # Scores are scaled before the greatest is taken.
        score, factor = f"s[n][e] * {factor!r}f", 1.0
    if a.mask is not None:
        shape = (a.q.batch, a.q.heads, a.q.length, count)
        walk = Walk.of(shape, [broadcast_strides(a.mask.shape, shape)])
        line = f"(({index_type(math.prod(shape))})blockIdx.z * {a.q.heads}u + blockIdx.y)"
        index = f"({line} * {a.q.length}u + i) * {count}u + j"
        score += f" + (j < K ? get(mask[{walk.offset(0, f'({index})')}]) * {log2e!r}f : 0.0f)"
        parameters.append(f"const {element}* mask")
    if a.is_causal:
        hidden = f"j > {'i' if score else 'first + g + e / 2 * 8'}"
    each = f"""
      #pragma unroll
      for (int n = 0; n < {2 * steps}; ++n)
        #pragma unroll
        for (int e = 0; e < 4; ++e)"""
    column = "const int j = base + n * 8 + 2 * t + e % 2;"
    scored = ""
    if score:
        scored = f"""{each} {{
          {column}
          int i = first + g + e / 2 * 8; i = i < L ? i : L - 1;
          s[n][e] = {f"{hidden} ? -INF() : " if hidden else ""}{score}; }}"""
    elif hidden:
        scored = f"{each} {{ {column} if ({hidden}) s[n][e] = -INF(); }}"
    beyond = ""
    if block.page * block.pages != count:
        hide = f"{each} {{ {column} if (j >= K) s[n][e] = -INF(); }}"
        beyond = f"if (base + {GROUP * steps} > K) {{{hide} }}"

    def start(name: str, head: str) -> str:
        strides = getattr(a, name).strides
        return f"{name} += (long long)blockIdx.z * {strides[0]} + (long long){head} * {strides[1]};"

    def load(name: str, place: str, lines: int, first: str, limit: str) -> str:
        stride = getattr(a, name).strides[2]
        return f"""
    #pragma unroll
    for (int z = 0; z < {-(-lines * a.q.size // 8 // block.threads)}; ++z) {{
      const int at = threadIdx.x + z * {block.threads}, line = at / U, unit = at % U;
      const int row = {first} + line;
      if (at < {lines} * U)
        copy({place} + line * B + ((unit ^ (line & 7)) << 4),
             {name} + (row < {limit} ? (long long)row * {stride} + unit * 8 : 0), row < {limit});
    }}"""

    group = f"(blockIdx.y / {a.q.heads // a.k.heads})"
    again = "__syncthreads();" if block.pages > 1 else ""
    fade = """
      #pragma unroll
      for (int n = 0; n < U; ++n)
        #pragma unroll
        for (int e = 0; e < 4; ++e) o[n][e] *= fade[e / 2];"""
    body = f"""
  const int D = {a.q.size}, U = D / 8, B = D * 2, L = {a.q.length}, K = {count};
  {SHARED}
  const u32 q_place = shared_address(memory);
  const u32 k_place = q_place + {block.queries} * B, v_place = k_place + {block.page} * B;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int wk = threadIdx.x / 32 % {keys}, wr = threadIdx.x / {32 * keys};
  const int queries = blockIdx.x * {block.queries}, first = queries + wr * {GROUP};
  {start("q", "blockIdx.y")} {start("k", group)} {start("v", group)} {start("y", "blockIdx.y")}
  u32 a[D / 16][4];
  float o[U][4] = {{}}, most[2] = {{-INF(), -INF()}}, sum[2] = {{}};
  for (int page = 0; page < K; page += {block.page}) {{
    if (page == 0) {{{load("q", "q_place", block.queries, "queries", "L")}
    }} else {{ {again} }}
    {load("k", "k_place", block.page, "page", "K")}
    commit();
    {load("v", "v_place", block.page, "page", "K")}
    commit();
    wait_for_copies<1>();
    __syncthreads();
    if (page == 0)
      #pragma unroll
      for (int c = 0; c < D / 16; ++c)
        read(a[c], q_place + (wr * {GROUP} + lane % 16) * B
            + ((2 * c + lane / 16 ^ (lane & 7)) << 4));
    #pragma unroll{"" if block.rounds == 2 and keys == 1 else " 1"}
    for (int round = 0; round < {block.rounds}; ++round) {{
      const int own = (round * {keys} + wk) * {GROUP * steps}, base = page + own;
      float s[{2 * steps}][4] = {{}};
      #pragma unroll
      for (int n = 0; n < {2 * steps}; ++n)
        #pragma unroll
        for (int c = 0; c < D / 32; ++c) {{
          u32 b[4];
          read(b, k_place + (own + n * 8 + lane % 8) * B
              + ((4 * c + lane / 8 ^ (lane & 7)) << 4));
          multiply(s[n], a[2 * c], b);
          multiply(s[n], a[2 * c + 1], b + 2);
        }}
      {scored}
      {beyond}
      float now[2] = {{most[0], most[1]}};{each} now[e / 2] = fmaxf(now[e / 2], s[n][e]);
      float shift[2], fade[2];
      #pragma unroll
      for (int r = 0; r < 2; ++r) {{
        now[r] = greatest(now[r]);
        shift[r] = now[r] == -INF() ? 0.0f : now[r] * {factor!r}f;
        fade[r] = power_of_two(most[r] * {factor!r}f - shift[r]);
        most[r] = now[r]; sum[r] *= fade[r];
      }}{each} {{
          s[n][e] = power_of_two(fmaf(s[n][e], {factor!r}f, -shift[e / 2]));
          sum[e / 2] += s[n][e]; }}
      {fade if block.pages * block.rounds > 1 else ""}
      {"" if block.rounds == 1 else "if (round == 0) {"}
      wait_for_copies<0>();
      __syncthreads();
      {"" if block.rounds == 1 else "}"}
      #pragma unroll
      for (int p = 0; p < {steps}; ++p) {{
        const u32 w[4] = {{
          both(s[2 * p][0], s[2 * p][1]), both(s[2 * p][2], s[2 * p][3]),
          both(s[2 * p + 1][0], s[2 * p + 1][1]), both(s[2 * p + 1][2], s[2 * p + 1][3])}};
        #pragma unroll
        for (int c = 0; c < D / 16; ++c) {{
          u32 b[4];
          read_transposed(b, v_place + (own + p * {GROUP} + lane % 16) * B
              + ((2 * c + lane / 16 ^ (lane & 7)) << 4));
          multiply(o[2 * c], w, b);
          multiply(o[2 * c + 1], w, b + 2);
        }}
      }}
    }}
  }}
  sum[0] = total(sum[0]); sum[1] = total(sum[1]);
  {_alone(a) if keys == 1 else _together(a, block, factor)}"""
    kind = "f16" if dtype == FLOAT16 else "bf16"
    return kernel_source(
        [*parameters, f"{element}* y"],
        body,
        threads=block.threads,
        extra=FUNCTIONS.replace("<kind>", kind) + _FURTHER,
        blocks=max(1, _WARPS_LIGHT // (rows * keys)) if block.is_light else 1,
    )


def _alone(a: Attention) -> str:
    """Return the end of a kernel whose warps have all keys of their queries."""
    return f"""
  #pragma unroll
  for (int r = 0; r < 2; ++r) {{
    const float f = sum[r] > 0 ? 1 / sum[r] : 0.0f;
    #pragma unroll
    for (int n = 0; n < U; ++n)
      *(u32*)(memory + (wr * {GROUP} + g + 8 * r) * B + ((n ^ g) << 4) + t * 4) =
          both(o[n][2 * r] * f, o[n][2 * r + 1] * f);
  }}
  __syncwarp();
  #pragma unroll
  for (int z = 0; z < U / 2; ++z) {{
    const int line = (lane + z * 32) / U, unit = lane % U;
    if (first + line < L)
      *(Words*)(y + (long long)(first + line) * {a.y.strides[2]} + unit * 8) =
          *(const Words*)(memory + (wr * {GROUP} + line) * B + ((unit ^ (line & 7)) << 4));
  }}"""


def _together(a: Attention, block: Block, factor: float) -> str:
    """Return the end of a kernel whose warps share the keys of their queries."""
    rows, keys = block.rows, block.keys
    return f"""
  __syncthreads();
  float* parts = (float*)memory;
  Found* found = (Found*)(parts + {rows * keys * GROUP} * (D + 8));
  #pragma unroll
  for (int r = 0; r < 2; ++r) {{
    const int line = (wr * {keys} + wk) * {GROUP} + g + 8 * r;
    if (t == 0) {{ const Found own = {{most[r] * {factor!r}f, sum[r]}}; found[line] = own; }}
    #pragma unroll
    for (int n = 0; n < U; ++n) {{
      const Two two = {{o[n][2 * r], o[n][2 * r + 1]}};
      *(Two*)(parts + line * (D + 8) + n * 8 + 2 * t) = two;
    }}
  }}
  __syncthreads();
  #pragma unroll
  for (int z = 0; z < {-(-block.queries * a.q.size // 4 // block.threads)}; ++z) {{
    const int at = threadIdx.x + z * {block.threads};
    const int quad = at % (D / 4), row = at / (D / 4);
    const int line = row / {GROUP} * {keys * GROUP} + row % {GROUP};
    if (row >= {block.queries} || queries + row >= L) continue;
    float m = -INF(), all = 0, x[4] = {{}};
    #pragma unroll
    for (int n = 0; n < {keys}; ++n) m = fmaxf(m, found[line + n * {GROUP}].most);
    m = m == -INF() ? 0.0f : m;
    #pragma unroll
    for (int n = 0; n < {keys}; ++n) {{
      const Found one = found[line + n * {GROUP}];
      const Four part = *(const Four*)(parts + (line + n * {GROUP}) * (D + 8) + quad * 4);
      const float f = power_of_two(one.most - m);
      all += one.sum * f;
      #pragma unroll
      for (int c = 0; c < 4; ++c) x[c] += part.v[c] * f;
    }}
    const float f = all > 0 ? 1 / all : 0.0f;
    const Pair out = {{both(x[0] * f, x[1] * f), both(x[2] * f, x[3] * f)}};
    *(Pair*)(y + (long long)(queries + row) * {a.y.strides[2]} + quad * 4) = out;
  }}"""
