"""From an operator node of the graph to the canonical request a device understands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode, captures_of
from aegis_pipe.execution.operators.table import Lowered, OperatorContext, OperatorTable
from aegis_pipe.kernel import KernelRequest, ReferenceFunction
from aegis_pipe.tensor import TensorId, TensorSpec

ReferenceFactory = Callable[
    [OperatorNode, tuple[int, ...], Mapping[int, np.ndarray]], ReferenceFunction
]
"""Makes a host evaluation of (node, positions of its data operands, known values by position)."""


def lower_node(
    graph: ExecutionGraph,
    node: OperatorNode,
    table: OperatorTable,
    reference: ReferenceFactory | None,
) -> tuple[KernelRequest, tuple[TensorId, ...]]:
    """Return a node's request and the tensors that are its data operands, in order.

    An operator without an entry in the table keeps all its operands (captures of its bodies
    after its inputs) and has no attributes: only its reference function can run it.
    """
    operands = (*node.inputs, *captures_of(node))
    context = OperatorContext(
        node=node,
        inputs=tuple([graph.spec(tensor) if tensor else None for tensor in operands]),
        constants={
            position: graph.constants[tensor]
            for position, tensor in enumerate(operands)
            if tensor in graph.constants
        },
    )
    entry = table.get(node.qualified_operator)
    lowered = entry.lower(context) if entry else _opaque(node, len(operands))
    return (
        _request(graph, context, lowered, reference),
        tuple([operands[i] if i >= 0 else TensorId("") for i in lowered.data_inputs]),
    )


def _opaque(node: OperatorNode, operand_count: int) -> Lowered:
    return Lowered(node.qualified_operator, {}, tuple(range(operand_count)))


def _request(
    graph: ExecutionGraph,
    context: OperatorContext,
    lowered: Lowered,
    reference: ReferenceFactory | None,
) -> KernelRequest:
    node = context.node

    def spec_at(position: int) -> TensorSpec | None:
        return context.inputs[position] if position >= 0 else None

    return KernelRequest(
        operator=lowered.operator,
        node=node.name,
        attributes=lowered.attributes,
        inputs=tuple(map(spec_at, lowered.data_inputs)),
        outputs=tuple([graph.spec(tensor) if tensor else None for tensor in node.outputs]),
        constants={
            canonical: context.constants[position]
            for canonical, position in enumerate(lowered.data_inputs)
            if position in context.constants
        },
        reference=reference(node, lowered.data_inputs, context.constants) if reference else None,
    )
