"""RNN, GRU and LSTM: one product for the inputs of all time steps, then the steps of each sequence.

The blocks of a cluster share a sequence's steps in one direction: each has some of the units, with
their rows of weights in its shared memory where they fit, and the whole state; what it computes it
writes into the state of all. Eight lanes add up a row. Older GPUs have one block a sequence.
Sequences of different length keep their state where they have ended, so that a reversed direction
starts each at its own last element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.cuda.kernels.each import given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    number,
    numbers,
    operand,
    required,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    EARLY_CAPABILITY,
    FLOATS,
    INTEGERS,
    MEET,
    computed,
    kernel_source,
    literal,
    stored,
)
from aegis_pipe.device.cuda.kernels.tiles import tiled_product
from aegis_pipe.device.requests import texts
from aegis_pipe.kernel import KernelRequest

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_ROWS = 4
"""Rows of weights that a warp adds up at once, eight lanes each."""
_THREADS_MAX = 768
_BLOCKS_MAX = 8
"""Of a cluster, on any GPU that has clusters."""
_OWN_BYTES = 32 << 10
"""Of weights that one block reads in less time than blocks take to meet."""
_WEIGHTS_BYTES_MAX = 160 << 10
_STATE_BYTES_MAX = 40 << 10

_BIAS, _LENGTHS, _INITIAL_H, _INITIAL_C, _PEEPHOLES = 3, 4, 5, 6, 7

_ACTIVATIONS: dict[str, Callable[[str, str], str]] = {
    "relu": lambda a, b: "fmax(v, (A)0)",
    "tanh": lambda a, b: "tanh(v)",
    "sigmoid": lambda a, b: "1 / (1 + exp(-v))",
    "softsign": lambda a, b: "v / (1 + fabs(v))",
    "softplus": lambda a, b: "fmax(v, (A)0) + log1p(exp(-fabs(v)))",
    "affine": lambda a, b: f"{a} * v + {b}",
    "leakyrelu": lambda a, b: f"(v < 0 ? {a} * v : v)",
    "thresholdedrelu": lambda a, b: f"(v > {a} ? v : (A)0)",
    "scaledtanh": lambda a, b: f"{a} * tanh({b} * v)",
    "hardsigmoid": lambda a, b: f"fmin(fmax({a} * v + {b}, (A)0), (A)1)",
    "elu": lambda a, b: f"(v < 0 ? {a} * expm1(v) : v)",
}


@dataclass(frozen=True, slots=True)
class _Sizes:
    time: int
    batch: int
    inputs: int
    hidden: int
    gates: int
    directions: int
    layout: int

    @classmethod
    def of(cls, request: KernelRequest) -> _Sizes:
        time, batch, inputs = required(request).shape
        layout = integer(request, "layout")
        if layout:
            time, batch = batch, time
        directions, _, hidden = required(request, 2).shape
        return cls(time, batch, inputs, hidden, _GATES[request.operator], directions, layout)

    @property
    def width(self) -> int:
        """Rows of gates."""
        return self.gates * self.hidden

    @property
    def rows(self) -> int:
        """Elements of all sequences."""
        return self.time * self.batch


@dataclass(frozen=True, slots=True)
class _Sharing:
    """How blocks share a sequence's steps."""

    blocks: int
    units: int
    """Of each block; the last may have fewer."""
    threads: int
    weights_bytes: int
    """Of a block's rows in shared memory; 0 if they are read from where they are."""
    state_is_shared: bool
    """Or else in the workspace, for states that are too large; of one block then."""

    @classmethod
    def of(cls, request: KernelRequest, machine: Machine) -> _Sharing:
        sizes, width = _Sizes.of(request), _width_of(request)
        hidden = sizes.hidden
        is_small = _state(sizes, hidden) * width <= _STATE_BYTES_MAX
        row_bytes = _row_bytes(request)
        weights_bytes = sizes.width * row_bytes
        blocks = 1
        # Without the rest of a GPU, as where sources run elsewhere, a block has only itself.
        if machine.capability >= EARLY_CAPABILITY and machine.tuner is not None and is_small:
            while (
                blocks < _BLOCKS_MAX
                and weights_bytes > blocks * _OWN_BYTES
                and 2 * blocks * sizes.batch * sizes.directions <= machine.multiprocessors
            ):
                blocks *= 2
        units = -(-hidden // blocks)
        rows = sizes.gates * units
        threads = max(64, -(-rows // _ROWS) * 32)
        if threads > _THREADS_MAX:
            # Half as many have registers for more weights that are on their way.
            threads = 512
        own_bytes = rows * row_bytes
        room = machine.shared_bytes_max - _state(sizes, units) * width
        # What lies behind the state begins at a multiple of sixteen.
        stays = blocks > 1 and own_bytes <= min(_WEIGHTS_BYTES_MAX, room - 16)
        return cls(blocks, units, threads, own_bytes if stays else 0, is_small)


def _row_bytes(request: KernelRequest) -> int:
    """Return what a unit's weights for one gate take."""
    recurrent = required(request, 2)
    return recurrent.shape[2] * recurrent.dtype.itemsize


def _state(sizes: _Sizes, units: int) -> int:
    """Return how many numbers a block keeps: states in turns, one that is reset, and its own."""
    return 3 * sizes.hidden + (sizes.gates + 2) * units


def _accepts(request: KernelRequest) -> bool:
    floats = {
        spec.dtype for at, spec in enumerate(request.inputs) if spec is not None and at != _LENGTHS
    }
    lengths = operand(request, _LENGTHS)
    return (
        len(floats) == 1
        and floats <= FLOATS
        and (lengths is None or lengths.dtype in INTEGERS)
        and all(name.lower() in _ACTIVATIONS for name in texts(request, "activations"))
    )


def _width_of(request: KernelRequest) -> int:
    return 8 if computed(required(request).dtype) == "double" else 4


def _workspace(request: KernelRequest) -> int:
    """Return room for the gates' share of the inputs, and for states that are too large."""
    sizes, width = _Sizes.of(request), _width_of(request)
    state = _state(sizes, sizes.hidden)
    states = 0 if state * width <= _STATE_BYTES_MAX else sizes.batch * state
    return sizes.directions * (sizes.rows * sizes.width + states) * width


def _functions(request: KernelRequest, direction: int, kind: str) -> str:
    """Return device functions `f0`, `f1`, ... of a direction's activations, clipped."""
    names = texts(request, "activations")
    alphas, betas = numbers(request, "activation_alpha"), numbers(request, "activation_beta")
    count, clip = len(names) // _Sizes.of(request).directions, number(request, "clip")
    lines = []
    for place in range(count):
        at = direction * count + place
        a, b = literal(alphas[at], kind), literal(betas[at], kind)
        # The last of an LSTM's is of the cell, which is not clipped.
        clips = np.isfinite(clip) and not (request.operator == "LSTM" and place == 2)
        bound = literal(clip, kind)
        limit = f"v = fmin(fmax(v, -{bound}), {bound});" if clips else ""
        value = _ACTIVATIONS[names[at].lower()](a, b)
        lines.append(
            f"__device__ __forceinline__ A f{place}(A v) {{ {limit} return (A)({value}); }}"
        )
    return f"typedef {kind} A;\n" + "\n".join(lines)


_DOT = """
  // Eight lanes' sum over a row of weights times a state.
  auto dot = [&](const E* row, const A* state) {
    A s = 0;
    #pragma unroll 16
    for (int k = lane % 8 * V; k < H; k += 8 * V) {
      const Pack<E, V> some = *(const Pack<E, V>*)(row + k);
      #pragma unroll
      for (int e = 0; e < V; ++e) s += (A)get(some.v[e]) * state[k + e]; }
    for (int m = 4; m; m >>= 1) s += sum_with(s, m);
    return s; };
"""

_SHUFFLE = """
__device__ __forceinline__ float sum_with(float v, int m) {
  return __int_as_float(__shfl_xor_sync(~0u, (int)__float_as_uint(v), m)); }
__device__ __forceinline__ double sum_with(double v, int m) {
  union { double d; int w[2]; } u; u.d = v;
  u.w[0] = __shfl_xor_sync(~0u, u.w[0], m); u.w[1] = __shfl_xor_sync(~0u, u.w[1], m);
  return u.d; }
"""

CLUSTER = f"""
template <typename T> __device__ __forceinline__ T* of_block(T* own, u32 block) {{
  u64 there;
  asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"((u64)own), "r"(block));
  return (T*)there; }}
{MEET}"""
"""Where another block of the cluster has what this one has at an address, and a barrier of all."""


def _step(request: KernelRequest, weights: str) -> str:
    """Return statements that make `mine`, a block's part of the next state, and an LSTM's `c`.

    Of the state `h`, the inputs' share `x`, the biases, and the weights at an address.
    """

    def rows(gates: str, before: str = "(A)x[row] + ", state: str = "h") -> str:
        """Return the sums of gates from the first of them on, up to the last."""
        first, _, last = gates.partition(" to ")
        return f"""
    for (int at = {first} * U + warp * 4; at < {last} * U; at += 4 * WARPS) {{
      const int q = at + lane / 8, row = q / U * H + lo + q % U;
      const bool there = q < {last} * U && q % U < units;
      const A more = there ? {before}bias(row) : (A)0;
      const A s = dot({weights}, {state});
      if (there && lane % 8 == 0) g[q] = more + s; }}
    __syncthreads();"""

    if request.operator == "RNN":
        return rows("0 to 1") + "\n    each_unit(mine[u] = f0(g[u]);)"
    if request.operator == "LSTM":
        peepholes = operand(request, _PEEPHOLES) is not None

        def peep(place: int, state: str) -> str:
            return f" + (A)get(p[{place} * H + lo + u]) * {state}" if peepholes else ""

        forget = f"f0(g[2 * U + u]{peep(2, 'c[u]')})"
        if integer(request, "input_forget"):
            forget = "1 - admit"
        return (
            rows("0 to 4")
            + f"""
    each_unit(
      const A admit = f0(g[u]{peep(0, "c[u]")});
      const A forget = {forget};
      const A cell = forget * c[u] + admit * f1(g[3 * U + u]);
      const A emit = f0(g[U + u]{peep(1, "cell")});
      mine[u] = emit * f2(cell); if (live) c[u] = cell;)"""
        )
    blend = "mine[u] = n + f0(g[u]) * (h[lo + u] - n);"
    if integer(request, "linear_before_reset"):
        # The recurrent share of the candidate is apart: the reset gate scales it.
        return (
            rows("0 to 3", "(row < 2 * H ? (A)x[row] : (A)0) + ")
            + f"""
    each_unit(
      const int row = 2 * H + lo + u;
      const A n = f1((A)x[row] + input_bias(row) + f0(g[U + u]) * g[2 * U + u]);
      {blend})"""
        )
    return (
        rows("0 to 2")
        + """
    each_unit(mine[u] = f0(g[U + u]) * h[lo + u];)
    spread(reset);"""
        + rows("2 to 3", state="reset")
        + f"""
    each_unit(const A n = f1(g[2 * U + u]); {blend})"""
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    sizes = _Sizes.of(request)
    if sizes.batch == 0 or sizes.hidden == 0:
        return []
    launches = _inputs(binding, sizes)
    kind = computed(required(request).dtype)
    functions = [_functions(request, each, kind) for each in range(sizes.directions)]
    if len(set(functions)) == 1:
        return launches + _sequences(binding, sizes, range(sizes.directions), functions[0])
    for direction, own in enumerate(functions):
        launches += _sequences(binding, sizes, range(direction, direction + 1), own)
    return launches


def _inputs(binding: Binding, sizes: _Sizes) -> list[Enqueue]:
    """Launch the product of all inputs with the weights of all directions."""
    kind = computed(required(binding.request).dtype)
    return tiled_product(
        binding,
        (sizes.rows, sizes.directions * sizes.width, sizes.inputs),
        1,
        kind=kind,
        left=f"get(x[(long long)i * {sizes.inputs} + q])",
        right=f"get(w[(long long)j * {sizes.inputs} + q])",
        final="y[place] = s;",
        parameters=[*given(binding, {"x": 0, "w": 1}), (f"{kind}* y", binding.workspace)],
    )


def _sequences(binding: Binding, sizes: _Sizes, directions: range, functions: str) -> list[Enqueue]:
    """Launch the blocks of every sequence in these directions, which have the same activations."""
    request = binding.request
    sharing = _Sharing.of(request, binding.machine)
    names = {"r": 2, "b": _BIAS, "lengths": _LENGTHS, "h0": _INITIAL_H}
    if request.operator == "LSTM":
        names |= {"c0": _INITIAL_C, "p": _PEEPHOLES}
    kind = computed(required(request).dtype)
    outputs = results(binding, {"y": 0, "yh": 1, "yc": 2})
    states = sizes.directions * sizes.rows * sizes.width * _width_of(request)
    parameters = [
        *given(binding, names),
        (f"const {kind}* inputs", binding.workspace),
        (f"{kind}* states", binding.workspace + states),
        *outputs,
    ]
    written = [text.rpartition(" ")[2] for text, _ in outputs]
    source = _source(request, sizes, sharing, directions, functions, written, parameters)
    return [
        binding.kernel(
            source,
            [address for _, address in parameters],
            grid=(sharing.blocks * sizes.batch, len(directions), 1),
            block=sharing.threads,
            shared_bytes=sharing.weights_bytes,
        )
    ]


def _source(
    request: KernelRequest,
    sizes: _Sizes,
    sharing: _Sharing,
    directions: range,
    functions: str,
    written: Sequence[str],
    parameters: Sequence[tuple[str, int]],
) -> str:
    """Return the kernel; a grid of (blocks of all sequences, directions)."""
    data = required(request)
    element = stored(data.dtype)
    hidden, width, batch, time = sizes.hidden, sizes.width, sizes.batch, sizes.time
    vector = next(each for each in (16 // data.dtype.itemsize, 4, 2, 1) if hidden % each == 0)
    is_linear = request.operator == "GRU" and integer(request, "linear_before_reset")
    own_bias, input_bias = "(A)0", "(A)0"
    if operand(request, _BIAS) is not None:
        input_bias = "(A)get(b[row])"
        own_bias = f"{input_bias} + (A)get(b[{width} + row])"
        if is_linear:
            # Of the candidate only the recurrent share is scaled by the reset gate.
            own_bias = f"row < {2 * hidden} ? {own_bias} : (A)get(b[{width} + row])"
    place = f"n * {sizes.directions} + d" if sizes.layout else f"d * {batch} + n"
    row = f"n * {time} + t" if sizes.layout else f"t * {batch} + n"
    sequence = (
        f"((n * {time}LL + t) * {sizes.directions} + d) * {hidden}"
        if sizes.layout
        else f"((long long)(t * {sizes.directions} + d) * {batch} + n) * {hidden}"
    )
    to = f"To<{element}>::of"
    result = f"y[{sequence} + lo + u] = {to}(live ? mine[u] : (A)0);" if "y" in written else ""
    state = f"({place}) * {hidden} + lo + u"
    ends = (f"yh[{state}] = {to}(h[lo + u]); " if "yh" in written else "") + (
        f"yc[{state}] = {to}(c[u]);" if "yc" in written else ""
    )
    start_h = f"(A)get(h0[({place}) * {hidden} + u])" if _has(request, _INITIAL_H) else "(A)0"
    is_lstm = request.operator == "LSTM"
    start_c = f"(A)get(c0[{state}])" if is_lstm and _has(request, _INITIAL_C) else "(A)0"
    reverse = integers(request, "reverse")
    backwards = " || ".join(f"d == {each}" for each in directions if reverse[each]) or "false"
    live = "t < (long long)lengths[n]" if _has(request, _LENGTHS) else "true"
    count = _state(sizes, sharing.units)
    memory = f"__shared__ A memory[{count}];"
    if not sharing.state_is_shared:
        memory = f"A* memory = states + (d * {batch} + n) * {count};"
    spread = f"""
    for (int i = threadIdx.x; i < units * {sharing.blocks}; i += {sharing.threads})
      *of_block(to + lo + i % units, i / units) = mine[i % units];
    meet();"""
    if sharing.blocks == 1:
        spread = "each_unit(to[u] = mine[u];) __syncthreads();"
    # All lanes of a warp add up together; where there is no row, the first is another time.
    weights, own = "r + (long long)(there ? row : lo) * H", ""
    if sharing.weights_bytes:
        weights = "weights + (there ? q : 0) * H"
        own = f"""
  extern __shared__ __align__(16) u8 rows_of_weights[];
  E* weights = (E*)rows_of_weights;
  for (int i = threadIdx.x * V; i < {sizes.gates} * U * H; i += {sharing.threads} * V) {{
    const int q = i / H, row = q / U * H + lo + q % U;
    if (q % U < units)
      *(Pack<E, V>*)(weights + i) = *(const Pack<E, V>*)(r + (long long)row * H + i % H); }}"""
    whose = f"""
  typedef {element} E;
  const int H = {hidden}, U = {sharing.units}, V = {vector}, WARPS = {sharing.threads // 32};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long n = blockIdx.x / {sharing.blocks};
  const int d = {directions.start} + blockIdx.y, lo = blockIdx.x % {sharing.blocks} * U;
  const int units = H - lo < U ? H - lo : U;
  r += (long long)d * {width * hidden};"""
    # What is constant may be fetched while the kernel ahead still runs.
    prefetch, late = (whose + own, "") if 2 in request.constants else ("", whose + own)
    body = f"""{late}
  {f"b += d * {2 * width};" if _has(request, _BIAS) else ""}
  {f"p += d * {3 * hidden};" if is_lstm and _has(request, _PEEPHOLES) else ""}
  #define each_unit(...) for (int u = threadIdx.x; u < units; u += {sharing.threads}) \\
    {{ __VA_ARGS__ }}
  {memory}
  A* h = memory; A* next = h + H; A* reset = next + H; (void)reset;
  A* mine = reset + H; A* c = mine + U; A* g = c + U;
  {_DOT}
  auto bias = [&](int row) -> A {{ return {own_bias}; }};
  auto input_bias = [&](int row) -> A {{ return {input_bias}; }}; (void)input_bias;
  auto spread = [&](A* to) {{ __syncthreads(); {spread} }};
  for (int u = threadIdx.x; u < H; u += {sharing.threads}) h[u] = {start_h};
  each_unit(c[u] = {start_c};)
  {"__syncthreads();" if sharing.blocks == 1 else "meet();"}
  for (int step = 0; step < {time}; ++step) {{
    const long long t = {backwards} ? {time - 1} - step : step;
    const A* x = inputs + (({row}) * {sizes.directions}LL + d) * {width};
    const bool live = {live}; (void)live;
    {_step(request, weights)}
    each_unit({result} if (!live) mine[u] = h[lo + u];)
    spread(next);
    A* last = h; h = next; next = last; }}
  each_unit({ends})"""
    extra = _SHUFFLE + (CLUSTER if sharing.blocks > 1 else "") + functions
    return kernel_source(
        [text for text, _ in parameters],
        body,
        threads=sharing.threads,
        extra=extra,
        blocks=1,
        cluster=sharing.blocks,
        prefetch=prefetch,
    )


def _has(request: KernelRequest, position: int) -> bool:
    return operand(request, position) is not None


LAYERS = simple_kernel(
    "recurrent", ("RNN", "GRU", "LSTM"), _bind, accepts=_accepts, workspace=_workspace
)

KERNEL_FAMILY: tuple[CudaKernel, ...] = (LAYERS,)
