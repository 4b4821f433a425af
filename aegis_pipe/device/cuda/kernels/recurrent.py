"""RNN, GRU and LSTM: one product for the inputs of all time steps, then a block per sequence.

A block keeps one sequence's state and goes from step to step; a warp computes one row of gates at
a time, reading its weights in order. Sequences of different length keep their state where they
have ended, so that a reversed direction starts each at its own last element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aegis_pipe.device.cuda.kernels.each import each, given, launch, results, simple_kernel
from aegis_pipe.device.cuda.kernels.nested import bind_nested, nested_choice
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
    FLOAT32,
    FLOATS,
    INTEGERS,
    computed,
    literal,
    stored,
)
from aegis_pipe.device.cuda.kernels.tiles import tiled_product
from aegis_pipe.device.requests import texts
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
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

    @property
    def state(self) -> int:
        """Numbers that a block keeps: two states, what it works on, and all gates."""
        return 3 * self.hidden + self.width


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
    """Return room for the gates' share of the inputs, and for the state of every sequence."""
    sizes = _Sizes.of(request)
    numbers_kept = sizes.rows * sizes.width + sizes.batch * sizes.state
    return sizes.directions * numbers_kept * _width_of(request)


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


_ROW = """
  // A warp's sum over a row of weights times the state.
  auto dot = [&](const E* weights, const A* state) {
    A s = 0;
    for (int k = lane; k < H; k += 32) s += (A)get(weights[k]) * state[k];
    for (int m = 16; m; m >>= 1) s += sum_with(s, m);
    return s; };
  auto bias = [&](int row) -> A { return <bias>; };
"""

_SHUFFLE = """
__device__ __forceinline__ float sum_with(float v, int m) {
  return __int_as_float(__shfl_xor_sync(~0u, (int)__float_as_uint(v), m)); }
__device__ __forceinline__ double sum_with(double v, int m) {
  union { double d; int w[2]; } u; u.d = v;
  u.w[0] = __shfl_xor_sync(~0u, u.w[0], m); u.w[1] = __shfl_xor_sync(~0u, u.w[1], m);
  return u.d; }
"""


def _step(request: KernelRequest) -> str:
    """Return statements that make `next` (and for an LSTM `cell`) of `h`, `c` and the inputs."""
    gates = """
    for (int row = warp; row < <rows>; row += WARPS) {
      const A s = dot(r + (long long)row * H, h);
      if (lane == 0) g[row] = <pre>s + bias(<bias row>); }
    __syncthreads();"""

    def rows(count: str, before: str = "(A)x[row] + ", bias_row: str = "row") -> str:
        text = gates.replace("<rows>", count).replace("<pre>", before)
        return text.replace("<bias row>", bias_row)

    if request.operator == "RNN":
        return rows("H") + "\n    each_unit(next[u] = f0(g[u]);)"
    if request.operator == "LSTM":
        peepholes = operand(request, _PEEPHOLES) is not None

        def peep(place: int, state: str) -> str:
            return f" + (A)get(p[{place} * H + u]) * {state}" if peepholes else ""

        forget = f"f0(g[2 * H + u]{peep(2, 'c[u]')})"
        if integer(request, "input_forget"):
            forget = "1 - admit"
        return (
            rows("4 * H")
            + f"""
    each_unit(
      const A admit = f0(g[u]{peep(0, "c[u]")});
      const A forget = {forget};
      const A cell = forget * c[u] + admit * f1(g[3 * H + u]);
      const A emit = f0(g[H + u]{peep(1, "cell")});
      next[u] = emit * f2(cell); g[u] = cell;)"""
        )
    blend = "next[u] = n + f0(g[u]) * (h[u] - n);"
    if integer(request, "linear_before_reset"):
        # The recurrent share of the candidate is apart: the reset gate scales it.
        inner = """
    for (int row = warp; row < 3 * H; row += WARPS) {
      const A s = dot(r + (long long)row * H, h);
      if (lane == 0) g[row] = (row < 2 * H ? (A)x[row] : (A)0) + s + bias(row); }
    __syncthreads();"""
        return (
            inner
            + f"""
    each_unit(
      const A n = f1((A)x[2 * H + u] + input_bias(2 * H + u) + f0(g[H + u]) * g[2 * H + u]);
      {blend})"""
        )
    return (
        rows("2 * H")
        + f"""
    each_unit(next[u] = f0(g[H + u]) * h[u];)
    __syncthreads();
    for (int row = warp; row < H; row += WARPS) {{
      const A s = dot(r + (long long)(2 * H + row) * H, next);
      if (lane == 0) g[2 * H + row] = (A)x[2 * H + row] + s + bias(2 * H + row); }}
    __syncthreads();
    each_unit(const A n = f1(g[2 * H + u]); {blend})"""
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    sizes = _Sizes.of(request)
    launches: list[Enqueue] = []
    for direction in range(sizes.directions):
        launches += _inputs(binding, sizes, direction)
        launches += _sequences(binding, sizes, direction)
    return launches


def _gate_inputs(binding: Binding, sizes: _Sizes, direction: int) -> int:
    width = _width_of(binding.request)
    return binding.workspace + direction * sizes.rows * sizes.width * width


def _inputs(binding: Binding, sizes: _Sizes, direction: int) -> list[Enqueue]:
    """Launch the product of all inputs with a direction's weights."""
    kind = computed(required(binding.request).dtype)
    weights = f"w[{direction * sizes.width * sizes.inputs}LL + (long long)j * {sizes.inputs} + q]"
    return tiled_product(
        binding,
        (sizes.rows, sizes.width, sizes.inputs),
        1,
        kind=kind,
        left=f"get(x[(long long)i * {sizes.inputs} + q])",
        right=f"get({weights})",
        final="y[place] = s;",
        parameters=[
            *given(binding, {"x": 0, "w": 1}),
            (f"{kind}* y", _gate_inputs(binding, sizes, direction)),
        ],
    )


def _sequences(binding: Binding, sizes: _Sizes, direction: int) -> list[Enqueue]:
    """Launch a block for every sequence."""
    request = binding.request
    data = required(request)
    kind, element = computed(data.dtype), stored(data.dtype)
    hidden, width, batch, time = sizes.hidden, sizes.width, sizes.batch, sizes.time
    is_linear = request.operator == "GRU" and integer(request, "linear_before_reset")
    threads = min(1024, max(64, -(-hidden // 32) * 32 * 2))
    own_bias, input_bias = "(A)0", "(A)0"
    if operand(request, _BIAS) is not None:
        first = direction * 2 * width
        input_bias = f"(A)get(b[{first} + row])"
        own_bias = f"{input_bias} + (A)get(b[{first + width} + row])"
        if is_linear:
            # Of the candidate only the recurrent share is scaled by the reset gate.
            own_bias = f"row < {2 * hidden} ? {own_bias} : (A)get(b[{first + width} + row])"
    place = f"n * {sizes.directions} + {direction}" if sizes.layout else f"{direction * batch} + n"
    row = f"n * {time} + t" if sizes.layout else f"t * {batch} + n"
    sequence = (
        f"((n * {time}LL + t) * {sizes.directions} + {direction}) * {hidden}"
        if sizes.layout
        else f"((long long)(t * {sizes.directions} + {direction}) * {batch} + n) * {hidden}"
    )
    is_lstm = request.operator == "LSTM"
    outputs = results(binding, {"y": 0, "yh": 1, "yc": 2})
    names = [text.rpartition(" ")[2] for text, _ in outputs]
    to = f"To<{element}>::of"
    keep = "h[u] = next[u];" + (" c[u] = g[u];" if is_lstm else "")
    written = f"y[{sequence} + u] = {to}(live ? next[u] : (A)0);" if "y" in names else ""
    state = f"({place}) * {hidden} + u"
    ends = (f"yh[{state}] = {to}(h[u]); " if "yh" in names else "") + (
        f"yc[{state}] = {to}(c[u]);" if "yc" in names else ""
    )
    start_h = f"(A)get(h0[{state}])" if operand(request, _INITIAL_H) is not None else "0"
    has_cell = is_lstm and operand(request, _INITIAL_C) is not None
    start_c = f"(A)get(c0[{state}])" if has_cell else "0"
    peeps = is_lstm and operand(request, _PEEPHOLES) is not None
    backwards = integers(request, "reverse")[direction]
    live = "t < (long long)lengths[n]" if operand(request, _LENGTHS) is not None else "true"
    body = f"""
  typedef {element} E;
  const int H = {hidden}, WARPS = {threads // 32};
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const long long n = blockIdx.x;
  #define each_unit(...) for (int u = threadIdx.x; u < H; u += {threads}) {{ __VA_ARGS__ }}
  A* h = states + n * {sizes.state}; A* c = h + H; A* next = c + H; A* g = next + H;
  r += {direction * width * hidden}LL;
  {f"p += {direction * 3 * hidden};" if peeps else ""}
  {_ROW.replace("<bias>", own_bias)}
  auto input_bias = [&](int row) -> A {{ return {input_bias}; }}; (void)input_bias;
  each_unit(h[u] = {start_h}; c[u] = {start_c};)
  __syncthreads();
  for (int step = 0; step < {time}; ++step) {{
    const long long t = {f"{time - 1} - step" if backwards else "step"};
    const A* x = inputs + ({row}) * {width}LL;
    const bool live = {live}; (void)live;
    {_step(request)}
    __syncthreads();
    each_unit({written} if (live) {{ {keep} }})
    __syncthreads(); }}
  each_unit({ends})"""
    state_bytes = sizes.directions * sizes.rows * width + direction * batch * sizes.state
    parameters = [
        *given(
            binding,
            {"r": 2, "b": _BIAS, "lengths": _LENGTHS, "h0": _INITIAL_H}
            | ({"c0": _INITIAL_C, "p": _PEEPHOLES} if is_lstm else {}),
        ),
        (f"const {kind}* inputs", _gate_inputs(binding, sizes, direction)),
        (f"{kind}* states", binding.workspace + state_bytes * _width_of(request)),
        *outputs,
    ]
    extra = _SHUFFLE + _functions(request, direction, kind)
    if batch == 0 or hidden == 0:
        return []
    return launch(binding, body, parameters, grid=batch, threads=threads, extra=extra, blocks=1)


_LAYERS = simple_kernel(
    "recurrent", ("RNN", "GRU", "LSTM"), _bind, accepts=_accepts, workspace=_workspace
)

# --- An LSTM whose weights are quantised ------------------------------------------------------
# X and the state stay floats; the CPU rounds them to bytes.

_EIGHT_BITS = frozenset({np.dtype(np.int8), np.dtype(np.uint8)})
_SCALES = {1: 8, 2: 10}
"""Where the scale of W and that of R are; the zero point follows."""


def _real_request(request: KernelRequest) -> KernelRequest:
    inputs = list(request.inputs[:8])
    for position in _SCALES:
        directions, rows, columns = required(request, position).shape
        inputs[position] = TensorSpec(FLOAT32, (directions, columns, rows))
    return replace(request, operator="LSTM", inputs=tuple(inputs), constants={})


def _aligned(size: int) -> int:
    return -(-size // 256) * 256


def _choose_quantised(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if any(required(request, position).dtype not in _EIGHT_BITS for position in _SCALES):
        return None
    real = _real_request(request)
    found = nested_choice(machine, (_LAYERS,), real)
    if found is None:
        return None
    weights = sum(_aligned(required(real, position).size_bytes) for position in _SCALES)
    return KernelChoice("recurrent.quantised", weights + found[1].workspace_bytes)


def _bind_quantised(binding: Binding) -> Sequence[Enqueue]:
    request, real = binding.request, _real_request(binding.request)
    addresses, free = list(binding.inputs[:8]), binding.workspace
    launches: list[Enqueue] = []
    for position, scale_at in _SCALES.items():
        spec, scale = required(request, position), required(request, scale_at)
        _, rows, columns = spec.shape
        per_column = f"d * {columns} + c" if len(scale.shape) > 1 else "d"
        place = per_column if scale.element_count > 1 else "0"
        zero = f" - (float)zero[{place}]" if operand(request, scale_at + 1) is not None else ""
        statements = f"""
  const long long k = i % {rows}, c = i / {rows} % {columns}, d = i / {rows * columns};
  (void)d; (void)c;
  y[i] = ((float)x[(d * {rows} + k) * {columns} + c]{zero}) * scale[{place}];"""
        names = given(binding, {"x": position, "scale": scale_at, "zero": scale_at + 1})
        parameters = [*names, ("float* y", free)]
        launches += each(binding, spec.element_count, statements, parameters)
        addresses[position] = free
        free += _aligned(required(real, position).size_bytes)
    return launches + bind_nested(binding, (_LAYERS,), real, addresses, binding.outputs, free)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    _LAYERS,
    CudaKernel(("com.microsoft.DynamicQuantizeLSTM",), _choose_quantised, _bind_quantised),
)
