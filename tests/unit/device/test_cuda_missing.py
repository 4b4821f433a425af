"""What a machine without CUDA is told; both probes are replaced, so any machine can run this."""

import ctypes
import importlib.util

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.errors import DeviceUnavailableError


def _refusal(
    monkeypatch: pytest.MonkeyPatch, *, bindings: bool, driver: bool
) -> DeviceUnavailableError:
    def load(name: str) -> object:
        if not driver:
            raise OSError(f"{name}: cannot open shared object file")
        return object()

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if bindings else None)
    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(DeviceUnavailableError) as caught:
        open_device("cuda", clock=SystemClock())
    return caught.value


def test_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _refusal(monkeypatch, bindings=False, driver=False)
    assert "`cuda.bindings` was looked for and not found" in error.message
    assert "driver library was looked for and not loaded (libcuda.so.1" in error.message
    assert "NVIDIA driver" in error.hint


def test_bindings_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _refusal(monkeypatch, bindings=False, driver=True)
    assert "the driver library `libcuda.so.1` is there" in error.message
    assert error.hint == 'pip install "aegis-pipe[cuda]"'


def test_driver_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _refusal(monkeypatch, bindings=True, driver=False)
    assert "the CUDA bindings are installed" in error.message
    assert 'kind = "cpu"' in error.hint
