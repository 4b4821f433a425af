"""Operators whose indices are data: Gather and its kin. Bad indices are told of by `check`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.faults import INDEX_OUT_OF_RANGE
from aegis_pipe.device.cuda.kernels.operands import integer, required, result
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    blocks_for,
    dense_strides,
    kernel_source,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_THREADS = 256


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if any(spec is not None and spec.dtype not in ALL for spec in request.inputs):
        return None
    return KernelChoice(f"indexing.{request.operator}", cost=float(result(request).element_count))


def checked(name: str, value: str, size: int) -> str:
    """Return statements that set `name` to an index within 0..size-1, or write a fault."""
    return (
        f"long long {name} = (long long)({value}); if ({name} < 0) {name} += {size}; "
        f"if ({name} < 0 || {name} >= {size}) {{ *fault = {INDEX_OUT_OF_RANGE}; {name} = 0; }}"
    )


def _launch(
    binding: Binding, count: int, statements: str, operands: Sequence[str]
) -> Sequence[Enqueue]:
    if count == 0:
        return []
    request = binding.request
    body = f"""
  const long long i = (long long)blockIdx.x * {_THREADS} + threadIdx.x;
  if (i >= {count}LL) return;
  {statements}"""
    parameters = [
        f"const {stored(required(request, at).dtype)}* {name}" for at, name in enumerate(operands)
    ]
    parameters += [f"{stored(result(request).dtype)}* y", "int* fault"]
    code = kernel_source(parameters, body, threads=_THREADS)
    arguments = [*binding.inputs[: len(operands)], binding.outputs[0], binding.fault()]
    grid = blocks_for(count, _THREADS)
    return [binding.kernel(code, arguments, grid=grid, block=_THREADS)]


def _gather(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, indices, target = required(request), required(request, 1), result(request)
    axis = integer(request, "axis")
    inner, count = math.prod(data.shape[axis + 1 :]), indices.element_count
    size = data.shape[axis]
    statements = (
        f"const long long low = i % {max(1, inner)}, rest = i / {max(1, inner)}; "
        f"{checked('g', f'at[rest % {max(1, count)}]', size)} "
        f"y[i] = x[((rest / {max(1, count)}) * {size} + g) * {inner} + low];"
    )
    return _launch(binding, target.element_count, statements, ("x", "at"))


def along(shape: Sequence[int], data: Sequence[int], axis: int, index: str = "i") -> str:
    """Return statements that set `p` to where an index of `shape` points, `g` along `axis`."""
    strides, own = dense_strides(data), dense_strides(shape)
    terms = []
    for dimension, step in enumerate(own):
        coordinate = "g" if dimension == axis else f"(({index}) / {step}) % {shape[dimension]}"
        terms.append(f"({coordinate}) * {strides[dimension]}LL")
    return f"const long long p = {' + '.join(terms) or '0'};"


def _gather_elements(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, indices = required(request), required(request, 1)
    axis = integer(request, "axis")
    statements = (
        f"{checked('g', 'at[i]', data.shape[axis])} "
        f"{along(indices.shape, data.shape, axis)} y[i] = x[p];"
    )
    return _launch(binding, indices.element_count, statements, ("x", "at"))


def _gather_nd(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    data, indices, target = required(request), required(request, 1), result(request)
    batch, depth = integer(request, "batch_dims"), indices.shape[-1]
    strides = dense_strides(data.shape)
    inner = math.prod(data.shape[batch + depth :])
    per_batch = math.prod(indices.shape[batch:-1])
    lines = [f"const long long low = i % {max(1, inner)}, tuple = i / {max(1, inner)};"]
    whole = math.prod(data.shape[batch:])
    lines.append(f"long long p = (tuple / {max(1, per_batch)}) * {whole}LL + low;")
    for position in range(depth):
        size = data.shape[batch + position]
        lines.append(checked(f"g{position}", f"at[tuple * {depth} + {position}]", size))
        lines.append(f"p += g{position} * {strides[batch + position]}LL;")
    lines.append("y[i] = x[p];")
    return _launch(binding, target.element_count, "\n  ".join(lines), ("x", "at"))


def _one_hot(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    target = result(request)
    axis, depth = integer(request, "axis"), integer(request, "depth")
    inner = math.prod(target.shape[axis + 1 :])
    statements = (
        f"const long long low = i % {max(1, inner)}, rest = i / {max(1, inner)}; "
        f"const long long c = rest % {max(1, depth)}, outer = rest / {max(1, depth)}; "
        f"long long g = (long long)at[outer * {inner} + low]; if (g < 0) g += {depth}; "
        f"y[i] = values[g == c ? 1 : 0]; (void)fault;"
    )
    return _launch(binding, target.element_count, statements, ("at", "values"))


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("Gather",), _choose, _gather),
    CudaKernel(("GatherElements",), _choose, _gather_elements),
    CudaKernel(("GatherND",), _choose, _gather_nd),
    CudaKernel(("OneHot",), _choose, _one_hot),
)
