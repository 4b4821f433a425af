"""Chains of elementwise operators on the GPU: the bits of their steps alone, near the CPU's."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from aegis_pipe.device.elementwise_chains import CHAIN
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.execution.passes.fuse_elementwise import FuseElementwise
from aegis_pipe.execution.passes.precision import convert
from tests.unit.device.cuda.chain_models import CONSTANTS, MODELS
from tests.unit.pass_driver import count, feeds_of, graph_of, model_of, on_device, run_on_cpu


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_same_bits_as_the_steps_alone(context: DeviceContext, name: str, precision: str) -> None:
    model = model_of(MODELS[name], CONSTANTS)
    plain = graph_of(model)
    if precision != "fp32":
        plain = convert(plain, precision)
    fused = FuseElementwise(context.capabilities.elementwise_chains).run(plain)
    assert count(fused)[CHAIN] > 0
    feeds = feeds_of(model)
    with (
        closing(on_device(plain, context)) as separate,
        closing(on_device(fused, context)) as chained,
    ):
        alone, together = separate.run(feeds), chained.run(feeds)
    for one, other in zip(alone, together, strict=True):
        # All NaNs are one: a sum gives its own for whatever came in.
        is_number = one == one
        np.testing.assert_array_equal(one, other)
        assert one[is_number].tobytes() == other[is_number].tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_as_the_cpu(context: DeviceContext, name: str) -> None:
    model = model_of(MODELS[name], CONSTANTS)
    plain, feeds = graph_of(model), feeds_of(model)
    fused = FuseElementwise(context.capabilities.elementwise_chains).run(plain)
    with closing(on_device(fused, context)) as bound:
        results = bound.run(feeds)
    for found, wanted in zip(results, run_on_cpu(plain, feeds), strict=True):
        near = 1e-5 * float(np.nanmax(np.abs(wanted.astype(np.float64))))
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=near)
