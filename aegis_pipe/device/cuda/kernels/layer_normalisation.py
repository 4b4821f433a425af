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


def _threads(width: int, pack: int) -> int | None:
    """Return how many threads have a row."""
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
    if width % pack or _threads(width, pack) is None:
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
    threads = _threads(width, pack)
    assert threads is not None
    rows, packs = source.element_count // width, -(-width // (threads * pack))
    parameters, arguments = ["const P* x"], [binding.inputs[0]]

    def given(position: int) -> tuple[str, str]:
        """Add an operand; return its name and the expression of its pack `i`."""
        name = f"o{position}"
        parameters.append(f"const P* {name}")
        arguments.append(binding.inputs[position])
        repeats = _repeats(required(request, position), source)
        row = "" if repeats == 1 else f"(row % {repeats}u) * {width // pack} + "
        return name, f"{name}[{row if repeats != rows else f'row * {width // pack} + '}i]"

    added = [given(position)[1] for position in _addends(request)]
    met = [(given(position)[1], sign) for position, sign in _factors(request)]
    loads = "".join(
        f"{{ const P q = {place}; for (int j = 0; j < {pack}; ++j) v[n][j] += get(q.v[j]); }}\n"
        for place in added
    )
    kept = "".join(f"P f{index}[{packs}];" for index in range(len(met)))
    fetch = "".join(f"f{index}[n] = {place};" for index, (place, _) in enumerate(met))
    value = "z"
    for index, (_, sign) in enumerate(met):
        value = f"{value} {sign} get(f{index}[n].v[j])"
    is_centred = "RMS" not in request.operator and "Simplified" not in request.operator
    statistics, sums = _further(binding, parameters, arguments)
    parameters.append("P* y")
    arguments.append(binding.outputs[0])
    each = f"for (int n = 0; n < {packs}; ++n) {{ const unsigned i = lane + n * T; if (i < W)"
    mean = f"""
  #pragma unroll
  {each} for (int j = 0; j < {pack}; ++j) mean += v[n][j]; }}
  mean = together<T>(mean, add) / {width}.0f;"""
    body = f"""
  const int T = {threads}, W = {width // pack};
  const unsigned row = (blockIdx.x * blockDim.x + threadIdx.x) / T, lane = threadIdx.x % T;
  if (row >= {rows}u) return;
  auto add = [](float a, float b) {{ return a + b; }};
  float v[{packs}][{pack}]; {kept}
  #pragma unroll
  {each} {{
    {{ const P q = x[row * W + i];
      for (int j = 0; j < {pack}; ++j) v[n][j] = get(q.v[j]); }}
    {loads} {fetch} }} }}
  float mean = 0, square = 0; {mean if is_centred else ""}
  #pragma unroll
  {each} for (int j = 0; j < {pack}; ++j) {{
    const float d = v[n][j] - mean; square += d * d; }} }}
  square = together<T>(square, add) / {width}.0f;
  const float inverse = 1 / sqrt(square + {literal(number(request, "epsilon"), "float")});
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
        extra=f"{GROUP}\ntypedef Pack<{kind}, {pack}> P;",
    )
    per_block = _rows_per_block(binding.machine, rows, threads)
    grid = blocks_for(rows, per_block)
    return [binding.kernel(code, arguments, grid=grid, block=threads * per_block)]


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
