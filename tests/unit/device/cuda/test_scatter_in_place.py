"""Scattering over the data itself gives the bits of scattering into a copy."""

from __future__ import annotations

import numpy as np
import pytest

from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import KERNELS
from aegis_pipe.device.cuda.kernels.registry import Machine
from tests.unit.device.cuda import host_device

pytestmark = pytest.mark.skipif(host_device.COMPILER is None, reason="no g++")
MACHINE = Machine(None, None, "none", 90, 132)


def run(request: KernelRequest, values: list[np.ndarray], *, in_place: bool) -> np.ndarray:
    (kernel,) = KERNELS.candidates(request.operator)
    choice = kernel.choose(request, MACHINE)
    assert choice is not None
    assert choice.in_place == ((0, 0),)
    values = [value.copy() for value in values]
    result = values[0] if in_place else np.full_like(values[0], 77)
    workspace = np.full(choice.workspace_bytes + 8, 0x5A, np.uint8)
    binding = host_device.HostBinding(
        request,
        choice,
        MACHINE,
        tuple(value.ctypes.data for value in values),
        (result.ctypes.data,),
        workspace.ctypes.data,
        None,
    )
    for launch in kernel.bind(binding):
        launch(0)
    assert not any(word.cell[0] for word in binding.faults)
    return result


@pytest.mark.parametrize("reduction", ["none", "add", "max"])
@pytest.mark.parametrize("operator", ["ScatterElements", "ScatterND"])
def test_scatter(operator: str, reduction: str) -> None:
    rng = np.random.default_rng(1)
    data = rng.standard_normal((3, 7, 5)).astype(np.float32)
    if operator == "ScatterND":  # some places twice, some from behind
        at = rng.integers((-3, -7), (3, 7), (20, 2))
        updates = rng.standard_normal((20, 5)).astype(np.float32)
    else:
        at = rng.integers(-7, 7, (3, 9, 5))
        updates = rng.standard_normal((3, 9, 5)).astype(np.float32)
    request = _request(operator, {"axis": 1, "reduction": reduction}, [data, at, updates])
    copied, over = (run(request, [data, at, updates], in_place=x) for x in (False, True))
    assert (copied != data).any()
    assert copied.tobytes() == over.tobytes()


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter(mode: str) -> None:
    rng = np.random.default_rng(2)
    data = rng.standard_normal((2, 3, 8, 4)).astype(np.float32)
    updates = rng.standard_normal((2, 3, 3, 4)).astype(np.float32)
    first = np.array([1, 5] if mode == "linear" else [6, 9])
    request = _request("TensorScatter", {"axis": 2, "mode": mode}, [data, updates, first])
    copied, over = (run(request, [data, updates, first], in_place=x) for x in (False, True))
    assert (copied != data).sum() == updates.size
    assert copied.tobytes() == over.tobytes()


def _request(
    operator: str, attributes: dict[str, object], values: list[np.ndarray]
) -> KernelRequest:
    specs = tuple(TensorSpec(value.dtype, value.shape) for value in values)
    return KernelRequest(operator, "n", attributes, specs, specs[:1])  # type: ignore[arg-type]
