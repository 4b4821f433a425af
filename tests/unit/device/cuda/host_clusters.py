"""Kernels whose blocks share their memory, on the host: a cluster's blocks take turns.

Each block goes as far as it may before the next one moves: from one barrier of the cluster to the
next, the first block ahead of all others, then the last, and so on. Whoever reads another block's
memory too early, or writes to it too early or too late, does so here. Whether a block's own threads
wait enough for each other is not to be seen.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from unittest import mock

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.kernels.pipelined_bytes_source import FUNCTIONS
from aegis_pipe.device.cuda.kernels.recurrent import CLUSTER
from aegis_pipe.device.cuda.kernels.registry import Enqueue
from tests.unit.device.cuda import host_device

_STATE = """
static long apart;
static bool runs[BLOCKS];
static inline void meet() { pause_at(4); }
"""
_FUNCTIONS = """
template <typename T> static inline T* of_block(T* own, u32 block) {
  // Only of a block that has begun, and has not ended, there is memory.
  if (!runs[block]) abort();
  return (T*)((char*)own + ((long)block - (long)(blockIdx.x % BLOCKS)) * apart); }
"""
_BYTES = f"""
__attribute__((aligned(128))) static u8 memories[BLOCKS][1 << 18];
#define memory memories[blockIdx.x % BLOCKS]
{host_device.HOST_COPIES}
static inline Pack<int, 4> part_of(u32 address, u32 block) {{
  if (!runs[block]) abort();
  return *(const Pack<int, 4>*)(memories[block] + address); }}
"""
_PLACES = (
    (
        "void pause_at(int kind) {",
        """static int per_block, first_block;
#define set_place(i) (current = (i), threadIdx.x = (i) % per_block, \\
                      blockIdx.x = first_block + (i) / per_block)
void pause_at(int kind) {""",
    ),
    (
        "static void block(int count) {",
        """static void cluster(int threads) {
  begin(threads * BLOCKS);
  for (bool reversed = false;; reversed = !reversed) {
    for (int each = 0; each < BLOCKS; ++each) {
      const int block = reversed ? BLOCKS - 1 - each : each;
      runs[block] = true;
      turn(block * threads, (block + 1) * threads);
      runs[block] = state[block * threads] != DONE; }
    int waiting = 0;
    for (int i = 0; i < threads * BLOCKS; ++i) waiting += state[i] == AT_CLUSTER;
    if (!waiting) return;
    if (waiting < threads * BLOCKS) abort();
    for (int i = 0; i < waiting; ++i) state[i] = READY; } }
static void block(int count) {""",
    ),
    ("current = me; threadIdx.x = me;", "set_place(me);"),
    ("current = i; threadIdx.x = i; swapcontext", "set_place(i); swapcontext"),
    ("for (int x = 0; x < gx; ++x)", "for (int x = 0; x < gx; x += BLOCKS)"),
    (
        "blockIdx = {(unsigned)x, (unsigned)y, (unsigned)z};",
        "blockIdx = {(unsigned)x, (unsigned)y, (unsigned)z}; first_block = x; per_block = threads;",
    ),
    ("if (turns) block(threads);", "if (turns) cluster(threads);"),
)
"""What is another way in the host's runtime."""


class ClusterBinding(host_device.HostBinding):
    """Binds a source of a cluster to what g++ made of it; others as ever."""

    def kernel(
        self,
        source: str,
        arguments: Sequence[int | ctypes.c_float | ctypes.c_int | None],
        *,
        grid: int | tuple[int, int, int],
        block: int,
        shared_bytes: int = 0,
    ) -> Enqueue:
        """Compile a source and return its run."""
        found = re.search(r"__cluster_dims__\((\d+), 1, 1\)", source)
        if found is None:
            return super().kernel(
                source, arguments, grid=grid, block=block, shared_bytes=shared_bytes
            )
        blocks = int(found[1])
        assert isinstance(grid, tuple)
        assert grid[0] % blocks == 0
        assert block * blocks <= 1024, "the host runs so many threads at once"
        with mock.patch.object(host_device, "_RUNTIME", _clustered(host_device._RUNTIME)):
            library = host_device._loaded(_on_host(source, blocks, shared_bytes))
        packed = driver.Arguments([0 if each is None else each for each in arguments])

        def enqueue(stream: int) -> None:
            library.run(*grid, block, 1, ctypes.c_void_p(packed.address))

        return enqueue


def _on_host(source: str, blocks: int, shared_bytes: int) -> str:
    """Return the source with memory for each block, and the runtime that runs them together."""
    state = f"#define BLOCKS {blocks}\n{_STATE}"
    source = source.replace(f" __cluster_dims__({blocks}, 1, 1)", "")
    if FUNCTIONS in source:
        return source.replace(FUNCTIONS, state + _BYTES)
    assert CLUSTER in source
    source = source.replace(CLUSTER, state + _FUNCTIONS)
    source, count = re.subn(
        r"__shared__ A memory\[(\d+)\];",
        r"static A memories[BLOCKS][\1]; apart = sizeof memories[0]; "
        r"A* memory = memories[blockIdx.x % BLOCKS];",
        source,
    )
    assert count == 1
    return source.replace(
        "extern __shared__ __align__(16) u8 rows_of_weights[];",
        f"__attribute__((aligned(16))) static u8 rows[BLOCKS][{max(16, shared_bytes)}]; "
        "u8* rows_of_weights = rows[blockIdx.x % BLOCKS];",
    )


def _clustered(runtime: str) -> str:
    """Return the host's runtime with a cluster's blocks side by side."""
    for one, other in _PLACES:
        assert runtime.count(one) == 1, one
        runtime = runtime.replace(one, other)
    return runtime
