"""What is prepared is what choosing asks for, and no more is compiled than is worth it.

There is no GPU and no cuDNN here: what they would measure and list is handed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.cudnn_convolution import (
    COMPILED_MAX,
    Convolution,
    ConvolutionPlans,
)
from aegis_pipe.device.cuda.kernels import (
    library_convolutions,
    planar_convolutions,
    tensor_convolutions,
)
from aegis_pipe.device.cuda.kernels.registry import Machine
from tests.unit.device.cuda.test_kernel_sources import sources_of
from tests.unit.device.cuda.test_planar_convolutions import request as planar_request

HALF = np.dtype(np.float16)
_NAMES = ("HALF", "FLOAT", "A", "FALLBACK", "NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION")


class Compiler:
    """Notes what is compiled ahead, and what is asked for."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.asked: list[str] = []

    def prepare(self, sources: Sequence[str]) -> None:
        self.prepared += sources

    def function(self, source: str, shared_bytes: int = 0) -> int:
        self.asked.append(source)
        return 1


class Tuner:
    """Finds the last way the fastest; remembers."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, object]] = {}

    def remembered(self, what: object, library: str) -> dict[str, object] | None:
        return self.known.get(repr(what))

    def remember(self, what: object, library: str, choice: dict[str, object]) -> None:
        self.known[repr(what)] = choice

    def fastest(
        self, ways: Iterable[Callable[..., None]], sizes_bytes: Sequence[int], **_: object
    ) -> tuple[int, float] | None:
        tried = len(list(ways))
        return (tried - 1, 1.0) if tried else None


class Cudnn:
    """Has a version."""

    version = 0


class Graph:
    """cuDNN's graph as far as it lists plans.

    `-` is not compiled, all others are; `x` can not be built, `w` needs a byte of workspace.
    """

    def __init__(self, plans: str) -> None:
        self._plans = plans
        self.built: list[int] = []

    def __getattr__(self, name: str) -> Callable[..., Graph]:
        # Whatever describes the convolution.
        return lambda *_, **__: self

    def get_execution_plan_count(self) -> int:
        return len(self._plans)

    def get_behavior_notes_for_plan_at_index(self, index: int) -> list[str]:
        return [] if self._plans[index] == "-" else ["compiled"]

    def build_plan_at_index(self, index: int) -> None:
        if self._plans[index] == "x":
            raise RuntimeError("impossible")
        self.built.append(index)

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        return int(self._plans[index] == "w")

    def get_plan_name_at_index(self, index: int) -> str:
        return f"plan {index}"


class Library(Cudnn):
    """cuDNN's package."""

    cudnnGraphNotSupportedError = ValueError  # noqa: N815
    behavior_note = SimpleNamespace(RUNTIME_COMPILATION="compiled")
    handle = 0

    def __init__(self, plans: str) -> None:
        self.graph = Graph(plans)
        self.library = self

    def __getattr__(self, name: str) -> SimpleNamespace:
        # Types, modes and notes.
        return SimpleNamespace(**dict.fromkeys(_NAMES, 0))

    def pygraph(self, **_: object) -> Graph:
        return self.graph


def machine() -> Machine:
    found = Machine(Compiler(), None, "none", 90, 132)  # type: ignore[arg-type]
    found.tuner, found.cudnn = Tuner(), Cudnn()  # type: ignore[assignment]
    return found


def convolution(channels: int = 64, batch: int = 1) -> KernelRequest:
    """Return one of 3 x 3 pixels."""
    shapes = ((batch, 8, 8, channels), (16, channels, 3, 3))
    specs = tuple(TensorSpec(HALF, shape) for shape in shapes)
    attributes = {
        "kernel_shape": (3, 3),
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (1, 1, 1, 1),
        "group": 1,
        "activation": "Relu",
        "activation_params": (),
    }
    result = TensorSpec(HALF, (batch, 8, 8, 16))
    return KernelRequest(
        "com.microsoft.NhwcFusedConv",
        "node",
        attributes,
        specs,
        (result,),
        {1: np.zeros(shapes[1], HALF)},
    )


def test_tilings_are_for_those_with_memory_for_them() -> None:
    on = machine()
    on.capability, on.shared_bytes_max = 120, 99 << 10
    tensor_convolutions._prepare([convolution()], on)
    assert not on.compiler.prepared


def test_tilings_that_will_be_measured_are_compiled_ahead() -> None:
    on, requests = machine(), [convolution(), convolution(128), convolution(), convolution(20)]
    tensor_convolutions._prepare(requests, on)
    for request in (requests[0], requests[1]):
        p = tensor_convolutions._convolution_of(request)
        assert p is not None
        assert tensor_convolutions._fastest(on, p) is not None
    assert on.compiler.asked
    assert on.compiler.prepared == on.compiler.asked
    on.compiler.prepared.clear()
    tensor_convolutions._prepare(requests, on)
    assert on.compiler.prepared == []


def test_the_first_convolution_is_compiled_ahead() -> None:
    on, request = machine(), planar_request((1, 3, 16, 16), (3, 3), (1, 1), (1, 1, 1, 1))
    planar_convolutions._prepare([request], on)
    assert on.compiler.prepared == sources_of(request)


@pytest.mark.parametrize(
    ("plans", "offered"),
    [
        ("cc", [0, 1]),
        # The fourth of those that are compiled is left out, what stands behind it is not.
        ("-cccc-c", [0, 1, 2, 3, 5]),
        # Neither what can not be built counts, nor what needs too much memory.
        ("cxccc", [0, 2, 3]),
        ("cwccc", [0, 2, 3]),
        ("xxx", []),
    ],
)
def test_few_of_those_that_are_compiled_are_offered(plans: str, offered: list[int]) -> None:
    c = library_convolutions.convolution_of(convolution())
    assert c is not None
    library = Library(plans)
    found = ConvolutionPlans(library, c).algorithms(0)  # type: ignore[arg-type]
    assert [index for index, _ in found] == offered
    # Nothing is built, which takes its time, and then not offered.
    assert [each for each in library.graph.built if plans[each] != "w"] == offered
    assert COMPILED_MAX == 3


@pytest.mark.parametrize(
    ("changed", "is_left"),
    [
        ({}, True),
        ({"residual": False}, False),
        ({"dtype": "float32"}, False),
        ({"groups": 2}, False),
        # More to do: 1.5 million multiplications a multiprocessor.
        ({"batch": 4}, False),
        # Little to do, but more tiles than are taken.
        ({"batch": 64, "channels": 8}, False),
    ],
)
def test_what_is_left_to_us(changed: dict[str, object], is_left: bool) -> None:
    ones = (1, 1)
    small = Convolution(
        *(1, 256, (14, 14), 1024, ones, ones, ones, (0, 0), (0, 0), "float16"), residual=True
    )
    c = replace(small, **changed)  # type: ignore[arg-type]
    assert library_convolutions.is_left_to_us(machine(), c) is is_left
    assert not library_convolutions.is_left_to_us(replace(machine(), capability=80), c)
    if is_left:
        # Nothing is planned, which would need a GPU.
        assert library_convolutions.cudnn_microseconds(machine(), c) is None


@pytest.mark.parametrize(
    ("plans", "why"),
    [("--", "does not list the plan plan 7"), ("--x----x", "does not build the plan plan 7")],
)
def test_a_remembered_plan_that_is_gone_is_chosen_anew(
    plans: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = machine()
    found.cudnn = Library(plans)  # type: ignore[assignment]
    assert found.tuner is not None
    c = library_convolutions.convolution_of(convolution())
    assert c is not None
    gone = {"name": "plan 7", "workspace_bytes": 0, "microseconds": 1.0}
    found.tuner.remember(c, "", gone)
    with caplog.at_level(logging.WARNING):
        planned = library_convolutions._planned(found, c)
    assert planned is not None
    assert f"{why} for {c}: choosing another" in caplog.text
    # What is remembered from now on is what was found.
    assert found.tuner.remembered(c, "") != gone
    other = machine()
    other.tuner, other.cudnn = found.tuner, found.cudnn
    again = library_convolutions._planned(other, c)
    assert again is not None
    assert again.index == planned.index
