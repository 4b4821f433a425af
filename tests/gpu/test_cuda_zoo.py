"""Every model of the zoo on the GPU and on the CPU: the same outputs, and the same bits each time.

`manifests/zoo.toml` lists them with their shapes; `pip install 'aegis-pipe[zoo]'` brings them.
tools/record_parity.py compares, and records the same.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from aegis_pipe.clock import SystemClock
from aegis_pipe.device.protocols import DeviceContext
from aegis_pipe.device.registry import open_device
from tests.tool_modules import load_tool

parity = load_tool("record_parity")
MODELS = parity.listed(parity.ZOO)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", MODELS, ids=[model.name for model in MODELS])
def test_as_the_cpu_and_the_same_bits(context: DeviceContext, model: Any, precision: str) -> None:
    if model.missing_package:
        pytest.skip(f"package `{model.missing_package}` is not installed")
    threads = len(os.sched_getaffinity(0))
    with open_device("cpu", clock=SystemClock(), threads=threads).context as cpu:
        (row,) = parity.rows([model], [precision], context, cpu)
    print(row)
    assert row["passed"]
