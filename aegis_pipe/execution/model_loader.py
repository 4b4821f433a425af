"""Turns a model file into an `ExecutionGraph`.

ONNX (opset 7 to the newest the `onnx` package knows) or this runtime's own saved graph
(`.aegis`). Everything is settled here, once: shapes, constants, control flow.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from aegis_pipe.errors import (
    DynamicShapeError,
    InvalidModelError,
    UnsupportedOperatorError,
)
from aegis_pipe.execution.flattening import RULES
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.input_binding import LoadOptions, fixed_inputs
from aegis_pipe.execution.known_operators import KNOWN_OPERATORS
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.operators.table import OperatorTable
from aegis_pipe.execution.partial_evaluation import evaluate_model
from aegis_pipe.execution.reference_operators import is_defined
from aegis_pipe.execution.saved_ir import is_saved_graph, load_graph
from aegis_pipe.execution.source_model import (
    REEXPORT,
    SourceGraph,
    SourceModel,
    bodies_of,
    describe,
)
from aegis_pipe.tensor import TensorId

if TYPE_CHECKING:
    import onnx  # noqa: TID251 - a type only

__all__ = ["LoadOptions", "ModelLoader"]


class ModelLoader:
    """Turns model files into execution graphs; holds no state but the operator table."""

    def __init__(self, table: OperatorTable = OPERATORS) -> None:
        self._table = table

    def load(self, path: Path, options: LoadOptions | None = None) -> ExecutionGraph:
        """Load a model file with its external data.

        Raises InvalidModelError, UnsupportedOperatorError or DynamicShapeError; each names the
        file and what to do.
        """
        options = options or LoadOptions()
        try:
            data = _read(path)
            if is_saved_graph(data):
                return _load_saved(path, options)
            # Only ONNX files need `onnx`; saved graphs load without the package.
            from aegis_pipe.execution.onnx_reader import read_onnx

            model = read_onnx(data, path.parent)
            return self._evaluate(model, options, options.name or path.stem)
        except (InvalidModelError, UnsupportedOperatorError, DynamicShapeError) as error:
            if str(path) not in error.context:
                error.context = ": ".join(filter(None, (str(path), error.context)))
            raise

    def load_proto(
        self, model: onnx.ModelProto, options: LoadOptions | None = None
    ) -> ExecutionGraph:
        """Load a model that is in memory; the same as `load` otherwise."""
        from aegis_pipe.execution.onnx_reader import source_model_of

        options = options or LoadOptions()
        return self._evaluate(source_model_of(model), options, options.name or model.graph.name)

    def _evaluate(self, model: SourceModel, options: LoadOptions, name: str) -> ExecutionGraph:
        _check_operators(model.graph, model.opsets, self._table)
        inputs, bound = fixed_inputs(model.graph, options)
        return evaluate_model(model, self._table, RULES, inputs, bound, name)


def _load_saved(path: Path, options: LoadOptions) -> ExecutionGraph:
    graph = load_graph(path)
    if options.bind:
        raise InvalidModelError(
            "inputs of a saved graph can not be bound",
            hint="bind them when loading the ONNX file, and save that",
        )
    for name, shape in options.shapes.items():
        if name not in graph.inputs or graph.spec(TensorId(name)).shape != tuple(shape):
            raise InvalidModelError(
                f"`shapes` gives `{name}` {list(shape)}, which is not what was saved",
                hint="save the graph again with these shapes",
            )
    return graph


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise InvalidModelError("is a directory", context=str(path), hint="name the file in it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidModelError(
            f"can not be read: {error.strerror}", context=str(path), hint="check the path"
        ) from error
    if not data:
        raise InvalidModelError("the file is empty", context=str(path), hint=REEXPORT)
    return data


def _check_operators(graph: SourceGraph, opsets: Mapping[str, int], table: OperatorTable) -> None:
    """Raise UnsupportedOperatorError for the first operator that nobody defines."""
    for node in graph.nodes:
        for body in bodies_of(node):
            _check_operators(body, opsets, table)
        operator = node.qualified_operator
        if table.get(operator) is not None or operator in RULES:
            continue
        if is_defined(node.operator, opsets.get(node.domain, 1), node.domain):
            continue
        near = difflib.get_close_matches(operator, {*KNOWN_OPERATORS, *table.names()}, 1, 0.0)
        raise UnsupportedOperatorError(
            f"opset {opsets.get(node.domain, 'none')} of `{node.domain or 'ai.onnx'}` has no "
            f"operator `{operator}` that this runtime knows",
            context=describe(node),
            hint=f"the nearest is `{near[0]}`; export the model with standard operators",
        )
