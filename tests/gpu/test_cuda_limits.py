"""What is chosen by comparing with a limit is what the CPU chooses, where roundings decide."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.device.protocols import DeviceContext
from tests.unit.device.cuda.limit_models import CASES
from tests.unit.pass_driver import graph_of, on_cpu, on_device


@pytest.mark.parametrize("name", CASES)
def test_as_the_cpu(context: DeviceContext, name: str) -> None:
    model, feeds = CASES[name]()
    graph = graph_of(model)
    with on_cpu(graph) as cpu:
        expected = cpu.run(feeds)
    bound = on_device(graph, context)
    found = bound.run(feeds)
    bound.close()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
