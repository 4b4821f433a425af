"""Kernels of one thread a result: C statements of the index `i`, and named operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aegis_pipe.device import requests
from aegis_pipe.device.cuda.kernels.operands import operand
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    ALL,
    Dtypes,
    blocks_for,
    dense_strides,
    kernel_source,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

THREADS = 256


def given(binding: Binding, names: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return declarations and addresses of the inputs that are there, by name and position."""
    request = binding.request
    return [
        (f"const {stored(spec.dtype)}* {name}", address)
        for name, position in names.items()
        if (spec := operand(request, position)) is not None
        and (address := binding.inputs[position]) is not None
    ]


def results(binding: Binding, names: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return declarations and addresses of the results that are wanted."""
    specs = binding.request.outputs
    return [
        (f"{stored(spec.dtype)}* {name}", address)
        for name, position in names.items()
        if position < len(specs)
        and (spec := specs[position]) is not None
        and (address := binding.outputs[position]) is not None
    ]


def launch(
    binding: Binding,
    body: str,
    parameters: Sequence[tuple[str, int]],
    *,
    grid: int | tuple[int, int, int],
    threads: int = THREADS,
    extra: str = "",
    faults: bool = False,
    blocks: int = 0,
) -> list[Enqueue]:
    """Launch a whole kernel; with `faults` it may write a reason to `*fault`.

    `blocks` as in `kernel_source`.
    """
    parameters = [*parameters]
    if faults:
        parameters.append(("int* fault", binding.fault()))
    code = kernel_source(
        [text for text, _ in parameters], body, threads=threads, extra=extra, blocks=blocks
    )
    arguments = [address for _, address in parameters]
    return [binding.kernel(code, arguments, grid=grid, block=threads)]


def each(
    binding: Binding,
    count: int,
    statements: str,
    parameters: Sequence[tuple[str, int]],
    *,
    extra: str = "",
    faults: bool = False,
    threads: int = THREADS,
) -> list[Enqueue]:
    """Launch `statements` for every `i` of `count`; none if there are none."""
    if count == 0:
        return []
    body = f"""
  const long long i = (long long)blockIdx.x * {threads} + threadIdx.x;
  if (i >= {count}LL) return;
  {statements}"""
    grid = blocks_for(count, threads)
    return launch(binding, body, parameters, grid=grid, threads=threads, extra=extra, faults=faults)


def unravel(shape: Sequence[int], names: Sequence[str], index: str = "i") -> str:
    """Return statements that declare the coordinates of the element at an index."""
    strides = dense_strides(shape)
    return " ".join(
        f"const long long {name} = ({index}) / {max(1, stride)}LL % {max(1, size)}LL;"
        for name, size, stride in zip(names, shape, strides, strict=True)
    )


def simple_kernel(
    name: str,
    operators: Sequence[str],
    bind: Callable[[Binding], Sequence[Enqueue]],
    *,
    accepts: Callable[[KernelRequest], bool] | None = None,
    workspace: Callable[[KernelRequest], int] | None = None,
    dtypes: Dtypes = ALL,
    in_place: Sequence[tuple[int, int]] = (),
) -> CudaKernel:
    """Return a kernel that takes operands of these dtypes for which `accepts` holds.

    `in_place` pairs are offered where their specs are the same.
    """

    def choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
        specs = [spec for spec in (*request.inputs, *request.outputs) if spec is not None]
        if any(spec.dtype not in dtypes for spec in specs):
            return None
        if accepts is not None and not accepts(request):
            return None
        return KernelChoice(
            name,
            workspace_bytes=0 if workspace is None else workspace(request),
            cost=float(sum(spec.element_count for spec in specs)),
            in_place=requests.in_place(request, in_place),
        )

    return CudaKernel(tuple(operators), choose, bind)
