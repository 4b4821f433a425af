"""Tests that need a GPU; without one they are skipped, and say what is missing."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import DeviceUnavailableError


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu_alone: nobody else's test uses the GPU meanwhile")


@contextmanager
def _turn(folder: Path, kind: int) -> Iterator[None]:
    """Have the GPU together with the tests of other workers, or alone."""
    with open(folder / "gpu.lock", "a") as lock:
        # Who waits to be alone holds the gate, so that those who share do not go on for ever.
        with open(folder / "gpu-gate.lock", "a") as gate:
            fcntl.flock(gate, kind)
            fcntl.flock(lock, kind)
        yield


@pytest.fixture(scope="session")
def _folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that all workers have."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


@pytest.fixture(scope="session", autouse=True)
def _needs_gpu(_folder: Path) -> None:
    try:
        with _turn(_folder, fcntl.LOCK_SH):
            open_device("cuda", clock=SystemClock()).context.close()
    except DeviceUnavailableError as error:
        pytest.skip(f"no GPU: {error.message}")


@pytest.fixture(autouse=True)
def _turns(request: pytest.FixtureRequest, _folder: Path, _needs_gpu: None) -> Iterator[None]:
    is_alone = request.node.get_closest_marker("gpu_alone") is not None
    with _turn(_folder, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH):
        yield


@pytest.fixture
def context() -> Iterator[DeviceContext]:
    with open_device("cuda", clock=SystemClock()).context as opened:
        yield opened


@pytest.fixture
def stream(context: DeviceContext) -> Iterator[int]:
    """The driver's handle of a stream."""
    from aegis_pipe.device.cuda import driver

    handle = driver.create_stream(0)
    yield handle
    driver.destroy_stream(handle)
