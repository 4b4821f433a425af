"""GELU by erf in half precision, every number there is, beside the exact one."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from tests.unit.device.cuda import host_device

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")


def gelu(values: np.ndarray) -> np.ndarray:
    """Return GELU of all numbers of a dtype of two bytes."""
    spec = TensorSpec(values.dtype, values.shape)
    request = KernelRequest(
        "com.microsoft.BiasGelu", "node", {"approximate": "none"}, (spec,), (spec,)
    )
    result = np.empty_like(values)
    with host_device.HostContext(SystemClock()) as context:
        choice = context.select(request)
        regions = [context.allocate(values.nbytes) for _ in range(2)]
        context.write(regions[0], values)
        graph = context.record([context.bind(request, choice, regions[:1], regions[1:], None)])
        stream = context.create_stream(0)
        graph.launch(stream)
        stream.synchronise()
        context.read(regions[1], result)
        for owner in (graph, stream, *regions):
            owner.close()
    return result


@pytest.mark.parametrize(
    ("dtype", "bits", "least"), [(np.float16, 10, 2.0**-24), (ml_dtypes.bfloat16, 7, 5.3e-8)]
)
def test_every_half(dtype: type, bits: int, least: float) -> None:
    """No further from the exact value than rounding takes it, but for a fiftieth of that.

    In bfloat16 what is less than 2.6e-8 may vanish, which float32's `1 + erf` does, too.
    """
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        found, x = (each.astype(np.float64) for each in (gelu(values), values))
    number = np.isfinite(x)
    exact = np.array([each * math.erfc(-each / math.sqrt(2)) / 2 for each in x[number]])
    spacing = np.maximum(
        2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-300))) - bits), least
    )
    error = np.abs(found[number] - exact)
    assert (error / spacing).max() <= 0.51
    assert np.isnan(found[np.isnan(x)]).all()
    assert found[x == np.inf] == np.inf
    assert abs(found[x == -np.inf]) < 3e-8
