"""Values that need no operand: constants, ranges, random numbers; and what draws or drops.

The random numbers are those of the CPU device: of NumPy's legacy Mersenne twister (Matsumoto and
Nishimura 1998), which every call starts anew. One block goes from round to round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.device.cuda.kernels.each import each, given, launch, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import integer, number, operand, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    BOOL,
    FLOATS,
    NUMBERS,
    computed,
    literal,
    stored,
    table,
)
from aegis_pipe.device.requests import array
from aegis_pipe.kernel import KernelChoice, KernelRequest

_TABLE_MAX = 1 << 16
"""Elements of a constant that stands in the source."""


def _is_uniform(value: np.ndarray) -> bool:
    """Return whether all elements are the same bits."""
    width = value.dtype.itemsize
    elements = np.ascontiguousarray(value).reshape(-1).view(np.uint8).reshape(-1, width)
    return len(elements) > 0 and bool((elements == elements[0]).all())


def _accepts_constant(request: KernelRequest) -> bool:
    value = array(request, "value")
    return value.size <= _TABLE_MAX or _is_uniform(value)


def _bind_constant(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    target, value = result(request), array(request, "value")
    kind, element = computed(target.dtype), stored(target.dtype)
    wide = value.astype(np.float32) if kind == "float" else value
    extra, source = "", ""
    if value.size == 1 or _is_uniform(value):
        source = literal(wide.reshape(-1)[0].item(), kind) if value.size else "0"
    else:
        extra, source = table("VALUES", wide, kind), "VALUES[i]"
    statements = f"y[i] = To<{element}>::of({source});"
    return each(binding, target.element_count, statements, results(binding, {"y": 0}), extra=extra)


def _bind_range(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    target = result(request)
    kind = computed(target.dtype)
    start, delta = (
        literal(array(request, name).astype(np.float64 if kind == "float" else None).item(), kind)
        if kind == "float"
        else literal(array(request, name).item(), kind)
        for name in ("start", "delta")
    )
    statements = f"y[i] = To<{stored(target.dtype)}>::of({start} + ({kind})i * {delta});"
    return each(binding, target.element_count, statements, results(binding, {"y": 0}))


_TWISTER = """
__device__ __forceinline__ u32 mixed(u32 a, u32 b, u32 c) {
  const u32 y = (a & 0x80000000u) | (b & 0x7fffffffu);
  return c ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0u); }
__device__ __forceinline__ u32 tempered(u32 y) {
  y ^= y >> 11; y ^= (y << 7) & 0x9d2c5680u; y ^= (y << 15) & 0xefc60000u; return y ^ (y >> 18); }
"""
_ROUND = """
  // Words depend on those 227 places before: they come in stretches of so many.
  for (int first = 0; first < 623; first += 227) {
    const int k = first + t, end = first + 227 < 623 ? first + 227 : 623;
    u32 next = 0;
    if (t < 227 && k < end) next = mixed(mt[k], mt[k + 1], mt[k < 227 ? k + 397 : k - 227]);
    __syncthreads();
    if (t < 227 && k < end) mt[k] = next;
    __syncthreads(); }
  if (t == 0) mt[623] = mixed(mt[623], mt[0], mt[396]);
  __syncthreads();"""
_THREADS = 256
_PAIRS = 156
"""Pairs of numbers from 0 to below 1 that one round of the generator gives."""


def _count(request: KernelRequest) -> int:
    return (
        required(request).element_count
        if request.operator == "Dropout"
        else (result(request).element_count)
    )


def _drawn_bytes(request: KernelRequest) -> int:
    """Return room for the numbers drawn, and for one that is too many."""
    return 8 * (_count(request) + 1)


def _draw(binding: Binding, *, normal: bool = False) -> list[Enqueue]:
    """Launch what writes as many numbers as are needed to the workspace, in one block."""
    request = binding.request
    count = _count(request)
    if not count:
        return []
    state = np.random.RandomState(integer(request, "seed")).get_state(legacy=False)["state"]["key"]
    pair = """
    const int at = 4 * t;
    u32 w[4];
    for (int k = 0; k < 4; ++k) w[k] = t < PAIRS ? tempered(mt[at + k]) : 0;
    double u = ((w[0] >> 5) * 67108864.0 + (w[1] >> 6)) / 9007199254740992.0;
    double v = ((w[2] >> 5) * 67108864.0 + (w[3] >> 6)) / 9007199254740992.0;"""
    if normal:
        # Marsaglia's polar method: of the pairs within the circle, the second comes first.
        step = f"""
    u = 2 * u - 1; v = 2 * v - 1;
    const double r = u * u + v * v;
    const bool fits = t < PAIRS && r < 1 && r != 0;
    counts[t] = fits; __syncthreads();
    for (int m = 1; m < {_THREADS}; m *= 2) {{
      const int before = t >= m ? counts[t - m] : 0;
      __syncthreads(); counts[t] += before; __syncthreads(); }}
    const long long place = done + 2 * (counts[t] - 1);
    const int found = counts[{_THREADS - 1}];
    __syncthreads();
    if (fits && place < {count}LL) {{
      const double f = sqrt(-2 * log(r) / r); d[place] = f * v; d[place + 1] = f * u; }}
    done += 2 * found;"""
    else:
        step = f"""
    const long long place = done + 2 * t;
    if (t < PAIRS && place < {count}LL) {{ d[place] = u; d[place + 1] = v; }}
    done += 2 * PAIRS;"""
    body = f"""
  const int PAIRS = {_PAIRS};
  __shared__ u32 mt[624]; __shared__ int counts[{_THREADS}];
  const int t = threadIdx.x;
  for (int k = t; k < 624; k += {_THREADS}) mt[k] = SEED[k];
  counts[t] = 0; __syncthreads();
  for (long long done = 0; done < {count}LL;) {{ {_ROUND} {pair} {step}
    __syncthreads(); }}"""
    drawn = ("double* d", binding.workspace)
    extra = _TWISTER + table("SEED", np.asarray(state), "u32")
    return launch(binding, body, [drawn], grid=1, threads=_THREADS, extra=extra)


def _accepts_drawn(request: KernelRequest) -> bool:
    return all(spec.dtype in FLOATS for spec in request.inputs if spec is not None)


def _drawn(binding: Binding, value: str, before: str = "") -> Sequence[Enqueue]:
    """Launch the draw, and `y[i] = value` of the number `d[i]`."""
    request = binding.request
    dtype = result(request).dtype
    test = " != 0" if dtype == BOOL else ""
    statements = f"{before} y[i] = To<{stored(dtype)}>::of(({value}){test});"
    parameters = [
        ("const double* d", binding.workspace),
        *given(binding, {"x": 0}),
        *results(binding, {"y": 0}),
    ]
    draw = _draw(binding, normal=request.operator == "RandomNormal")
    return [*draw, *each(binding, result(request).element_count, statements, parameters)]


def _bind_normal(binding: Binding) -> Sequence[Enqueue]:
    mean, scale = number(binding.request, "mean"), number(binding.request, "scale")
    return _drawn(binding, f"d[i] * {scale!r} + ({mean!r})")


def _bind_uniform(binding: Binding) -> Sequence[Enqueue]:
    low, high = number(binding.request, "low"), number(binding.request, "high")
    return _drawn(binding, f"{low!r} + {high - low!r} * d[i]")


def _bind_bernoulli(binding: Binding) -> Sequence[Enqueue]:
    return _drawn(binding, "d[i] < (double)get(x[i]) ? 1 : 0")


def _bind_multinomial(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    classes, samples = required(request).shape[1], result(request).shape[1]
    before = f"""
  const long long row = i / {max(1, samples)} * {classes};
  double most = -INF(), total = 0, sum = 0; int below = 0;
  for (int c = 0; c < {classes}; ++c) most = fmax(most, (double)get(x[row + c]));
  for (int c = 0; c < {classes}; ++c) total += exp((double)get(x[row + c]) - most);
  const double drawn = d[i] * total;
  for (int c = 0; c < {classes}; ++c) {{
    sum += exp((double)get(x[row + c]) - most); below += sum <= drawn; }}"""
    return _drawn(binding, "below", before)


# --- Dropout ----------------------------------------------------------------------------------


def _choose_dropout(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    """Offer a view where nothing is dropped and nobody wants the mask."""
    if required(request).dtype not in ALL:
        return None
    cost = 3.0 * required(request).element_count
    if integer(request, "training"):
        known = required(request).dtype in FLOATS
        if not known:
            return None
        return KernelChoice("dropout.training", _drawn_bytes(request), cost=cost)
    if len(request.outputs) < 2 or request.outputs[1] is None:
        return KernelChoice("dropout", view=(0, 0))
    return KernelChoice("dropout", in_place=((0, 0),), cost=cost)


def _bind_dropout(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec = required(request)
    targets = results(binding, {"y": 0, "mask": 1})
    names = {text.rpartition(" ")[2] for text, _ in targets}
    kept, value, before = "true", "x[i]", ""
    if integer(request, "training"):
        kind = computed(spec.dtype)
        share = "(double)get(*ratio)" if operand(request, 1) is not None else "0.5"
        trains = "*training" if operand(request, 2) is not None else "false"
        before = (
            f"const double share = {share}; const bool drops = {trains} && share != 0; "
            f"const bool kept = !drops || d[i] >= share; "
            f"const {kind} f = drops ? share < 1 ? ({kind})(1 / (1 - share)) : ({kind})0 "
            f": ({kind})1;"
        )
        kept, value = "kept", f"To<{stored(spec.dtype)}>::of(kept ? get(x[i]) * f : ({kind})0)"
    mask = ""
    if "mask" in names:
        written = targets[-1][0].partition("*")[0]
        mask = f"mask[i] = To<{written}>::of({kept});"
    statements = f"{before} {f'y[i] = {value};' if 'y' in names else ''} {mask}"
    parameters = [*given(binding, {"x": 0, "ratio": 1, "training": 2}), *targets]
    launches: list[Enqueue] = []
    if integer(request, "training"):
        launches = _draw(binding)
        parameters.append(("const double* d", binding.workspace))
    return launches + each(binding, spec.element_count, statements, parameters)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "constant",
        ("Constant", "ConstantOfShape"),
        _bind_constant,
        accepts=_accepts_constant,
        dtypes=ALL,
    ),
    simple_kernel("range", ("Range",), _bind_range, dtypes=NUMBERS),
    *(
        simple_kernel(
            f"random.{name.lower()}",
            (name,),
            bind,
            accepts=_accepts_drawn,
            workspace=_drawn_bytes,
        )
        for name, bind in (
            ("RandomNormal", _bind_normal),
            ("RandomUniform", _bind_uniform),
            ("Bernoulli", _bind_bernoulli),
            ("Multinomial", _bind_multinomial),
        )
    ),
    CudaKernel(("Dropout",), _choose_dropout, _bind_dropout),
)
