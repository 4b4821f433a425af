"""Products of bytes on tensor cores whose tiles are loaded ahead, and shared out as is fastest.

For channels in groups of sixteen, filters in fours, and weights whose zero point is 0: what
quantisers write. Sums of integers are exact in any order, so that the result's bits are the same
for every tiling; which one is decided by measurement. Candidates are compiled ahead, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.device.cuda.kernels.byte_products import (
    CAPABILITY_MIN,
    CONVOLUTIONS,
    OPERATORS,
    ByteProduct,
    ending_of,
    has_weights_zero,
    is_turned,
    kinds_of,
    product_of,
    taps_of,
    zero_of,
)
from aegis_pipe.device.cuda.kernels.operands import operand, result
from aegis_pipe.device.cuda.kernels.pipelined_bytes_source import (
    GROUP,
    Operands,
    shared_bytes,
    source_of,
)
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine, Way
from aegis_pipe.device.cuda.kernels.source import EARLY_CAPABILITY, stored
from aegis_pipe.device.cuda.kernels.tensor_tilings import SPLITS, Tiling, ranked
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

_WEIGHTS = 1
"""Its position among the operands that are measured with."""
_BLOCKS_MAX = 65_535
"""Along the second and third dimension of a grid."""


def _offered(request: KernelRequest, machine: Machine) -> ByteProduct | None:
    """Return what is to be multiplied, if it is for this kernel."""
    if machine.capability < CAPABILITY_MIN:
        return None
    found = product_of(request)
    if found is None or found.channels % GROUP or found.filters % 4:
        return None
    return None if has_weights_zero(request, found) else found


def _packed(request: KernelRequest, p: ByteProduct) -> PackedConstant:
    """Return how weights become sums by filter, then [filter, tap, channel]."""

    def pack(array: np.ndarray) -> np.ndarray:
        taps = np.ascontiguousarray(taps_of(request, p, array))
        sums = taps.sum(axis=(1, 2), dtype=np.int32)
        return np.concatenate([sums.view(np.uint8), taps.view(np.uint8).reshape(-1)])

    layout = "image" if request.operator in CONVOLUTIONS else "matrix"
    size_bytes = p.filters * (4 + p.taps * p.channels)
    return PackedConstant(f"pipelined_bytes.{layout}.{int(is_turned(request))}", size_bytes, pack)


def _positions(request: KernelRequest, p: ByteProduct) -> dict[str, int]:
    """Return the operands but the weights that a kernel is given, by name and position."""
    names = {"x_zero": p.x_zero_at, **ending_of(request, p)[1]}
    return {name: at for name, at in names.items() if operand(request, at) is not None}


def _operands(request: KernelRequest, p: ByteProduct) -> Operands:
    positions, declared = _positions(request, p), []
    for name, at in {"x": 0, **positions}.items():
        spec = operand(request, at)
        assert spec is not None
        declared.append(f"const {stored(spec.dtype)}* {name}")
    kind = stored(result(request).dtype)
    parameters = (declared[0], "const u8* packed", *declared[1:], f"{kind}* y")
    ending, _ = ending_of(request, p)
    elements = {operand for _, _, operand in ending.elements}
    are_known = all(at in request.constants for n, at in positions.items() if n not in elements)
    kinds, zero = kinds_of(request, p), zero_of(request, p)
    return Operands(kinds, zero, ending, kind, parameters, are_known)


def _tilings(p: ByteProduct, machine: Machine) -> list[Tiling]:
    """Return what is worth trying; without a way to measure nothing that only some GPUs do."""
    is_whole = machine.capability < EARLY_CAPABILITY or machine.tuner is None
    found = ranked(p, machine.multiprocessors, SPLITS[:1] if is_whole else SPLITS)
    return [
        each
        for each in found
        if shared_bytes(p, each) <= machine.shared_bytes_max and max(each.grid(p)) <= _BLOCKS_MAX
    ]


def _what(p: ByteProduct, operands: Operands, found: Sequence[Tiling]) -> str:
    """Return what a choice is remembered by."""
    return f"{p} {operands} of {list(found)}"


def _way(machine: Machine, p: ByteProduct, tiling: Tiling, operands: Operands) -> Way:
    return machine.way(
        source_of(p, tiling, operands),
        grid=tiling.grid(p),
        block=tiling.threads,
        shared_bytes=shared_bytes(p, tiling),
    )


def _tiling(request: KernelRequest, p: ByteProduct, machine: Machine) -> Tiling | None:
    """Return the fastest tiling, measured one behind the other, as in a model."""
    found = _tilings(p, machine)
    if not found or machine.tuner is None:
        return found[0] if found else None
    operands = _operands(request, p)
    what = _what(p, operands, found)
    known = machine.tuner.remembered(what, "own kernels")
    if known is None:
        specs = [operand(request, at) for at in (0, *_positions(request, p).values())]
        sizes = [spec.size_bytes for spec in specs if spec is not None]
        sizes.insert(_WEIGHTS, _packed(request, p).size_bytes)
        sizes.append(result(request).size_bytes)
        ways = (_way(machine, p, tiling, operands) for tiling in found)
        best = machine.tuner.fastest(ways, sizes, result=len(sizes) - 1, weights=_WEIGHTS)
        assert best is not None, "sums of integers are the same in any order"
        known = {"tiling": best[0], "microseconds": best[1]}
        machine.tuner.remember(what, "own kernels", known)
    return found[int(str(known["tiling"]))]


def _prepare(requests: Sequence[KernelRequest], machine: Machine) -> None:
    """Have the tilings compiled that will be measured; none where it was chosen before."""
    if machine.tuner is None:
        return
    sources: dict[str, None] = {}
    for request in requests:
        p = _offered(request, machine)
        if p is None:
            continue
        found, operands = _tilings(p, machine), _operands(request, p)
        if machine.tuner.remembered(_what(p, operands, found), "own kernels") is None:
            sources |= dict.fromkeys(source_of(p, tiling, operands) for tiling in found)
    machine.compiler.prepare(list(sources))


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    p = _offered(request, machine)
    if p is None or _tiling(request, p, machine) is None:
        return None
    return KernelChoice(
        "conv.pipelined_bytes" if request.operator in CONVOLUTIONS else "matmul.pipelined_bytes",
        packed={p.weights_at: _packed(request, p)},
        cost=float(p.multiplied),
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request, machine = binding.request, binding.machine
    p = product_of(request)
    assert p is not None
    tiling = _tiling(request, p, machine)
    assert tiling is not None
    given = [binding.inputs[at] for at in (0, *_positions(request, p).values())]
    given.insert(_WEIGHTS, binding.inputs[p.weights_at])
    return [
        binding.kernel(
            source_of(p, tiling, _operands(request, p)),
            [*given, binding.outputs[0]],
            grid=tiling.grid(p),
            block=tiling.threads,
            shared_bytes=shared_bytes(p, tiling),
        )
    ]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel(OPERATORS, _choose, _bind, _prepare),)
