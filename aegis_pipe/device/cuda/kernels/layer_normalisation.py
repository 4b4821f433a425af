"""Layer and RMS normalisation of the last axis, read and written sixteen bytes at a time.

A warp has a row as long as four packs a lane hold it, several warps share longer ones. What comes
before (a residual, a bias) is added on the way, what comes after (scale, shift) is loaded before
the row's statistics are known, so that memory is waited for once.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.operands import integer, number, operand, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.rows import GROUP
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT32,
    HALF_FLOATS,
    blocks_for,
    kernel_source,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_PACK_BYTES = 16
_PACKS_MAX = 4
"""Packs of a row that a thread keeps."""
_WARPS_MAX = 4
_ROWS_MANY = 8
"""Rows a multiprocessor from which on several warps share a row."""
_THREADS_MAX = 128
_MOMENTS = """
struct Moments { float mean, square; };
template <int T> __device__ __forceinline__ Moments merged(Moments a, float count) {
  #pragma unroll
  for (int m = 16; m; m >>= 1) {
    const float mean = __shfl_xor_sync(~0u, a.mean, m);
    const float square = __shfl_xor_sync(~0u, a.square, m), d = mean - a.mean;
    a.mean = (a.mean + mean) * 0.5f;
    a.square = a.square + square + d * d * (count * 0.5f);
    count *= 2; }
  if (T > 32) {
    __shared__ Moments parts[T / 32];
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = a;
    __syncthreads();
    a.mean = a.square = 0;
    #pragma unroll
    for (int i = 0; i < T / 32; ++i) a.mean += parts[i].mean;
    a.mean *= 32.0f / T;
    #pragma unroll
    for (int i = 0; i < T / 32; ++i) {
      const float d = parts[i].mean - a.mean;
      a.square += parts[i].square + d * d * count; }
  }
  return a; }
"""
"""Mean and squares around it by merging groups of the same size (Chan, Golub & LeVeque 1979)."""
_SKIPS = ("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
_PLAIN = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")


def _addends(request: KernelRequest) -> list[int]:
    """Return the operands that are added to the first."""
    if request.operator not in _SKIPS:
        return []
    return [position for position in (1, 4) if operand(request, position) is not None]


def _factors(request: KernelRequest) -> list[tuple[int, str]]:
    """Return the operands that the normalised row meets, and how."""
    first = 2 if request.operator in _SKIPS else 1
    positions = ((first, "*"), (first + 1, "+"))
    return [(at, sign) for at, sign in positions if operand(request, at) is not None]


def _repeats(spec: TensorSpec, source: TensorSpec) -> int | None:
    """Return after how many rows an operand's rows come again; None if they do otherwise."""
    shape = spec.shape
    while shape[:1] == (1,):
        shape = shape[1:]
    if shape[-1:] != source.shape[-1:] or shape != source.shape[len(source.shape) - len(shape) :]:
        return None
    return spec.element_count // source.shape[-1]


def _threads(width: int, pack: int, rows: int, multiprocessors: int) -> int | None:
    """Return how many threads have a row: a pack each where rows alone are many blocks."""
    packs = width // pack
    if rows >= _ROWS_MANY * multiprocessors and packs % 32 == 0 and packs <= _THREADS_MAX:
        return packs
    for threads in (32, 128, 256, 512, 1024):
        if width <= threads * pack * _PACKS_MAX:
            return threads
    return None


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    source = required(request)
    if source.dtype not in HALF_FLOATS | {FLOAT32} or not source.element_count:
        return None
    rank, width = len(source.shape), source.shape[-1]
    if request.operator in _PLAIN and integer(request, "axis") != rank - 1:
        return None
    pack = _PACK_BYTES // source.dtype.itemsize
    rows = source.element_count // width
    if width % pack or _threads(width, pack, rows, machine.multiprocessors) is None:
        return None
    total = request.outputs[3] if len(request.outputs) > 3 else None
    if total is not None and total.dtype != source.dtype:
        return None
    others = [*_addends(request), *(at for at, _ in _factors(request))]
    for position in others:
        spec = required(request, position)
        if spec.dtype != source.dtype or _repeats(spec, source) is None:
            return None
    return KernelChoice("rows.layer", cost=float(source.element_count))


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source, width = required(request), required(request).shape[-1]
    kind = stored(source.dtype)
    pack = _PACK_BYTES // source.dtype.itemsize
    rows = source.element_count // width
    threads = _threads(width, pack, rows, binding.machine.multiprocessors)
    assert threads is not None
    packs = -(-width // (threads * pack))
    parameters, arguments = ["const P* x"], [binding.inputs[0]]
    early, late = "", ""
    each = f"for (int n = 0; n < {packs}; ++n) {{ const unsigned i = lane + n * T; if (i < W)"

    def given(position: int) -> str:
        """Load an operand, as early as may be; return the expression of element `j` of pack `n`."""
        nonlocal early, late
        name = f"o{position}"
        parameters.append(f"const P* {name}")
        arguments.append(binding.inputs[position])
        repeats = _repeats(required(request, position), source)
        if repeats == 1 and position in request.constants:
            early += f"P f{position}[{packs}];\n  #pragma unroll\n  "
            early += f"{each} f{position}[n] = {name}[i]; }}\n  "
        else:
            row = f"(row % {repeats}u) * {width // pack} + "
            if repeats in (1, rows):
                row = "" if repeats == 1 else f"row * {width // pack} + "
            early += f"P f{position}[{packs}];\n  "
            late += f"f{position}[n] = {name}[{row}i]; "
        return f"get(f{position}[n].v[j])"

    added = "".join(f" + {given(position)}" for position in _addends(request))
    value = "z"
    for position, sign in _factors(request):
        value = f"{value} {sign} {given(position)}"
    is_centred = "RMS" not in request.operator and "Simplified" not in request.operator
    statistics, sums = _further(binding, parameters, arguments)
    parameters.append("P* y")
    arguments.append(binding.outputs[0])
    if is_centred and width % (threads * pack) == 0:
        moments = _moments(packs, pack)
    else:
        moments = _sums(is_centred, width, pack, each)
    prefetch = f"""
  const int T = {threads}, W = {width // pack};
  const unsigned row = (blockIdx.x * blockDim.x + threadIdx.x) / T, lane = threadIdx.x % T;
  {early}"""
    body = f"""
  if (row >= {rows}u) return;
  P f[{packs}];
  #pragma unroll
  {each} {{ f[n] = x[row * W + i]; {late} }} }}
  float v[{packs}][{pack}];
  #pragma unroll
  {each} for (int j = 0; j < {pack}; ++j) v[n][j] = get(f[n].v[j]){added}; }}
  {moments}
  const float inverse = 1 / sqrt(square * {literal(1 / width, "float")}
      + {literal(number(request, "epsilon"), "float")});
  #pragma unroll
  {each} {{
    P out; {sums}
    for (int j = 0; j < {pack}; ++j) {{
      const float z = (v[n][j] - mean) * inverse; out.v[j] = To<{kind}>::of({value}); }}
    y[row * W + i] = out; }} }}
  if (lane == 0) {{ {statistics} }}"""
    code = kernel_source(
        parameters,
        body,
        threads=max(threads, 32 * _WARPS_MAX),
        extra=f"{GROUP}{_MOMENTS}\ntypedef Pack<{kind}, {pack}> P;",
        prefetch=prefetch,
    )
    per_block = _rows_per_block(binding.machine, rows, threads)
    grid = blocks_for(rows, per_block)
    return [binding.kernel(code, arguments, grid=grid, block=threads * per_block)]


def _moments(packs: int, pack: int) -> str:
    """Return statements for mean and sum of squares around it, of threads with the same share."""
    return f"""
  Moments m = {{0, 0}};
  {_parted(packs, pack, "v[n][j]", "m.mean")}
  m.mean *= {literal(1 / (packs * pack), "float")};
  {_parted(packs, pack, "(v[n][j] - m.mean) * (v[n][j] - m.mean)", "m.square")}
  m = merged<T>(m, {literal(packs * pack, "float")});
  const float mean = m.mean, square = m.square;"""


def _parted(packs: int, pack: int, term: str, target: str) -> str:
    """Return the sum of a thread's terms, taken four at a time so that none waits for all."""
    return f"""{{
    float s[4] = {{}};
    #pragma unroll
    for (int n = 0; n < {packs}; ++n)
      #pragma unroll
      for (int j = 0; j < {pack}; ++j) s[j % 4] += {term};
    {target} = s[0] + s[1] + (s[2] + s[3]); }}"""


def _sums(is_centred: bool, width: int, pack: int, each: str) -> str:
    """Return statements for mean and sum of squares around it (around 0: not centred)."""
    mean = f"""
  #pragma unroll
  {each} for (int j = 0; j < {pack}; ++j) mean += v[n][j]; }}
  mean = together<T>(mean, add) * {literal(1 / width, "float")};"""
    return f"""
  auto add = [](float a, float b) {{ return a + b; }};
  float mean = 0, square = 0; {mean if is_centred else ""}
  #pragma unroll
  {each} for (int j = 0; j < {pack}; ++j) {{
    const float d = v[n][j] - mean; square += d * d; }} }}
  square = together<T>(square, add);"""


def _rows_per_block(machine: Machine, rows: int, threads: int) -> int:
    """Return how many rows share a block: only one as long as there are processors left."""
    if threads > 32:
        return 1
    return max(1, min(_WARPS_MAX, rows // (2 * machine.multiprocessors)))


def _further(
    binding: Binding, parameters: list[str], arguments: list[int | None]
) -> tuple[str, str]:
    """Add the further results; return statements for the statistics, and for a pack of the sum."""
    request = binding.request
    statistics = sums = ""
    for position in range(1, len(request.outputs)):
        if request.outputs[position] is None:
            continue
        kind = stored(result(request, position).dtype)
        pack = _PACK_BYTES // required(request).dtype.itemsize
        if position == 3:
            parameters.append("P* sum")
            sums = (
                f"for (int j = 0; j < {pack}; ++j) out.v[j] = To<{kind}>::of(v[n][j]); "
                "sum[row * W + i] = out;"
            )
        else:
            value = {1: "mean", 2: "inverse"}[position]
            parameters.append(f"{kind}* y{position}")
            statistics += f"y{position}[row] = To<{kind}>::of({value}); "
        arguments.append(binding.outputs[position])
    return statistics, sums


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel((*_PLAIN, *_SKIPS), _choose, _bind),)
