"""Classical networks, their weights drawn, on the GPU and on the CPU: the same outputs."""

from __future__ import annotations

import os

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from tests.drawn_models import drawn_model
from tests.tool_modules import load_tool

parity = load_tool("record_parity")
NAMES = ("bvlc_alexnet", "densenet121", "inception_v1", "squeezenet", "zfnet512")


@pytest.mark.parametrize("name", NAMES)
def test_as_the_cpu_and_the_same_bits(context: DeviceContext, name: str) -> None:
    graph = ModelLoader().load_proto(drawn_model(name), LoadOptions(name=name))
    requests = parity.requests_of(graph, name)
    threads = len(os.sched_getaffinity(0))
    with open_device("cpu", clock=SystemClock(), threads=threads).context as cpu:
        expected = parity.run(graph, cpu, requests, "fp32")
    found = parity.run(graph, context, requests, "fp32")
    (key,) = expected[0]
    assert expected[0][key].tobytes() != expected[1][key].tobytes()
    outputs = parity.differences(parity.arithmetic_of(graph), found, expected)
    print(outputs)
    assert all(each["passed"] and each["same_bits"] for each in outputs.values())
