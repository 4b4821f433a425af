"""What a GPU's sensors do on machines where NVML can not answer; `tests/gpu` reads real ones."""

from __future__ import annotations

import logging
import shutil
import sys

import pytest

from aegis_pipe.device.cuda.sensors import Sensors

# Beside `nvidia-ml-py` some machines have the package of the module's old name, which says so.
pytestmark = pytest.mark.filterwarnings("ignore:The pynvml package is deprecated:FutureWarning")


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has NVML")
def test_without_the_library_there_are_no_readings_and_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("pynvml", reason="no nvidia-ml-py")
    check_silent_but_for(caplog, "Library Not Found")


def test_without_the_package_there_are_no_readings_and_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    check_silent_but_for(caplog, "`nvidia-ml-py` is not installed")


def check_silent_but_for(caplog: pytest.LogCaptureFixture, problem: str) -> None:
    sensors = Sensors("cuda:0", "00000000:01:00.0")
    with caplog.at_level(logging.WARNING):
        assert [sensors.read() for _ in range(3)] == [None] * 3
        sensors.close()
        sensors.close()
        assert sensors.read() is None
    (record,) = caplog.records
    assert problem in record.message
    assert record.message.startswith("cuda:0: metrics are without its temperature and clocks")
