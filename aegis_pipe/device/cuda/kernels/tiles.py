"""A product of matrices by tiles in shared memory; what its elements are, expressions say."""

from __future__ import annotations

from collections.abc import Sequence

from aegis_pipe.device.cuda.kernels.each import launch
from aegis_pipe.device.cuda.kernels.registry import Binding, Enqueue
from aegis_pipe.device.cuda.kernels.source import blocks_for

TILE = 16


def tiled_product(
    binding: Binding,
    sizes: tuple[int, int, int],
    batch: int,
    *,
    kind: str,
    left: str,
    right: str,
    final: str,
    parameters: Sequence[tuple[str, int]],
) -> list[Enqueue]:
    """Launch `final` for every sum `s` of `left(z, i, q)` times `right(z, q, j)`."""
    m, n, k = sizes
    if m * n * batch == 0:
        return []
    across, down = blocks_for(n, TILE), blocks_for(m, TILE)
    body = f"""
  typedef {kind} S;
  __shared__ S ta[{TILE}][{TILE + 1}], tb[{TILE}][{TILE + 1}];
  const int tx = threadIdx.x % {TILE}, ty = threadIdx.x / {TILE};
  const int i0 = blockIdx.x / {across}u * {TILE}, j0 = blockIdx.x % {across}u * {TILE};
  const unsigned z = blockIdx.z;
  S s = 0;
  for (int q0 = 0; q0 < {k}; q0 += {TILE}) {{
    {{ const int i = i0 + ty, q = q0 + tx;
      ta[ty][tx] = i < {m} && q < {k} ? (S)({left}) : (S)0; }}
    {{ const int q = q0 + ty, j = j0 + tx;
      tb[ty][tx] = q < {k} && j < {n} ? (S)({right}) : (S)0; }}
    __syncthreads();
    #pragma unroll
    for (int q = 0; q < {TILE}; ++q) s += ta[ty][q] * tb[q][tx];
    __syncthreads();
  }}
  const int i = i0 + ty, j = j0 + tx;
  if (i >= {m} || j >= {n}) return;
  const long long place = ((long long)z * {m} + i) * {n} + j;
  {final}"""
    # Rows may be more than a grid can have beyond its first axis: 65,535.
    grid = (across * down, 1, batch)
    return launch(binding, body, parameters, grid=grid, threads=TILE * TILE)
