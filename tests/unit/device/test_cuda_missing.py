"""What a machine without CUDA is told; the probes are replaced, so any machine can run this."""

import ctypes
import importlib.util
import sys
import threading
from importlib import metadata

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device import open_device
from aegis_pipe.errors import DeviceUnavailableError, PermanentError


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


def test_bindings_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed for something else: they are there, and do something else."""
    monkeypatch.setattr(metadata, "version", lambda name: "12.9.1")
    error = _refusal(monkeypatch, bindings=True, driver=True)
    assert error.message == "the package `cuda-bindings` is 12.9.1, but 13 is needed"
    assert error.hint == 'pip install "aegis-pipe[cuda]", or set `kind = "cpu"`'


def test_bindings_that_can_not_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "13.0.3")
    driver = _Driver(monkeypatch, 13000, 1)
    # As if what it imports did not load.
    monkeypatch.setitem(sys.modules, "aegis_pipe.device.cuda.context", None)
    error = _refusal(monkeypatch, bindings=True, driver=True)
    assert error.message.startswith("the bindings of CUDA are installed, but not to be imported: ")
    assert error.hint == 'pip install "aegis-pipe[cuda]", or set `kind = "cpu"`'
    assert not driver.retained


def test_driver_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    error = _refusal(monkeypatch, bindings=True, driver=False)
    assert "cuda.bindings" not in error.message
    assert 'kind = "cpu"' in error.hint


def test_libraries_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings are there, but not the packages that they load from."""
    driver = _Driver(monkeypatch, 13000, 1)
    module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")

    def load(name: str) -> None:
        if name in ("cublasLt", "cudnn"):
            raise RuntimeError(f"Failure finding lib{name}.so")

    monkeypatch.setattr(module, "load_nvidia_dynamic_lib", load)
    error = _refusal(monkeypatch, bindings=True, driver=True)
    assert error.message.endswith("looked for and not found: `cublasLt`, `cudnn`")
    assert driver.threads - {threading.get_ident()}, "the driver was not started meanwhile"
    assert not driver.retained
    assert error.hint == 'pip install "aegis-pipe[cuda]", or set `kind = "cpu"`'


class _Driver:
    """Answers of a driver that is there."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        version: int,
        count: int,
        architecture: int = 90,
    ) -> None:
        module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
        monkeypatch.setattr(module, "initialise", lambda: None)
        monkeypatch.setattr(module, "driver_version", lambda: version)
        monkeypatch.setattr(module, "device_count", lambda: count)
        monkeypatch.setattr(module, "architecture", lambda ordinal: architecture)
        monkeypatch.setattr(module, "device_name", lambda ordinal: "Some GPU")
        monkeypatch.setattr(module, "device", lambda index: index)
        monkeypatch.setattr(module, "retain_context", self._retain)
        monkeypatch.setattr(module, "release_context", self._release)
        self.retained: list[int] = []
        self.threads: set[int] = set()

    def _retain(self, ordinal: int) -> int:
        self.retained.append(ordinal)
        self.threads.add(threading.get_ident())
        return 1

    def _release(self, ordinal: int) -> None:
        self.retained.remove(ordinal)


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


@pytest.mark.parametrize("architecture", [70, 999])
def test_a_gpu_that_the_compiler_does_not_know(
    monkeypatch: pytest.MonkeyPatch, architecture: int
) -> None:
    """Drivers for CUDA 13 start older ones all the same, and later drivers newer ones."""
    driver = _Driver(monkeypatch, 13000, 1, architecture)
    module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
    known = module.compiler_architectures()
    assert {75, 80, 90, 100} <= set(known)
    monkeypatch.setattr(module, "load_nvidia_dynamic_lib", lambda name: None)
    text = str(_refusal(monkeypatch, bindings=True, driver=True))
    assert f"the GPU (Some GPU) is an sm_{architecture}, but the compiler (NVRTC " in text
    assert "makes kernels for sm_75 to sm_" in text
    assert "nvidia-cuda-nvrtc" in text
    assert not driver.retained


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


def test_what_the_driver_says_to_end_the_process_for_is_fatal() -> None:
    """As its own words are, which come with the bindings."""
    module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
    codes = {each: " ".join((each.__doc__ or "").split()) for each in module.cu.CUresult}
    ending = [each for each, text in codes.items() if "process must be terminated" in text]
    assert {700, 719} <= {int(each) for each in ending}
    for code in ending:
        error = module.DriverError("call", int(code), code.name, codes[code]).classified()
        assert error.category == "fatal", code


def test_a_full_device_tells_how_much_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
    code = module.cu.CUresult
    out_of_memory, fine = code.CUDA_ERROR_OUT_OF_MEMORY, code.CUDA_SUCCESS
    monkeypatch.setattr(module.cu, "cuMemAlloc", lambda size: (out_of_memory, None))
    monkeypatch.setattr(module.cu, "cuMemHostAlloc", lambda size, flags: (out_of_memory, None))
    monkeypatch.setattr(module.cu, "cuMemGetInfo", lambda: (fine, 3 << 20, 80 << 30))
    monkeypatch.setattr(module.cu, "cuCtxGetDevice", lambda: (fine, 1))
    with pytest.raises(PermanentError) as caught:
        module.allocate(64 << 20)
    text = "64.0 MiB were asked for, but only 3.0 MiB of 81,920.0 MiB are free"
    assert (caught.value.message, caught.value.context) == (text, "cuda:1")
    assert "nvidia-smi" in caught.value.hint
    with pytest.raises(PermanentError, match=r"64\.0 MiB of page-locked host memory"):
        module.allocate_pinned(64 << 20)


def test_what_a_broken_context_can_not_give_back_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor does it hide the error that broke it: closing goes on to the end."""
    module = pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
    given_back = {
        "cuMemFree": module.free,
        "cuMemFreeHost": module.free_pinned,
        "cuStreamDestroy": module.destroy_stream,
        "cuEventDestroy": module.destroy_event,
        "cuGraphExecDestroy": module.destroy_graph,
        "cuLibraryUnload": module.unload_library,
        "cuGreenCtxDestroy": module.destroy_partition,
        "cuDevicePrimaryCtxRelease": module.release_context,
    }
    for name, give_back in given_back.items():
        monkeypatch.setattr(module.cu, name, lambda _: (module.cu.CUresult(719),))
        give_back(1)
        monkeypatch.setattr(module.cu, name, lambda _: (module.cu.CUresult(1),))
        with pytest.raises(PermanentError, match="INVALID_VALUE"):
            give_back(1)
