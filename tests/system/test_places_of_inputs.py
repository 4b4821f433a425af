"""Requests whose inputs lie in a GPU's staging memory, on a CPU that copies from there.

The memory's bookkeeping is the real one, its pages are the process' own: says that each request
gets its own bytes and every place comes back, whatever becomes of requests and manifests meanwhile.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from aegis_pipe import Runtime, deployment_builder, open_pipeline
from aegis_pipe.device.cpu.context import CpuContext
from aegis_pipe.device.cpu.stream import CpuStream
from aegis_pipe.device.registry import OpenedDevice
from aegis_pipe.errors import AegisError
from tests.unit.pass_driver import model_of

driver = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.staging import AHEAD_MIN_BYTES, CudaStagingAhead  # noqa: E402

WIDTH = AHEAD_MIN_BYTES // 4
SENDERS, EACH = 4, 60

MANIFEST = """
manifest_version = 1
name = "places"
[scheduler]
queue_capacity = {capacity}
[streams]
count = 2
in_flight = {in_flight}
[[models]]
name = "wide"
path = "net.onnx"
shapes = {{ x = [1, {width}] }}
[[models]]
name = "batched"
path = "net.onnx"
shapes = {{ x = [1, {width}] }}
batching = {{ max_batch = 3, window = "1 ms" }}
"""


class PlacedStream(CpuStream):
    """Copies in from where inputs are staged, when it is their turn, as a GPU does."""

    ahead: CudaStagingAhead
    _order = 0

    def copy_in(self, source: np.ndarray, target: Any) -> None:
        address = self.ahead.find(source, self, self._order + 1)
        self._order += 1
        if address:
            place = (ctypes.c_uint8 * source.nbytes).from_address(address)
            source = np.frombuffer(place, source.dtype).reshape(source.shape)
        super().copy_in(source, target)

    def record(self, event: Any) -> None:
        self.orders[id(event)] = self._order
        super().record(event)

    def check(self, event: Any = None) -> None:
        self.ahead.retire(self, self._order if event is None else self.orders[id(event)])
        super().check(event)

    def synchronise(self) -> None:
        super().synchronise()
        self.ahead.retire(self, self._order)

    def close(self) -> None:
        super().close()
        self.ahead.retire(self, self._order)


class PlacedContext(CpuContext):
    """The CPU with a GPU's memory for inputs that wait."""

    ahead: CudaStagingAhead

    @property
    def description(self):
        return replace(
            super().description, staging_alignment_bytes=256, staged_ahead_min_bytes=AHEAD_MIN_BYTES
        )

    def reserve_staging_ahead(self, place_bytes: int, places: int) -> CudaStagingAhead | None:
        self.ahead.reserve(place_bytes, places)
        return self.ahead if place_bytes else None

    def create_stream(self, index: int, **_: Any) -> PlacedStream:
        stream = PlacedStream(index, self._clock, self._progress, self._threads)
        stream.ahead, stream.orders = self.ahead, {}
        return self._own(stream)

    def close(self) -> None:
        super().close()
        self.ahead.close()


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> CudaStagingAhead:
    pages: dict[int, Any] = {}

    def allocate(size_bytes: int) -> int:
        page = ctypes.create_string_buffer(size_bytes)
        pages[ctypes.addressof(page)] = page
        return ctypes.addressof(page)

    def free(address: int) -> None:
        # Who copies to or from there afterwards finds nothing that is right.
        page = pages.pop(address)
        ctypes.memset(address, 0xFF, len(page))

    monkeypatch.setattr(driver, "allocate_pinned", allocate)
    monkeypatch.setattr(driver, "free_pinned", free)
    memory = CudaStagingAhead()

    def opened(kind: str, *, index: int, clock: Any, threads: int) -> OpenedDevice:
        context = PlacedContext(clock, threads=threads)
        context.ahead = memory
        return OpenedDevice(context, "for a test")

    monkeypatch.setattr(deployment_builder, "open_device", opened)
    return memory


def written(folder: Path, in_flight: int, *, width: int = WIDTH, capacity: int = 64) -> Path:
    text = "(float[N,M] x) => (float[N,M] y) { y = Mul(x, two) }"
    onnx.save(model_of(text, {"two": np.float32([2])}), folder / "net.onnx")
    path = folder / f"places-{in_flight}-{width}.toml"
    path.write_text(MANIFEST.format(in_flight=in_flight, width=width, capacity=capacity))
    return path


def send(runtime: Runtime, sender: int, is_over: threading.Event, *, checks: bool = True) -> int:
    """Hand in requests of both models, and withdraw some; return how many were answered."""
    answered = 0
    for number in range(EACH):
        value = 1000 * sender + number
        x = np.full((1, WIDTH), value, np.float32)
        model = ("wide", "batched")[(number + sender) % 2]
        try:
            future = runtime.submit(model, {"x": x})
            if number % 7 == 3:
                future.cancel()
            y = future.result(60)["y"]
        except AegisError:
            # Withdrawn, no room in the queue, or of another width after a reload.
            continue
        assert (y == 2 * value).all(), f"another request's bytes: {np.unique(y)[:4]}"
        answered += 1
    return answered


def free_places(ahead: CudaStagingAhead) -> int:
    assert not ahead._under_way
    return ahead._free.qsize()


@pytest.mark.parametrize("capacity", [64, 2])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_every_request_gets_its_own_bytes_and_every_place_comes_back(
    tmp_path: Path, ahead: CudaStagingAhead, in_flight: int, capacity: int
) -> None:
    with open_pipeline(written(tmp_path, in_flight, capacity=capacity)) as runtime:
        assert free_places(ahead) == 2 * in_flight + 1
        with ThreadPoolExecutor(SENDERS) as pool:
            over = threading.Event()
            sent = [pool.submit(send, runtime, each, over) for each in range(SENDERS)]
            answered = sum(each.result(120) for each in sent)
        statistics = runtime.statistics()
    assert answered > 0
    assert 0 < statistics.staged_ahead <= SENDERS * EACH
    if capacity == 64:
        assert answered >= SENDERS * EACH * 6 // 7 - SENDERS
    assert ahead._free.empty()
    assert not ahead._under_way


def test_reloads_exchange_the_places_under_who_hands_in(
    tmp_path: Path, ahead: CudaStagingAhead
) -> None:
    paths = [written(tmp_path, 1), written(tmp_path, 2), written(tmp_path, 1, width=WIDTH // 2)]
    with open_pipeline(paths[0]) as runtime, ThreadPoolExecutor(SENDERS) as pool:
        over = threading.Event()
        sent = [pool.submit(send, runtime, each, over) for each in range(SENDERS)]
        for number in range(1, 10):
            runtime.reload(paths[number % 3])
        runtime.reload(paths[1])
        for each in sent:
            each.result(120)
        assert send(runtime, 9, over) > 0
        assert free_places(ahead) == 5


def test_closing_does_not_wait_for_ever_for_who_hands_in(
    tmp_path: Path, ahead: CudaStagingAhead
) -> None:
    with ThreadPoolExecutor(SENDERS) as pool:
        over = threading.Event()
        with open_pipeline(written(tmp_path, 2)) as runtime:
            sent = [pool.submit(send, runtime, each, over) for each in range(SENDERS)]
            runtime.infer("wide", {"x": np.zeros((1, WIDTH), np.float32)})
        for each in sent:
            each.result(120)
    assert ahead._free.empty()
