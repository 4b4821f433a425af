"""Instructions that kernels on tensor cores have in common, as functions (PTX ISA 7.0 or later)."""

from __future__ import annotations

ADDRESSES = """
__device__ __forceinline__ u32 shared_address(const void* p) {
  u32 r; asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(r) : "l"(p));
  return r; }
"""
"""Where a pointer to shared memory points to within it."""

COPIES = (
    ADDRESSES
    + """\
__device__ __forceinline__ void copy(u32 target, const void* source, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
      :: "r"(target), "l"(source), "r"(there ? 16 : 0) : "memory"); }
__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void read(u32* r, u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory"); }
"""
)
"""And 16 bytes copied while others work (`cp.async`), four tiles of 8 x 16 bytes read by a warp
(`ldmatrix`)."""

INSTRUCTIONS = (
    COPIES
    + """\
__device__ __forceinline__ void multiply(float* c, const u32* a, const u32* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.<kind>.<kind>.f32 {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); }
"""
)
"""And products of halves, 16 x 16 by 16 x 8 (`mma.sync`); `<kind>` is f16 or bf16."""

WAIT_FOR_COPIES = """\
template <int N> __device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }
"""
"""Until at most so many of a thread's groups of copies are on their way."""

SHARED = "extern __shared__ __align__(128) u8 memory[];"
"""As much as a launch asks for."""

_MULTIPLY_BYTES = """
__device__ __forceinline__ void multiply(int* c, const u32* a, const u32* b) {{
  asm("mma.sync.aligned.m16n8k32.row.col.s32.{x}.{w}.s32 {{%0, %1, %2, %3}}, "
      "{{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); }}
"""
MULTIPLY_BYTES = {
    (x, w): _MULTIPLY_BYTES.format(x=x, w=w) for x in ("s8", "u8") for w in ("s8", "u8")
}
"""c[16, 8] += a[16, 32] b[32, 8] of a warp, by the types of A and B in PTX."""


def line_products(steps: int, wide: int) -> str:
    """Return a warp's products of a line of 128 bytes, of 32 rows by `wide` columns.

    `steps` of 32 bytes each. Tiles lie at the addresses `left` and `right`, their units of sixteen
    bytes swapped by row; the warp's rows and columns begin at `upper` and `aside`. Adds to
    `sum[2][wide / 8][4]` by `multiply`, of whatever type.
    """
    return f"""\
    #pragma unroll
    for (int k = 0; k < {steps}; ++k) {{
      u32 a[2][4], f[{wide // 16}][4];
      #pragma unroll
      for (int m = 0; m < 2; ++m) {{
        const int r = upper + m * 16 + lane % 16;
        read(a[m], left + r * 128 + (((k * 2 + lane / 16) ^ (r & 7)) << 4));
      }}
      #pragma unroll
      for (int n = 0; n < {wide // 16}; ++n) {{
        const int r = aside + n * 16 + lane / 16 * 8 + lane % 8;
        read(f[n], right + r * 128 + (((k * 2 + lane / 8 % 2) ^ (r & 7)) << 4));
      }}
      #pragma unroll
      for (int m = 0; m < 2; ++m)
        #pragma unroll
        for (int n = 0; n < {wide // 8}; ++n) multiply(sum[m][n], a[m], f[n / 2] + n % 2 * 2);
    }}"""
