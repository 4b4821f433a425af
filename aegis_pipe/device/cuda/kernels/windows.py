"""Windows that slide over images: convolutions and pools of any rank, channels first or last.

These are the kernels for whatever the libraries do not take: one thread a result, in float32 at
least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    numbers,
    operand,
    required,
    result,
    text,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.rows import reduce_launch
from aegis_pipe.device.cuda.kernels.source import (
    FLOATS,
    NUMBERS,
    blocks_for,
    computed,
    dense_strides,
    kernel_source,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_THREADS = 256


def is_channels_last(operator: str) -> bool:
    """Return whether an operator's images have their channels in the last dimension."""
    return ".Nhwc" in operator


def space_of(shape: Sequence[int], last: bool) -> tuple[int, ...]:
    """Return the spatial dimensions."""
    return tuple(shape[1:-1] if last else shape[2:])


def strides_of(shape: Sequence[int], last: bool) -> tuple[int, int, tuple[int, ...]]:
    """Return strides of the image, the channel and each spatial dimension."""
    dense = dense_strides(shape)
    return (dense[0], dense[-1], dense[1:-1]) if last else (dense[0], dense[1], dense[2:])


def channels_of(shape: Sequence[int], last: bool) -> int:
    """Return the number of channels."""
    return shape[-1] if last else shape[1]


def unpack(shape: Sequence[int], last: bool) -> str:
    """Return statements that set `n`, `c` and `o0`, `o1`, ... from the index `i` of a result."""
    space = space_of(shape, last)
    order = [("n", shape[0])]
    places = [(f"o{axis}", size) for axis, size in enumerate(space)]
    channel = ("c", channels_of(shape, last))
    order += [*places, channel] if last else [channel, *places]
    lines = ["long long rest = i;"]
    for name, size in reversed(order):
        lines.append(f"const long long {name} = rest % {max(1, size)}; rest /= {max(1, size)};")
    return " ".join(lines)


def activated(request: KernelRequest, kind: str) -> str:
    """Return a C expression of `a` for the activation a request ends with."""
    name = text(request, "activation") if "activation" in request.attributes else ""
    parameters = (
        numbers(request, "activation_params") if "activation_params" in request.attributes else ()
    )
    if name == "Relu":
        return "(a < 0 ? 0 : a)"
    if name == "Clip":
        low, high = (literal(value, kind) for value in parameters)
        return f"(a < {low} ? {low} : a > {high} ? {high} : a)"
    if name == "LeakyRelu":
        return f"(a < 0 ? a * {literal(parameters[0], kind)} : a)"
    if name == "HardSigmoid":
        alpha, beta = (literal(value, kind) for value in parameters)
        return f"fmin((A)1, fmax((A)0, a * {alpha} + {beta}))"
    return {
        "": "a",
        "Sigmoid": "1 / (1 + exp(-a))",
        "Tanh": "tanh(a)",
        "Swish": "a / (1 + exp(-a))",
    }[name]


def is_known_activation(request: KernelRequest) -> bool:
    """Return whether `activated` knows it."""
    name = text(request, "activation") if "activation" in request.attributes else ""
    return name in ("", "Relu", "Clip", "LeakyRelu", "HardSigmoid", "Sigmoid", "Tanh", "Swish")


def _choose_conv(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if required(request).dtype not in FLOATS or not is_known_activation(request):
        return None
    weights = required(request, 1)
    cost = float(result(request).element_count * math.prod(weights.shape[1:]))
    return KernelChoice("conv.direct", cost=cost)


def _bind_conv(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    last = is_channels_last(request.operator)
    source, weights, target = required(request), required(request, 1), result(request)
    if target.element_count == 0:
        return []
    kind = computed(target.dtype)
    space, kernel = space_of(source.shape, last), weights.shape[2:]
    rank, group = len(kernel), integer(request, "group")
    image, channel, steps = strides_of(source.shape, last)
    per_group = weights.shape[1]
    outputs = weights.shape[0] // group
    strides, dilations, pads = (integers(request, n) for n in ("strides", "dilations", "pads"))
    loops, closes = "", ""
    where = f"n * {image}LL + (g * {per_group} + q) * {channel}LL"
    tap = "0"
    for axis in range(rank):
        loops += (
            f"for (int t{axis} = 0; t{axis} < {kernel[axis]}; ++t{axis}) {{ "
            f"const long long s{axis} = o{axis} * {strides[axis]} + t{axis} * {dilations[axis]} "
            f"- ({pads[axis]}); if (s{axis} < 0 || s{axis} >= {space[axis]}) continue;\n"
        )
        closes += "}"
        where += f" + s{axis} * {steps[axis]}LL"
        tap = f"({tap}) * {kernel[axis]} + t{axis}"
    taps = math.prod(kernel)
    body = f"""
  typedef {kind} A;
  const long long i = (long long)blockIdx.x * {_THREADS} + threadIdx.x;
  if (i >= {target.element_count}LL) return;
  {unpack(target.shape, last)}
  const long long g = c / {outputs};
  A a = {"get(b[c])" if operand(request, 2) is not None else "0"};
  {loops}
  for (int q = 0; q < {per_group}; ++q)
    a += (A)get(x[{where}]) * (A)get(w[(c * {per_group} + q) * {taps} + ({tap})]);
  {closes}
  {"a += get(z[i]);" if operand(request, 3) is not None else ""}
  y[i] = To<{stored(target.dtype)}>::of({activated(request, kind)});"""
    element = stored(source.dtype)
    names = [
        name for name, at in zip("xwbz", range(4), strict=True) if operand(request, at) is not None
    ]
    parameters = [*(f"const {element}* {name}" for name in names), f"{element}* y"]
    code = kernel_source(parameters, body, threads=_THREADS)
    arguments = [*binding.given(), binding.outputs[0]]
    grid = blocks_for(target.element_count, _THREADS)
    return [binding.kernel(code, arguments, grid=grid, block=_THREADS)]


def _choose_transposed(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if required(request).dtype not in FLOATS:
        return None
    return KernelChoice("conv.transposed")


def _bind_transposed(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source, weights, target = required(request), required(request, 1), result(request)
    if target.element_count == 0:
        return []
    kind = computed(target.dtype)
    space, kernel, group = source.shape[2:], weights.shape[2:], integer(request, "group")
    image, channel, steps = strides_of(source.shape, False)
    inputs, outputs = source.shape[1] // group, weights.shape[1]
    strides, dilations, pads = (integers(request, n) for n in ("strides", "dilations", "pads"))
    loops, closes, tap = "", "", "0"
    where = f"n * {image}LL + (g * {inputs} + q) * {channel}LL"
    for axis in range(len(kernel)):
        loops += (
            f"for (int t{axis} = 0; t{axis} < {kernel[axis]}; ++t{axis}) {{ "
            f"const long long u{axis} = o{axis} + ({pads[axis]}) - t{axis} * {dilations[axis]}; "
            f"if (u{axis} < 0 || u{axis} % {strides[axis]}) continue; "
            f"const long long s{axis} = u{axis} / {strides[axis]}; "
            f"if (s{axis} >= {space[axis]}) continue;\n"
        )
        closes += "}"
        where += f" + s{axis} * {steps[axis]}LL"
        tap = f"({tap}) * {kernel[axis]} + t{axis}"
    body = f"""
  typedef {kind} A;
  const long long i = (long long)blockIdx.x * {_THREADS} + threadIdx.x;
  if (i >= {target.element_count}LL) return;
  {unpack(target.shape, False)}
  const long long g = c / {outputs}, m = c % {outputs};
  A a = {"get(b[c])" if operand(request, 2) is not None else "0"};
  {loops}
  for (int q = 0; q < {inputs}; ++q)
    a += (A)get(x[{where}])
       * (A)get(w[((g * {inputs} + q) * {outputs} + m) * {math.prod(kernel)} + ({tap})]);
  {closes}
  y[i] = To<{stored(target.dtype)}>::of(a);"""
    element = stored(source.dtype)
    names = [
        name for name, at in zip("xwb", range(3), strict=True) if operand(request, at) is not None
    ]
    parameters = [*(f"const {element}* {name}" for name in names), f"{element}* y"]
    code = kernel_source(parameters, body, threads=_THREADS)
    arguments = [*binding.given(), binding.outputs[0]]
    grid = blocks_for(target.element_count, _THREADS)
    return [binding.kernel(code, arguments, grid=grid, block=_THREADS)]


# --- Pools ------------------------------------------------------------------------------------


def _choose_pool(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    dtypes = NUMBERS if "MaxPool" in request.operator else FLOATS
    if required(request).dtype not in dtypes:
        return None
    return KernelChoice(f"pool.{request.operator.rpartition('.')[2].lower()}")


def _bind_pool(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    last = is_channels_last(request.operator)
    source, target = required(request), result(request)
    if target.element_count == 0:
        return []
    kernel = integers(request, "kernel_shape")
    is_max = "MaxPool" in request.operator
    is_mean = "AveragePool" in request.operator
    space = space_of(source.shape, last)
    if (
        _is_whole(request, kernel, space, target.shape, last)
        and "Lp" not in request.operator
        and last
    ):
        axes = tuple(range(1, len(source.shape) - 1))
        return reduce_launch(binding, source.shape, axes, "ReduceMax" if is_max else "ReduceMean")
    kind = computed(source.dtype)
    image, channel, steps = strides_of(source.shape, last)
    strides, dilations, pads = (integers(request, n) for n in ("strides", "dilations", "pads"))
    rank = len(kernel)
    counts_pads = is_mean and integer(request, "count_include_pad")
    loops, closes, where = "", "", f"n * {image}LL + c * {channel}LL"
    counted = ""
    for axis in range(rank):
        loops += (
            f"for (int t{axis} = 0; t{axis} < {kernel[axis]}; ++t{axis}) {{ "
            f"const long long s{axis} = o{axis} * {strides[axis]} + t{axis} * {dilations[axis]} "
            f"- ({pads[axis]});\n"
        )
        if counts_pads:
            loops += f"if (s{axis} >= {space[axis] + pads[rank + axis]}) continue;\n"
        else:
            loops += f"if (s{axis} < 0 || s{axis} >= {space[axis]}) continue;\n"
        closes += "}"
        where += f" + s{axis} * {steps[axis]}LL"
    if counts_pads:
        outside = " || ".join(f"s{a} < 0 || s{a} >= {space[a]}" for a in range(rank))
        counted = f"++count; if ({outside}) continue;"
    elif is_mean:
        counted = "++count;"
    parameters = [f"const {stored(source.dtype)}* x", f"{stored(target.dtype)}* y"]
    arguments = [binding.inputs[0], binding.outputs[0]]
    start, step, end = "0", "a += v;", "a / (A)count"
    track = finish = ""
    if is_max:
        start, end = "0", "a"
        step = "if (!any || v > a || v != v) { a = v; any = true; <track> }"
    elif not is_mean:
        power = integer(request, "p")
        step = {1: "a += fabs(v);", 2: "a += v * v;"}.get(power, f"a += pow(fabs(v), (A){power});")
        end = {1: "a", 2: "sqrt(a)"}.get(power, f"pow(a, (A)1 / {power})")
    if len(request.outputs) > 1 and request.outputs[1] is not None:
        parameters.append("i64* at")
        arguments.append(binding.outputs[1])
        track = "best = " + _indices(request, source.shape, rank) + ";"
        finish = "at[i] = best;"
    step = step.replace("<track>", track)
    body = f"""
  typedef {kind} A;
  const long long i = (long long)blockIdx.x * {_THREADS} + threadIdx.x;
  if (i >= {target.element_count}LL) return;
  {unpack(target.shape, last)}
  A a = {start}; bool any = false; long long best = 0; int count = 0;
  {loops} {counted} const A v = get(x[{where}]); {step} {closes}
  (void)any; (void)best; (void)count;
  y[i] = To<{stored(target.dtype)}>::of({end}); {finish}"""
    code = kernel_source(parameters, body, threads=_THREADS)
    grid = blocks_for(target.element_count, _THREADS)
    return [binding.kernel(code, arguments, grid=grid, block=_THREADS)]


def _is_whole(
    request: KernelRequest,
    kernel: Sequence[int],
    space: Sequence[int],
    target: Sequence[int],
    last: bool,
) -> bool:
    """Return whether there is one window, which covers all of space and no pads."""
    single = all(size == 1 for size in space_of(target, last))
    return single and tuple(kernel) == tuple(space) and not any(integers(request, "pads"))


def _indices(request: KernelRequest, shape: Sequence[int], rank: int) -> str:
    """Return the index of a tap within the whole of X."""
    space = list(shape[2:])
    axes = list(range(rank))
    if integer(request, "storage_order") and rank > 1:
        # Column-major: the first spatial dimension is the innermost one.
        axes = axes[::-1]
    flat = "0"
    for axis in axes:
        flat = f"({flat}) * {space[axis]}LL + s{axis}"
    return f"(n * {shape[1]}LL + c) * {math.prod(space)}LL + {flat}"


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(
        ("Conv", "com.microsoft.FusedConv", "com.microsoft.NhwcFusedConv"),
        _choose_conv,
        _bind_conv,
    ),
    CudaKernel(("ConvTranspose",), _choose_transposed, _bind_transposed),
    CudaKernel(
        (
            "MaxPool",
            "AveragePool",
            "LpPool",
            "com.microsoft.NhwcMaxPool",
            "aegis.NhwcAveragePool",
        ),
        _choose_pool,
        _bind_pool,
    ),
)
