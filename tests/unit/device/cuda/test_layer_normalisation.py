"""Layer and RMS normalisation on the host, every way rows are shared out, beside NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import layer_normalisation
from tests.unit.device.cuda import host_device
from tests.unit.device.cuda.test_on_host import Bound

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
EPSILON = 1e-5
ROWS = 5


def normalised(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, centred: bool) -> np.ndarray:
    mean = x.mean(-1, keepdims=True) if centred else 0.0
    deviation = np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + EPSILON)
    return np.asarray((x - mean) / deviation * gamma + (beta if centred else 0.0))


def check(operator: str, width: int, dtype: type, *, known: bool, offset: float = 0.0) -> None:
    """Compare with float64; `known`: scale, shift and bias are constants, as in models."""
    rng = np.random.default_rng(width)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    x, gamma, beta = drawn(1, ROWS, width) + dtype(offset), drawn(width), drawn(width)
    skip, bias = drawn(1, ROWS, width), drawn(width)
    centred = operator.endswith("SkipLayerNormalization") or operator == "LayerNormalization"
    values: list[np.ndarray | None]
    if "Skip" in operator:
        values = [x, skip, gamma, beta if centred else None, bias]
        constants = (2, 3, 4)
        total = x.astype(np.float64) + skip + bias
    else:
        values = [x, gamma, *([beta] if centred else [])]
        constants = (1, 2)
        total = x.astype(np.float64)
    spec = TensorSpec(np.dtype(dtype), x.shape)
    outputs = (spec, None, None, spec) if "Skip" in operator else (spec,)
    request = KernelRequest(
        operator,
        "node",
        {"epsilon": EPSILON, "axis": 2},
        tuple(None if v is None else TensorSpec(v.dtype, v.shape) for v in values),
        outputs,
    )
    if known:
        given = {at: values[at] for at in constants if at < len(values)}
        request = replace(request, constants={a: v for a, v in given.items() if v is not None})
    found = Bound(request, values).run()
    wanted = normalised(total, gamma.astype(np.float64), beta.astype(np.float64), centred)
    near = 2e-3 if dtype is np.float16 else 2e-6 * max(1.0, abs(offset))
    np.testing.assert_allclose(found[0].astype(np.float64), wanted, rtol=near, atol=2 * near)
    if "Skip" in operator:
        np.testing.assert_allclose(found[3].astype(np.float64), total, rtol=near, atol=near)


OPERATORS = (
    "LayerNormalization",
    "RMSNormalization",
    "com.microsoft.SkipLayerNormalization",
    "com.microsoft.SkipSimplifiedLayerNormalization",
)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_warp_a_row(operator: str) -> None:
    """All lanes have as many elements, or some have more, or some none."""
    for width, known in ((768, True), (768, False), (320, True), (40, False)):
        check(operator, width, np.float16, known=known)
    check(operator, 256, np.float32, known=True)


@pytest.mark.parametrize("operator", OPERATORS)
def test_several_warps_a_row(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(operator, 2048, np.float16, known=True)
    check(operator, 520, np.float32, known=True)
    monkeypatch.setattr(layer_normalisation, "_ROWS_MANY", 0)
    check(operator, 768, np.float16, known=True)
    check(operator, 384, np.float32, known=False)


@pytest.mark.parametrize("many", [0, 1 << 20])
def test_rows_far_from_zero_lose_nothing(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Squares are taken around the mean: their sum less the mean's square would be noise here."""
    monkeypatch.setattr(layer_normalisation, "_ROWS_MANY", many)
    check("LayerNormalization", 512, np.float32, known=True, offset=3000.0)
