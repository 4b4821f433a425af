"""Tests that need a GPU; without one they are skipped, and say what is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import DeviceUnavailableError


@pytest.fixture(scope="session", autouse=True)
def _needs_gpu() -> None:
    try:
        open_device("cuda", clock=SystemClock()).context.close()
    except DeviceUnavailableError as error:
        pytest.skip(f"no GPU: {error.message}")


@pytest.fixture
def context() -> Iterator[DeviceContext]:
    with open_device("cuda", clock=SystemClock()).context as opened:
        yield opened
