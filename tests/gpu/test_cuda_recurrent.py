"""Recurrent layers that blocks of a cluster share: as the CPU's, and the same bits every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.standalone import StandaloneGraph
from tests.unit.device.cuda.recurrent_models import CASES, Layer, graph_of

LARGE = Layer("GRU", directions=2, time=50, batch=1, inputs=80, hidden=256)
SHARED = {
    "large, gru": LARGE,
    "large, gru that resets first": replace(LARGE, linear=False),
    "large, gru of uneven parts": replace(LARGE, hidden=301, lengths=True, batch=4),
    "large, lstm": replace(LARGE, operator="LSTM", batch=2, lengths=True, peepholes=True),
    "large, lstm whose weights do not fit": replace(LARGE, operator="LSTM", hidden=512),
    "large, many sequences": replace(LARGE, operator="LSTM", batch=96, time=10),
    "large, halves": replace(LARGE, dtype=np.float16),
    "large, rnn": replace(LARGE, operator="RNN", layout=1, hidden=400),
    "large, a state that does not fit": replace(LARGE, operator="RNN", hidden=4096, time=4),
}


@pytest.mark.parametrize("name", [*CASES, *SHARED])
def test_as_the_cpu_and_the_same_bits(context: DeviceContext, name: str) -> None:
    layer = (CASES | SHARED)[name]
    graph = graph_of(layer)
    spec = graph.spec(graph.inputs[0])
    inputs = [
        {"x": np.random.default_rng(seed).standard_normal(spec.shape).astype(spec.dtype)}
        for seed in range(2)
    ]
    stream = context.create_stream(0)
    with StandaloneGraph(graph, context, stream, SystemClock()) as standalone:
        results = [standalone.run(inputs[turn % 2]) for turn in range(100)]
    stream.close()
    with open_device("cpu", clock=SystemClock(), threads=8).context as cpu:
        other = cpu.create_stream(0)
        with StandaloneGraph(graph, cpu, other, SystemClock()) as standalone:
            expected = [standalone.run(each) for each in inputs]
        other.close()
    near = 1e-5 if layer.dtype == np.float32 else 4e-3
    for turn, result in enumerate(results):
        for key, found in result.items():
            assert found.tobytes() == results[turn % 2][key].tobytes(), (turn, key)
    for turn in range(2):
        for key, wanted in expected[turn].items():
            np.testing.assert_allclose(results[turn][key], wanted, rtol=near, atol=near)
