"""Reductions and softmax: what a group of threads does with one row.

A row is what is reduced to one number. Its elements are kept in registers if they fit, so that a
row is read once; sums are taken in float32 at least, in an order that depends on the shape alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    required,
    result,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    FLOATS,
    INTEGERS,
    NUMBERS,
    Walk,
    blocks_for,
    computed,
    dense_strides,
    kernel_source,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_REGISTERS = 16
"""Most elements of a row that a thread keeps."""
_ROW_THREADS = 128

GROUP = """
template <typename T> __device__ __forceinline__ T shuffle(T v, int mask) {
  union { T t; int w[(sizeof(T) + 3) / 4]; } u; u.t = v;
  #pragma unroll
  for (int i = 0; i < (int)((sizeof(T) + 3) / 4); ++i) u.w[i] = __shfl_xor_sync(~0u, u.w[i], mask);
  return u.t; }
template <int T, typename A, typename F> __device__ __forceinline__ A together(A a, F f) {
  #pragma unroll
  for (int m = 16; m; m >>= 1) { A b = shuffle(a, m); a = (threadIdx.x & m) ? f(b, a) : f(a, b); }
  if (T > 32) {
    __shared__ __align__(16) char memory[sizeof(A) * 32];
    A* parts = (A*)memory;
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = a;
    __syncthreads();
    a = parts[0];
    #pragma unroll
    for (int i = 1; i < T / 32; ++i) a = f(a, parts[i]);
  }
  return a; }
"""


@dataclass(frozen=True, slots=True)
class Rows:
    """How an operand is cut into rows."""

    kept: Walk
    reduced: Walk
    row_count: int
    length: int

    @classmethod
    def of(cls, shape: Sequence[int], axes: Sequence[int]) -> Rows:
        """Cut a dense operand along `axes`."""
        strides = dense_strides(shape)
        kept = [axis for axis in range(len(shape)) if axis not in axes]

        def walk(chosen: Sequence[int]) -> Walk:
            return Walk.of([shape[a] for a in chosen], [[strides[a] for a in chosen]])

        return cls(
            walk(kept),
            walk(axes),
            math.prod(shape[a] for a in kept),
            math.prod(shape[a] for a in axes),
        )

    @property
    def threads(self) -> int:
        """How many threads work on a row."""
        for threads in (32, 128, 256, 512):
            if self.length <= threads * 8:
                return threads
        return 1024

    @property
    def per_thread(self) -> int:
        """How many elements of a row a thread has."""
        return max(1, -(-self.length // self.threads))

    @property
    def block(self) -> int:
        """Threads of a block: several short rows, or one long one."""
        return max(_ROW_THREADS, self.threads)

    @property
    def grid(self) -> int:
        """Number of blocks."""
        return blocks_for(self.row_count, self.block // self.threads)

    def position(self, row: str, index: str) -> str:
        """Return a C expression: where an element of a row is."""
        return f"({self.kept.offset(0, row)}) + ({self.reduced.offset(0, index)})"

    def begin(self, accumulator: str, load: str) -> str:
        """Return the start of a body: who does what; `load` is an expression of `row` and `r`."""
        threads, each = self.threads, self.per_thread
        start = f"""
  const int T = {threads};
  unsigned row = (blockIdx.x * {self.block}u + threadIdx.x) / T;
  if (row >= {self.row_count}u) return;
  const unsigned lane = threadIdx.x % T;
  typedef {accumulator} A;"""
        if each > _REGISTERS:
            return f"{start}\n  #define V(j, r) ({load})\n"
        return f"""{start}
  A kept[{each}];
  #pragma unroll
  for (int j = 0; j < {each}; ++j) {{
    unsigned r = lane + j * T; if (r < {self.length}u) kept[j] = {load}; }}
  #define V(j, r) kept[j]
"""

    def each(self, statement: str) -> str:
        """Return a loop over a thread's elements, `r` in the row, `V(j, r)` the value."""
        unroll = "\n  #pragma unroll\n  " if self.per_thread <= _REGISTERS else ""
        return (
            f"{unroll}for (int j = 0; j < {self.per_thread}; ++j) {{ unsigned r = lane + j * T; "
            f"if (r < {self.length}u) {{ {statement} }} }}\n"
        )


def accumulator(dtype: np.dtype) -> str:
    """Return the type in which elements of a dtype are summed."""
    if dtype in FLOATS:
        return computed(dtype)
    return "i64" if dtype.kind == "i" else "u64"


# --- Reductions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reduction:
    initial: str
    update: str
    """Of accumulator `a` and value `v`."""
    combine: str
    """Of `a` and `b`."""
    final: str = "a"
    """Of `a` and the length `n`."""


_ADD = "a + b"
_REDUCTIONS = {
    "ReduceSum": _Reduction("0", "a + v", _ADD),
    "ReduceMean": _Reduction("0", "a + v", _ADD, "a / (A)n"),
    "ReduceMax": _Reduction("<low>", "(v > a || v != v) ? v : a", "(b > a || b != b) ? b : a"),
    "ReduceMin": _Reduction("<high>", "(v < a || v != v) ? v : a", "(b < a || b != b) ? b : a"),
    "ReduceProd": _Reduction("1", "a * v", "a * b"),
    "ReduceL1": _Reduction("0", "a + (v < 0 ? -v : v)", _ADD),
    "ReduceL2": _Reduction("0", "a + v * v", _ADD, "sqrt((<root>)a)"),
    "ReduceLogSum": _Reduction("0", "a + v", _ADD, "log((<root>)a)"),
    "ReduceSumSquare": _Reduction("0", "a + v * v", _ADD),
}


def _extreme(dtype: np.dtype, sign: int) -> str:
    if dtype in FLOATS:
        return f"({'-' if sign < 0 else ''}INF())"
    limits = np.iinfo(dtype) if dtype in INTEGERS else None
    value = (limits.min if sign < 0 else limits.max) if limits else (0 if sign < 0 else 1)
    return literal(value, accumulator(dtype))


def _reduce_axes(request: KernelRequest) -> tuple[int, ...]:
    spec = required(request)
    if request.operator.startswith("Global"):
        return tuple(range(2, len(spec.shape)))
    return integers(request, "axes")


def _choose_reduce(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    dtype = required(request).dtype
    extremes = request.operator in ("ReduceMax", "ReduceMin")
    if dtype not in (ALL if extremes else NUMBERS):
        return None
    if request.operator == "ReduceLogSumExp" and dtype not in FLOATS:
        return None
    return KernelChoice(f"reduce.{request.operator}", cost=float(required(request).element_count))


def _bind_reduce(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    name = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}.get(
        request.operator, request.operator
    )
    return reduce_launch(binding, required(request).shape, _reduce_axes(request), name)


def reduce_launch(
    binding: Binding, shape: Sequence[int], axes: Sequence[int], name: str
) -> list[Enqueue]:
    """Launch a reduction of operand 0, taken as `shape`, along `axes`."""
    source, target = required(binding.request), result(binding.request)
    rows = Rows.of(shape, axes)
    if rows.row_count == 0:
        return []
    kind, y = accumulator(source.dtype), stored(target.dtype)
    parameters = [f"const {stored(source.dtype)}* x", f"{y}* y"]
    arguments = [binding.inputs[0], binding.outputs[0]]
    load = f"(A)get(x[{rows.position('row', 'r')}])"
    if name == "ReduceLogSumExp":
        body = (
            rows.begin(kind, load)
            + f"""
  A m = -INF();
  {rows.each("A v = V(j, r); m = (v > m || v != v) ? v : m;")}
  m = together<T>(m, [](A a, A b) {{ return (b > a || b != b) ? b : a; }});
  A shift = m - m == 0 ? m : (A)0, s = 0;
  {rows.each("s += exp(V(j, r) - shift);")}
  s = together<T>(s, [](A a, A b) {{ return a + b; }});
  if (lane == 0) y[row] = To<{y}>::of(log(s) + shift);"""
        )
        code = kernel_source(parameters, body, threads=rows.block, extra=GROUP)
        return [binding.kernel(code, arguments, grid=rows.grid, block=rows.block)]
    how = _REDUCTIONS[name]
    root = kind if source.dtype in FLOATS else "double"
    initial = how.initial.replace("<low>", _extreme(source.dtype, -1))
    initial = initial.replace("<high>", _extreme(source.dtype, 1))
    final = how.final.replace("<root>", root)
    if _is_columns(shape, axes) and rows.length > 1:
        return _reduce_columns(binding, rows, kind, load, initial, how, final)
    body = (
        rows.begin(kind, load)
        + f"""
  A a = {initial};
  {rows.each(f"A v = V(j, r); a = {how.update};")}
  a = together<T>(a, [](A a, A b) {{ return (A)({how.combine}); }});
  const A n = {rows.length};
  if (lane == 0) y[row] = To<{y}>::of({final});"""
    )
    code = kernel_source(parameters, body, threads=rows.block, extra=GROUP)
    return [binding.kernel(code, arguments, grid=rows.grid, block=rows.block)]


def _is_columns(shape: Sequence[int], axes: Sequence[int]) -> bool:
    """Return whether neighbouring results come from neighbouring elements."""
    inner = [axis for axis, size in enumerate(shape) if size > 1]
    return bool(inner) and inner[-1] not in axes


def _reduce_columns(
    binding: Binding, rows: Rows, kind: str, load: str, initial: str, how: _Reduction, final: str
) -> list[Enqueue]:
    """Launch 8 x 32 threads a block: 32 neighbouring results, 8 of them share a column."""
    source, target = required(binding.request), result(binding.request)
    y = stored(target.dtype)
    body = f"""
  typedef {kind} A;
  __shared__ A parts[8][32];
  const unsigned column = threadIdx.x % 32, part = threadIdx.x / 32;
  const unsigned row = blockIdx.x * 32 + column;
  A a = {initial};
  if (row < {rows.row_count}u)
    for (unsigned r = part; r < {rows.length}u; r += 8) {{ A v = {load}; a = {how.update}; }}
  parts[part][column] = a;
  __syncthreads();
  if (part || row >= {rows.row_count}u) return;
  for (int i = 1; i < 8; ++i) {{ A b = parts[i][column]; a = (A)({how.combine}); }}
  const A n = {rows.length};
  y[row] = To<{y}>::of({final});"""
    parameters = [f"const {stored(source.dtype)}* x", f"{y}* y"]
    code = kernel_source(parameters, body, threads=256)
    arguments = [binding.inputs[0], binding.outputs[0]]
    return [binding.kernel(code, arguments, grid=blocks_for(rows.row_count, 32), block=256)]


def _choose_arg(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    known = required(request).dtype in NUMBERS
    return KernelChoice(f"reduce.{request.operator}") if known else None


def _bind_arg(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source = required(request)
    rows = Rows.of(source.shape, (integer(request, "axis"),))
    if rows.row_count == 0:
        return []
    kind = computed(source.dtype)
    better = ">" if request.operator == "ArgMax" else "<"
    tie = ">" if integer(request, "select_last_index") else "<"
    body = f"""
  const int T = {rows.threads};
  struct A {{ {kind} v; int i; }};
  unsigned row = (blockIdx.x * {rows.block}u + threadIdx.x) / T;
  if (row >= {rows.row_count}u) return;
  const unsigned lane = threadIdx.x % T;
  auto pick = [](A a, A b) {{
    if (b.i < 0) return a;
    if (a.i < 0 || b.v {better} a.v || (b.v == a.v && b.i {tie} a.i)) return b;
    return a; }};
  A a; a.v = 0; a.i = -1;
  for (unsigned r = lane; r < {rows.length}u; r += T) {{
    A b; b.v = get(x[{rows.position("row", "r")}]); b.i = r; a = pick(a, b); }}
  a = together<T>(a, pick);
  if (lane == 0) y[row] = a.i;"""
    code = kernel_source(
        [f"const {stored(source.dtype)}* x", "i64* y"], body, threads=rows.block, extra=GROUP
    )
    arguments = [binding.inputs[0], binding.outputs[0]]
    return [binding.kernel(code, arguments, grid=rows.grid, block=rows.block)]


# --- Softmax ----------------------------------------------------------------------------------


def choose_floats(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    """Take any floats; softmax may write over what it reads."""
    dtype = required(request).dtype
    if dtype not in FLOATS:
        return None
    in_place = ((0, 0),) if result(request) == required(request) else ()
    name = request.operator.rpartition(".")[2].lower()
    return KernelChoice(f"rows.{name}", in_place=in_place if "Softmax" in request.operator else ())


def _bind_softmax(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source = required(request)
    rows = Rows.of(source.shape, integers(request, "axes"))
    if rows.row_count == 0 or rows.length == 0:
        return []
    kind, y = computed(source.dtype), stored(source.dtype)
    where = rows.position("row", "r")
    end = {
        "Softmax": f"A f = 1 / s; {rows.each(f'y[{where}] = To<{y}>::of(exp(V(j, r) - m) * f);')}",
        "LogSoftmax": f"A f = log(s) + m; {rows.each(f'y[{where}] = To<{y}>::of(V(j, r) - f);')}",
    }.get(request.operator, "")
    if rows.per_thread > _REGISTERS:
        # The row is read anew for the result: it has to be where it was.
        end = f"__syncthreads(); {end}" if rows.threads > 32 else end
    body = rows.begin(kind, f"get(x[{where}])")
    if request.operator == "Hardmax":
        body += f"""
  struct P {{ A v; int i; }};
  auto pick = [](P a, P b) {{
    return b.i >= 0 && (a.i < 0 || b.v > a.v || (b.v == a.v && b.i < a.i)) ? b : a; }};
  P a; a.v = 0; a.i = -1;
  {rows.each("P b; b.v = V(j, r); b.i = r; a = pick(a, b);")}
  a = together<T>(a, pick);
  {rows.each(f"y[{where}] = To<{y}>::of((int)r == a.i ? 1 : 0);")}"""
    else:
        body += f"""
  A m = -INF();
  {rows.each("A v = V(j, r); m = (v > m || v != v) ? v : m;")}
  m = together<T>(m, [](A a, A b) {{ return (b > a || b != b) ? b : a; }});
  A s = 0;
  {rows.each("s += exp(V(j, r) - m);")}
  s = together<T>(s, [](A a, A b) {{ return a + b; }});
  {end}"""
    code = kernel_source([f"const {y}* x", f"{y}* y"], body, threads=rows.block, extra=GROUP)
    arguments = [binding.inputs[0], binding.outputs[0]]
    return [binding.kernel(code, arguments, grid=rows.grid, block=rows.block)]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(
        (*_REDUCTIONS, "ReduceLogSumExp", "GlobalAveragePool", "GlobalMaxPool"),
        _choose_reduce,
        _bind_reduce,
    ),
    CudaKernel(("ArgMax", "ArgMin"), _choose_arg, _bind_arg),
    CudaKernel(("Softmax", "LogSoftmax", "Hardmax"), choose_floats, _bind_softmax),
)
