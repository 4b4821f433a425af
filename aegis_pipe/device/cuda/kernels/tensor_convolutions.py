"""Convolutions in half precision on tensor cores, for results of few elements.

Libraries' kernels leave most of a GPU idle where a result has few tiles. Here the blocks of a
cluster share a tile: each adds up a stretch of the depth, and reads its neighbours' partial sums
from their shared memory, always in the same order. No workspace, no second kernel, same bits.

Which tile and how many blocks to a cluster, or a library after all, is decided by measurement;
candidates are compiled ahead, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.convolution_products import (
    library_microseconds,
    packed_channels_last,
)
from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    operand,
    required,
    result,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine, Way
from aegis_pipe.device.cuda.kernels.source import EARLY_CAPABILITY, HALF_FLOATS
from aegis_pipe.device.cuda.kernels.tensor_convolution_source import source_of
from aegis_pipe.device.cuda.kernels.tensor_tilings import (
    DEPTH,
    SHARED_BYTES_MAX,
    TensorConvolution,
    Tiling,
    tilings,
)
from aegis_pipe.device.cuda.kernels.windows import activated, is_known_activation
from aegis_pipe.kernel import KernelChoice, KernelRequest

_GROUP = 8
"""Elements that are loaded at once."""
_RESULT, _WEIGHTS = 4, 1
"""Positions among the operands that are measured with."""


def _convolution_of(request: KernelRequest) -> TensorConvolution | None:
    """Return what is to be computed, if it is for this kernel."""
    data, weights, target = required(request), required(request, 1), result(request)
    if data.dtype not in HALF_FLOATS or 1 not in request.constants or len(data.shape) != 4:
        return None
    if integer(request, "group") != 1 or not is_known_activation(request):
        return None
    if not 0 < target.element_count < 1 << 30 or not data.element_count:
        return None
    found = TensorConvolution(
        data.dtype.name,
        data.shape[0],
        data.shape[1:3],
        data.shape[3],
        weights.shape[0],
        target.shape[1:3],
        weights.shape[2:],
        integers(request, "strides"),
        integers(request, "dilations"),
        integers(request, "pads"),
        operand(request, 2) is not None,
        operand(request, 3) is not None,
        activated(request, "float"),
    )
    step = DEPTH if found.taps > 1 else _GROUP
    return None if found.channels % step or found.filters % 4 else found


def _sizes(p: TensorConvolution) -> list[int]:
    """Return the bytes of X, W, bias, residual and Y."""
    y = 2 * p.rows * p.filters
    return [
        2 * p.batch * math.prod(p.space) * p.channels,
        2 * p.filters * p.taps * p.channels,
        2 * p.filters,
        y if p.residual else 0,
        y,
    ]


def _way(machine: Machine, p: TensorConvolution, tiling: Tiling) -> Way:
    launch = machine.way(
        source_of(p, tiling),
        grid=tiling.grid(p),
        block=tiling.threads,
        shared_bytes=tiling.shared_bytes(p),
    )
    wanted = (True, True, p.bias, p.residual, True)

    def enqueue(stream: int, addresses: Sequence[int]) -> None:
        launch(stream, [each for each, is_used in zip(addresses, wanted, strict=True) if is_used])

    return enqueue


def _fastest(machine: Machine, p: TensorConvolution) -> tuple[Tiling, float] | None:
    """Return the fastest tiling and its microseconds, measured one behind the other.

    That is how convolutions stand in a model, and what beginning early is worth depends on it.
    """
    assert machine.tuner is not None
    found = tilings(p, machine.multiprocessors)
    if not found:
        return None
    what = _what(p, found)
    known = machine.tuner.remembered(what, "own kernels")
    if known is None:
        ways = (_way(machine, p, tiling) for tiling in found)
        best = machine.tuner.fastest(ways, _sizes(p), result=_RESULT, weights=_WEIGHTS)
        assert best is not None, "sums are added up in one order"
        known = {"tiling": best[0], "microseconds": best[1]}
        machine.tuner.remember(what, "own kernels", known)
    return found[int(str(known["tiling"]))], float(str(known["microseconds"]))


def _what(p: TensorConvolution, found: Sequence[Tiling]) -> str:
    """Return what a choice is remembered by, also by files of earlier versions."""
    return f"{p} of {list(found)}"


def _offered(request: KernelRequest, machine: Machine) -> TensorConvolution | None:
    """Return what is to be computed if there is a library to be faster than, and a way to tell."""
    if machine.capability < EARLY_CAPABILITY or machine.shared_bytes_max < SHARED_BYTES_MAX:
        return None
    if machine.tuner is None or machine.cudnn is None:
        return None
    return _convolution_of(request)


def _prepare(requests: Sequence[KernelRequest], machine: Machine) -> None:
    """Have the tilings compiled that will be measured; none where it was chosen before."""
    sources: list[str] = []
    for p in dict.fromkeys(_offered(request, machine) for request in requests):
        if p is None:
            continue
        assert machine.tuner is not None
        found = tilings(p, machine.multiprocessors)
        if machine.tuner.remembered(_what(p, found), "own kernels") is None:
            sources += [source_of(p, tiling) for tiling in found]
    machine.compiler.prepare(sources)


def _chosen(request: KernelRequest, machine: Machine) -> tuple[TensorConvolution, Tiling] | None:
    """Return how it is done where that is faster than what the libraries have."""
    p = _offered(request, machine)
    found = None if p is None else _fastest(machine, p)
    if p is None or found is None:
        return None
    theirs = library_microseconds(request, machine)
    return None if theirs is not None and theirs <= found[1] else (p, found[0])


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    found = _chosen(request, machine)
    if found is None:
        return None
    p = found[0]
    return KernelChoice(
        "conv.tensor",
        packed={1: packed_channels_last(request)},
        cost=float(p.rows * p.filters * p.taps * p.channels),
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    found = _chosen(binding.request, binding.machine)
    assert found is not None
    p, tiling = found
    return [
        binding.kernel(
            source_of(p, tiling),
            [*binding.given(), binding.outputs[0]],
            grid=tiling.grid(p),
            block=tiling.threads,
            shared_bytes=tiling.shared_bytes(p),
        )
    ]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("com.microsoft.NhwcFusedConv",), _choose, _bind, _prepare),
)
