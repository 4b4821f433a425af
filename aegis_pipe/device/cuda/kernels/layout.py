"""Operators that move elements to places known at load: strided reads, or strided writes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from aegis_pipe.device.cuda.kernels.operands import (
    integer,
    integers,
    number,
    operand as optional,
    required,
    result,
    text,
)
from aegis_pipe.device.cuda.kernels.pointwise import Mapping, Pointwise, Read, launch_mapping
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    blocks_for,
    broadcast_strides,
    computed,
    dense_strides,
    index_type,
    kernel_source,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_COPY = Pointwise("{0}", in_place=False)
_THREADS = 256
_JOINED_MAX = 16
"""Operands that one kernel concatenates."""


def _moves(
    operator: str, bind: Callable[[Binding], Sequence[Enqueue]], name: str = ""
) -> CudaKernel:
    def choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
        specs = [spec for spec in (*request.inputs, *request.outputs) if spec is not None]
        if not specs or any(spec.dtype not in ALL for spec in specs):
            return None
        cost = float(sum(spec.element_count for spec in specs))
        return KernelChoice(f"layout.{name or operator}", cost=cost)

    return CudaKernel((operator,), choose, bind)


def _choose_view(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    return KernelChoice("view", view=(0, 0))


def _no_launches(binding: Binding) -> Sequence[Enqueue]:
    raise AssertionError("views are not bound")


def _strided(binding: Binding, strides: Sequence[int], start: int = 0) -> Sequence[Enqueue]:
    target, source = result(binding.request), required(binding.request)
    read = Read(source.dtype, tuple(strides), start)
    mapping = Mapping(target.shape, (read,), target.dtype, _COPY)
    return launch_mapping(binding, mapping, binding.given()[:1], binding.outputs[0])


def _transpose(binding: Binding) -> Sequence[Enqueue]:
    strides = dense_strides(required(binding.request).shape)
    return _strided(binding, [strides[axis] for axis in integers(binding.request, "perm")])


def _slice(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    strides = dense_strides(required(request).shape)
    starts, steps = integers(request, "starts"), integers(request, "steps")
    start = sum(a * b for a, b in zip(starts, strides, strict=True))
    return _strided(binding, [a * b for a, b in zip(steps, strides, strict=True)], start)


def _expand(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    return _strided(binding, broadcast_strides(required(request).shape, result(request).shape))


def _tile(binding: Binding) -> Sequence[Enqueue]:
    source, target = required(binding.request), result(binding.request)
    # Every dimension as (repeats, size): the first of them stands still.
    repeats = integers(binding.request, "repeats")
    shape = tuple(n for pair in zip(repeats, source.shape, strict=True) for n in pair)
    strides = tuple(n for stride in dense_strides(source.shape) for n in (0, stride))
    mapping = Mapping(shape, (Read(source.dtype, strides),), target.dtype, _COPY)
    return launch_mapping(binding, mapping, binding.given()[:1], binding.outputs[0])


def _split(binding: Binding) -> Sequence[Enqueue]:
    source = required(binding.request)
    axis, strides = integer(binding.request, "axis"), dense_strides(source.shape)
    launches: list[Enqueue] = []
    first = 0
    sizes = integers(binding.request, "split")
    for size, spec, address in zip(sizes, binding.request.outputs, binding.outputs, strict=True):
        if spec is not None and address is not None:
            read = Read(source.dtype, strides, first * strides[axis])
            mapping = Mapping(spec.shape, (read,), spec.dtype, _COPY)
            launches += launch_mapping(binding, mapping, binding.given(), address)
        first += size
    return launches


def _concat(binding: Binding) -> Sequence[Enqueue]:
    """Launch one kernel for all operands, unless they are very many."""
    target = result(binding.request)
    axis, strides = integer(binding.request, "axis"), dense_strides(target.shape)
    joined = _joined(binding, axis)
    if joined is not None:
        return joined
    launches: list[Enqueue] = []
    first = 0
    for spec, address in zip(binding.request.inputs, binding.inputs, strict=True):
        assert spec is not None
        assert address is not None
        read = Read(spec.dtype, dense_strides(spec.shape))
        mapping = Mapping(spec.shape, (read,), target.dtype, _COPY, strides, first * strides[axis])
        launches += launch_mapping(binding, mapping, [address], binding.outputs[0])
        first += spec.shape[axis]
    return launches


def _joined(binding: Binding, axis: int) -> list[Enqueue] | None:
    """Copy stretches of all operands in turn, in words as wide as they are aligned to."""
    target = result(binding.request)
    pairs = zip(binding.request.inputs, binding.inputs, strict=True)
    given = [(spec, address) for spec, address in pairs if spec and address and spec.element_count]
    if len(given) > _JOINED_MAX or not given or binding.outputs[0] is None:
        return None
    item = target.dtype.itemsize
    stretches = [math.prod(spec.shape[axis:]) * item for spec, _ in given]
    places = [*stretches, binding.outputs[0], *(address for _, address in given)]
    width = math.gcd(16, *places)
    words = [stretch // width for stretch in stretches]
    count = target.size_bytes // width
    ends = list(itertools.accumulate(words))
    taken = [
        f"x{at}[row * {size} + (c - {end - size}u)]"
        for at, (size, end) in enumerate(zip(words, ends, strict=True))
    ]
    chosen = "".join(
        f"c < {end}u ? {word} : " for end, word in zip(ends[:-1], taken[:-1], strict=True)
    )
    kind = {16: "Pack<u32, 4>", 8: "Pack<u32, 2>", 4: "u32", 2: "u16", 1: "u8"}[width]
    body = f"""
  const {index_type(count)} i = ({index_type(count)})blockIdx.x * {_THREADS} + threadIdx.x;
  if (i >= {count}u) return;
  const {index_type(count)} row = i / {ends[-1]}u;
  const u32 c = i % {ends[-1]}u;
  y[i] = {chosen}{taken[-1]};"""
    parameters = [f"const {kind}* x{at}" for at in range(len(given))]
    code = kernel_source([*parameters, f"{kind}* y"], body, threads=_THREADS)
    arguments = [*(address for _, address in given), binding.outputs[0]]
    return [binding.kernel(code, arguments, grid=blocks_for(count, _THREADS), block=_THREADS)]


def _coordinates(shape: Sequence[int], index: str = "i") -> list[str]:
    """Return C expressions of the coordinates of the element at an index."""
    strides = dense_strides(shape)
    return [
        f"(long long)(({index} / {max(1, stride)}u) % {max(1, size)}u)"
        for size, stride in zip(shape, strides, strict=True)
    ]


def gathered(
    binding: Binding,
    statements: str,
    where: str,
    otherwise: str = "0",
    *,
    parameters: Sequence[tuple[str, int | None]] = (),
    condition: str = "true",
) -> Sequence[Enqueue]:
    """Launch `y[i] = condition ? x[where] : otherwise` for every result, after `statements`."""
    source, target = required(binding.request), result(binding.request)
    count = target.element_count
    if count == 0:
        return []
    body = f"""
  {index_type(count)} i = ({index_type(count)})blockIdx.x * {_THREADS} + threadIdx.x;
  if (i >= {count}u) return;
  {statements}
  y[i] = ({condition}) ? To<{stored(target.dtype)}>::of(get(x[{where}]))
                       : To<{stored(target.dtype)}>::of({otherwise});"""
    declared = [
        f"const {stored(source.dtype)}* x",
        *(declaration for declaration, _ in parameters),
        f"{stored(target.dtype)}* y",
    ]
    arguments = [binding.inputs[0], *(address for _, address in parameters), binding.outputs[0]]
    code = kernel_source(declared, body, threads=_THREADS)
    return [binding.kernel(code, arguments, grid=blocks_for(count, _THREADS), block=_THREADS)]


def _pad(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    source, target, mode = required(request), result(request), text(request, "mode")
    before = integers(request, "before")
    strides = dense_strides(source.shape)
    kind = computed(target.dtype)
    lines, tests, terms = [], [], []
    for axis, coordinate in enumerate(_coordinates(target.shape)):
        size = source.shape[axis]
        lines.append(f"long long c{axis} = {coordinate} - ({before[axis]});")
        if mode == "constant":
            tests.append(f"c{axis} >= 0 && c{axis} < {size}")
        elif mode == "edge":
            lines.append(f"c{axis} = c{axis} < 0 ? 0 : c{axis} >= {size} ? {size - 1} : c{axis};")
        elif mode == "wrap":
            lines.append(f"c{axis} = ((c{axis} % {size}) + {size}) % {size};")
        else:
            period = max(1, 2 * (size - 1))
            lines.append(f"c{axis} = ((c{axis} % {period}) + {period}) % {period};")
            lines.append(f"if (c{axis} >= {size}) c{axis} = {period} - c{axis};")
        terms.append(f"c{axis} * {strides[axis]}")
    value, parameters = literal(_number(request), kind), []
    if optional(request, 1) is not None:
        value, parameters = (
            "get(*value)",
            [(f"const {stored(target.dtype)}* value", binding.inputs[1])],
        )
    if source.element_count == 0:
        tests.append("false")
    return gathered(
        binding,
        "\n  ".join(lines),
        " + ".join(terms) or "0",
        value,
        parameters=parameters,
        condition=" && ".join(tests) or "true",
    )


def _number(request: KernelRequest) -> float:
    return (
        number(request, "value")
        if isinstance(request.attributes.get("value"), int | float)
        else 0.0
    )


def _trilu(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    shape = required(request).shape
    row, column = _coordinates(shape)[-2:]
    comparison = ">=" if integer(request, "upper") else "<="
    return gathered(
        binding, "", "i", condition=f"{column} {comparison} {row} + ({integer(request, 'k')})"
    )


def _depth_to_space(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    n, c, h, w = required(request).shape
    block = integer(request, "blocksize")
    depth = c // (block * block)
    if text(request, "mode") == "DCR":
        split, order = (n, block, block, depth, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, depth, block, block, h, w), (0, 1, 4, 2, 5, 3)
    return _permuted(binding, split, order)


def _space_to_depth(binding: Binding) -> Sequence[Enqueue]:
    n, c, h, w = required(binding.request).shape
    block = integer(binding.request, "blocksize")
    split = (n, c, h // block, block, w // block, block)
    is_depth_last = text(binding.request, "mode") == "DCR"
    return _permuted(binding, split, (0, 3, 5, 1, 2, 4) if is_depth_last else (0, 1, 3, 5, 2, 4))


def _permuted(binding: Binding, split: Sequence[int], order: Sequence[int]) -> Sequence[Enqueue]:
    strides = dense_strides(split)
    target = result(binding.request)
    read = Read(required(binding.request).dtype, tuple(strides[axis] for axis in order))
    shape = tuple(split[axis] for axis in order)
    mapping = Mapping(shape, (read,), target.dtype, _COPY)
    return launch_mapping(binding, mapping, binding.given()[:1], binding.outputs[0])


def _reverse_sequence(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    shape = required(request).shape
    time, batch = integer(request, "time_axis"), integer(request, "batch_axis")
    coordinates, strides = _coordinates(shape), dense_strides(shape)
    lines = (
        f"long long t = {coordinates[time]}; "
        f"long long n = (long long)lengths[{coordinates[batch]}];\n"
        f"  long long s = t < n ? n - 1 - t : t;"
    )
    lengths = required(request, 1)
    return gathered(
        binding,
        lines,
        f"(long long)i + (s - t) * {strides[time]}",
        parameters=[(f"const {stored(lengths.dtype)}* lengths", binding.inputs[1])],
    )


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("Reshape", "Identity", "BitCast"), _choose_view, _no_launches),
    _moves("Transpose", _transpose),
    _moves("Slice", _slice),
    _moves("Expand", _expand),
    _moves("Tile", _tile),
    _moves("Split", _split),
    _moves("Concat", _concat),
    _moves("Pad", _pad),
    _moves("Trilu", _trilu),
    _moves("DepthToSpace", _depth_to_space),
    _moves("SpaceToDepth", _space_to_depth),
    _moves("ReverseSequence", _reverse_sequence),
)
