"""Attention in half precision on tensor cores, where that was measured to be faster than cuDNN's.

Which shape of block (`tensor_attention_source.py`) is decided by the same measurement. Shapes of
many warps for few queries are for one input, those of many queries for several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.kernels.attention import (
    STRIDED,
    Attention,
    addresses_of,
    attention_of,
    cost_of,
    fused,
    planned_attention,
)
from aegis_pipe.device.cuda.kernels.operands import required
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import HALF_FLOATS
from aegis_pipe.device.cuda.kernels.tensor_attention_source import Block, source_of
from aegis_pipe.kernel import KernelChoice, KernelRequest

_CAPABILITY_MIN = 80
_SIZES = (64, 128)
_SHAPES = ((2, 4), (1, 4), (2, 2), (4, 2), (4, 1), (8, 1))
"""Groups of queries of a block, and warps that share a group."""
_ADJOINING = 8
"""Elements that are loaded at once."""


def _suited(request: KernelRequest, machine: Machine) -> Attention | None:
    attention = attention_of(request)
    dtype = required(request).dtype
    if attention is None or dtype not in HALF_FLOATS or machine.capability < _CAPABILITY_MIN:
        return None
    a = attention
    if a.softcap or a.q.size not in _SIZES or a.v.size != a.q.size or a.q.length == 0:
        return None
    if any(
        place % _ADJOINING
        for each in (a.q, a.k, a.v, a.y)
        for place in (*each.strides, each.offset)
    ):
        return None
    return None if a.mask is not None and a.mask.dtype != dtype else a


def _blocks(a: Attention) -> list[Block]:
    """Return the shapes of block that are measured."""
    return [_block(a, rows, keys) for rows, keys in _SHAPES]


def _block(a: Attention, rows: int, keys: int) -> Block:
    return Block(rows, keys, a.q.size, a.k.length, a.mask is not None)


def _grid(a: Attention, block: Block) -> tuple[int, int, int]:
    return -(-a.q.length // block.queries), a.q.heads, a.q.batch


def _measured(request: KernelRequest, machine: Machine, a: Attention) -> Block | None:
    """Return the fastest shape of block; None where cuDNN is faster."""
    if machine.tuner is None or machine.cudnn is None:
        return _blocks(a)[0]
    what = f"attention {a} {required(request).dtype}"
    library = f"kernels with pages and cudnn {machine.cudnn.version}"
    known = machine.tuner.remembered(what, library)
    if known is None:
        blocks = _blocks(a)
        ways = [_way(request, machine, a, block) for block in blocks]
        theirs = fused(request)
        plan = None if theirs is None else planned_attention(machine, theirs)
        if plan is not None:

            def cudnn(stream: int, addresses: Sequence[int]) -> None:
                names = ("q", "k", "v", "mask", "y")
                given = dict(zip(names, addresses, strict=False))
                plan.enqueue(stream, given, addresses[5])

            ways.append(cudnn)
        workspace_bytes = 0 if plan is None else plan.workspace_bytes
        sizes = [*_sizes(request, a), workspace_bytes]
        found = machine.tuner.fastest(ways, sizes, result=4)
        assert found is not None, "the kernel gives the same bits every time"
        best, microseconds = found
        rows, keys = _SHAPES[best] if best < len(blocks) else (0, 0)
        known = {"rows": rows, "keys": keys, "microseconds": microseconds}
        machine.tuner.remember(what, library, known)
    rows, keys = (int(str(known[name])) for name in ("rows", "keys"))
    return _block(a, rows, keys) if rows else None


def _sizes(request: KernelRequest, a: Attention) -> list[int]:
    """Return how many bytes Q, K, V, mask and Y reach over."""
    item = required(request).dtype.itemsize
    reaches = []
    for each in (a.q, a.k, a.v, a.y):
        last = [(n - 1) * s for n, s in zip(each.shape, (*each.strides, 1), strict=True)]
        reaches.append(item * (sum(last) + 1))
    return [*reaches[:3], a.mask.size_bytes if a.mask is not None else 0, reaches[3]]


def _way(
    request: KernelRequest, machine: Machine, a: Attention, block: Block
) -> Callable[[int, Sequence[int]], None]:
    source = source_of(a, required(request).dtype, block)
    function = machine.compiler.function(source, block.shared_bytes)

    def enqueue(stream: int, addresses: Sequence[int]) -> None:
        used = [*addresses[:3], *(addresses[3:4] if a.mask is not None else ()), addresses[4]]
        threads, grid = (block.threads, 1, 1), _grid(a, block)
        arguments = driver.Arguments(used)
        driver.launch(function, grid, threads, block.shared_bytes, stream, arguments)

    return enqueue


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    attention = _suited(request, machine)
    if attention is None or _measured(request, machine, attention) is None:
        return None
    return KernelChoice("attention.tensor", cost=cost_of(request))


def _bind(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    attention = _suited(request, binding.machine)
    assert attention is not None
    block = _measured(request, binding.machine, attention)
    assert block is not None
    addresses = addresses_of(binding, attention)
    arguments = [addresses[name] for name in ("q", "k", "v", "mask", "y") if name in addresses]
    code = source_of(attention, required(request).dtype, block)
    return [
        binding.kernel(
            code,
            arguments,
            grid=_grid(attention, block),
            block=block.threads,
            shared_bytes=block.shared_bytes,
        )
    ]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (CudaKernel(("Attention", STRIDED), _choose, _bind),)
