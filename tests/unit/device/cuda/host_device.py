"""The GPU's kernels on the host: their sources, compiled as C++ by g++ and run thread by thread.

This says whether a kernel computes the right thing, not whether it is fast or free of races. A
block's threads take turns on one thread of the host: each runs until it meets a barrier or a
shuffle, and goes on when all that have to have met it too.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from aegis_pipe.clock import Clock
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.cpu.graph import CpuKernelCall
from aegis_pipe.device.cpu.region import host_bytes
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.faults import FaultWord
from aegis_pipe.device.cuda.kernels import (
    KERNELS,
    pipelined_bytes_source,
    planar_convolutions,
    tensor_attention_source,
)
from aegis_pipe.device.cuda.kernels.elementwise_chains import SETTLE, STEPS
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.tensor_instructions import MULTIPLY_BYTES, SHARED
from aegis_pipe.device.protocols import DeviceCapabilities, KernelCall, Region
from aegis_pipe.errors import KernelError, UnsupportedOperatorError
from aegis_pipe.kernel import KernelChoice, KernelRequest

COMPILER = shutil.which("g++")

_HEADER = r"""
#include <math.h>
#include <string.h>
#include <stdlib.h>
#include <ucontext.h>
static inline double cospi(double x) { return cos(3.14159265358979323846 * x); }
static inline double sinpi(double x) { return sin(3.14159265358979323846 * x); }
#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict
struct dim3 { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w}; }
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
static inline float __uint_as_float(unsigned b) { float f; memcpy(&f, &b, 4); return f; }
static inline float __int_as_float(int b) { float f; memcpy(&f, &b, 4); return f; }
static inline int __float_as_int(float f) { int b; memcpy(&b, &f, 4); return b; }
static inline unsigned __float_as_uint(float f) { unsigned b; memcpy(&b, &f, 4); return b; }
static inline double __longlong_as_double(long long b) { double d; memcpy(&d, &b, 8); return d; }
static inline float half_to_float(unsigned short bits) {
  _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
template <typename T> static inline unsigned short to_half(T x) {
  _Float16 h = (_Float16)x; unsigned short bits; memcpy(&bits, &h, 2); return bits; }
static inline unsigned short to_brain(float x) {
  unsigned b; memcpy(&b, &x, 4); return (unsigned short)((b + 0x7fffu + ((b >> 16) & 1u)) >> 16); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float rsqrt(float x) { return 1 / sqrtf(x); }
static inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += (int)(signed char)(a >> i) * (int)(signed char)(b >> i);
  return c; }
static inline int atomicMax(int* p, int v) { int o = *p; if (v > o) *p = v; return o; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
void pause_at(int kind);
extern long long exchanged[1024];
extern int current;
// A warp's product of bytes as PTX describes its fragments: lane = 4 group + quarter has, of A,
// rows `group` and `group + 8` and bytes 4 quarter... of each half of the depth; of B, column
// `group` and the same bytes; of C, columns 2 quarter and 2 quarter + 1 of A's rows.
extern unsigned fragments[1024][6];
template <typename X, typename W> static inline void multiply_bytes(
    int* c, const unsigned* a, const unsigned* b) {
  memcpy(fragments[current], a, 16); memcpy(fragments[current] + 4, b, 8);
  pause_at(1);
  const int warp = current & ~31, lane = current & 31;
  for (int r = 0; r < 4; ++r)
    for (int k = 0; k < 32; ++k) {
      const int quarter = k % 16 / 4, half = k / 16, byte = k % 4 * 8;
      const unsigned x = fragments[warp + lane / 4 * 4 + quarter][half * 2 + r / 2];
      const unsigned w = fragments[warp + (lane % 4 * 2 + r % 2) * 4 + quarter][4 + half];
      c[r] += (int)(X)(x >> byte) * (int)(W)(w >> byte);
    }
  pause_at(1); }
// The same of sixteen deep: lane = 4 group + quarter has, of A, rows `group` and `group + 8` and
// elements 2 quarter and 2 quarter + 1 of each half of the depth; of B likewise, by column.
static inline float brain_to_float(unsigned short bits) {
  unsigned b = (unsigned)bits << 16; float f; memcpy(&f, &b, 4); return f; }
template <float (*get_half)(unsigned short)> static inline void multiply_halves(
    float* c, const unsigned* a, const unsigned* b) {
  memcpy(fragments[current], a, 16); memcpy(fragments[current] + 4, b, 8);
  pause_at(1);
  const int warp = current & ~31, lane = current & 31;
  for (int r = 0; r < 4; ++r)
    for (int k = 0; k < 16; ++k) {
      const int quarter = k % 8 / 2, half = k / 8, shift = k % 2 * 16;
      const unsigned x = fragments[warp + lane / 4 * 4 + quarter][half * 2 + r / 2];
      const unsigned w = fragments[warp + (lane % 4 * 2 + r % 2) * 4 + quarter][4 + half];
      c[r] += get_half((unsigned short)(x >> shift)) * get_half((unsigned short)(w >> shift));
    }
  pause_at(1); }
static inline void __syncthreads() { pause_at(2); }
static inline void __syncwarp(unsigned = ~0u) { pause_at(1); }
template <typename T> static inline T exchange(T v, int from) {
  memcpy(&exchanged[current], &v, sizeof v); pause_at(1);
  T r; memcpy(&r, &exchanged[(current & ~31) | (from & 31)], sizeof r); pause_at(1); return r; }
template <typename T> static inline T __shfl_xor_sync(unsigned, T v, int m) {
  return exchange(v, current ^ m); }
template <typename T> static inline T __shfl_sync(unsigned, T v, int lane) {
  return exchange(v, lane); }
"""

_RUNTIME = r"""
dim3 threadIdx, blockIdx, blockDim, gridDim;
long long exchanged[1024];
unsigned fragments[1024][6];
int current;
enum { READY, AT_WARP, AT_BLOCK, DONE, AT_CLUSTER };
static int state[1024];
static ucontext_t home, fibers[1024];
static char* stacks[1024];
static void** packed;
static bool takes_turns;
static void invoke();
template <int... I> struct Seq {};
template <int N, int... I> struct Make : Make<N - 1, N - 1, I...> {};
template <int... I> struct Make<0, I...> { typedef Seq<I...> type; };
template <typename... A, int... I>
static void spread(void (*f)(A...), Seq<I...>) { f(*(A*)packed[I]...); }
template <typename... A>
static void apply(void (*f)(A...)) { spread(f, typename Make<sizeof...(A)>::type()); }
void pause_at(int kind) {
  if (!takes_turns) abort();
  state[current] = kind; int me = current; swapcontext(&fibers[me], &home);
  current = me; threadIdx.x = me; }
static void enter() { invoke(); state[current] = DONE; swapcontext(&fibers[current], &home); }
static void begin(int count) {
  for (int i = 0; i < count; ++i) {
    if (!stacks[i]) stacks[i] = (char*)malloc(1 << 16);
    getcontext(&fibers[i]);
    fibers[i].uc_stack.ss_sp = stacks[i]; fibers[i].uc_stack.ss_size = 1 << 16;
    fibers[i].uc_link = 0; makecontext(&fibers[i], enter, 0); state[i] = READY; } }
// Lets threads go on until all of them have ended or are where the others of a cluster have to be.
static void turn(int first, int end) {
  for (;;) {
    for (int i = first; i < end; ++i)
      if (state[i] == READY) { current = i; threadIdx.x = i; swapcontext(&home, &fibers[i]); }
    bool moved = false;
    for (int w = first; w < end; w += 32) {
      bool all = true, any = false;
      for (int i = w; i < w + 32 && i < end; ++i) {
        all &= state[i] == AT_WARP || state[i] == DONE; any |= state[i] == AT_WARP; }
      if (all && any) for (int i = w; i < w + 32 && i < end; ++i)
        if (state[i] == AT_WARP) { state[i] = READY; moved = true; } }
    if (moved) continue;
    bool any = false;
    for (int i = first; i < end; ++i) {
      if (state[i] == AT_WARP) abort();
      any |= state[i] == AT_BLOCK; }
    if (!any) return;
    for (int i = first; i < end; ++i) {
      if (state[i] == AT_CLUSTER) abort();
      if (state[i] == AT_BLOCK) state[i] = READY; }
  } }
static void block(int count) { begin(count); turn(0, count); }
extern "C" void run(int gx, int gy, int gz, int threads, int turns, void** arguments) {
  packed = arguments; takes_turns = turns; blockDim = {(unsigned)threads, 1, 1};
  gridDim = {(unsigned)gx, (unsigned)gy, (unsigned)gz};
  threadIdx = {0, 0, 0};
  for (int z = 0; z < gz; ++z) for (int y = 0; y < gy; ++y) for (int x = 0; x < gx; ++x) {
    blockIdx = {(unsigned)x, (unsigned)y, (unsigned)z};
    if (turns) block(threads);
    else for (int t = 0; t < threads; ++t) { current = t; threadIdx.x = t; invoke(); } } }
static void invoke() { apply(k); }
"""

_BYTES = {"s8": "signed char", "u8": "unsigned char"}
_HOST_MULTIPLY = """
static inline void multiply(int* c, const u32* a, const u32* b) {{
  multiply_bytes<{}, {}>(c, a, b); }}
"""
_HALVES = {"f16": "half_to_float", "bf16": "brain_to_float"}
_HOST_MULTIPLY_HALVES = """
static inline void multiply(float* c, const u32* a, const u32* b) {{
  multiply_halves<{}>(c, a, b); }}
"""
_SET_HALVES = {"f16": "to_half", "bf16": "to_brain"}
HOST_COPIES = """
static inline u32 shared_address(const void* p) { return (u32)((const u8*)p - memory); }
static inline void copy(u32 target, const void* source, bool there) {
  if (there) memcpy(memory + target, source, 16); else memset(memory + target, 0, 16); }
static inline void commit() {}
template <int N> static inline void wait_for_copies() {}
static inline void read(u32* r, u32 address) {
  exchanged[current] = address; pause_at(1);
  const int warp = current & ~31, lane = current & 31;
  for (int i = 0; i < 4; ++i)
    memcpy(r + i, memory + exchanged[warp + i * 8 + lane / 4] + lane % 4 * 4, 4);
  pause_at(1); }
"""
_MEMORY = "__attribute__((aligned(128))) static u8 memory[1 << 18];\n"
_HOST_ATTENTION = """
static inline void read_transposed(u32* r, u32 address) {{
  exchanged[current] = address; pause_at(1);
  const int warp = current & ~31, lane = current & 31;
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 2; ++j)
      memcpy((u16*)(r + i) + j,
             memory + exchanged[warp + i * 8 + lane % 4 * 2 + j] + lane / 4 * 2, 2);
  pause_at(1); }}
static inline u32 both(float low, float high) {{
  return (u32){1}(low) | (u32){1}(high) << 16; }}
static inline void multiply(float* c, const u32* a, const u32* b) {{
  multiply_halves<{0}>(c, a, b); }}
"""
_REPLACED = (
    ('float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits)); return r;',
     "return half_to_float(x.bits);"),
    ('asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"((float)x));',
     "r.bits = to_half((float)x);"),
)  # fmt: skip
_POWER = (
    'float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r;',
    "return exp2f(x);",
)


@cache
def _folder() -> Path:
    """Return where compiled kernels are kept, with the precompiled header."""
    base = os.environ.get("AEGIS_PIPE_HOST_KERNELS") or tempfile.mkdtemp(prefix="host-kernels-")
    folder = Path(base)
    folder.mkdir(parents=True, exist_ok=True)
    header = folder / "host.h"
    if not header.exists() or header.read_text() != _HEADER:
        header.write_text(_HEADER)
        _compile("-x", "c++-header", str(header), "-o", str(folder / "host.h.gch"))
    return folder


def _compile(*arguments: str) -> None:
    assert COMPILER is not None
    command = [COMPILER, "-std=c++17", "-O0", "-fPIC", "-w", "-ffp-contract=off", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


@cache
def _loaded(source: str) -> ctypes.CDLL:
    """Compile and load a kernel's source."""
    for gpu, host in _REPLACED:
        assert gpu in source, "the prelude changed"
        source = source.replace(gpu, host)
    source = source.replace(SETTLE, "").replace(*_POWER)
    for kinds, gpu in MULTIPLY_BYTES.items():
        source = source.replace(gpu, _HOST_MULTIPLY.format(*(_BYTES[kind] for kind in kinds)))
    for kind, read in _HALVES.items():
        functions = tensor_attention_source.FUNCTIONS.replace("<kind>", kind)
        further = _HOST_ATTENTION.format(read, _SET_HALVES[kind])
        source = source.replace(functions, _MEMORY + HOST_COPIES + further)
        source = source.replace(
            planar_convolutions.MULTIPLY.replace("<kind>", kind), _HOST_MULTIPLY_HALVES.format(read)
        )
    source = source.replace(pipelined_bytes_source.FUNCTIONS, _MEMORY + HOST_COPIES)
    source = source.replace(SHARED, "")
    folder = _folder()
    whole = f'#include "host.h"\n{source}\n{_RUNTIME}'
    path = folder / f"{hashlib.sha256((_HEADER + whole).encode()).hexdigest()}.so"
    if not path.exists():
        # Threads may compile the same source at once: each in files of its own.
        text = path.with_name(f"{path.stem}.{os.getpid()}.{threading.get_ident()}.cpp")
        partial = text.with_suffix(".partial")
        text.write_text(whole)
        # All symbols stay within: every kernel has the same name.
        options = ("-I", str(folder), "-Wl,-Bsymbolic", "-shared")
        _compile(*options, str(text), "-o", str(partial))
        partial.rename(path)
    return ctypes.CDLL(str(path))


class HostBinding(Binding):
    """Binds a source to what g++ made of it."""

    def fault(self) -> int:
        """Return the address of a word of host memory."""
        cell = np.zeros(1, np.int32)
        self.faults.append(FaultWord(cell.ctypes.data, cell, self.request.node, self.choice.kernel))
        return cell.ctypes.data

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
        assert shared_bytes <= 1 << 18, "dynamic shared memory is as large as it is declared here"
        library = _loaded(source)
        packed = driver.Arguments([0 if each is None else each for each in arguments])
        blocks = (grid, 1, 1) if isinstance(grid, int) else grid
        body = source.partition('extern "C"')[2]
        turns = any(word in body for word in ("__sync", "__shfl", "together<", "merged<"))

        def enqueue(stream: int) -> None:
            library.run(*blocks, block, int(turns), ctypes.c_void_p(packed.address))

        return enqueue


class HostContext(CpuContext):
    """A CPU that has the GPU's kernels instead of its own, and its capabilities."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        # Without libraries and without the compiler for GPUs.
        self._gpu = Machine(None, None, "none", 90, 132)  # type: ignore[arg-type]

    @property
    def capabilities(self) -> DeviceCapabilities:
        """As a GPU's."""
        return DeviceCapabilities(
            channels_last=True,
            fused_attention=True,
            elementwise_chains=STEPS,
            product_endings=("FastGelu", "Gelu"),
            quantised_residuals=True,
            half_precision=True,
            planar_convolutions=True,
        )

    def select(self, request: KernelRequest) -> KernelChoice:
        """Offer the first kernel that takes the request."""
        for kernel in KERNELS.candidates(request.operator):
            choice = kernel.choose(request, self._gpu)
            if choice is not None:
                return choice
        specs = ", ".join("-" if spec is None else str(spec) for spec in request.inputs)
        raise UnsupportedOperatorError(f"no kernel runs `{request.operator}` on ({specs})")

    def bind(
        self,
        request: KernelRequest,
        choice: KernelChoice,
        inputs: Sequence[Region | None],
        outputs: Sequence[Region | None],
        workspace: Region | None,
    ) -> KernelCall:
        """Fix a kernel to its operands."""
        if choice.view is not None:
            return CpuKernelCall(choice.kernel, request.node, None)
        binding = HostBinding(
            request,
            choice,
            self._gpu,
            tuple(map(_address, inputs)),
            tuple(map(_address, outputs)),
            _address(workspace) or 0,
            None,  # type: ignore[arg-type]
        )
        launches = self._cuda_kernel(request, choice).bind(binding)

        def run() -> None:
            for launch in launches:
                launch(0)
            for word in binding.faults:
                if word.cell[0]:
                    raise KernelError(f"reason {word.cell[0]}", context=request.node)

        return CpuKernelCall(choice.kernel, request.node, run)

    def _cuda_kernel(self, request: KernelRequest, choice: KernelChoice) -> CudaKernel:
        for kernel in KERNELS.candidates(request.operator):
            offer = kernel.choose(request, self._gpu)
            if offer is not None and offer.kernel == choice.kernel:
                return kernel
        raise AssertionError(choice.kernel)


def _address(region: Region | None) -> int | None:
    return None if region is None else host_bytes(region).ctypes.data
