"""Matrix products of our own, for whatever cuBLASLt does not take: tiles in shared memory."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.operands import integer, number, operand, required, result, text
from aegis_pipe.device.cuda.kernels.registry import Binding, CudaKernel, Enqueue, Machine
from aegis_pipe.device.cuda.kernels.source import (
    NUMBERS,
    Walk,
    blocks_for,
    broadcast_strides,
    computed,
    kernel_source,
    literal,
    stored,
)
from aegis_pipe.kernel import KernelChoice, KernelRequest

_TILE = 16


def _choose(request: KernelRequest, machine: Machine) -> KernelChoice | None:
    if required(request).dtype not in NUMBERS:
        return None
    if request.operator == "com.microsoft.FusedGemm" and text(request, "activation") not in (
        "",
        "Relu",
    ):
        return None
    if request.operator == "com.microsoft.FusedMatMul" and (
        integer(request, "transBatchA") or integer(request, "transBatchB")
    ):
        return None
    return KernelChoice("matmul.tiled", cost=float(result(request).element_count))


def _bind_matmul(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    a, b, target = required(request), required(request, 1), result(request)
    shape_a = a.shape if len(a.shape) > 1 else (1, *a.shape)
    shape_b = b.shape if len(b.shape) > 1 else (*b.shape, 1)
    fused = request.operator == "com.microsoft.FusedMatMul"
    trans_a = bool(fused and integer(request, "transA"))
    trans_b = bool(fused and integer(request, "transB"))
    m, k = shape_a[-2:][::-1] if trans_a else shape_a[-2:]
    n = shape_b[-2] if trans_b else shape_b[-1]
    batch = tuple(_broadcast(shape_a[:-2], shape_b[:-2]))
    walk = Walk.of(
        batch or (1,),
        [
            [s * shape_a[-2] * shape_a[-1] for s in broadcast_strides(shape_a[:-2], batch)] or [0],
            [s * shape_b[-2] * shape_b[-1] for s in broadcast_strides(shape_b[:-2], batch)] or [0],
        ],
    )
    alpha = number(request, "alpha") if fused else 1.0
    kind = computed(target.dtype)
    final = f"s * {literal(alpha, kind)}" if alpha != 1 else "s"
    return _product(
        binding, (m, n, k), math.prod(batch), walk, trans_a, trans_b, final, [], target.dtype
    )


def _broadcast(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    rank = max(len(a), len(b))
    padded = [(1,) * (rank - len(each)) + tuple(each) for each in (a, b)]
    return tuple(y if x == 1 else x for x, y in zip(*padded, strict=True))


def _bind_gemm(binding: Binding) -> Sequence[Enqueue]:
    request = binding.request
    a, b, target = required(request), required(request, 1), result(request)
    trans_a, trans_b = bool(integer(request, "transA")), bool(integer(request, "transB"))
    m, k = a.shape[::-1] if trans_a else a.shape
    n = b.shape[0] if trans_b else b.shape[1]
    kind = computed(target.dtype)
    alpha, beta = number(request, "alpha"), number(request, "beta")
    final = f"s * {_factor(alpha, kind)}" if alpha != 1 else "s"
    extra = []
    c = operand(request, 2)
    if c is not None:
        walk = Walk.of((m, n), [broadcast_strides(c.shape, (m, n))])
        scale = f" * {_factor(beta, kind)}" if beta != 1 else ""
        final += f" + get(c[{walk.offset(0, '((unsigned)i * ' + str(n) + 'u + j)')}]){scale}"
        extra = [(f"const {stored(c.dtype)}* c", binding.inputs[2])]
    if request.operator == "com.microsoft.FusedGemm" and text(request, "activation") == "Relu":
        final = f"relu<S>({final})"
    walk = Walk.of((1,), [[0], [0]])
    return _product(binding, (m, n, k), 1, walk, trans_a, trans_b, final, extra, target.dtype)


def _factor(value: float, kind: str) -> str:
    # The factors of integer products are numbers with a fraction all the same.
    return literal(value, kind if kind in ("float", "double") else "float")


def _product(
    binding: Binding,
    sizes: tuple[int, int, int],
    batch: int,
    walk: Walk,
    trans_a: bool,
    trans_b: bool,
    final: str,
    extra: Sequence[tuple[str, int | None]],
    dtype: object,
) -> Sequence[Enqueue]:
    m, n, k = sizes
    if m * n * batch == 0:
        return []
    spec = required(binding.request)
    kind, element = computed(spec.dtype), stored(spec.dtype)
    at_a = f"(long long)q * {m} + i" if trans_a else f"(long long)i * {k} + q"
    at_b = f"(long long)j * {k} + q" if trans_b else f"(long long)q * {n} + j"
    body = f"""
  typedef {kind} S;
  __shared__ S ta[{_TILE}][{_TILE + 1}], tb[{_TILE}][{_TILE + 1}];
  const int tx = threadIdx.x % {_TILE}, ty = threadIdx.x / {_TILE};
  const int i0 = blockIdx.y * {_TILE}, j0 = blockIdx.x * {_TILE};
  const unsigned z = blockIdx.z;
  a += {walk.offset(0, "z")}; b += {walk.offset(1, "z")}; y += (long long)z * {m * n};
  S s = 0;
  for (int q0 = 0; q0 < {k}; q0 += {_TILE}) {{
    {{ const int i = i0 + ty, q = q0 + tx;
      ta[ty][tx] = i < {m} && q < {k} ? (S)get(a[{at_a}]) : (S)0; }}
    {{ const int q = q0 + ty, j = j0 + tx;
      tb[ty][tx] = q < {k} && j < {n} ? (S)get(b[{at_b}]) : (S)0; }}
    __syncthreads();
    #pragma unroll
    for (int q = 0; q < {_TILE}; ++q) s += ta[ty][q] * tb[q][tx];
    __syncthreads();
  }}
  const int i = i0 + ty, j = j0 + tx;
  if (i < {m} && j < {n}) y[(long long)i * {n} + j] = To<{element}>::of({final});"""
    parameters = [
        f"const {element}* a",
        f"const {element}* b",
        *(declaration for declaration, _ in extra),
        f"{element}* y",
    ]
    relu = "template <typename S> __device__ S relu(S x) { return x < 0 ? (S)0 : x; }\n"
    code = kernel_source(parameters, body, threads=_TILE * _TILE, extra=relu)
    arguments = [*binding.inputs[:2], *(address for _, address in extra), binding.outputs[0]]
    grid = (blocks_for(n, _TILE), blocks_for(m, _TILE), batch)
    return [binding.kernel(code, arguments, grid=grid, block=_TILE * _TILE)]


KERNEL_FAMILY: tuple[CudaKernel, ...] = (
    CudaKernel(("MatMul", "com.microsoft.FusedMatMul"), _choose, _bind_matmul),
    CudaKernel(("Gemm", "com.microsoft.FusedGemm"), _choose, _bind_gemm),
)
