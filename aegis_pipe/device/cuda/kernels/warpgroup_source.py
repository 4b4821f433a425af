"""The kernel of a product of few rows by constant weights, on the tensor cores of compute 9.0.

A block multiplies 64 rows by some columns with `wgmma`. Weights are packed so that what a block
reads at a time lies together, whatever its columns, and are on their way before the kernel ahead
has ended; rows come by the tensor memory accelerator, which fills in zeros beyond the last. One
warp loads, four multiply.

The blocks of a cluster may share a tile's depth. A warp's sums then go straight into the shared
memory of the block that finishes its rows, lane by lane as they are, and are added up there in one
order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.cublaslt import MatrixProduct
from aegis_pipe.device.cuda.kernels.source import blocks_for, kernel_source
from aegis_pipe.device.cuda.kernels.tensor_instructions import ADDRESSES

ROWS, DEPTH = 64, 64
"""Of a tile; a line of it is 128 bytes."""
LINE_BYTES = 2 * DEPTH
_GROUP = np.dtype(np.complex128)
"""Eight elements, moved as one: of 16 bytes."""
THREADS = 160
"""Four warps that multiply, and one that loads."""

_FUNCTIONS = (
    ADDRESSES
    + """\
struct alignas(64) Map { u64 v[16]; };
__device__ __forceinline__ void start(u32 barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(count) : "memory"); }
__device__ __forceinline__ void expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
      :: "r"(barrier), "r"(bytes) : "memory"); }
__device__ __forceinline__ void arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory"); }
__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
  u32 done = 0;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier), "r"(parity) : "memory"); }
__device__ __forceinline__ void copy_lines(u32 target, const void* source, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" :: "r"(target), "l"(source), "r"(bytes), "r"(barrier) : "memory"); }
__device__ __forceinline__ void copy_tile(u32 target, const Map* map, int k, int i, u32 barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];"
      :: "r"(target), "l"(map), "r"(k), "r"(i), "r"(barrier) : "memory"); }
__device__ __forceinline__ u64 lines_at(u32 address) {
  return (u64)((address & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62); }
struct alignas(16) Four { float v[4]; };
__device__ __forceinline__ void push(u32 address, u32 block, const float* v) {
  u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};"
      :: "r"(there), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory"); }
__device__ __forceinline__ void come() {
  __syncwarp(); asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void meet() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
template <typename T> __device__ __forceinline__ u32 both(float a, float b) {
  return (u32)To<T>::of(a).bits | (u32)To<T>::of(b).bits << 16; }
"""
)

WIDEST = 256
"""Columns of the widest tile."""


@dataclass(frozen=True, slots=True)
class WarpgroupTiling:
    """How a product is shared out."""

    columns: int
    """Of a tile, a multiple of 8 up to 256."""
    splits: int
    """Blocks of a cluster, which share a tile's depth: 1, 2 or 4."""
    stages: int
    """Steps of the depth that are on their way at once."""
    starts_next: str = "at once"
    """When the next kernel may begin: `at once` when the one ahead has ended, `late`, when all is
    multiplied, or at the `end`."""

    @property
    def stage_bytes(self) -> int:
        """A step's lines of both operands."""
        return (ROWS + self.columns) * LINE_BYTES

    @property
    def sums_bytes(self) -> int:
        """What is pushed into a block's shared memory."""
        return ROWS * self.columns * 4 if self.splits > 1 else 0

    @property
    def shared_bytes(self) -> int:
        """The ring of stages, sums of others, two barriers a stage, and the columns' bias."""
        return self.stages * (self.stage_bytes + 16) + self.sums_bytes + 2 * self.columns + 16

    def grid(self, p: MatrixProduct) -> tuple[int, int, int]:
        """Blocks; those of a cluster are side by side."""
        return (self.splits, blocks_for(p.n, self.columns), blocks_for(p.m, ROWS))


def steps_of(p: MatrixProduct) -> int:
    """Return how many lines the depth is."""
    return blocks_for(p.k, DEPTH)


def packed_bytes(p: MatrixProduct) -> int:
    """Return the size of the packed weights: a line a column and step, and what tiles overlap."""
    return (steps_of(p) * p.n + WIDEST) * LINE_BYTES


def pack(p: MatrixProduct, weights: np.ndarray, packed: np.ndarray) -> None:
    """Write weights, [..., K, N] or [N, K, ...] if transposed, into uint8[packed_bytes].

    All other axes are of length 1.

    Step by step, a line for each column: 64 elements in eight groups, which change places by the
    column's number as `wgmma` wants it (swizzle of 128 bytes).
    """
    matrix = weights.reshape((p.n, p.k) if p.w_transposed else (p.k, p.n)).view(np.uint16)
    # Rows are copied to where they begin an odd number of 64 bytes apart: NumPy is slow to
    # transpose those that fall into the same few sets of a processor's cache.
    rows = np.empty((DEPTH, (blocks_for(p.n, 32) | 1) * 32), np.uint16)[:, : p.n]
    lines = np.zeros((p.n, DEPTH), np.uint16)
    groups = lines.view(_GROUP).reshape(-1)
    column = np.arange(p.n)[:, None]
    order = column * 8 + (np.arange(8) ^ column % 8)
    end = steps_of(p) * p.n * LINE_BYTES
    target = packed[:end].view(_GROUP).reshape(-1, p.n, 8)
    for step, first in enumerate(range(0, p.k, DEPTH)):
        count = min(DEPTH, p.k - first)
        if p.w_transposed:
            lines[:, :count] = matrix[:, first : first + count]
        else:
            rows[:count] = matrix[first : first + count]
            lines[:, :count] = rows[:count].T
        lines[:, count:] = 0
        # No index is outside; looking for one takes a copy of the result.
        groups.take(order, out=target[step], mode="clip")
    packed[end:] = 0


def _multiply(columns: int, kind: str) -> str:
    count = columns // 2
    sums = ", ".join(f"%{n}" for n in range(count))
    bound = ", ".join(f'"+f"(c[{n}])' for n in range(count))
    return f"""
__device__ __forceinline__ void multiply(float* c, u64 a, u64 b) {{
  asm volatile("wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
      "{{{sums}}}, %{count}, %{count + 1}, 1, 1, 1, 0, 0;" : {bound} : "l"(a), "l"(b)); }}
"""


def source_of(
    p: MatrixProduct, tiling: WarpgroupTiling, activation: str = "a", functions: str = ""
) -> str:
    """Return the kernel: of the map of X, packed W, bias, residual and Y, those that are there.

    `activation` is a C expression of the sum `a`, `functions` defines what it calls.
    """
    kind = {"float16": "f16", "bfloat16": "bf16"}[p.dtype]
    wide, splits, stages = tiling.columns, tiling.splits, tiling.stages
    steps, groups = steps_of(p), tiling.columns // 8
    refill = -(-steps // splits) > stages
    weight_bytes, stage_bytes = wide * LINE_BYTES, tiling.stage_bytes
    sums_at = stages * stage_bytes
    full_at = sums_at + tiling.sums_bytes
    count = f"(split + 1) * {steps} / {splits} - first" if splits > 1 else f"{steps}"
    bias = ""
    if p.bias:
        bias = f"""T* const bias = (T*)(memory + {full_at + 16 * stages});
  for (int j = t; j < {wide}; j += {THREADS}) {{
    T added; added.bits = 0;
    if (tile * {wide} + j < {p.n}) added = b[tile * {wide} + j];
    bias[j] = added;
  }}"""
    prefetch = f"""
  extern __shared__ __align__(1024) u8 memory[];
  const int t = threadIdx.x, lane = t % 32, warp = t / 32;
  const int split = blockIdx.x, tile = blockIdx.y, i0 = blockIdx.z * {ROWS};
  const int first = split * {steps} / {splits}, count = {count};
  const u32 base = shared_address(memory), full = base + {full_at}, empty = full + {8 * stages};
  const u8* const lines = w + ((long long)first * {p.n} + tile * {wide}) * {LINE_BYTES};
  {"come();" if splits > 1 else ""}
  {bias}
  if (t == 128) {{
    asm volatile("prefetch.tensormap [%0];" :: "l"(&map) : "memory");
    #pragma unroll
    for (int s = 0; s < {stages}; ++s) {{ start(full + 8 * s, 1); start(empty + 8 * s, 4); }}
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    for (int s = 0; s < {stages}; ++s)
      if (s < count) {{
        expect(full + 8 * s, {stage_bytes});
        copy_lines(base + s * {stage_bytes} + {ROWS * LINE_BYTES},
                   lines + (long long)s * {p.n * LINE_BYTES}, {weight_bytes}, full + 8 * s);
      }}
  }}
  __syncthreads();"""
    more = f"""
    for (int step = {stages}; step < count; ++step) {{
      const int s = step % {stages};
      const u32 place = base + s * {stage_bytes};
      wait(empty + 8 * s, (step / {stages} - 1) & 1);
      expect(full + 8 * s, {stage_bytes});
      copy_lines(place + {ROWS * LINE_BYTES}, lines + (long long)step * {p.n * LINE_BYTES},
                 {weight_bytes}, full + 8 * s);
      copy_tile(place, &map, (first + step) * {DEPTH}, i0, full + 8 * s);
    }}"""
    body = f"""
  auto finish = [&](int upper, int g, const float* one, const float* other) {{
    // A lane has columns 2 q and 2 q + 1 of both groups: pairs of lanes make up four of one.
    const int q = lane % 4, j = tile * {wide} + g * 8 + 2 * q;
    const bool odd = q & 1;
    u32 mine[2][2];
    #pragma unroll
    for (int n = 0; n < 2; ++n) {{
      const float* v = n ? other : one;
      float f[2] = {{}};
      {
        '''const Pack<T, 2> some = *(const Pack<T, 2>*)(bias + (g + n) * 8 + 2 * q);
      f[0] = get(some.v[0]); f[1] = get(some.v[1]);'''
        if p.bias
        else ""
    }
      #pragma unroll
      for (int h = 0; h < 2; ++h) {{
        float z[2] = {{}};
        {
        '''const int i = i0 + upper + h * 8 + lane / 4;
        if (i < <m> && j + n * 8 < <n>) {
          const Pack<T, 2> added = *(const Pack<T, 2>*)(r + (long long)i * <n> + j + n * 8);
          z[0] = get(added.v[0]); z[1] = get(added.v[1]);
        }'''.replace("<n>", str(p.n)).replace("<m>", str(p.m))
        if p.residual
        else ""
    }
        float done[2];
        #pragma unroll
        for (int e = 0; e < 2; ++e) {{
          const float a = v[2 * h + e] + f[e] + z[e];
          done[e] = {activation};
        }}
        mine[n][h] = both<T>(done[0], done[1]);
      }}
    }}
    #pragma unroll
    for (int h = 0; h < 2; ++h) {{
      const u32 got = __shfl_xor_sync(0xffffffffu, odd ? mine[0][h] : mine[1][h], 1);
      const int i = i0 + upper + h * 8 + lane / 4;
      const int at = odd ? j + 6 : j;
      Pack<u32, 2> out = {{{{odd ? got : mine[0][h], odd ? mine[1][h] : got}}}};
      if (i < {p.m} && at < {p.n} && (!odd || g + 1 < {groups}))
        *(Pack<u32, 2>*)(y + (long long)i * {p.n} + at) = out;
    }} }};
  if (warp == 4) {{
    if (lane == 0) {{
      for (int s = 0; s < {stages}; ++s)
        if (s < count)
          copy_tile(base + s * {stage_bytes}, &map, (first + s) * {DEPTH}, i0, full + 8 * s);
      {more if refill else ""}
    }}
    {"__syncwarp(); meet(); come(); meet();" if splits > 1 else ""}
  }} else {{
    float sum[{wide // 2 + 4}];
    #pragma unroll
    for (int n = 0; n < {wide // 2 + 4}; ++n) sum[n] = 0;
    int s = 0; u32 parity = 0;
    for (int step = 0; step < count; ++step) {{
      wait(full + 8 * s, parity);
      const u64 a = lines_at(base + s * {stage_bytes});
      const u64 c = lines_at(base + s * {stage_bytes} + {ROWS * LINE_BYTES});
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
      #pragma unroll
      for (int k = 0; k < 4; ++k) multiply(sum, a + 2 * k, c + 2 * k);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      {
        f'''asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
      if (step && lane == 0) arrive(empty + 8 * (s ? s - 1 : {stages - 1}));'''
        if refill
        else ""
    }
      if (++s == {stages}) {{ s = 0; parity ^= 1; }}
    }}
    {"let_the_next_begin();" if tiling.starts_next == "late" else ""}
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    {_alone(groups) if splits == 1 else _together(splits, groups, sums_at)}
  }}"""
    operands = [*(["b"] if p.bias else []), *(["r"] if p.residual else [])]
    return kernel_source(
        ["const __grid_constant__ Map map", "const u8* w"]
        + [f"const T* {name}" for name in operands]
        + ["T* y"],
        body,
        threads=THREADS,
        cluster=splits,
        prefetch=prefetch,
        starts_next=tiling.starts_next == "at once",
        extra=f"typedef {kind} T;\n{functions}{_FUNCTIONS}{_multiply(wide, kind)}",
    )


def _alone(groups: int) -> str:
    """Return what finishes a warp's own rows."""
    return f"""
    #pragma unroll
    for (int g = 0; g < {groups}; g += 2) finish(warp * 16, g, sum + g * 4, sum + g * 4 + 4);"""


def _together(splits: int, groups: int, sums_at: int) -> str:
    """Return what adds up the sums of a cluster's blocks; each finishes some warps' rows."""
    owned = 4 // splits
    """Warps whose rows a block finishes."""
    part = groups * 512
    return f"""
    const u32 others = base + {sums_at};
    meet();
    #pragma unroll
    for (int g = 0; g < {groups}; ++g)
      push(others + ((warp % {owned} * {splits} + split) * {groups} + g) * 512 + lane * 16,
           warp / {owned}, sum + g * 4);
    come();
    meet();
    const int of = warp / {splits};
    for (int g = warp % {splits} * 2; g < {groups}; g += {2 * splits}) {{
      float all[2][4] = {{}};
      #pragma unroll
      for (int o = 0; o < {splits}; ++o)
        #pragma unroll
        for (int n = 0; n < 2; ++n) {{
          if (n && g + 1 >= {groups}) continue;
          const Four some = *(const Four*)(memory + {sums_at}
              + (of * {splits} + o) * {part} + (g + n) * 512 + lane * 16);
          #pragma unroll
          for (int e = 0; e < 4; ++e) all[n][e] += some.v[e];
        }}
      finish((split * {owned} + of) * 16, g, all[0], all[1]);
    }}"""
