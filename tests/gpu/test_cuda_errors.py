"""What goes wrong on a GPU, as a user sees it: one clear error, exit status 1, and an end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from aegis_pipe.cli import main
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import DeviceLostError, PermanentError

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.region import CudaRegion

MANIFEST = """
manifest_version = 1
name = "errors"
[device]
kind = "cuda"
{device}
[[models]]
name = "net"
path = "net.onnx"
[[pipelines]]
name = "load"
source = {{ kind = "synthetic", like = "net", rate = "500/s" }}
stages = [{{ name = "run", model = "net" }}]
"""
WEIGHTS = 2048
FAULT = 'extern "C" __global__ void fault(int* y) { *(volatile int*)0 = *y; }'


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """A manifest of a model with 16 MiB of weights and of activations, and endless requests."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> net (float[1,2048] x) => (float[1,2048] y) '
        f"<float[{WEIGHTS},{WEIGHTS}] w> {{ h = Mul(w, x) y = ReduceMean<axes = [0]>(h) }}"
    )
    del model.graph.value_info[:]
    values = np.random.default_rng(1).standard_normal((WEIGHTS, WEIGHTS), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    onnx.save(model, tmp_path / "net.onnx")
    return _written(tmp_path, "")


def _written(folder: Path, device: str) -> Path:
    path = folder / "errors.toml"
    path.write_text(MANIFEST.format(device=device))
    return path


def _up(manifest: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run it for a second at most; return the exit status and what was said of errors."""
    status = main(["up", str(manifest), "--for", "1s"])
    return status, capsys.readouterr().err


def test_a_gpu_that_is_not_there(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = _up(_written(manifest.parent, "index = 99"), capsys)
    assert status == 1
    assert "error: cuda:99: there is no GPU 99; this machine's are `0`" in said
    assert "hint: change `device.index`" in said


def test_a_budget_beyond_the_memory_changes_nothing(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = _up(_written(manifest.parent, 'memory_budget = "10000 GiB"'), capsys)
    assert (status, "error: " in said) == (0, False)


def test_nothing_is_reserved_where_the_budget_is_too_small(
    manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved: list[int] = []
    monkeypatch.setattr(CudaRegion, "reserve", reserved.append)
    status, said = _up(_written(manifest.parent, 'memory_budget = "20 MiB"'), capsys)
    print(said)
    assert status == 1
    assert "budget 20 MiB, needs" in said
    assert "raise `memory_budget` to" in said
    assert reserved == []


@contextmanager
def _held(leave_bytes: int) -> Iterator[None]:
    """Hold the GPU's memory but for a rest, as another program would."""
    context = open_device("cuda", clock=SystemClock()).context
    regions = []
    try:
        size_bytes = context.description.memory_bytes
        while size_bytes > 1 << 20:
            free_bytes = int(driver.checked(driver.cu.cuMemGetInfo)[0])
            size_bytes = min(size_bytes, free_bytes - leave_bytes)
            if size_bytes <= 0:
                break
            try:
                regions.append(context.allocate(size_bytes))
            except PermanentError:
                size_bytes //= 2
        yield
    finally:
        for region in regions:
            region.close()
        context.close()


def _assert_told(status: int, said: str) -> None:
    print(said)
    assert status == 1
    assert said.count("error: ") == 1
    assert "nvidia-smi" in said
    assert "Traceback" not in said


@pytest.mark.gpu_alone
def test_too_little_free_memory(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _up(manifest, capsys)[0] == 0
    with _held(12 << 20):
        _assert_told(*_up(manifest, capsys))
    # It was a refusal; the device is as it was.
    assert _up(manifest, capsys)[0] == 0


@pytest.mark.gpu_alone
def test_too_little_free_memory_to_open_the_device(manifest: Path) -> None:
    command = [sys.executable, "-m", "aegis_pipe", "up", manifest, "--for", "1s"]
    with _held(0):
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    _assert_told(done.returncode, done.stderr)


FAULTY = """
import sys
import aegis_pipe.cli.up as up
from aegis_pipe.cli import main
from aegis_pipe.device.cuda import driver
from aegis_pipe.events import RequestFinished

open_pipeline, finished = up.open_pipeline, []

def fault():
    # On the thread that launches, whose context it is.
    parts = [driver.attribute(0, f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR")]
    image = driver.compile_cubin(sys.argv[2], "sm_{}{}".format(*parts))
    kernel = driver.kernel_function(driver.load_library(image), "fault")
    stream = driver.create_stream(0)
    driver.launch(kernel, (1, 1, 1), (1, 1, 1), 0, stream, driver.Arguments([8]))

def listen(event):
    if isinstance(event, RequestFinished):
        finished.append(event)
        if len(finished) == 20:
            fault()

def opened(*arguments, listeners=(), **options):
    return open_pipeline(*arguments, listeners=[*listeners, listen], **options)

up.open_pipeline = opened
sys.exit(main(["up", sys.argv[1]]))
"""


@pytest.mark.gpu_alone
def test_a_kernel_that_faults_ends_the_run(manifest: Path) -> None:
    """Sticky: the context is broken, and requests without an end have one."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", FAULTY, manifest, FAULT]
    # Its standard error holds what the driver itself writes, too.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 1
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in done.stderr
    assert "end it and start anew" in done.stderr
    assert "Traceback" not in done.stderr
    # The summary is there all the same.
    assert "pipeline load:" in done.stdout
    assert "DeviceLostError" in done.stdout
    assert "stopped: " in done.stdout


BROKEN = """
import sys
from aegis_pipe.clock import SystemClock
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.stream import handle_of
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import DeviceLostError

with open_device("cuda", clock=SystemClock()).context as context:
    stream, event = context.create_stream(0), context.create_event()
    region = context.allocate(64)
    parts = [driver.attribute(0, f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR")]
    image = driver.compile_cubin(sys.argv[1], "sm_{}{}".format(*parts))
    kernel = driver.kernel_function(driver.load_library(image), "fault")
    driver.launch(kernel, (1, 1, 1), (1, 1, 1), 0, handle_of(stream), driver.Arguments([8]))
    uses = (
        stream.synchronise,
        lambda: stream.record(event),
        event.is_done,
        stream.check,
        lambda: context.allocate(64),
    )
    for use in uses:
        try:
            use()
        except DeviceLostError as error:
            print("lost:", error.message)
    region.close()
    event.close()
    stream.close()
print("closed")
"""


@pytest.mark.gpu_alone
def test_a_broken_context_says_so_at_every_call_and_can_be_closed() -> None:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", BROKEN, FAULT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert done.stdout.count("lost: ") == 5
    assert done.stdout.endswith("closed\n")


@pytest.mark.parametrize(("code", "error"), [(700, DeviceLostError), (2, PermanentError)])
def test_codes_of_this_driver_have_their_category(code: int, error: type[Exception]) -> None:
    """The names that the driver itself gives to what is told apart by number."""
    names = {700: "CUDA_ERROR_ILLEGAL_ADDRESS", 2: "CUDA_ERROR_OUT_OF_MEMORY"}
    with pytest.raises(error, match=names[code]):
        driver.checked(lambda: (driver.cu.CUresult(code),))
