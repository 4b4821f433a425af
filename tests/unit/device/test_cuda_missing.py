"""What a machine without CUDA is told; the probes are replaced, so any machine can run this."""

import ctypes
import importlib.util

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.errors import DeviceUnavailableError


def _refusal(
    monkeypatch: pytest.MonkeyPatch, *, bindings: bool, driver: bool, index: int = 0
) -> DeviceUnavailableError:
    def load(name: str) -> object:
        if not driver:
            raise OSError(f"{name}: cannot open shared object file")
        return object()

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if bindings else None)
    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(DeviceUnavailableError) as caught:
        open_device("cuda", index=index, clock=SystemClock())
    return caught.value


def test_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _refusal(monkeypatch, bindings=False, driver=False)
    assert "not found: `cuda.bindings`, `cuda.pathfinder`, `cudnn`, `nvmath`" in error.message
    assert "driver library was looked for and not loaded (libcuda.so.1" in error.message
    assert "NVIDIA driver" in error.hint
    assert "aegis-pipe[cuda]" in error.hint


def test_bindings_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _refusal(monkeypatch, bindings=False, driver=True)
    assert "driver" not in error.message
    assert error.hint == 'pip install "aegis-pipe[cuda]", or set `kind = "cpu"`'


def test_driver_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _refusal(monkeypatch, bindings=True, driver=False)
    assert "cuda.bindings" not in error.message
    assert 'kind = "cpu"' in error.hint


class _Driver:
    """Answers of a driver that is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: int, count: int) -> None:
        module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
        monkeypatch.setattr(module, "initialise", lambda: None)
        monkeypatch.setattr(module, "driver_version", lambda: version)
        monkeypatch.setattr(module, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("version", "count", "index", "words"),
    [
        (12040, 1, 0, ("the driver offers CUDA 12.4, but 13.0 is needed", "update")),
        (13000, 2, 5, ("there is no GPU 5; this machine's are `0`, `1`", "`device.index`")),
        (13000, 0, 0, ("there is no GPU 0; this machine's are none", "`device.index`")),
    ],
)
def test_driver_that_does_not_do(
    monkeypatch: pytest.MonkeyPatch, version: int, count: int, index: int, words: tuple[str, ...]
) -> None:
    _Driver(monkeypatch, version, count)
    text = str(_refusal(monkeypatch, bindings=True, driver=True, index=index))
    for word in words:
        assert word in text


def test_driver_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")

    def fail() -> None:
        raise module.DriverError("cuInit", 100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device")

    monkeypatch.setattr(module, "initialise", fail)
    error = _refusal(monkeypatch, bindings=True, driver=True)
    assert "CUDA_ERROR_NO_DEVICE" in error.message
    assert "nvidia-smi" in error.hint


@pytest.mark.parametrize(
    ("code", "category"), [(2, "permanent"), (700, "fatal"), (719, "fatal"), (802, "transient")]
)
def test_errors_have_their_category(code: int, category: str) -> None:
    module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
    error = module.DriverError("cuLaunchKernel", code, "NAME", "text").classified()
    assert error.category == category
    assert "cuLaunchKernel" in error.message
    assert error.hint
