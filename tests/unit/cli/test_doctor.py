"""`aegis-pipe doctor` names what decides speed and what is missing."""

from __future__ import annotations

import json

import pytest

from aegis_pipe.cli import main
from aegis_pipe.device.cpu.kernels.native import STATUS


def test_it_names_the_devices_and_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"]["cpu"].startswith("ready: cpu")
    assert STATUS in found["devices"]["cpu"]
