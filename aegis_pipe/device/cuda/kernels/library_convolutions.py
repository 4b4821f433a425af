"""Convolutions by cuDNN, channels last, with bias, residual and activation in one kernel."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aegis_pipe.device.cuda.cudnn_convolution import (
    BuiltPlan,
    Convolution,
    ConvolutionPlan,
    ConvolutionPlans,
)
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
from aegis_pipe.device.cuda.kernels.source import (
    FLOAT32,
    HALF_FLOATS,
    blocks_for,
    kernel_source,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_WORKSPACE_BYTES_MAX = 32 << 20
_PATIENCE = 5
"""Plans come with what cuDNN thinks best first: those left out would save ResNet-50 0.4 %."""
_COMPILED_MAX = 5
"""So many of those that cuDNN compiles are tried: of ResNet-50's convolutions of one and of eight
images the fastest was among them, but for one, by 3 %; and each takes 0.2 to 2 s to build."""
_ACTIVATIONS = {"": "", "Relu": "relu", "Clip": "clip", "Sigmoid": "sigmoid", "Swish": "swish"}
_WEIGHTS, _RESULT = 1, 2
"""Positions among the operands of a plan."""
_CHANNEL_STEP = 8
"""Tensor cores take half-precision channels in eights; fewer are filled up with zeros."""


def convolution_of(request: KernelRequest) -> Convolution | None:
    """Return what is asked for, if cuDNN may do it."""
    data, weights = required(request), required(request, 1)
    activation = _ACTIVATIONS.get(text(request, "activation"))
    if data.dtype not in HALF_FLOATS and data.dtype != FLOAT32:
        return None
    if activation is None or 1 not in request.constants or len(data.shape) not in (3, 4):
        return None
    rank = len(data.shape) - 2
    pads = integers(request, "pads")
    if min(pads) < 0 or result(request).element_count == 0:
        return None
    clip = numbers(request, "activation_params") if activation == "clip" else (0.0, 0.0)
    groups = integer(request, "group")
    channels = data.shape[-1]
    if groups == 1 and data.dtype in HALF_FLOATS:
        channels = -(-channels // _CHANNEL_STEP) * _CHANNEL_STEP

    def planar(values: Sequence[int], filler: int) -> tuple[int, ...]:
        # One spatial axis is two, the first of which has nothing in it.
        return (*(filler for _ in range(2 - rank)), *values)

    return Convolution(
        batch=data.shape[0],
        channels=channels,
        spatial=planar(data.shape[1:-1], 1),
        filters=weights.shape[0],
        window=planar(weights.shape[2:], 1),
        strides=planar(integers(request, "strides"), 1),
        dilations=planar(integers(request, "dilations"), 1),
        pads_before=planar(pads[:rank], 0),
        pads_after=planar(pads[rank:], 0),
        dtype=data.dtype.name,
        groups=groups,
        bias=operand(request, 2) is not None,
        residual=operand(request, 3) is not None,
        activation=activation,
        clip=(clip[0], clip[1]),
        tf32=request.tf32,
    )


def _planned(machine: Machine, convolution: Convolution) -> ConvolutionPlan | None:
    if convolution not in machine.convolutions:
        machine.convolutions[convolution] = _plan(machine, convolution)
    return machine.convolutions[convolution]


def cudnn_microseconds(machine: Machine, convolution: Convolution) -> float | None:
    """Return what was measured of cuDNN's best plan; None if it has none."""
    assert machine.tuner is not None
    known = machine.tuner.remembered(convolution, _library(machine))
    if known is None:
        # Measures it, and leaves the figure behind.
        if _planned(machine, convolution) is None:
            return None
        known = machine.tuner.remembered(convolution, _library(machine))
    return None if known is None else float(str(known["microseconds"]))


def _library(machine: Machine) -> str:
    assert machine.cudnn is not None
    return f"cudnn {machine.cudnn.version}"


def _plan(machine: Machine, convolution: Convolution) -> ConvolutionPlan | None:
    cudnn = machine.cudnn
    assert cudnn is not None
    assert machine.tuner is not None
    library = _library(machine)
    known = machine.tuner.remembered(convolution, library)
    if known is not None and "plan" in known:
        return _again(machine, convolution, known)
    offered: list[ConvolutionPlan] = []

    def ways() -> Iterator[Callable[[int, Sequence[int]], None]]:
        for built in _offers(machine, convolution):
            if built.workspace_bytes <= _WORKSPACE_BYTES_MAX:
                offered.append(ConvolutionPlan(cudnn, convolution, built))
                yield _way(offered[-1])

    found = machine.tuner.fastest(
        ways(),
        [*_sizes(convolution), _WORKSPACE_BYTES_MAX],
        result=_RESULT,
        weights=_WEIGHTS,
        patience=_PATIENCE,
    )
    machine.convolution_plans.pop(convolution, None)
    if machine.plan_builders is not None:
        machine.plan_builders.forget(convolution)
    if found is None:
        return None
    best, microseconds = found
    chosen = offered[best].built
    machine.tuner.remember(
        convolution,
        library,
        {
            "name": chosen.name,
            "workspace_bytes": chosen.workspace_bytes,
            "microseconds": microseconds,
            "plan": base64.b64encode(zlib.compress(chosen.content)).decode(),
        },
    )
    return offered[best]


def _listed(machine: Machine, convolution: Convolution) -> ConvolutionPlans | None:
    """Return cuDNN's plans, none of which is built yet; None if it has none."""
    assert machine.cudnn is not None
    if convolution not in machine.convolution_plans:
        try:
            plans = ConvolutionPlans(machine.cudnn, convolution)
        except (RuntimeError, machine.cudnn.library.cudnnGraphNotSupportedError):
            plans = None
        machine.convolution_plans[convolution] = plans
    return machine.convolution_plans[convolution]


def _compiled(plans: ConvolutionPlans | None) -> list[int]:
    """Return the positions of those that are compiled and tried."""
    if plans is None:
        return []
    return [index for index in range(len(plans)) if plans.is_compiled(index)][:_COMPILED_MAX]


def _offers(machine: Machine, convolution: Convolution) -> Iterator[BuiltPlan]:
    """Yield plans in cuDNN's order; those that others were asked for are waited for."""
    plans, compiled = _listed(machine, convolution), 0
    for index in range(0 if plans is None else len(plans)):
        assert plans is not None
        built = None
        if plans.is_compiled(index):
            if compiled == _COMPILED_MAX:
                continue
            if machine.plan_builders is not None:
                built = machine.plan_builders.plan(convolution, index)
        built = built or plans.build(index)
        if built is not None:
            compiled += plans.is_compiled(index)
            yield built


def _again(machine: Machine, convolution: Convolution, known: dict[str, object]) -> ConvolutionPlan:
    """Return the plan of an earlier start: as it was written down, else built anew."""
    assert machine.cudnn is not None
    content = zlib.decompress(base64.b64decode(str(known["plan"])))
    name, workspace_bytes = str(known["name"]), int(str(known["workspace_bytes"]))
    built = BuiltPlan(name, workspace_bytes, content)
    try:
        return ConvolutionPlan(machine.cudnn, convolution, built)
    except (RuntimeError, machine.cudnn.library.cudnnGraphNotSupportedError):
        # Another driver, say: the choice holds, the kernel does not.
        built = ConvolutionPlans(machine.cudnn, convolution).named(name)
        return ConvolutionPlan(machine.cudnn, convolution, built)


def _way(plan: ConvolutionPlan) -> Callable[[int, Sequence[int]], None]:
    def enqueue(stream: int, addresses: Sequence[int]) -> None:
        x, w, y, bias, residual, workspace = addresses
        plan.enqueue(stream, x=x, w=w, y=y, bias=bias, residual=residual, workspace=workspace)

    return enqueue


def _sizes(c: Convolution) -> list[int]:
    item = 4 if c.dtype == "float32" else 2
    result_bytes = item * c.batch * math.prod(c.result) * c.filters
    return [
        item * c.batch * math.prod(c.spatial) * c.channels,
        item * c.filters * math.prod(c.window) * (c.channels // c.groups),
        result_bytes,
        item * c.filters,
        result_bytes if c.residual else 0,
    ]


def _packed(request: KernelRequest, convolution: Convolution) -> PackedConstant:
    """Return how weights [M, C, window...] become [M, window..., C], filled up with zeros."""
    weights = required(request, 1)
    channels = convolution.channels // convolution.groups
    shape = (weights.shape[0], *weights.shape[2:], channels)

    def pack(array: np.ndarray) -> np.ndarray:
        packed = np.zeros(shape, array.dtype)
        packed[..., : array.shape[1]] = np.moveaxis(array, 1, -1)
        return packed.reshape(-1).view(np.uint8)

    size_bytes = math.prod(shape) * weights.dtype.itemsize
    return PackedConstant(f"channels_last.{channels}", size_bytes, pack)


def _filled_bytes(request: KernelRequest, convolution: Convolution) -> int:
    """Return the bytes of the data with its channels filled up; 0 if they are as they should."""
    if convolution.channels == required(request).shape[-1]:
        return 0
    # Rounded, so that the library's own workspace after it is aligned.
    return -(-_sizes(convolution)[0] // 256) * 256


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    convolution = None if machine.cudnn is None else convolution_of(request)
    planned = None if convolution is None else _planned(machine, convolution)
    if convolution is None or planned is None:
        return None
    return KernelChoice(
        "conv.cudnn",
        workspace_bytes=_filled_bytes(request, convolution) + planned.built.workspace_bytes,
        packed={1: _packed(request, convolution)},
        cost=float(result(request).element_count * math.prod(required(request, 1).shape[1:])),
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    convolution = convolution_of(request)
    assert convolution is not None
    planned = _planned(binding.machine, convolution)
    assert planned is not None
    x, w, y = binding.inputs[0], binding.inputs[1], binding.outputs[0]
    assert x is not None
    assert w is not None
    assert y is not None
    others = [*binding.inputs[2:], None, None]
    binding.reads_unwaited(1, 2, 3)
    filled_bytes = _filled_bytes(request, convolution)
    data = binding.workspace if filled_bytes else x

    def enqueue(stream: int) -> None:
        planned.enqueue(
            stream,
            x=data,
            w=w,
            y=y,
            bias=others[0] or 0,
            residual=others[1] or 0,
            workspace=binding.workspace + filled_bytes,
        )

    return [*([_fill(binding, convolution)] if filled_bytes else []), enqueue]


def _fill(binding: Binding, convolution: Convolution) -> Enqueue:
    """Return the launch that copies pixels and adds channels of zeros."""
    spec = required(binding.request)
    given, channels = spec.shape[-1], convolution.channels
    pixels = spec.element_count // given
    kind = stored(spec.dtype)
    body = f"""
  const unsigned i = blockIdx.x * 256 + threadIdx.x;
  if (i >= {pixels}u) return;
  Pack<{kind}, {_CHANNEL_STEP}> out;
  for (int c0 = 0; c0 < {channels}; c0 += {_CHANNEL_STEP}) {{
    #pragma unroll
    for (int c = 0; c < {_CHANNEL_STEP}; ++c)
      out.v[c] = c0 + c < {given} ? x[(long long)i * {given} + c0 + c] : To<{kind}>::of(0.0f);
    *(Pack<{kind}, {_CHANNEL_STEP}>*)(y + (long long)i * {channels} + c0) = out;
  }}"""
    code = kernel_source([f"const {kind}* x", f"{kind}* y"], body, threads=256)
    return binding.kernel(
        code, [binding.inputs[0], binding.workspace], grid=blocks_for(pixels, 256), block=256
    )


def _prepare(requests: Sequence[KernelRequest], machine: Machine) -> None:
    """Have those plans built that take long, unless the best is known."""
    if machine.tuner is None or machine.cudnn is None or machine.plan_builders is None:
        return
    wanted: list[tuple[Convolution, int]] = []
    for each in dict.fromkeys(convolution_of(request) for request in requests):
        if each is None or each in machine.convolutions:
            continue
        if machine.tuner.remembered(each, _library(machine)) is None:
            wanted += [(each, index) for index in _compiled(_listed(machine, each))]
    machine.plan_builders.begin(wanted)


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("com.microsoft.NhwcFusedConv",), _choose, _bind, _prepare),
)
