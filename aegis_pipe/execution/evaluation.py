"""Evaluates a graph operator by operator on the host: slow, simple, and what others are held to."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aegis_pipe.errors import InvalidInputError, KernelError
from aegis_pipe.execution.graph import ExecutionGraph, captures_of
from aegis_pipe.execution.reference_operators import reference_function
from aegis_pipe.execution.source_model import describe
from aegis_pipe.tensor import TensorId, TensorSpec


def evaluate_graph(graph: ExecutionGraph, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the graph's outputs in order, computed by ONNX's reference operators.

    Raises InvalidInputError for inputs that do not fit, KernelError if an operator fails or
    returns something else than the graph says.
    """
    values = dict(graph.constants)
    for tensor in graph.inputs:
        values[tensor] = _checked_input(graph, tensor, inputs)
    for node in graph.operators:
        operands = (*node.inputs, *captures_of(node))
        evaluate = reference_function(node, tuple(range(len(operands))), {})
        results = evaluate([values[tensor] if tensor else None for tensor in operands])
        for tensor, array in zip(node.outputs, results, strict=True):
            if tensor and TensorSpec(array.dtype, array.shape) != graph.spec(tensor):
                raise KernelError(
                    f"`{tensor}` came out as {TensorSpec(array.dtype, array.shape)}, "
                    f"not {graph.spec(tensor)}",
                    context=describe(node),
                )
            values[tensor] = array
    return [values[tensor] for tensor in graph.outputs]


def _checked_input(
    graph: ExecutionGraph, tensor: TensorId, inputs: Mapping[str, np.ndarray]
) -> np.ndarray:
    if tensor not in inputs:
        raise InvalidInputError(f"input `{tensor}` is missing", context=graph.name)
    array = np.asarray(inputs[tensor])
    if TensorSpec(array.dtype, array.shape) != graph.spec(tensor):
        raise InvalidInputError(
            f"input `{tensor}` is {TensorSpec(array.dtype, array.shape)}, not {graph.spec(tensor)}",
            context=graph.name,
        )
    return array
