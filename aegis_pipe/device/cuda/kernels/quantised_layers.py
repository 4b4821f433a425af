"""Layers on quantised tensors: convolutions, arithmetic, functions of one number, the rest.

What there is no kernel of integers for runs between real numbers, in the workspace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from aegis_pipe.device.cuda.kernels import rows, windows
from aegis_pipe.device.cuda.kernels.each import each, given, results, simple_kernel
from aegis_pipe.device.cuda.kernels.nested import bind_nested, is_nested
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    number,
    operand,
    required,
    result,
)
from aegis_pipe.device.cuda.kernels.pointwise import (
    Mapping,
    Pointwise,
    Read,
    launch_mapping,
    pointwise_kernel,
)
from aegis_pipe.device.cuda.kernels.quantisation import saturated
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT32,
    broadcast_strides,
    dense_strides,
    literal,
    stored,
)
from aegis_pipe.device.cuda.kernels.windows import space_of, strides_of, unpack
from aegis_pipe.kernel import KernelChoice, KernelRequest
from aegis_pipe.tensor import TensorSpec

_EIGHT_BITS = frozenset({np.dtype(np.int8), np.dtype(np.uint8)})
_CHANNELS_LAST = "com.microsoft.QLinearConv"


def _levels(request: KernelRequest) -> tuple[int, ...]:
    return integers(request, "levels") if "levels" in request.attributes else ()


# --- Convolutions -----------------------------------------------------------------------------


def _conv_positions(request: KernelRequest) -> tuple[int, int, int]:
    """Return where W and the zero points of X and W are."""
    return (1, 2, 3) if request.operator == "ConvInteger" else (3, 2, 5)


def _accepts_conv(request: KernelRequest) -> bool:
    weights_at, _, _ = _conv_positions(request)
    return required(request).dtype in _EIGHT_BITS and required(request, weights_at).dtype in (
        _EIGHT_BITS
    )


CONV_NAMES = {"x_scale": 1, "w_scale": 4, "y_scale": 6, "y_zero": 7, "b": 8}
"""Operands of a result, by position."""


def conv_factor(request: KernelRequest, filter_: str) -> str:
    """Return a C expression: the result's levels to one of the sum."""
    per_channel = filter_ if required(request, 4).element_count > 1 else "0"
    return f"((float)get(*x_scale) * (float)get(w_scale[{per_channel}]) / (float)get(*y_scale))"


def convolved(request: KernelRequest, total: str, factor: str, zero: str) -> str:
    """Return a C expression: the level, as a float, of a sum with its bias."""
    real = f"rintf((float){total} * {factor}) + {zero}"
    return saturated(real, "float", result(request).dtype, _levels(request))


def _bind_conv(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    last = request.operator == _CHANNELS_LAST
    weights_at, x_zero_at, w_zero_at = _conv_positions(request)
    source, weights, target = required(request), required(request, weights_at), result(request)
    space, kernel = space_of(source.shape, last), weights.shape[2:]
    group = integer(request, "group")
    image, channel, steps = strides_of(source.shape, last)
    per_group, outputs = weights.shape[1], weights.shape[0] // group
    strides, dilations, pads = (integers(request, n) for n in ("strides", "dilations", "pads"))
    loops, closes, tap = "", "", "0"
    where = f"n * {image}LL + (g * {per_group} + q) * {channel}LL"
    for axis, size in enumerate(kernel):
        loops += (
            f"for (int t{axis} = 0; t{axis} < {size}; ++t{axis}) {{ "
            f"const long long s{axis} = o{axis} * {strides[axis]} + t{axis} * {dilations[axis]} "
            f"- ({pads[axis]}); if (s{axis} < 0 || s{axis} >= {space[axis]}) continue;\n"
        )
        closes += "}"
        where += f" + s{axis} * {steps[axis]}LL"
        tap = f"({tap}) * {size} + t{axis}"
    x_zero = "(int)*x_zero" if operand(request, x_zero_at) is not None else "0"
    w_zero_spec, w_zero = operand(request, w_zero_at), "0"
    if w_zero_spec is not None:
        w_zero = f"(int)w_zero[{'c' if w_zero_spec.element_count > 1 else '0'}]"
    names = {"x": 0, "w": weights_at, "x_zero": x_zero_at, "w_zero": w_zero_at}
    final = "y[i] = a;"
    if request.operator != "ConvInteger":
        names |= CONV_NAMES
        total = "(a + b[c])" if operand(request, 8) is not None else "a"
        level = convolved(request, total, conv_factor(request, "c"), "(float)*y_zero")
        final = f"y[i] = ({stored(target.dtype)}){level};"
    statements = f"""
  {unpack(target.shape, last)}
  const long long g = c / {outputs};
  const int x0 = {x_zero}, w0 = {w_zero};
  int a = 0;
  {loops}
  for (int q = 0; q < {per_group}; ++q)
    a += ((int)x[{where}] - x0)
       * ((int)w[(c * {per_group} + q) * {math.prod(kernel)} + ({tap})] - w0);
  {closes}
  {final}"""
    parameters = [*given(binding, names), *results(binding, {"y": 0})]
    return each(binding, target.element_count, statements, parameters)


# --- Functions of one number, and of two ------------------------------------------------------


def _are_eight_bits(request: KernelRequest, data: Sequence[int]) -> bool:
    """Return whether data and result have 8 bits, and all else is one number each."""
    parameters = [spec for at, spec in enumerate(request.inputs) if at not in data and spec]
    return all(spec.element_count == 1 for spec in parameters) and all(
        spec.dtype in _EIGHT_BITS
        for spec in (result(request), *(required(request, at) for at in data))
    )


def _quantised(real: str, scale: str, zero: str, dtype: np.dtype, levels: Sequence[int]) -> str:
    offset = f" + {zero}" if zero else ""
    return saturated(f"rintf(({real}) / {scale}){offset}", "float", dtype, levels)


def _names(request: KernelRequest) -> list[str]:
    """Return what each operand is called in an expression, "" where it is left out."""
    names, count = [], 0
    for spec in request.inputs:
        names.append("" if spec is None else f"{{{count}}}")
        count += spec is not None
    return names


def _moved(data: str, zero: str) -> str:
    return f"({data} - {zero})" if zero else data


def _real(data: str, scale: str, zero: str) -> str:
    return f"{_moved(data, zero)} * {scale}"


def added(a: str, a_scale: str, b: str, b_scale: str) -> str:
    """Return a C expression: the sum of two numbers, each rounded, of steps as large as that."""
    return f"__fmul_rn({a}, {a_scale}) + __fmul_rn({b}, {b_scale})"


def _pointwise(request: KernelRequest, expression: str) -> Pointwise:
    count = sum(spec is not None for spec in request.inputs)
    return Pointwise(expression, ("float",) * count)


def _arithmetic(request: KernelRequest) -> Pointwise | None:
    if not _are_eight_bits(request, (0, 3)):
        return None
    a, a_scale, a_zero, b, b_scale, b_zero, scale, *rest = (*_names(request), "")
    if request.operator.endswith("Add"):
        real = added(_moved(a, a_zero), a_scale, _moved(b, b_zero), b_scale)
    else:
        real = f"({_real(a, a_scale, a_zero)}) * ({_real(b, b_scale, b_zero)})"
    zero = rest[0] if rest else ""
    return _pointwise(
        request, _quantised(real, scale, zero, result(request).dtype, _levels(request))
    )


def _unary(request: KernelRequest) -> Pointwise | None:
    if not _are_eight_bits(request, (0,)):
        return None
    x, x_scale, x_zero, scale, zero = (*_names(request), "", "")[:5]
    real = _real(x, x_scale, x_zero)
    if request.operator.endswith("Sigmoid"):
        real = f"1 / (1 + expf(-({real})))"
    elif request.operator.endswith("LeakyRelu"):
        alpha = literal(number(request, "alpha"), "float")
        real = f"({real}) * (({real}) < 0 ? {alpha} : 1.0f)"
    return _pointwise(
        request, _quantised(real, scale, zero, result(request).dtype, _levels(request))
    )


def _parts(request: KernelRequest) -> range:
    return range(2, len(request.inputs), 3)


def _accepts_concat(request: KernelRequest) -> bool:
    return _are_eight_bits(request, _parts(request))


def _bind_concat(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    target = result(request)
    axis, strides = integer(request, "axis"), dense_strides(target.shape)
    launches: list[Enqueue] = []
    first = 0
    for position in _parts(request):
        spec = required(request, position)
        reads, sources, names = [Read(spec.dtype, dense_strides(spec.shape))], [position], ["{0}"]
        for at in (position + 1, position + 2, 0, 1):
            parameter = operand(request, at)
            names.append(f"{{{len(sources)}}}" if parameter is not None else "")
            if parameter is not None:
                reads.append(Read(parameter.dtype, broadcast_strides((), spec.shape)))
                sources.append(at)
        x, x_scale, x_zero, scale, zero = names
        expression = _quantised(_real(x, x_scale, x_zero), scale, zero, target.dtype, ())
        mapping = Mapping(
            spec.shape,
            tuple(reads),
            target.dtype,
            Pointwise(expression, ("float",) * len(reads)),
            strides,
            first * strides[axis],
        )
        addresses = [address for at in sources if (address := binding.inputs[at]) is not None]
        launches += launch_mapping(binding, mapping, addresses, binding.outputs[0])
        first += spec.shape[axis]
    return launches


# --- By way of real numbers -------------------------------------------------------------------

_REAL_FAMILIES = (*rows.KERNEL_FAMILY, *windows.KERNEL_FAMILY)


def _real_request(request: KernelRequest) -> KernelRequest:
    """Return the request between real numbers, channels first."""

    def real(spec: TensorSpec) -> TensorSpec:
        shape = spec.shape
        if request.attributes.get("channels_last"):
            shape = (shape[0], shape[-1], *shape[1:-1])
        return TensorSpec(FLOAT32, shape)

    return replace(
        request,
        operator=request.operator.removeprefix("com.microsoft.QLinear"),
        inputs=(real(required(request)),),
        outputs=(real(result(request)),),
        constants={},
    )


def _choose_real(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if not _are_eight_bits(request, (0,)):
        return None
    real = _real_request(request)
    if not is_nested(machine, _REAL_FAMILIES, real):
        return None
    sizes = [4 * required(request).element_count, 4 * result(request).element_count]
    return KernelChoice("quantised.through_float", sum(-(-size // 256) * 256 for size in sizes))


def _turned(shape: Sequence[int], *, last: bool) -> tuple[int, ...]:
    """Return the strides with which data is read in the order of real numbers."""
    strides = dense_strides(shape)
    return (strides[0], strides[-1], *strides[1:-1]) if last else strides


def _bind_real(binding: Binding) -> Sequence[Enqueue]:
    request, real = binding.request, _real_request(binding.request)
    before, after = required(real), result(real)
    data, written = binding.workspace, binding.workspace + -(-4 * before.element_count // 256) * 256
    last = bool(request.attributes.get("channels_last"))

    def parameters(positions: Sequence[int], rank: int) -> tuple[list[Read], list[int], list[str]]:
        reads: list[Read] = []
        addresses, names = [], []
        for position in positions:
            spec, address = operand(request, position), None
            if spec is not None:
                address = binding.inputs[position]
            names.append("" if address is None else f"{{{len(reads) + 1}}}")
            if spec is not None and address is not None:
                reads.append(Read(spec.dtype, (0,) * rank))
                addresses.append(address)
        return reads, addresses, names

    source = required(request)
    reads, addresses, names = parameters((1, 2), len(before.shape))
    mapping = Mapping(
        before.shape,
        (Read(source.dtype, _turned(source.shape, last=last)), *reads),
        FLOAT32,
        Pointwise(_real("{0}", *names), ("float",) * (1 + len(reads))),
    )
    launches = launch_mapping(binding, mapping, [binding.inputs[0] or 0, *addresses], data)
    launches += bind_nested(binding, _REAL_FAMILIES, real, [data], [written])
    target = result(request)
    reads, addresses, names = parameters((3, 4), len(after.shape))
    scale, zero = names
    expression = _quantised("{0}", scale, zero, target.dtype, ())
    mapping = Mapping(
        after.shape,
        (Read(FLOAT32, dense_strides(after.shape)), *reads),
        target.dtype,
        Pointwise(expression, ("float",) * (1 + len(reads))),
        _turned(target.shape, last=last),
    )
    return launches + launch_mapping(binding, mapping, [written, *addresses], binding.outputs[0])


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    simple_kernel(
        "conv.integer",
        ("ConvInteger", "QLinearConv", _CHANNELS_LAST),
        _bind_conv,
        accepts=_accepts_conv,
    ),
    *(
        pointwise_kernel(f"com.microsoft.QLinear{name}", _arithmetic, name="quantised.arithmetic")
        for name in ("Add", "Mul")
    ),
    *(
        pointwise_kernel(name, _unary, name="quantised.unary")
        for name in (
            "aegis.QLinearClip",
            "com.microsoft.QLinearLeakyRelu",
            "com.microsoft.QLinearSigmoid",
        )
    ),
    simple_kernel(
        "quantised.concat",
        ("com.microsoft.QLinearConcat",),
        _bind_concat,
        accepts=_accepts_concat,
    ),
    CudaKernel(
        (
            "com.microsoft.QLinearSoftmax",
            "com.microsoft.QLinearAveragePool",
            "com.microsoft.QLinearGlobalAveragePool",
        ),
        _choose_real,
        _bind_real,
    ),
)
