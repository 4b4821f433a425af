"""Elementwise operators that only feed one another, as one `aegis.ElementwiseChain`.

For devices that run them tile by tile, or element by element, in one kernel: what lies between two
of them is then never written to memory. Found are trees, or what comes back together in its root,
of operators whose results all have one shape and are read within only. Each step stays the
operator it was, so bits stay.

It comes after the fusions that know better, and last of all: what it makes, nothing else knows.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from aegis_pipe.device.elementwise_chains import (
    CHAIN,
    CONSTANTS_MAX,
    INPUTS_MAX,
    LIVE_MAX,
    OPERANDS,
    RANK_MAX,
    STEPS_MAX,
    Chain,
    Step,
)
from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.lowering import lower_node
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.passes.channels_last import OWN
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.kernel import Attribute, KernelRequest
from aegis_pipe.tensor import TensorId, TensorSpec

_FLOAT32 = np.dtype(np.float32)
_OTHER_NAMES = {
    "CastLike": "Cast",
    "Gelu": "com.microsoft.BiasGelu",
    "com.microsoft.FastGelu": "com.microsoft.BiasGelu",
    "com.microsoft.Gelu": "com.microsoft.BiasGelu",
    "com.microsoft.QuickGelu": "Swish",
}
"""What operators become in canonical form, where that has another name."""
_OPERANDS = {"Where": OPERANDS, "Clip": 1, "com.microsoft.BiasGelu": 1}
"""How many operands a step may have, where it is not two."""


@dataclass(frozen=True, slots=True)
class FuseElementwise:
    """The pass for a device that runs these operators as steps, on operands of these dtypes."""

    steps: Mapping[str, frozenset[str]]
    name: str = "fuse_elementwise"

    def run(self, graph: ExecutionGraph) -> ExecutionGraph:
        """Replace every such group of two operators or more."""
        found = _Groups(graph, self.steps)
        edit = GraphEdit(graph)
        for group in found.groups():
            edit.replace([graph.operators[i] for i in group], found.fused(group))
        return edit.result()


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An operator that can be a step, in canonical form."""

    request: KernelRequest
    operands: tuple[TensorId, ...]
    result: TensorSpec


class _Groups:
    """Walks from the results back, and takes in what only the group reads."""

    def __init__(self, graph: ExecutionGraph, steps: Mapping[str, frozenset[str]]) -> None:
        self._graph = graph
        self._steps = steps
        self._outputs = frozenset(graph.outputs)
        self._candidates = {
            index: candidate
            for index, node in enumerate(graph.operators)
            if (candidate := self._candidate(node)) is not None
        }

    def groups(self) -> list[list[int]]:
        """Return the groups, each as indices of operators in order."""
        found: list[list[int]] = []
        taken: set[int] = set()
        for root in sorted(self._candidates, reverse=True):
            if root in taken:
                continue
            group = self._grown(root, taken)
            if len(group) > 1:
                taken |= group
                found.append(sorted(group))
        return found

    def fused(self, group: list[int]) -> OperatorNode:
        """Return the operator that does what a group does."""
        last = self._graph.operators[group[-1]]
        chain, inputs = self._chain(group)
        return OperatorNode(
            last.name, CHAIN.partition(".")[2], OWN, 1, chain.attributes(), inputs, last.outputs
        )

    def _candidate(self, node: OperatorNode) -> _Candidate | None:
        name = node.qualified_operator
        dtypes = self._steps.get(_OTHER_NAMES.get(name, name))
        if dtypes is None or len(node.outputs) != 1:
            return None
        result = self._graph.spec(node.outputs[0])
        if not result.element_count or len(result.shape) > RANK_MAX:
            return None
        request, operands = lower_node(self._graph, node, OPERATORS, None)
        while operands and not operands[-1]:
            operands = operands[:-1]
        specs = [self._graph.spec(tensor) for tensor in operands if tensor]
        is_known = (
            request.operator in self._steps
            and len(specs) == len(operands) <= _OPERANDS.get(request.operator, 2)
            and all(spec.dtype.name in dtypes for spec in (*specs, result))
            and not _is_unordered(request.attributes.values())
            and (request.operator != "Pow" or _is_square(request))
        )
        return _Candidate(request, operands, result) if is_known else None

    def _grown(self, root: int, taken: set[int]) -> set[int]:
        """Return the largest group that ends here, within the limits of a chain.

        From the last operator to the first: whoever reads one's result is settled before it.
        """
        group = {root}
        waiting = self._producers(root)
        while waiting:
            index = -heapq.heappop(waiting)
            if index in group or index in taken or not self._feeds_only(index, group, root):
                continue
            wider = group | {index}
            if self._fits(sorted(wider)):
                group = wider
                for further in self._producers(index):
                    heapq.heappush(waiting, further)
        return group

    def _producers(self, index: int) -> list[int]:
        """Return, negated and as a heap, which candidates write what an operator reads."""
        producers = self._graph.producers
        writers = {producers.get(tensor) for tensor in self._candidates[index].operands}
        known = [-one for one in writers if one is not None and one in self._candidates]
        heapq.heapify(known)
        return known

    def _feeds_only(self, index: int, group: set[int], root: int) -> bool:
        (result,) = self._graph.operators[index].outputs
        return (
            self._candidates[index].result.shape == self._candidates[root].result.shape
            and result not in self._outputs
            and group.issuperset(self._graph.consumers.get(result, ()))
        )

    def _fits(self, group: list[int]) -> bool:
        if len(group) > STEPS_MAX:
            return False
        chain, inputs = self._chain(group)
        if not 0 < len(inputs) <= INPUTS_MAX or len(chain.constants) > CONSTANTS_MAX:
            return False
        # Else the shape would have dimensions of 1 that only a scalar brought.
        shape = np.broadcast_shapes(*(self._graph.spec(tensor).shape for tensor in inputs))
        has_shape = shape == self._candidates[group[-1]].result.shape
        return has_shape and chain.live_results() <= LIVE_MAX

    def _chain(self, group: list[int]) -> tuple[Chain, tuple[TensorId, ...]]:
        """Return a group's chain and the tensors it reads."""
        results = {self._graph.operators[index].outputs[0]: index for index in group}
        inputs: dict[TensorId, int] = {}
        constants: dict[bytes, int] = {}
        keys: dict[TensorId, bytes] = {}
        for index in group:
            for tensor in self._candidates[index].operands:
                if tensor in results:
                    continue
                scalar = self._scalar(tensor)
                if scalar is None:
                    inputs.setdefault(tensor, len(inputs))
                else:
                    keys[tensor] = scalar
                    constants.setdefault(scalar, len(constants))
        first = len(inputs) + len(constants)
        numbers = {
            **inputs,
            **{tensor: len(inputs) + constants[key] for tensor, key in keys.items()},
            **{tensor: first + i for i, tensor in enumerate(results)},
        }
        steps = []
        for index in group:
            candidate = self._candidates[index]
            operator, given = candidate.request.operator, candidate.request.attributes
            attributes = _bounds(given) if operator == "Clip" else given
            operands = tuple(numbers[tensor] for tensor in candidate.operands)
            steps.append(Step(operator, operands, candidate.result.dtype, attributes))
        values = tuple(float(np.frombuffer(key, _FLOAT32)[0]) for key in constants)
        return Chain(len(inputs), values, tuple(steps)), tuple(inputs)

    def _scalar(self, tensor: TensorId) -> bytes | None:
        """Return the bytes of a constant that is one float32; None for every other tensor."""
        value = self._graph.constants.get(tensor)
        is_scalar = value is not None and value.size == 1 and value.dtype == _FLOAT32
        return value.tobytes() if value is not None and is_scalar else None


def _is_square(request: KernelRequest) -> bool:
    """Return whether a power is the second one, for which multiplying is enough."""
    exponent = request.constants.get(1)
    has_shape = request.inputs[0] == request.outputs[0]
    return exponent is not None and exponent.size == 1 and exponent.reshape(()) == 2 and has_shape


def _is_unordered(values: Iterable[Attribute]) -> bool:
    """Return whether one of the numbers is NaN, which bounds must not be."""
    return any(isinstance(value, float) and math.isnan(value) for value in values)


def _bounds(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Return the bounds of a Clip, infinite where there is none."""
    low, high = attributes["min"], attributes["max"]
    return {
        "min": -math.inf if low is None else low,
        "max": math.inf if high is None else high,
    }
