"""Products of few rows by constant weights: a kernel of ours, tried within the model.

Convolutions with a window of one pixel are such products, too.

Where a result has few rows, cuBLASLt's kernels take several times as long as their weights take to
come from memory. Ours have them on the way while the kernel ahead runs, and end with bias, residual
and activation (`warpgroup_source.py`). How long it takes depends on the neighbours: what begins
early, beside what, and where its blocks find room. So none is chosen by itself; all are offered as
alternatives, and what they are worth is measured within a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.cublaslt import MatrixProduct
from aegis_pipe.device.cuda.kernels.convolution_products import as_product
from aegis_pipe.device.cuda.kernels.elementwise import FUNCTIONS
from aegis_pipe.device.cuda.kernels.library_convolutions import convolution_of
from aegis_pipe.device.cuda.kernels.library_products import ProductOperands, product_operands
from aegis_pipe.device.cuda.kernels.operands import required, text
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import HALF_FLOATS, blocks_for
from aegis_pipe.device.cuda.kernels.warpgroup_source import (
    DEPTH,
    ROWS,
    THREADS,
    WarpgroupTiling,
    pack,
    packed_bytes,
    source_of,
    steps_of,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest, PackedConstant

CAPABILITY = 90
"""The generation whose tensor cores are driven so; neither older nor newer ones have it."""
_CONVOLUTION = "com.microsoft.NhwcFusedConv"
_GROUP = 8
"""Columns, and elements of the depth, come in so many."""
_ACTIVATIONS = {
    "": "a",
    "relu": "vmax(a, 0.0f)",
    "gelu": "gelu_of_half(a)",
    "gelu_tanh": "gelu_tanh(a)",
}
_ROWS_MAX = 512
_SHARED_BYTES_MAX = 225 << 10
_HALF_BYTES = 111 << 10
"""Shared memory of a block that lies beside another one, of this or of a neighbouring kernel."""
_COLUMNS_MAX = 192
_SHARES = (
    (1, 1.0, _SHARED_BYTES_MAX),
    (1, 1.0, _HALF_BYTES),
    (1, 1.5, _HALF_BYTES),
    (4, 1.0, _HALF_BYTES),
)
"""Blocks that share a tile's depth, blocks a multiprocessor, and the shared memory of one. Blocks
of a cluster lie within a part of the GPU: with more shared memory, not all that are wanted fit at
once."""
_STAGES_MIN, _STAGES_MAX = 4, 16
"""On their way at once: with fewer than four, memory is waited for."""


def _operands(request: KernelRequest, machine: Machine) -> ProductOperands | None:
    """Return what is to be computed, if it is for this kernel."""
    if machine.capability != CAPABILITY or required(request).dtype not in HALF_FLOATS:
        return None
    found = _of_convolution(request) if request.operator == _CONVOLUTION else _of_product(request)
    if found is None or not request.constants.keys() >= {1, *filter(None, [found.bias])}:
        return None
    p = found.product
    fits = p.batch == 1 and not p.x_transposed and p.alpha == 1 and p.m <= _ROWS_MAX
    return found if fits and not (p.n % _GROUP or p.k % _GROUP) else None


def _of_product(request: KernelRequest) -> ProductOperands | None:
    gelu = "activation" in request.attributes and text(request, "activation") == "Gelu"
    plain = request
    if gelu:
        plain = replace(request, attributes={**request.attributes, "activation": ""})
    found = product_operands(plain)
    if found is None or not gelu:
        return found
    return replace(found, product=replace(found.product, activation="gelu"))


def _of_convolution(request: KernelRequest) -> ProductOperands | None:
    convolution = convolution_of(request)
    found = None if convolution is None else as_product(request, convolution)
    if found is None or found.are_patches:
        return None
    p = found.product
    return ProductOperands(p, 2 if p.bias else None, 3 if p.residual else None)


def tilings(p: MatrixProduct, multiprocessors: int) -> list[WarpgroupTiling]:
    """Return what is worth trying: few, as each is measured within a model.

    Of more shapes, these have all that ViT-B/16, BERT-base and ResNet-50 of one input chose on an
    H100.
    """
    down, steps = blocks_for(p.m, ROWS), steps_of(p)
    found: list[WarpgroupTiling] = []
    for splits, blocks, room in _SHARES:
        across = int(blocks * multiprocessors) // (down * splits)
        if splits > steps or across == 0:
            continue
        columns = max(16, blocks_for(p.n, across * _GROUP) * _GROUP)
        if columns > _COLUMNS_MAX:
            continue
        one, two = (WarpgroupTiling(columns, splits, stages) for stages in (1, 2))
        fit = 1 + (room - one.shared_bytes) // (two.shared_bytes - one.shared_bytes)
        share = blocks_for(steps, splits)
        each = replace(one, stages=min(share, fit, _STAGES_MAX))
        if each.stages >= min(share, _STAGES_MIN) and each not in found:
            found.append(each)
    return [replace(each, starts_next=when) for each in found for when in ("at once", "late")]


def _variant(tiling: WarpgroupTiling) -> str:
    return f"{tiling.columns} x {tiling.splits}, {tiling.stages} stages, {tiling.starts_next}"


def _alternatives(request: KernelRequest, machine: Machine) -> Sequence[KernelChoice]:
    operands = _operands(request, machine)
    if operands is None:
        return ()
    p = operands.product
    # Bytes that are the same may have been other matrices.
    layout = f"warpgroup.{'rows' if p.w_transposed else 'columns'}.{p.k}"
    packed = PackedConstant.filled(layout, packed_bytes(p), partial(pack, p))
    kernel = "conv.warpgroup" if request.operator == _CONVOLUTION else "matmul.warpgroup"
    return [
        KernelChoice(
            kernel,
            packed={1: packed},
            cost=float(p.m * p.n * p.k),
            variant=_variant(tiling),
        )
        for tiling in tilings(p, machine.multiprocessors)
    ]


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    return None


def _found(
    request: KernelRequest, choice: KernelChoice, machine: Machine
) -> tuple[ProductOperands, WarpgroupTiling, str]:
    """Return operands, tiling and source of an alternative."""
    operands = _operands(request, machine)
    assert operands is not None
    p = operands.product
    (tiling,) = (
        each for each in tilings(p, machine.multiprocessors) if _variant(each) == choice.variant
    )
    return operands, tiling, source_of(p, tiling, _ACTIVATIONS[p.activation], FUNCTIONS)


def _sources(request: KernelRequest, choice: KernelChoice, machine: Machine) -> Sequence[str]:
    return [_found(request, choice, machine)[2]]


def _bind(binding: Binding) -> Sequence[Enqueue]:
    operands, tiling, source = _found(binding.request, binding.choice, binding.machine)
    p, inputs = operands.product, binding.inputs
    x, w, y = inputs[0], inputs[1], binding.outputs[0]
    assert x is not None
    rows = driver.tensor_map(x, (p.m, p.k), (ROWS, DEPTH), bfloat16=p.dtype == "bfloat16")
    added = [inputs[at] for at in (operands.bias, operands.residual) if at is not None]
    return [
        binding.kernel(
            source,
            [rows, w, *added, y],
            grid=tiling.grid(p),
            block=THREADS,
            shared_bytes=tiling.shared_bytes,
        )
    ]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(
        ("MatMul", "com.microsoft.FusedMatMul", "Gemm", "com.microsoft.FusedGemm", _CONVOLUTION),
        _choose,
        _bind,
        alternatives=_alternatives,
        sources=_sources,
    ),
)
