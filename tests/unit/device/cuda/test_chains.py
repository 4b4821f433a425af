"""Chains on the GPU: the bits that the steps' own kernels make one after the other, on the host."""

from __future__ import annotations

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.elementwise_chains import CHAIN

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import KERNELS
from aegis_pipe.device.cuda.kernels.elementwise_chains import SETTLE, STEPS
from aegis_pipe.execution.lowering import lower_node
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.passes.fuse_elementwise import FuseElementwise
from aegis_pipe.execution.passes.precision import convert
from tests.unit.device.cuda import host_device
from tests.unit.device.cuda.chain_models import CONSTANTS, MODELS
from tests.unit.device.cuda.machine_code import contractions
from tests.unit.device.cuda.test_kernel_sources import sources_of
from tests.unit.pass_driver import count, feeds_of, graph_of, model_of, on_device

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "fp32") for name in MODELS), ("products and sums", "fp16"), ("functions", "bf16")],
)
def test_same_bits_as_the_steps_alone(name: str, precision: str) -> None:
    model = model_of(MODELS[name], CONSTANTS)
    plain = graph_of(model)
    if precision != "fp32":
        plain = convert(plain, precision)
    fused = FuseElementwise(STEPS).run(plain)
    assert count(fused)[CHAIN] > 0
    assert precision != "fp32" or len(fused.operators) == 1
    feeds = feeds_of(model)
    with host_device.HostContext(SystemClock()) as context:
        bound = [on_device(graph, context) for graph in (plain, fused)]
        results = [one.run(feeds) for one in bound]
    for alone, together in zip(*results, strict=True):
        assert alone.tobytes() == together.tobytes()


def test_every_step_is_an_operator_of_this_device() -> None:
    assert set(STEPS) <= set(KERNELS.operators())


def test_products_and_sums_of_different_steps_are_rounded_apart() -> None:
    """In machine code: what keeps them apart is what keeps the compiler from contracting them."""
    graph = FuseElementwise(STEPS).run(graph_of(model_of(MODELS["products and sums"], CONSTANTS)))
    request, _ = lower_node(graph, graph.operators[0], OPERATORS, None)
    (source,) = sources_of(request)
    assert contractions(source.replace(SETTLE, "")) > 0
    assert contractions(source) == 0
