"""What a request asks of the driver: launches and polls; it waits for nothing, reserves nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import aegis_pipe

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.region import CudaRegion

MANIFEST = """
manifest_version = 1
name = "requests"
[device]
kind = "cuda"
[streams]
count = 2
max_block = "10 us"
in_flight = {in_flight}
[scheduler]
queue_capacity = 1000
[[models]]
name = "one"
path = "net.onnx"
[[models]]
name = "two"
path = "net.onnx"
precision = "fp16"
"""
WAITING = ("synchronise_stream", "synchronise_context", "copy_to_device")
WAITING += ("copy_to_host", "upload_graph")
RESERVING = ("allocate", "allocate_pinned", "free", "free_pinned", "create_stream", "create_event")
RESERVING += ("load_library", "begin_capture", "instantiate")
ANCHORING = "synchronise_event"
"""Of an event on a stream that has nothing else to do, once a second at most."""


@pytest.mark.parametrize("in_flight", [1, 2])
def test_requests_wait_for_nothing_and_reserve_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_flight: int
) -> None:
    chain = " ".join(f"t{n + 1} = Tanh(t{n}) u{n + 1} = Softmax(t{n + 1})" for n in range(8))
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> net (float[64,256] t0) => (float[64,256] y) '
        f"<float[64,256] w> {{ {chain} y = Sum(u1, u2, u3, u4, u5, u6, u7, u8, w) }}"
    )
    del model.graph.value_info[:]
    w = np.random.default_rng(2).standard_normal((64, 256), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    onnx.save(model, tmp_path / "net.onnx")
    path = tmp_path / "requests.toml"
    path.write_text(MANIFEST.format(in_flight=in_flight))
    x = np.random.default_rng(1).standard_normal((64, 256), np.float32)
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        function = getattr(driver, name)

        def counting(*arguments: object, **options: object) -> object:
            calls[name] += 1
            return function(*arguments, **options)

        monkeypatch.setattr(driver, name, counting)

    # What is chosen by measurement has been, which takes memory for a while.
    aegis_pipe.open_pipeline(path).close()
    reserve, reserved = CudaRegion.reserve, []

    def noting(size_bytes: int, stream: int) -> CudaRegion:
        reserved.append(size_bytes)
        return reserve(size_bytes, stream)

    monkeypatch.setattr(CudaRegion, "reserve", noting)
    with aegis_pipe.open_pipeline(path) as runtime:
        # One a pool: weights, streams, and what models keep; an empty one is a byte.
        plan = runtime.plan
        arenas = [arena.size_bytes for arena in plan.arenas]
        assert len(arenas) == 2
        assert reserved == [plan.weights_bytes, *arenas, max(1, plan.states_bytes)]
        assert any(runtime.boundaries.values()), "models are not cut into segments"
        # Whatever a thread does once is done.
        for name in ("one", "two"):
            runtime.infer(name, {"t0": x})
        for name in (*WAITING, *RESERVING, ANCHORING, "launch_graph"):
            counted(name)
        begin_ns = runtime.clock.now_ns()
        for _ in range(20):
            futures = [runtime.submit(("one", "two")[n % 2], {"t0": x}) for n in range(20)]
            for future in futures:
                future.result(timeout=60)
        seconds = (runtime.clock.now_ns() - begin_ns) / 1e9
        found = dict(calls)
        assert runtime.statistics().allocations_after_start == 0
    launches, anchors = found.pop("launch_graph"), found.pop(ANCHORING, 0)
    assert launches > 400
    assert found == {}
    assert anchors <= 2 * (seconds + 1)
