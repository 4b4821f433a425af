"""Products by warpgroups, every way they are shared out, beside the formula in doubles."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.cublaslt import MatrixProduct
from aegis_pipe.device.cuda.kernels.warpgroup_products import _COLUMNS_MAX
from aegis_pipe.device.cuda.kernels.warpgroup_source import WarpgroupTiling
from tests.unit.device.cuda import host_device
from tests.unit.device.cuda.host_warpgroups import multiplied

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")


@pytest.mark.parametrize(
    ("shape", "tiling", "kind", "ends"),
    [
        pytest.param((3, 72, 200), (_COLUMNS_MAX, 1, 4), "float16", "b", id="widest"),
        pytest.param((1, 8, 8), (16, 1, 1), "float16", "br", id="least"),
        pytest.param((66, 72, 40), (24, 1, 2), "bfloat16", "brw", id="ragged"),
        pytest.param((5, 712, 40), (24, 1, 4), "float16", "b", id="stages come again"),
        pytest.param((5, 712, 32), (16, 2, 3), "float16", "r", id="two share the depth"),
        pytest.param((5, 1096, 40), (40, 4, 4), "bfloat16", "brw", id="four share the depth"),
        pytest.param((5, 264, 64), (56, 4, 2), "float16", "", id="odd groups of columns"),
    ],
)
def test_results(
    shape: tuple[int, int, int], tiling: tuple[int, int, int], kind: str, ends: str
) -> None:
    m, k, n = shape
    dtype: Any = np.dtype(ml_dtypes.bfloat16 if kind == "bfloat16" else np.float16)
    rng = np.random.default_rng(1)
    is_transposed = "w" in ends
    x = rng.standard_normal((m, k)).astype(dtype)
    w = (rng.standard_normal((k, n)) / np.sqrt(k)).astype(dtype)
    bias, residual = (rng.standard_normal(each).astype(dtype) for each in (n, (m, n)))
    p = MatrixProduct(
        *(m, n, k, kind),
        w_transposed=is_transposed,
        bias="b" in ends,
        residual="r" in ends,
    )
    added = [*([bias] if p.bias else []), *([residual] if p.residual else [])]
    weights = np.ascontiguousarray(w.T) if is_transposed else w
    found = multiplied(p, WarpgroupTiling(*tiling), "vmax(a, 0.0f)", x, weights, *added)
    total = x.astype(np.float64) @ w.astype(np.float64) + sum(a.astype(np.float64) for a in added)
    expected = np.maximum(total, 0)
    error = np.abs(found.astype(np.float64) - expected) / (1 + expected)
    assert error.max() < {"float16": 1e-3, "bfloat16": 6e-3}[kind]
