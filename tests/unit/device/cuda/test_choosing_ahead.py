"""What is prepared is what choosing asks for, and no more is tried than is worth it.

There is no GPU and no cuDNN here: what they would measure and list is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.cudnn_convolution import BuiltPlan, Convolution
from aegis_pipe.device.cuda.kernels import (
    library_convolutions,
    planar_convolutions,
    tensor_convolutions,
)
from aegis_pipe.device.cuda.kernels.registry import Machine
from tests.unit.device.cuda.test_kernel_sources import sources_of
from tests.unit.device.cuda.test_planar_convolutions import request as planar_request

HALF = np.dtype(np.float16)


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


class Builders:
    """Notes what they are asked for; has built what is even."""

    def __init__(self) -> None:
        self.begun: list[tuple[Convolution, int]] = []
        self.forgotten: list[Convolution] = []

    def begin(self, wanted: Sequence[tuple[Convolution, int]]) -> None:
        self.begun += wanted

    def plan(self, convolution: Convolution, index: int) -> BuiltPlan | None:
        return BuiltPlan(f"{index} by others", 0, b"plan") if index % 2 == 0 else None

    def forget(self, convolution: Convolution) -> None:
        self.forgotten.append(convolution)


class Plans:
    """As many as are said to be compiled or not; one can not be built."""

    def __init__(self, are_compiled: str, impossible: int = -1) -> None:
        self._are_compiled = are_compiled
        self._impossible = impossible
        self.built: list[int] = []

    def __len__(self) -> int:
        return len(self._are_compiled)

    def is_compiled(self, index: int) -> bool:
        return self._are_compiled[index] == "c"

    def build(self, index: int) -> BuiltPlan | None:
        self.built.append(index)
        return None if index == self._impossible else BuiltPlan(f"{index} here", 0, b"plan")


def machine() -> Machine:
    found = Machine(Compiler(), None, "none", 90, 132)  # type: ignore[arg-type]
    found.tuner, found.cudnn = Tuner(), Cudnn()  # type: ignore[assignment]
    found.plan_builders = Builders()  # type: ignore[assignment]
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
    ("are_compiled", "asked_of_others", "offered", "built_here"),
    [
        ("ccc", [0, 1, 2], ["0 by others", "1 here", "2 by others"], [1]),
        ("-c-c", [1, 3], ["0 here", "1 here", "2 here", "3 here"], [0, 1, 2, 3]),
        # The sixth of those that are compiled is left out, what stands behind it is not.
        (
            "cccccc-",
            [0, 1, 2, 3, 4],
            ["0 by others", "1 here", "2 by others", "3 here", "4 by others", "6 here"],
            [1, 3, 6],
        ),
        ("", [], [], []),
    ],
)
def test_plans_that_are_compiled(
    are_compiled: str, asked_of_others: list[int], offered: list[str], built_here: list[int]
) -> None:
    on, request = machine(), convolution()
    c = library_convolutions.convolution_of(request)
    assert c is not None
    plans = Plans(are_compiled)
    on.convolution_plans[c] = plans  # type: ignore[assignment]
    library_convolutions._prepare([request, request], on)
    assert on.plan_builders.begun == [(c, index) for index in asked_of_others]
    found = list(library_convolutions._offers(on, c))
    assert [each.name for each in found] == offered
    assert plans.built == built_here


def test_what_can_not_be_built_does_not_count() -> None:
    on, c = machine(), library_convolutions.convolution_of(convolution())
    assert c is not None
    on.convolution_plans[c] = Plans("ccccccc", impossible=1)  # type: ignore[assignment]
    found = list(library_convolutions._offers(on, c))
    assert [int(each.name.split()[0]) for each in found] == [0, 2, 3, 4, 5]


def test_a_choice_ends_what_was_begun_and_is_kept_with_its_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[BuiltPlan] = []

    class Loaded:
        def __init__(self, cudnn: object, convolution: Convolution, built: BuiltPlan) -> None:
            self.built = built
            loaded.append(built)

    monkeypatch.setattr(library_convolutions, "ConvolutionPlan", Loaded)
    on, c = machine(), library_convolutions.convolution_of(convolution())
    assert c is not None
    on.convolution_plans[c] = Plans("-c")  # type: ignore[assignment]
    found = library_convolutions._planned(on, c)
    assert found is not None
    assert on.plan_builders.forgotten == [c]
    assert on.convolution_plans == {}
    again = replace(on, convolutions={})
    library_convolutions._prepare([convolution()], again)
    assert on.plan_builders.begun == []
    assert library_convolutions._planned(again, c).built == found.built
    assert [each.name for each in loaded] == ["0 here", "1 here", "1 here"]
