"""Products by warpgroups on the host: barriers, copies and `wgmma` as PTX describes them.

A copy is there as soon as it is asked for, and a multiplication is done at once: this says whether
a kernel waits for the right phase of the right barrier and finds what it reads, not whether it
waits enough. One that waits for what never comes does not end here either.
"""

from __future__ import annotations

import ctypes
import re
from unittest import mock

import numpy as np

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.cublaslt import MatrixProduct
from aegis_pipe.device.cuda.kernels.elementwise import FUNCTIONS
from aegis_pipe.device.cuda.kernels.warpgroup_source import (
    _FUNCTIONS,
    THREADS,
    WarpgroupTiling,
    _multiply,
    pack,
    packed_bytes,
    source_of,
)
from tests.unit.device.cuda import host_device
from tests.unit.device.cuda.host_clusters import _clustered

_HOST = r"""
#define __grid_constant__
#define BLOCKS <blocks>
struct Map { u64 v[16]; };
struct Barrier { int count, pending, bytes, phase; };
alignas(1024) static u8 memories[BLOCKS][232448];
static Barrier barriers[BLOCKS][232448 / 8];
#define memory (memories[blockIdx.x % BLOCKS])
static inline u32 shared_address(const void* p) { return (u32)((const u8*)p - memory); }
static inline Barrier& barrier_at(u32 place) { return barriers[blockIdx.x % BLOCKS][place / 8]; }
static inline void settle(Barrier& b) {
  if (b.pending < 0) abort();
  if (!b.pending && !b.bytes) { ++b.phase; b.pending = b.count; } }
static inline void start(u32 barrier, int count) { barrier_at(barrier) = {count, count, 0, 0}; }
static inline void expect(u32 barrier, u32 bytes) {
  Barrier& b = barrier_at(barrier); b.bytes += bytes; --b.pending; settle(b); }
static inline void arrive(u32 barrier) { Barrier& b = barrier_at(barrier); --b.pending; settle(b); }
static inline void wait(u32 barrier, u32 parity) {
  while ((barrier_at(barrier).phase & 1) == (int)parity) pause_at(0); }
static inline void copied(u32 barrier, u32 bytes) {
  Barrier& b = barrier_at(barrier); b.bytes -= bytes; settle(b); }
static inline void copy_lines(u32 target, const void* source, u32 bytes, u32 barrier) {
  if (target % 16 || (u64)source % 16 || bytes % 16) abort();
  memcpy(memory + target, source, bytes); copied(barrier, bytes); }
static inline void copy_tile(u32 target, const Map* map, int k, int i, u32 barrier) {
  const u16* rows = (const u16*)map->v[0];
  const long m = map->v[1], depth = map->v[2];
  if (target % 1024) abort();
  for (int r = 0; r < 64; ++r)
    for (int c = 0; c < 64; ++c) {
      const u16 e = i + r < m && k + c < depth ? rows[(i + r) * depth + k + c] : 0;
      memcpy(memory + target + r * 128 + ((c / 8 ^ r % 8) * 16 + c % 8 * 2), &e, 2); }
  copied(barrier, 8192); }
static inline u64 lines_at(u32 address) { return address >> 4; }
static inline float element(u64 lines, int row, int k) {
  const u32 at = (u32)lines * 16 + row * 128 + k * 2;
  u16 bits; memcpy(&bits, memory + (at ^ (at >> 7 & 7) << 4), 2);
  return <get>(bits); }
static inline void multiply(float* c, u64 a, u64 b) {
  const int lane = current & 31, warp = threadIdx.x / 32;
  for (int n = 0; n < <columns> / 8; ++n)
    for (int e = 0; e < 4; ++e)
      for (int k = 0; k < 16; ++k)
        c[n * 4 + e] += element(a, warp * 16 + lane / 4 + e / 2 * 8, k)
            * element(b, n * 8 + lane % 4 * 2 + e % 2, k); }
static bool runs[BLOCKS];
struct alignas(16) Four { float v[4]; };
static inline void push(u32 address, u32 block, const float* v) {
  // Only of a block that has begun, and has not ended, there is memory.
  if (!runs[block]) abort();
  memcpy(memories[block] + address, v, 16); }
static inline void come() {}
static inline void meet() { pause_at(BLOCKS > 1 ? 4 : 2); }
template <typename T> static inline u32 both(float a, float b) {
  return (u32)To<T>::of(a).bits | (u32)To<T>::of(b).bits << 16; }
"""

_PLACES = (
    (
        'extern "C" void run(',
        'extern "C" void spoil() { memset(memories, 0xff, sizeof memories); }\n'
        'extern "C" void run(',
    ),
    # Who waits for a barrier is asked again when all others have had their turn.
    (
        "bool moved = false;",
        "bool moved = false; for (int i = first; i < end; ++i) moved |= state[i] == READY;",
    ),
)
"""What is another way in the host's runtime."""


def _on_host(source: str, p: MatrixProduct, tiling: WarpgroupTiling) -> str:
    kind = {"float16": "f16", "bfloat16": "bf16"}[p.dtype]
    multiply = _multiply(tiling.columns, kind)
    assert _FUNCTIONS + multiply in source
    host = _HOST.replace("<blocks>", str(tiling.splits)).replace("<columns>", str(tiling.columns))
    host = host.replace("<get>", {"f16": "half_to_float", "bf16": "brain_to_float"}[kind])
    source = source.replace(_FUNCTIONS + multiply, host)
    before, kernel, body = source.partition('extern "C"')
    body = body.replace("extern __shared__ __align__(1024) u8 memory[];", "")
    body = body.replace(f" __cluster_dims__({tiling.splits}, 1, 1)", "")
    return before + kernel + re.sub(r'asm volatile\("[^"]*"[^;]*;', "", body)


def multiplied(
    p: MatrixProduct,
    tiling: WarpgroupTiling,
    activation: str,
    x: np.ndarray,
    w: np.ndarray,
    *added: np.ndarray,
) -> np.ndarray:
    """Return what the kernel makes of X, W, and bias and residual where there are any.

    What a kernel may not write is checked; its shared memory is full of NaN at first.
    """
    source = _on_host(source_of(p, tiling, activation, FUNCTIONS), p, tiling)
    runtime = host_device._RUNTIME
    for one, other in _PLACES:
        assert runtime.count(one) == 1, one
        runtime = runtime.replace(one, other)
    if tiling.splits > 1:
        runtime = _clustered(runtime)
    with mock.patch.object(host_device, "_RUNTIME", runtime):
        library = host_device._loaded(source)
    packed = np.empty(packed_bytes(p) + 16, np.uint8)
    packed = packed[-packed.ctypes.data % 16 :][: packed_bytes(p)]
    pack(p, w, packed)
    y = np.full((p.m + 2, p.n), np.nan, x.dtype)
    matrix = (ctypes.c_uint64 * 16)(x.ctypes.data, p.m, p.k)
    arrays = [packed, *added, y[1:]]
    addresses = driver.Arguments([matrix, *(each.ctypes.data for each in arrays)])
    library.spoil()
    library.run(*tiling.grid(p), THREADS, 1, ctypes.c_void_p(addresses.address))
    assert np.isnan(y[[0, -1]].astype(np.float32)).all(), "written beyond the result"
    return y[1:-1]
