"""Normalisations, a row at a time, by a group of threads each: `rows` says what a row is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    number,
    operand,
    required,
    result,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.rows import GROUP, Rows, choose_floats
from aegis_pipe.device.cuda.kernels.source import (
    Walk,
    broadcast_strides,
    computed,
    kernel_source,
    literal,
    stored,
)


@dataclass(slots=True)
class _Normalisation:
    """What is normalised, and what is done with the result."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    load: str
    """Expression of an element at `p` (its position in X), `row` and `r`."""
    is_centred: bool
    epsilon: float
    write: str
    """Expression of the result from the normalised `z`, `p`, `row`, `r`."""
    parameters: list[tuple[str, int | None]]
    after: str = ""
    """Further statements for each element, of the loaded `u`."""
    last: str = ""
    """Statements for the first thread of a row, of `mean` and `inverse`."""


def _normalise(binding: Binding, what: _Normalisation) -> Sequence[Enqueue]:
    target = result(binding.request)
    rows = Rows.of(what.shape, what.axes)
    if rows.row_count == 0 or rows.length == 0:
        return []
    kind, y = computed(target.dtype), stored(target.dtype)
    where = rows.position("row", "r")
    load = f"([&]() -> A {{ const long long p = {where}; return (A)({what.load}); }}())"
    mean = ""
    if what.is_centred:
        mean = f"""
  {rows.each("mean += V(j, r);")}
  mean = together<T>(mean, add) / (A){rows.length};"""
    epsilon = literal(what.epsilon, kind)
    body = (
        rows.begin(kind, load)
        + f"""
  auto add = [](A a, A b) {{ return a + b; }};
  A mean = 0, square = 0;{mean}
  {rows.each("A d = V(j, r) - mean; square += d * d;")}
  const A inverse = 1 / sqrt(together<T>(square, add) / (A){rows.length} + {epsilon});
  {
            rows.each(
                f"const long long p = {where}; const A u = V(j, r); "
                f"const A z = (u - mean) * inverse; "
                f"y[p] = To<{y}>::of({what.write}); {what.after}"
            )
        }
  if (lane == 0) {{ {what.last} }}"""
    )
    parameters = [*(text for text, _ in what.parameters), f"{y}* y"]
    code = kernel_source(parameters, body, threads=rows.block, extra=GROUP)
    arguments = [*(address for _, address in what.parameters), binding.outputs[0]]
    return [binding.kernel(code, arguments, grid=rows.grid, block=rows.block)]


def _given(binding: Binding, position: int, name: str) -> list[tuple[str, int | None]]:
    spec = operand(binding.request, position)
    if spec is None:
        return []
    return [(f"const {stored(spec.dtype)}* {name}", binding.inputs[position])]


def _bind_layer(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source, axis = required(request), integer(request, "axis")
    is_centred = request.operator == "LayerNormalization"
    write = "z"
    parameters = _given(binding, 0, "x")
    for position, name, sign in ((1, "scale", "*"), (2, "shift", "+")):
        spec = operand(request, position)
        if spec is not None:
            walk = Walk.of(source.shape, [broadcast_strides(spec.shape, source.shape)])
            write = f"{write} {sign} get({name}[{walk.offset(0, '(unsigned)p')}])"
            parameters += _given(binding, position, name)
    last = ""
    for position, name in ((1, "mean"), (2, "inverse")):
        if position < len(request.outputs) and request.outputs[position] is not None:
            spec = result(request, position)
            parameters.append((f"{stored(spec.dtype)}* y{position}", binding.outputs[position]))
            last += f"y{position}[row] = To<{stored(spec.dtype)}>::of({name}); "
    return _normalise(
        binding,
        _Normalisation(
            source.shape,
            tuple(range(axis, len(source.shape))),
            "get(x[p])",
            is_centred,
            number(request, "epsilon"),
            write,
            parameters,
            last=last,
        ),
    )


def _bind_skip(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source = required(request)
    width = source.shape[-1]
    skip = required(request, 1)
    walk = Walk.of(source.shape, [broadcast_strides(skip.shape, source.shape)])
    load, write = (
        f"get(x[p]) + get(skip[{walk.offset(0, '(unsigned)p')}])",
        f"z * get(scale[p % {width}])",
    )
    parameters = [
        *_given(binding, 0, "x"),
        *_given(binding, 1, "skip"),
        *_given(binding, 2, "scale"),
        *_given(binding, 3, "shift"),
        *_given(binding, 4, "bias"),
    ]
    if operand(request, 4) is not None:
        load += f" + get(bias[p % {width}])"
    if operand(request, 3) is not None:
        write += f" + get(shift[p % {width}])"
    after, last = "", ""
    for position, name in ((1, "mean"), (2, "inverse"), (3, "")):
        if position < len(request.outputs) and request.outputs[position] is not None:
            kind = stored(result(request, position).dtype)
            parameters.append((f"{kind}* y{position}", binding.outputs[position]))
            if name:
                last += f"y{position}[row] = To<{kind}>::of({name}); "
            else:
                after = f"y{position}[p] = To<{kind}>::of(u);"
    is_centred = "Simplified" not in request.operator
    axes = (len(source.shape) - 1,)
    epsilon = number(request, "epsilon")
    return _normalise(
        binding,
        _Normalisation(
            source.shape, axes, load, is_centred, epsilon, write, parameters, after, last
        ),
    )


def _bind_channels(binding: Binding) -> Sequence[Enqueue]:
    source = required(binding.request)
    axes = tuple(range(2, len(source.shape)))
    return _scaled(binding, source.shape, axes, f"row % {source.shape[1]}")


def _bind_group(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source, groups = required(request), integer(request, "num_groups")
    batch, channels, *space = source.shape
    inner = math.prod(space)
    index = f"(p / {max(1, inner)}) % {channels}"
    if required(request, 1).shape[0] != channels:
        index = f"row % {groups}"
    return _scaled(binding, (batch * groups, channels // groups * inner), (1,), index)


def _scaled(
    binding: Binding, shape: tuple[int, ...], axes: tuple[int, ...], index: str
) -> Sequence[Enqueue]:
    """Normalise an operand as of this shape over axes; scale and shift it by elements `index`."""
    what = _Normalisation(
        shape,
        axes,
        "get(x[p])",
        True,
        number(binding.request, "epsilon"),
        f"z * get(scale[{index}]) + get(shift[{index}])",
        [*_given(binding, 0, "x"), *_given(binding, 1, "scale"), *_given(binding, 2, "shift")],
    )
    return _normalise(binding, what)


def _bind_mean_variance(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    axes = integers(request, "axes")
    what = _Normalisation(
        required(request).shape, axes, "get(x[p])", True, 1e-9, "z", _given(binding, 0, "x")
    )
    return _normalise(binding, what)


def _bind_lp(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source = required(request)
    rows = Rows.of(source.shape, (integer(request, "axis"),))
    if rows.row_count == 0 or rows.length == 0:
        return []
    kind, y = computed(source.dtype), stored(source.dtype)
    where = rows.position("row", "r")
    is_square = integer(request, "p") == 2
    term, root = ("v * v", "sqrt(s)") if is_square else ("(v < 0 ? -v : v)", "s")
    body = (
        rows.begin(kind, f"get(x[{where}])")
        + f"""
  A s = 0;
  {rows.each(f"A v = V(j, r); s += {term};")}
  s = together<T>(s, [](A a, A b) {{ return a + b; }});
  const A f = {root};
  {rows.each(f"y[{where}] = To<{y}>::of(f == 0 ? (A)0 : V(j, r) / f);")}"""
    )
    code = kernel_source([f"const {y}* x", f"{y}* y"], body, threads=rows.block, extra=GROUP)
    arguments = [binding.inputs[0], binding.outputs[0]]
    return [binding.kernel(code, arguments, grid=rows.grid, block=rows.block)]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        choose_floats,
        _bind_layer,
    ),
    CudaKernel(
        (
            "com.microsoft.SkipLayerNormalization",
            "com.microsoft.SkipSimplifiedLayerNormalization",
        ),
        choose_floats,
        _bind_skip,
    ),
    CudaKernel(("InstanceNormalization",), choose_floats, _bind_channels),
    CudaKernel(("GroupNormalization",), choose_floats, _bind_group),
    CudaKernel(("MeanVarianceNormalization",), choose_floats, _bind_mean_variance),
    CudaKernel(("LpNormalization",), choose_floats, _bind_lp),
)
