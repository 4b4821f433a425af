"""The GPU's temperature and clocks, as NVML tells them.

NVML is a library of its own beside the driver (package `nvidia-ml-py`). It is loaded at the first
reading, which is somebody's who looks at metrics: a request never waits for it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from aegis_pipe.device.protocols import DeviceReadings

_CLOCKS: Final = (("sm", "NVML_CLOCK_SM"), ("memory", "NVML_CLOCK_MEM"))

_log = logging.getLogger(__name__)


class Sensors:
    """Reads one GPU; for any thread. What can not be read is said once and left out."""

    def __init__(self, name: str, pci_address: str) -> None:
        """Take the device's name, for messages, and `domain:bus:device.function`."""
        self._name = name
        self._pci_address = pci_address
        self._lock = threading.Lock()
        self._nvml: Any = None
        self._handle: Any = None
        self._is_over = False
        """Closed, or NVML is not to be had."""
        self._told: set[str] = set()

    def read(self) -> DeviceReadings | None:
        """Return what there is now; None if NVML can not be reached or this is closed."""
        with self._lock:
            if not self._is_over and self._nvml is None:
                self._open()
            if self._is_over:
                return None
            nvml, handle = self._nvml, self._handle
            temperature = self._ask(
                "temperature",
                partial(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            )
            clocks = []
            for domain, constant in _CLOCKS:
                read = partial(nvml.nvmlDeviceGetClockInfo, handle, getattr(nvml, constant))
                megahertz = self._ask(f"{domain} clock", read)
                if megahertz is not None:
                    clocks.append((domain, 1_000_000 * megahertz))
            return DeviceReadings(temperature, tuple(clocks))

    def close(self) -> None:
        """Let go of NVML; idempotent."""
        with self._lock:
            if self._nvml is not None:
                self._ask("shutdown", self._nvml.nvmlShutdown)
            self._nvml = self._handle = None
            self._is_over = True

    def _open(self) -> None:
        try:
            import pynvml
        except ImportError:
            self._tell("NVML", "the package `nvidia-ml-py` is not installed")
            self._is_over = True
            return
        with self._telling("NVML", pynvml.NVMLError):
            pynvml.nvmlInit()
            self._nvml = pynvml
            self._handle = pynvml.nvmlDeviceGetHandleByPciBusId(self._pci_address.encode())
        self._is_over = self._handle is None

    def _ask(self, what: str, read: Callable[[], Any]) -> int | None:
        with self._telling(what, self._nvml.NVMLError):
            value = read()
            return None if value is None else int(value)
        return None

    @contextmanager
    def _telling(self, what: str, errors: type[Exception]) -> Iterator[None]:
        try:
            yield
        except errors as error:
            self._tell(what, str(error))

    def _tell(self, what: str, problem: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning(
                "%s: metrics are without its %s (NVML: %s); see `nvidia-smi -q`, and whether "
                "the package's extra `cuda` is installed",
                self._name,
                "temperature and clocks" if what == "NVML" else what,
                problem,
            )
