"""Values put together or cut out: Einsum, Col2Im, CenterCropPad, LRN, statistics of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import (
    each,
    given,
    launch,
    results,
    simple_kernel,
    unravel,
)
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    number,
    required,
    result,
    text,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    FLOATS,
    NUMBERS,
    computed,
    dense_strides,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelRequest

_THREADS = 256


# --- Einsum -----------------------------------------------------------------------------------


def _bind_einsum(binding: Binding) -> Sequence[Enqueue]:
    """Sum the products over all letters that the result has not, each thread for one result."""
    request = binding.request
    terms, _, wanted = text(request, "equation").partition("->")
    sizes: dict[str, int] = {}
    for position, term in enumerate(terms.split(",")):
        for letter, size in zip(term, required(request, position).shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size) if size else 0
    target = result(request)
    kind, element = computed(target.dtype), stored(target.dtype)
    loops = "".join(
        f"for (int {letter} = 0; {letter} < {size}; ++{letter}) "
        for letter, size in sizes.items()
        if letter not in wanted
    )
    factors = []
    for position, term in enumerate(terms.split(",")):
        shape = required(request, position).shape
        places = [
            f"{letter} * {stride}LL"
            for letter, size, stride in zip(term, shape, dense_strides(shape), strict=True)
            if size > 1
        ]
        factors.append(f"(A)get(p{position}[{' + '.join(places) or '0'}])")
    statements = f"""
  typedef {kind} A;
  {unravel(target.shape, tuple(f"o_{letter}" for letter in wanted))}
  {" ".join(f"const long long {letter} = o_{letter};" for letter in wanted)}
  A total = 0;
  {loops} total += {" * ".join(factors)};
  result[out] = To<{element}>::of(total);"""
    # `i` may be a letter of the equation: the index has another name within.
    statements = f"const long long out = i; {{ {statements} }}"
    statements = statements.replace("(i) /", "(out) /")
    names = {f"p{position}": position for position in range(len(request.inputs))}
    parameters = [*given(binding, names), *results(binding, {"result": 0})]
    return each(binding, target.element_count, statements, parameters)


# --- Images -----------------------------------------------------------------------------------


def _bind_col2im(binding: Binding) -> Sequence[Enqueue]:
    """Every thread gathers for one pixel what all windows have of it."""
    request = binding.request
    target = result(request)
    _, channels, *image = target.shape
    kernel, strides = integers(request, "kernel_shape"), integers(request, "strides")
    dilations, pads = integers(request, "dilations"), integers(request, "pads")
    rank = len(image)
    counts = [
        (image[a] + pads[a] + pads[rank + a] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1
        for a in range(rank)
    ]
    names = [f"o{axis}" for axis in range(rank)]
    loops, closes, tap, window = "", "", "0", "0"
    for axis in range(rank):
        loops += (
            f"for (int t{axis} = 0; t{axis} < {kernel[axis]}; ++t{axis}) {{ "
            f"const long long s{axis} = o{axis} + {pads[axis]} - t{axis} * {dilations[axis]}; "
            f"if (s{axis} < 0 || s{axis} % {strides[axis]}) continue; "
            f"const long long w{axis} = s{axis} / {strides[axis]}; "
            f"if (w{axis} >= {counts[axis]}) continue;\n"
        )
        closes += "}"
        tap = f"({tap}) * {kernel[axis]} + t{axis}"
        window = f"({window}) * {counts[axis]} + w{axis}"
    block, windows = math.prod(kernel), math.prod(counts)
    statements = f"""
  typedef {computed(target.dtype)} A;
  {unravel(target.shape, ("n", "c", *names))}
  A a = 0;
  {loops}
  a += (A)get(x[((n * {channels} + c) * {block} + {tap}) * {windows}LL + {window}]); {closes}
  y[i] = To<{stored(target.dtype)}>::of(a);"""
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters)


def _bind_crop(binding: Binding) -> Sequence[Enqueue]:
    """Put the middle of X in the middle of Y; zeros around."""
    request = binding.request
    source, target = required(request), result(request)
    names = [f"c{axis}" for axis in range(len(target.shape))]
    places, tests = [], ["true"]
    strides = dense_strides(source.shape)
    for axis, (size, wanted) in enumerate(zip(source.shape, target.shape, strict=True)):
        cut, pad = max(size - wanted, 0) // 2, max(wanted - size, 0) // 2
        places.append(f"(c{axis} + {cut - pad}) * {strides[axis]}LL")
        if wanted > size:
            tests.append(f"c{axis} >= {pad} && c{axis} < {pad + size}")
    if not source.element_count:
        tests.append("false")
    statements = f"""
  {unravel(target.shape, names)}
  y[i] = {" && ".join(tests)} ? x[{" + ".join(places) or "0"}]
                              : To<{stored(target.dtype)}>::of(0);"""
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters)


def _bind_lrn(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    spec, size = required(request), integer(request, "size")
    channels, inner = spec.shape[1], math.prod(spec.shape[2:])
    kind = computed(spec.dtype)
    alpha, beta, bias = (
        literal(value, kind)
        for value in (
            number(request, "alpha") / size,
            number(request, "beta"),
            number(request, "bias"),
        )
    )
    statements = f"""
  typedef {kind} A;
  const long long c = i / {inner} % {channels};
  A a = 0;
  for (int k = -{(size - 1) // 2}; k <= {size // 2}; ++k) if (c + k >= 0 && c + k < {channels}) {{
    const A v = get(x[i + k * {inner}LL]); a += v * v; }}
  y[i] = To<{stored(spec.dtype)}>::of((A)get(x[i]) * pow({bias} + {alpha} * a, -{beta}));"""
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return each(binding, spec.element_count, statements, parameters)


def _bind_global_lp(binding: Binding) -> Sequence[Enqueue]:
    """Launch a block for every channel, whose threads add up their own shares in order."""
    request = binding.request
    spec, power = required(request), integer(request, "p")
    batch, channels, *space = spec.shape
    size, kind = math.prod(space), computed(spec.dtype)
    term = {1: "fabs(v)", 2: "v * v"}.get(power, f"pow(fabs(v), (A){power})")
    final = {1: "a", 2: "sqrt(a)"}.get(power, f"pow(a, (A)1 / {power})")
    body = f"""
  typedef {kind} A;
  __shared__ A parts[{_THREADS}];
  const int t = threadIdx.x;
  A a = 0;
  for (int k = t; k < {size}; k += {_THREADS}) {{
    const A v = get(x[blockIdx.x * {size}LL + k]); a += {term}; }}
  parts[t] = a; __syncthreads();
  for (int m = {_THREADS // 2}; m; m /= 2) {{
    if (t < m) parts[t] += parts[t + m];
    __syncthreads(); }}
  a = parts[0];
  if (t == 0) y[blockIdx.x] = To<{stored(spec.dtype)}>::of({final});"""
    if not batch * channels:
        return []
    parameters = [*given(binding, {"x": 0}), *results(binding, {"y": 0})]
    return launch(binding, body, parameters, grid=batch * channels, threads=_THREADS)


# --- BatchNormalization in training -----------------------------------------------------------


def _accepts_statistics(request: KernelRequest) -> bool:
    return bool(integer(request, "training_mode"))


def _statistics_workspace(request: KernelRequest) -> int:
    return 16 * required(request).shape[1]


def _bind_statistics(binding: Binding) -> Sequence[Enqueue]:
    """Moments of each channel by a block, which update the running ones; then all elements."""
    request = binding.request
    spec = required(request)
    batch, channels = spec.shape[:2]
    inner = math.prod(spec.shape[2:])
    count, kind = batch * inner, computed(spec.dtype)
    momentum = literal(number(request, "momentum"), kind)
    targets = results(binding, {"mean": 1, "variance": 2})
    updates = ""
    for declaration, _ in targets:
        name = declaration.rpartition(" ")[2]
        written = declaration.partition("*")[0]
        updates += (
            f"{name}[c] = To<{written}>::of((A)get(old_{name}[c]) * {momentum} "
            f"+ {name}_now * (1 - {momentum})); "
        )
    total = f"""
  parts[t] = a; __syncthreads();
  for (int m = {_THREADS // 2}; m; m /= 2) {{
    if (t < m) parts[t] += parts[t + m];
    __syncthreads(); }}"""
    where = f"(k / {inner} * {channels} + c) * {inner}LL + k % {inner}"
    body = f"""
  typedef {kind} A;
  __shared__ A parts[{_THREADS}];
  const int t = threadIdx.x, c = blockIdx.x;
  A a = 0;
  for (long long k = t; k < {count}LL; k += {_THREADS}) a += (A)get(x[{where}]); {total}
  const A mean_now = parts[0] / {count};
  __syncthreads();
  a = 0;
  for (long long k = t; k < {count}LL; k += {_THREADS}) {{
    const A d = (A)get(x[{where}]) - mean_now; a += d * d; }} {total}
  const A variance_now = parts[0] / {count};
  if (t) return;
  moments[2 * c] = mean_now; moments[2 * c + 1] = variance_now; {updates}"""
    moments = (f"{kind}* moments", binding.workspace)
    names = {"x": 0, "old_mean": 3, "old_variance": 4}
    launches = launch(
        binding,
        body,
        [*given(binding, names), moments, *targets],
        grid=channels,
        threads=_THREADS,
    )
    epsilon = literal(number(request, "epsilon"), kind)
    statements = f"""
  typedef {kind} A;
  const long long c = i / {inner} % {channels};
  const A z = ((A)get(x[i]) - moments[2 * c]) / sqrt(moments[2 * c + 1] + {epsilon});
  y[i] = To<{stored(spec.dtype)}>::of(z * (A)get(scale[c]) + (A)get(shift[c]));"""
    parameters = [
        *given(binding, {"x": 0, "scale": 1, "shift": 2}),
        moments,
        *results(binding, {"y": 0}),
    ]
    return launches + each(binding, spec.element_count, statements, parameters)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel("einsum", ("Einsum",), _bind_einsum, dtypes=NUMBERS),
    simple_kernel("col2im", ("Col2Im",), _bind_col2im, dtypes=FLOATS),
    simple_kernel("center_crop_pad", ("CenterCropPad",), _bind_crop, dtypes=ALL),
    simple_kernel("lrn", ("LRN",), _bind_lrn, dtypes=FLOATS),
    simple_kernel("global_lp_pool", ("GlobalLpPool",), _bind_global_lp, dtypes=FLOATS),
    simple_kernel(
        "batch_normalisation.training",
        ("BatchNormalization",),
        _bind_statistics,
        accepts=_accepts_statistics,
        workspace=_statistics_workspace,
        dtypes=FLOATS,
    ),
)
