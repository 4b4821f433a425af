"""Convolutions by cuDNN, channels last, with bias, residual and activation in one kernel."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aegis_pipe.device.cuda.cudnn_convolution import (
    Convolution,
    ConvolutionAlgorithm,
    ConvolutionPlans,
    PlanUnavailable,
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
from aegis_pipe.device.cuda.kernels.registry import (
    Binding,
    CudaKernel,
    Enqueue,
    Machine,
    PlannedConvolution,
)
from aegis_pipe.device.cuda.kernels.source import (
    EARLY_CAPABILITY,
    FLOAT32,
    HALF_FLOATS,
    blocks_for,
    kernel_source,
    stored,
)
from aegis_pipe.device.cuda.kernels.tensor_tilings import TensorConvolution, tilings
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_log = logging.getLogger(__name__)

_WORKSPACE_BYTES_MAX = 32 << 20
_PATIENCE = 5
"""Plans come with what cuDNN thinks best first: those left out would save ResNet-50 0.4 %."""
_SMALL = 1 << 20
"""Multiplications a multiprocessor that are little to do."""
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


def _planned(machine: Machine, convolution: Convolution) -> PlannedConvolution | None:
    if convolution not in machine.convolutions:
        machine.convolutions[convolution] = _plan(machine, convolution)
    return machine.convolutions[convolution]


def cudnn_microseconds(machine: Machine, convolution: Convolution) -> float | None:
    """Return what was measured of cuDNN's best plan; None if it has none worth measuring."""
    assert machine.tuner is not None
    if is_left_to_us(machine, convolution):
        return None
    known = machine.tuner.remembered(convolution, _library(machine))
    if known is None:
        # Measures it, and leaves the figure behind.
        if _planned(machine, convolution) is None:
            return None
        known = machine.tuner.remembered(convolution, _library(machine))
    return None if known is None else float(str(known["microseconds"]))


def is_left_to_us(machine: Machine, c: Convolution) -> bool:
    """Return whether cuDNN is asked only if no kernel of ours takes it.

    cuDNN compiles what adds a residual. With little to do ours is as fast within a model, where the
    next kernel begins before it has ended: on an H100 ResNet-50 of one image took 255 to 269 us
    without any plan that is compiled, and 263 us with the fastest of five each, for which loading
    took 12 s longer.
    """
    if not c.residual or c.groups > 1 or machine.capability < EARLY_CAPABILITY:
        return False
    p = TensorConvolution(c.dtype, c.batch, c.spatial, c.channels, c.filters, c.result, c.window)
    return (
        c.dtype in {each.name for each in HALF_FLOATS}
        and p.multiplied <= _SMALL * machine.multiprocessors
        and bool(tilings(p, machine.multiprocessors))
    )


def _library(machine: Machine) -> str:
    assert machine.cudnn is not None
    return f"cudnn {machine.cudnn.version}"


def _plan(machine: Machine, convolution: Convolution) -> PlannedConvolution | None:
    assert machine.cudnn is not None
    assert machine.tuner is not None
    library = _library(machine)
    known = machine.tuner.remembered(convolution, library)
    if known is not None:
        try:
            return _again(machine, convolution, known)
        except PlanUnavailable as reason:
            _log.warning("%s for %s: choosing another", reason, convolution)
    try:
        plans = ConvolutionPlans(machine.cudnn, convolution)
    except (RuntimeError, machine.cudnn.library.cudnnGraphNotSupportedError):
        return None
    offered: list[tuple[int, ConvolutionAlgorithm]] = []

    def ways() -> Iterator[Callable[[int, Sequence[int]], None]]:
        for index, algorithm in plans.algorithms(_WORKSPACE_BYTES_MAX):
            offered.append((index, algorithm))
            yield _way(plans, index)

    found = machine.tuner.fastest(
        ways(),
        [*_sizes(convolution), _WORKSPACE_BYTES_MAX],
        result=_RESULT,
        weights=_WEIGHTS,
        patience=_PATIENCE,
    )
    if found is None:
        return None
    best, microseconds = found
    index, chosen = offered[best]
    machine.tuner.remember(
        convolution,
        library,
        {
            "name": chosen.name,
            "workspace_bytes": chosen.workspace_bytes,
            "microseconds": microseconds,
        },
    )
    return PlannedConvolution(plans, index, chosen.workspace_bytes)


def _again(
    machine: Machine, convolution: Convolution, known: dict[str, object]
) -> PlannedConvolution:
    assert machine.cudnn is not None
    algorithm = ConvolutionAlgorithm(str(known["name"]), int(str(known["workspace_bytes"])))
    plans = ConvolutionPlans(machine.cudnn, convolution, algorithm)
    ((index, built),) = plans.algorithms(_WORKSPACE_BYTES_MAX)
    return PlannedConvolution(plans, index, built.workspace_bytes)


def _way(plans: ConvolutionPlans, index: int) -> Callable[[int, Sequence[int]], None]:
    def enqueue(stream: int, addresses: Sequence[int]) -> None:
        x, w, y, bias, residual, workspace = addresses
        plans.enqueue(
            index, stream, x=x, w=w, y=y, bias=bias, residual=residual, workspace=workspace
        )

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
        workspace_bytes=_filled_bytes(request, convolution) + planned.workspace_bytes,
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
        planned.plans.enqueue(
            planned.index,
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


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("com.microsoft.NhwcFusedConv",), _choose, _bind),
)
