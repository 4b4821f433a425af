"""What the tests of the public interface run and say about it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

import aegis_pipe
from aegis_pipe.events import DecisionMade, Event, RequestSubmitted

ROOT = Path(__file__).resolve().parents[3]
DIGITS = ROOT / "manifests" / "quickstart" / "digits.onnx"
SQUEEZENET = "package://onnx/backend/test/data/light/light_squeezenet.onnx"
WAIT_S = 60

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((64, 64)).astype(np.float32)
FLOAT_ROW = (TensorProto.FLOAT, [1, 64])

Save = Callable[..., str]
Write = Callable[..., Path]
Open = Callable[..., aegis_pipe.Runtime]


class Latch:
    """A listener that holds the scheduling thread once it has started a request."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.submitted: list[RequestSubmitted] = []
        self.reached = threading.Event()
        self._released = threading.Event()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestSubmitted):
            self.submitted.append(event)
        if isinstance(event, DecisionMade) and event.kind == "start":
            self.started.append(event.request_id)
            self.reached.set()
            assert self._released.wait(WAIT_S)

    def release(self) -> None:
        self._released.set()


def row(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, 64)).astype(np.float32)


def image() -> np.ndarray:
    return np.random.default_rng(3).random((1, 1, 8, 8), np.float32)


def error_of(future: Future[Any]) -> BaseException:
    error = future.exception(WAIT_S)
    assert error is not None
    return error
