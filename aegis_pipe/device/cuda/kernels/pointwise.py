"""Elementwise operators: an expression of C, filled into one kernel.

A thread writes a pack of consecutive results. An operand that runs along with the result is read in
packs too, one that stands still is read once; the rest is read element by element.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from aegis_pipe.device.cuda.kernels.operands import result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    Walk,
    blocks_for,
    broadcast_strides,
    computed,
    index_type,
    kernel_source,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_THREADS = 256
_PACK_BYTES = 16


@dataclass(frozen=True, slots=True)
class Pointwise:
    """An expression over operands `{0}`, `{1}`, ..., each of the type its `get` has."""

    expression: str
    types: tuple[str, ...] | None = None
    """C types that operands are converted to first; None: their own."""
    in_place: bool = True
    extra: str = ""
    """Device functions it calls."""
    written: str = ""
    """C type of what is written, where it is not just that of the result."""
    statements: str = ""
    """What comes before the expression, over the same operands."""


Define = Callable[[KernelRequest], Pointwise | None]
"""Picks the expression for a request, by dtypes and attributes; None if there is none."""


@dataclass(frozen=True, slots=True)
class Read:
    """An operand of a mapping: how it is walked through."""

    dtype: np.dtype
    strides: tuple[int, ...]
    """In elements, along the dimensions of the result."""
    start: int = 0


@dataclass(frozen=True, slots=True)
class Mapping:
    """One kernel that writes a dense stretch of results, each from an element of each operand."""

    shape: tuple[int, ...]
    reads: tuple[Read, ...]
    written: np.dtype
    function: Pointwise
    target_strides: tuple[int, ...] | None = None
    """Where results go; None: densely, in order."""
    target_start: int = 0
    name: str = field(default="", compare=False)


def pointwise_kernel(operator: str, define: Define, *, name: str = "") -> CudaKernel:
    """Return the kernel of an elementwise operator with broadcasting."""

    def choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
        function = define(request)
        if function is None:
            return None
        target = result(request)
        in_place = tuple(
            (i, 0)
            for i, spec in enumerate(request.inputs)
            if function.in_place
            and spec is not None
            and spec.shape == target.shape
            and spec.dtype.itemsize == target.dtype.itemsize
        )
        return KernelChoice(
            name or f"elementwise.{operator}",
            in_place=in_place,
            cost=float(target.element_count * (len(request.inputs) + 1)),
        )

    def bind(binding: Binding) -> Sequence[Enqueue]:
        function = define(binding.request)
        assert function is not None
        target = result(binding.request)
        reads = tuple(
            Read(spec.dtype, broadcast_strides(spec.shape, target.shape))
            for spec in binding.request.inputs
            if spec is not None
        )
        mapping = Mapping(target.shape, reads, target.dtype, function)
        return launch_mapping(binding, mapping, binding.given(), binding.outputs[0])

    return CudaKernel((operator,), choose, bind)


def launch_mapping(
    binding: Binding, mapping: Mapping, sources: Sequence[int], target: int | None
) -> list[Enqueue]:
    """Return the launch of a mapping; none for an empty one."""
    count = int(np.prod(mapping.shape, dtype=np.int64))
    if count == 0 or target is None:
        return []
    source, pack = mapping_source(mapping)
    arguments = [*sources, target]
    threads = min(_THREADS, max(32, -(-count // pack // 32) * 32))
    grid = blocks_for(count // pack, threads)
    return [binding.kernel(source, arguments, grid=grid, block=threads)]


def mapping_source(mapping: Mapping) -> tuple[str, int]:
    """Return the source of a mapping and how many results one thread writes."""
    strides = [read.strides for read in mapping.reads]
    is_scattered = mapping.target_strides is not None
    if mapping.target_strides is not None:
        strides.append(mapping.target_strides)
    walk = Walk.of(mapping.shape, strides)
    count = int(np.prod(walk.sizes, dtype=np.int64))
    pack = _pack(mapping, walk)
    loads, values = [], []
    for position, read in enumerate(mapping.reads):
        load, value = _read(position, read, walk, pack)
        loads.append(load)
        values.append(value)
    types = mapping.function.types or tuple(computed(read.dtype) for read in mapping.reads)
    arguments = [f"(({kind}){value})" for kind, value in zip(types, values, strict=True)]
    expression = mapping.function.expression.format(*arguments)
    statements = mapping.function.statements.format(*arguments)
    kind = mapping.function.written or stored(mapping.written)
    place = "i"
    if is_scattered:
        place = walk.offset(len(strides) - 1, "i")
    start = f" + {mapping.target_start}" if mapping.target_start else ""
    body = f"""
  {index_type(count)} i = ({index_type(count)})blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= {count // pack}u) return;
  i *= {pack};
  {"".join(loads)}
  Pack<{kind}, {pack}> out;
  #pragma unroll
  for (int j = 0; j < {pack}; ++j) {{
    {statements}out.v[j] = To<{kind}>::of({expression}); }}
  *(Pack<{kind}, {pack}>*)(y{start} + {place}) = out;"""
    parameters = [
        f"const {stored(read.dtype)}* x{position}" for position, read in enumerate(mapping.reads)
    ]
    source = kernel_source(
        [*parameters, f"{kind}* y"], body, threads=_THREADS, extra=mapping.function.extra
    )
    return source, pack


def _pack(mapping: Mapping, walk: Walk) -> int:
    """Return how many results of the innermost dimension a thread writes at once."""
    widths = [mapping.written.itemsize, *(read.dtype.itemsize for read in mapping.reads)]
    pack = max(1, _PACK_BYTES // max(widths))
    count = int(np.prod(walk.sizes, dtype=np.int64))
    target = walk.strides[-1] if mapping.target_strides is not None else None
    while pack > 1:
        aligned = walk.sizes[-1] % pack == 0 and count // pack >= 1
        if target is not None:
            aligned &= target[-1] == 1 and mapping.target_start % pack == 0
            aligned &= all(step % pack == 0 for step in target[:-1])
        if aligned:
            break
        pack //= 2
    return pack


def _read(position: int, read: Read, walk: Walk, pack: int) -> tuple[str, str]:
    """Return the statement that loads an operand's elements and the expression of the j-th."""
    steps = walk.strides[position]
    start = f"x{position} + {read.start}" if read.start else f"x{position}"
    kind = stored(read.dtype)
    if steps[-1] == 0:
        where = walk.offset(position, "i")
        return f"const {kind} v{position} = ({start})[{where}];\n  ", f"get(v{position})"
    is_aligned = read.start % pack == 0 and all(step % pack == 0 for step in steps[:-1])
    if steps[-1] == 1 and is_aligned:
        where = walk.offset(position, "i")
        kind = f"Pack<{kind}, {pack}>"
        load = f"const {kind} v{position} = *(const {kind}*)({start} + {where});\n  "
        return load, f"get(v{position}.v[j])"
    where = walk.offset(position, "(i + j)")
    return "", f"get(({start})[{where}])"
