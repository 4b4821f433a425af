"""Small models in ONNX's text form, and what ONNX Runtime says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime

from aegis_pipe.execution.evaluation import evaluate_graph
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader

HEADER = '<ir_version: 8, opset_import: ["" : 17]>\n'


def parse(text: str, header: str = HEADER) -> onnx.ModelProto:
    return onnx.parser.parse_model(header + text)


def load(model: onnx.ModelProto | str, **options: Any) -> ExecutionGraph:
    proto = parse(model) if isinstance(model, str) else model
    return ModelLoader().load_proto(proto, LoadOptions(**options))


def operators_of(graph: ExecutionGraph) -> list[str]:
    return [node.qualified_operator for node in graph.operators]


def random_inputs(graph: ExecutionGraph, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        tensor: (generator.standard_normal(graph.spec(tensor).shape) * 3).astype(
            graph.spec(tensor).dtype
        )
        for tensor in graph.inputs
    }


def assert_same_as_onnxruntime(
    model: onnx.ModelProto, graph: ExecutionGraph, inputs: Mapping[str, np.ndarray] | None = None
) -> None:
    """Hold the loaded graph to the model itself, on the same inputs."""
    inputs = inputs or random_inputs(graph)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    expected = session.run(list(graph.outputs), dict(inputs))
    for result, other in zip(evaluate_graph(graph, inputs), expected, strict=True):
        assert result.dtype == other.dtype
        np.testing.assert_allclose(result, other, rtol=1e-5, atol=1e-6)
