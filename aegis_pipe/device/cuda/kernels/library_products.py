"""Matrix products by cuBLASLt, with bias, residual, and Relu or GELU by tanh in its epilogue."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aegis_pipe.device.cuda.cublaslt import MatrixProduct, MatrixProductAlgorithm, MatrixProductPlan
from aegis_pipe.device.cuda.kernels.operands import integer, number, operand, required, result, text
from aegis_pipe.device.cuda.kernels.registry import (
    Binding,
    CudaKernel,
    Enqueue,
    Machine,
    PlannedProduct,
)
from aegis_pipe.device.cuda.kernels.source import FLOAT32, HALF_FLOATS
from aegis_pipe.kernel import KernelChoice, KernelRequest

_WORKSPACE_BYTES_MAX = 32 << 20
_MEASURED_MAX = 24
_ACTIVATIONS = {"": "", "Relu": "relu", "FastGelu": "gelu_tanh"}


@dataclass(frozen=True, slots=True)
class ProductOperands:
    """A product and which operands of the request are its bias and its residual."""

    product: MatrixProduct
    bias: int | None = None
    residual: int | None = None


def product_operands(request: KernelRequest) -> ProductOperands | None:
    """Return what a request computes, if it is a product that libraries could do."""
    dtype = required(request).dtype
    if dtype not in HALF_FLOATS and dtype != FLOAT32:
        return None
    if result(request).element_count == 0 or required(request).element_count == 0:
        return None
    return _of_gemm(request) if "Gemm" in request.operator else _of_matmul(request)


def _of_gemm(request: KernelRequest) -> ProductOperands | None:
    a, (m, n) = required(request).shape, result(request).shape
    transposed = bool(integer(request, "transA"))
    asked = text(request, "activation") if "activation" in request.attributes else ""
    activation = _ACTIVATIONS.get(asked)
    c = operand(request, 2)
    if activation is None or (c is not None and number(request, "beta") != 1):
        return None
    # The library's tanh is nobody's promise: good enough for half precision.
    if activation == "gelu_tanh" and required(request).dtype not in HALF_FLOATS:
        return None
    product = MatrixProduct(
        m=m,
        n=n,
        k=a[0] if transposed else a[1],
        dtype=required(request).dtype.name,
        x_transposed=transposed,
        w_transposed=bool(integer(request, "transB")),
        activation=activation,
        alpha=number(request, "alpha"),
        tf32=request.tf32,
    )
    if c is None:
        return ProductOperands(product)
    # A bias is added before scaling ends: with alpha it would be the same, but not for integers.
    if c.element_count == n and c.shape[-1:] == (n,):
        return ProductOperands(replace(product, bias=True), bias=2)
    return (
        ProductOperands(replace(product, residual=True), residual=2) if c.shape == (m, n) else None
    )


def _of_matmul(request: KernelRequest) -> ProductOperands | None:
    a, b, y = required(request).shape, required(request, 1).shape, result(request).shape
    if len(a) < 2 or len(b) < 2:
        return None
    fused = request.operator == "com.microsoft.FusedMatMul"
    if fused and (integer(request, "transBatchA") or integer(request, "transBatchB")):
        return None
    x_transposed = bool(fused and integer(request, "transA"))
    w_transposed = bool(fused and integer(request, "transB"))
    product = MatrixProduct(
        m=y[-2],
        n=y[-1],
        k=a[-2] if x_transposed else a[-1],
        dtype=required(request).dtype.name,
        x_transposed=x_transposed,
        w_transposed=w_transposed,
        alpha=number(request, "alpha") if fused else 1.0,
        tf32=request.tf32,
    )
    rows, batch_b = math.prod(a[:-2]), math.prod(b[:-2])
    if batch_b == 1 and not x_transposed and math.prod(y[:-2]) == rows:
        return ProductOperands(replace(product, m=rows * y[-2]))
    if rows != math.prod(y[:-2]) or batch_b not in (1, rows):
        return None
    batched = replace(
        product,
        batch=rows,
        x_batch_stride=a[-2] * a[-1],
        w_batch_stride=b[-2] * b[-1] if batch_b > 1 else 0,
        y_batch_stride=y[-2] * y[-1],
    )
    return ProductOperands(batched)


def planned_product(machine: Machine, product: MatrixProduct) -> PlannedProduct | None:
    """Return a product's plan with the algorithm that was measured to be fastest."""
    if product not in machine.products:
        machine.products[product] = _plan(machine, product)
    return machine.products[product]


def _plan(machine: Machine, product: MatrixProduct) -> PlannedProduct | None:
    assert machine.cublaslt is not None
    assert machine.tuner is not None
    library = f"cublaslt {machine.cublaslt.version}"
    plan = MatrixProductPlan(machine.cublaslt, product)
    known = machine.tuner.remembered(product, library)
    if known is not None:
        algorithm = MatrixProductAlgorithm(
            bytes.fromhex(str(known["content"])), int(str(known["workspace_bytes"]))
        )
        return PlannedProduct(plan, algorithm, float(str(known["microseconds"])))
    offered = list(plan.algorithms(_WORKSPACE_BYTES_MAX))[:_MEASURED_MAX]
    if not offered:
        plan.close()
        return None
    found = machine.tuner.fastest(
        [_way(plan, algorithm) for algorithm in offered],
        _sizes(product, offered),
        result=2,
        weights=1,
    )
    if found is None:
        plan.close()
        return None
    best, microseconds = found
    chosen = offered[best]
    machine.tuner.remember(
        product,
        library,
        {
            "content": chosen.content.hex(),
            "workspace_bytes": chosen.workspace_bytes,
            "microseconds": microseconds,
        },
    )
    return PlannedProduct(plan, chosen, microseconds)


def _way(
    plan: MatrixProductPlan, algorithm: MatrixProductAlgorithm
) -> Callable[[int, Sequence[int]], None]:
    def enqueue(stream: int, addresses: Sequence[int]) -> None:
        x, w, y, bias, residual, workspace = addresses
        plan.enqueue(
            algorithm,
            stream,
            x=x,
            w=w,
            y=y,
            bias=bias,
            residual=residual if plan.product.residual else 0,
            workspace=workspace,
        )

    return enqueue


def _sizes(product: MatrixProduct, offered: Sequence[MatrixProductAlgorithm]) -> list[int]:
    item = 4 if product.dtype == "float32" else 2
    result_bytes = item * product.batch * product.m * product.n
    return [
        item * product.batch * product.m * product.k,
        item * product.batch * product.k * product.n,
        result_bytes,
        item * product.n,
        result_bytes if product.residual else 0,
        max(each.workspace_bytes for each in offered),
    ]


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if machine.cublaslt is None:
        return None
    operands = product_operands(request)
    planned = None if operands is None else planned_product(machine, operands.product)
    if operands is None or planned is None:
        return None
    product = operands.product
    return KernelChoice(
        "matmul.cublaslt",
        workspace_bytes=planned.algorithm.workspace_bytes,
        cost=float(product.batch * product.m * product.n * product.k),
    )


def _bind(binding: Binding) -> Sequence[Enqueue]:
    operands = product_operands(binding.request)
    assert operands is not None
    planned = planned_product(binding.machine, operands.product)
    assert planned is not None
    inputs = binding.inputs
    x, w, y = inputs[0], inputs[1], binding.outputs[0]
    assert x is not None
    assert w is not None
    assert y is not None
    bias = (inputs[operands.bias] or 0) if operands.bias is not None else 0
    residual = (inputs[operands.residual] or 0) if operands.residual is not None else 0
    binding.reads_unwaited(1, 2)

    def enqueue(stream: int) -> None:
        planned.plan.enqueue(
            planned.algorithm,
            stream,
            x=x,
            w=w,
            y=y,
            bias=bias,
            residual=residual,
            workspace=binding.workspace,
        )

    return [enqueue]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(
        ("MatMul", "com.microsoft.FusedMatMul", "Gemm", "com.microsoft.FusedGemm"), _choose, _bind
    ),
)
