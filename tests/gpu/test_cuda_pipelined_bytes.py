"""Products of bytes whose tiles are loaded ahead have the CPU's bits, in every tiling."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.standalone import StandaloneGraph

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import pipelined_bytes
from aegis_pipe.device.cuda.kernels.byte_products import product_of
from aegis_pipe.device.cuda.kernels.source import EARLY_CAPABILITY
from tests.unit.device.cuda import byte_models


@pytest.mark.parametrize("name", byte_models.CASES)
def test_every_tiling(context: DeviceContext, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model, x = byte_models.CASES[name]()
    graph = ModelLoader().load_proto(model, LoadOptions())

    def run(device: DeviceContext) -> tuple[np.ndarray, StandaloneGraph]:
        stream = device.create_stream(0)
        try:
            with StandaloneGraph(graph, device, stream, SystemClock()) as standalone:
                return standalone.run({"x": x})["y"], standalone
        finally:
            stream.close()

    with open_device("cpu", clock=SystemClock()).context as cpu:
        expected, _ = run(cpu)
    found, standalone = run(context)
    np.testing.assert_array_equal(found, expected)
    (step,) = [s for s in standalone.compiled.steps if "pipelined_bytes" in s.choice.kernel]
    p = product_of(step.request)
    assert p is not None
    capability = context._machine.capability  # type: ignore[attr-defined]
    for tiling in byte_models.tilings(p.steps):
        if tiling.splits > 1 and capability < EARLY_CAPABILITY:
            continue
        monkeypatch.setattr(pipelined_bytes, "_tiling", lambda *_, chosen=tiling: chosen)
        np.testing.assert_array_equal(run(context)[0], expected, err_msg=str(tiling))
