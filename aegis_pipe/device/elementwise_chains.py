"""The program of `aegis.ElementwiseChain`, for the kernels of every device.

Steps are elementwise operators in canonical form that run one after the other; all their results
have the shape of the last one's, which is the chain's. The values they read are numbered: the
chain's inputs, then its constants, then the steps' results in order.

In attributes, a chain is

    operators   the steps' operators
    results     the dtypes of their results, by name
    operands    `OPERANDS` numbers of values a step, -1 for none
    constants   float32 scalars
    alpha.2     an attribute of the step at position 2, under its own name
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from aegis_pipe.device import requests
from aegis_pipe.kernel import Attribute, KernelRequest
from aegis_pipe.tensor import TensorSpec

CHAIN = "aegis.ElementwiseChain"
OPERANDS = 3
"""Of one step, at most."""

INPUTS_MAX = 8
CONSTANTS_MAX = 8
STEPS_MAX = 16
LIVE_MAX = 6
"""Results of steps that are kept at once until they are read."""
RANK_MAX = 6

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of a chain."""

    operator: str
    operands: tuple[int, ...]
    dtype: np.dtype
    """Of its result."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chain:
    """What a chain computes."""

    input_count: int
    constants: tuple[float, ...]
    steps: tuple[Step, ...]

    @property
    def first_result(self) -> int:
        """Number of the first step's result."""
        return self.input_count + len(self.constants)

    def last_reads(self) -> list[int]:
        """Return, by value, the position of the last step that reads it; -1 for those nobody reads.

        The chain's result is read after its last step.
        """
        last = [-1] * (self.first_result + len(self.steps))
        for position, step in enumerate(self.steps):
            for value in step.operands:
                last[value] = position
        last[-1] = len(self.steps)
        return last

    def live_results(self) -> int:
        """Return how many results of steps have to be kept at once, the chain's own not counted.

        What is written does not lie over what the same step reads.
        """
        last, most = self.last_reads(), 0
        for position in range(len(self.steps)):
            kept = range(
                self.first_result, self.first_result + min(position + 1, len(self.steps) - 1)
            )
            most = max(most, sum(last[value] >= position for value in kept))
        return most

    def attributes(self) -> dict[str, int | float | str | tuple[int | float | str, ...]]:
        """Return the chain as attributes."""
        described: dict[str, int | float | str | tuple[int | float | str, ...]] = {
            "operators": tuple(step.operator for step in self.steps),
            "results": tuple(step.dtype.name for step in self.steps),
            "operands": tuple(
                number
                for step in self.steps
                for number in (*step.operands, *(-1,) * (OPERANDS - len(step.operands)))
            ),
            "constants": self.constants,
        }
        for position, step in enumerate(self.steps):
            for name, value in step.attributes.items():
                assert isinstance(value, int | float | str), f"{step.operator}: {name}"
                described[f"{name}.{position}"] = value
        return described

    @classmethod
    def of(cls, request: KernelRequest) -> Chain:
        """Read a request's attributes."""
        operators = requests.texts(request, "operators")
        results = requests.texts(request, "results")
        numbers = requests.integers(request, "operands")
        own: list[dict[str, Attribute]] = [{} for _ in operators]
        for key, value in request.attributes.items():
            name, _, position = key.partition(".")
            if position:
                own[int(position)][name] = value
        steps = tuple(
            Step(
                operator,
                tuple(n for n in numbers[OPERANDS * i : OPERANDS * (i + 1)] if n >= 0),
                np.dtype(dtype),
                attributes,
            )
            for i, (operator, dtype, attributes) in enumerate(
                zip(operators, results, own, strict=True)
            )
        )
        return cls(len(request.inputs), requests.numbers(request, "constants"), steps)

    def requests(
        self, request: KernelRequest, inputs: Sequence[TensorSpec], shape: tuple[int, ...]
    ) -> list[KernelRequest]:
        """Return each step as a request of its own, with the chain's inputs and shape as given."""
        scalar = TensorSpec(_FLOAT32, ())
        specs = [
            *inputs,
            *(scalar for _ in self.constants),
            *(TensorSpec(step.dtype, shape) for step in self.steps),
        ]
        scalars = dict(enumerate(self.constants, self.input_count))
        return [
            KernelRequest(
                step.operator,
                request.node,
                step.attributes,
                tuple(specs[value] for value in step.operands),
                (TensorSpec(step.dtype, shape),),
                {
                    i: np.array(scalars[value], _FLOAT32)
                    for i, value in enumerate(step.operands)
                    if value in scalars
                },
            )
            for step in self.steps
        ]
