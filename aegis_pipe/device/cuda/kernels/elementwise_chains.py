"""Chains of elementwise operators: each step's own expression, one after the other in registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain as joined

from aegis_pipe.device import requests
from aegis_pipe.device.cuda.kernels import casting, elementwise
from aegis_pipe.device.cuda.kernels.operands import required, result
from aegis_pipe.device.cuda.kernels.pointwise import (
    Mapping as Mapped,
    Pointwise,
    Read,
    launch_mapping,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import broadcast_strides, computed, literal, stored
from aegis_pipe.device.elementwise_chains import CHAIN, Chain
from aegis_pipe.kernel import KernelChoice, KernelRequest

SETTLE = 'asm("add.rn.f32 %0, %0, 0f80000000;" : "+f"(x));'
"""Adds -0, which changes no number. What is rounded so, the compiler can not take into the next
step's sum as an unrounded product: each step rounds as its own kernel does."""

_SETTLED = f"""
template <typename T> __device__ __forceinline__ T settled(T x) {{ return x; }}
__device__ __forceinline__ float settled(float x) {{ {SETTLE} return x; }}
"""

_FLOATS = frozenset({"float32", "float16", "bfloat16"})
_INTEGERS = frozenset({"int32", "int64"})
_BYTES = frozenset({"uint8", "int8"})
_BOOL = frozenset({"bool"})

STEPS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            *("Sign", "Floor", "Ceil", "Round", "Reciprocal", "Sqrt", "Exp", "Log", "Erf"),
            *("Sin", "Cos", "Tanh", "Sigmoid", "Softplus", "Softsign", "Mish", "Relu"),
            *("LeakyRelu", "Elu", "Selu", "HardSigmoid", "ThresholdedRelu", "Swish", "HardSwish"),
            *("Clip", "Pow", "PRelu", "com.microsoft.BiasGelu"),
        ),
        _FLOATS,
    ),
    **dict.fromkeys(
        ("Abs", "Neg", "Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"), _FLOATS | _INTEGERS
    ),
    **dict.fromkeys(
        ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"),
        _FLOATS | _INTEGERS | _BYTES | _BOOL,
    ),
    **dict.fromkeys(("And", "Or", "Xor", "Not"), _BOOL),
    "IsNaN": _FLOATS | _BOOL,
    "Where": _FLOATS | _INTEGERS | _BOOL,
    "Cast": _FLOATS | _INTEGERS | _BYTES | _BOOL,
}
"""Operators that can be steps, and the dtypes of their operands and results."""

_DEFINES = {**elementwise.DEFINES, "Cast": casting.cast}


def _steps(request: KernelRequest, chain: Chain) -> list[KernelRequest]:
    inputs = [required(request, i) for i in range(chain.input_count)]
    return chain.requests(request, inputs, result(request).shape)


def _function(request: KernelRequest) -> Pointwise | None:
    """Return all steps as one function; None if one of them is not known in this form."""
    chain = Chain.of(request)
    values = [
        *(f"{{{i}}}" for i in range(chain.input_count)),
        *(literal(constant, "float") for constant in chain.constants),
        *(f"s{i}" for i in range(len(chain.steps))),
    ]
    lines, extras, expression = [], [_SETTLED], ""
    for position, step in enumerate(_steps(request, chain)):
        define = _DEFINES.get(step.operator)
        function = None if define is None else define(step)
        if function is None:
            return None
        extras.append(function.extra)
        specs = [spec for spec in step.inputs if spec is not None]
        types = function.types or tuple(computed(spec.dtype) for spec in specs)
        arguments = [
            f"(({kind}){values[value]})"
            for kind, value in zip(types, chain.steps[position].operands, strict=True)
        ]
        expression = function.expression.format(*arguments)
        dtype = result(step).dtype
        if position + 1 < len(chain.steps):
            kind = stored(dtype)
            lines.append(
                f"const {computed(dtype)} s{position} = "
                f"settled(get(To<{kind}>::of({expression})));\n    "
            )
    # Each once: several steps may call functions of the same family.
    extra = "".join(dict.fromkeys(extras))
    return Pointwise(expression, extra=extra, statements="".join(lines))


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if _function(request) is None:
        return None
    target = result(request)
    pairs = [(i, 0) for i in range(len(request.inputs))]
    specs = joined(request.inputs, request.outputs)
    return KernelChoice(
        "elementwise.chain",
        in_place=requests.in_place(request, pairs),
        cost=float(sum(spec.element_count for spec in specs if spec is not None))
        + float(target.element_count * len(Chain.of(request).steps)),
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    function, target = _function(request), result(request)
    assert function is not None, request.node
    specs = [required(request, i) for i in range(len(request.inputs))]
    reads = tuple(Read(spec.dtype, broadcast_strides(spec.shape, target.shape)) for spec in specs)
    mapping = Mapped(target.shape, reads, target.dtype, function)
    return launch_mapping(binding, mapping, binding.given(), binding.outputs[0])


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel((CHAIN,), _choose, _bind),)
