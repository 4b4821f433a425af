"""What is held against a limit is rounded as on the CPU, so that the same is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels.source import PRODUCT
from aegis_pipe.execution.lowering import lower_node
from aegis_pipe.execution.operators import OPERATORS
from tests.unit.device.cuda import host_device
from tests.unit.device.cuda.limit_models import CASES
from tests.unit.device.cuda.machine_code import contractions
from tests.unit.device.cuda.test_kernel_sources import sources_of
from tests.unit.pass_driver import graph_of, on_cpu, on_device


@pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
@pytest.mark.parametrize("name", CASES)
def test_as_the_cpu(name: str) -> None:
    model, feeds = CASES[name]()
    graph = graph_of(model)
    with on_cpu(graph) as cpu, host_device.HostContext(SystemClock()) as context:
        bound = on_device(graph, context)
        for found, expected in zip(bound.run(feeds), cpu.run(feeds), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_compiler_contracts_no_such_product(name: str) -> None:
    graph = graph_of(CASES[name]()[0])
    request, _ = lower_node(graph, graph.operators[0], OPERATORS, None)
    source = sources_of(request)[0]
    assert PRODUCT in source
    careless = source.replace("__fmul_rn(a, b)", "a * b").replace("__dmul_rn(a, b)", "a * b")
    assert contractions(careless) > contractions(source)
