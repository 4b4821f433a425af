"""Turns a model file into an `ExecutionGraph`.

ONNX (opset 6 to the newest the `onnx` package knows) or this runtime's own saved graph
(`.aegis`). Everything is settled here, once: shapes, constants, control flow.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aegis_pipe.errors import (
    DynamicShapeError,
    InvalidModelError,
    UnsupportedOperatorError,
)
from aegis_pipe.execution.bounded import apply_bounded
from aegis_pipe.execution.collector import collector_paused
from aegis_pipe.execution.flattening import RULES
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.input_binding import LoadOptions, fixed_inputs
from aegis_pipe.execution.known_operators import KNOWN_OPERATORS
from aegis_pipe.execution.model_file import REEXPORT, mapped_file
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.operators.table import OperatorTable
from aegis_pipe.execution.partial_evaluation import evaluate_model
from aegis_pipe.execution.reference_operators import arity_of, changed_until
from aegis_pipe.execution.saved_ir import is_saved_graph, load_graph
from aegis_pipe.execution.source_model import (
    SourceGraph,
    SourceModel,
    SourceNode,
    bodies_of,
    describe,
)
from aegis_pipe.tensor import TensorId

if TYPE_CHECKING:
    from aegis_pipe.execution.onnx_reader import ModelProto

__all__ = ["LoadOptions", "ModelFiles", "ModelLoader"]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the files of a model looked like at one moment: of equal ones, one load will do.

    Device, inode, size and times of change, as version control goes by; contents are not read.
    """

    states: tuple[tuple[str, int, int, int, int, int], ...]
    """Of the model file and those with its external data; none if they can not be read."""

    @classmethod
    def at(cls, path: Path) -> ModelFiles:
        """Look at a model's files; raises nothing, since loading them will."""
        try:
            first = _file_state(path)
            data = mapped_file(path)
            others: frozenset[Path] = frozenset()
            if not is_saved_graph(data):
                from aegis_pipe.execution.onnx_reader import external_files

                others = external_files(data, path.parent)
            return cls((first, *(_file_state(other) for other in sorted(others))))
        except (OSError, InvalidModelError):
            return cls(())


def _file_state(path: Path) -> tuple[str, int, int, int, int, int]:
    found = path.stat()
    times = found.st_mtime_ns, found.st_ctime_ns
    return str(path.resolve()), found.st_dev, found.st_ino, found.st_size, *times


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
        with collector_paused():
            return self._load(path, options)

    def _load(self, path: Path, options: LoadOptions) -> ExecutionGraph:
        try:
            data = mapped_file(path)
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

    def load_proto(self, model: ModelProto, options: LoadOptions | None = None) -> ExecutionGraph:
        """Load a model that is in memory; the same as `load` otherwise."""
        from aegis_pipe.execution.onnx_reader import source_model_of

        options = options or LoadOptions()
        return self._evaluate(source_model_of(model), options, options.name or model.graph.name)

    def _evaluate(self, model: SourceModel, options: LoadOptions, name: str) -> ExecutionGraph:
        _check_operators(model.graph, model.opsets, self._table)
        inputs, bound = fixed_inputs(model.graph, options)
        return evaluate_model(model, self._table, RULES, apply_bounded, inputs, bound, name)


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


def _check_operators(graph: SourceGraph, opsets: Mapping[str, int], table: OperatorTable) -> None:
    """Raise UnsupportedOperatorError for the first operator that nobody defines."""
    for node in graph.nodes:
        for body in bodies_of(node):
            _check_operators(body, opsets, table)
        operator = node.qualified_operator
        _check_age(node, opsets)
        arity = arity_of(node.operator, opsets.get(node.domain, 1), node.domain)
        if arity is not None:
            _check_arity(node, *arity)
            continue
        if table.get(operator) is not None or operator in RULES:
            continue
        near = difflib.get_close_matches(operator, {*KNOWN_OPERATORS, *table.names()}, 1, 0.0)
        raise UnsupportedOperatorError(
            f"opset {opsets.get(node.domain, 'none')} of `{node.domain or 'ai.onnx'}` has no "
            f"operator `{operator}` that this runtime knows",
            context=describe(node),
            hint=f"the nearest is `{near[0]}`; export the model with standard operators",
        )


_OLDEST_FORMS_OPSET = 6


def _check_age(node: SourceNode, opsets: Mapping[str, int]) -> None:
    opset = opsets[""]
    is_old = not node.domain and opset < _OLDEST_FORMS_OPSET
    if is_old and changed_until(node.operator, opset, _OLDEST_FORMS_OPSET):
        raise InvalidModelError(
            f"this operator of opset {opset} is older than the oldest supported form "
            f"(opset {_OLDEST_FORMS_OPSET})",
            context=describe(node),
            hint="convert the model with `onnx.version_converter`",
        )


def _check_arity(node: SourceNode, inputs: range, outputs: range) -> None:
    given = len(node.inputs)
    # Left out at the end, an operand may be written as an empty name as well.
    least = len([name for name in node.inputs if name])
    if given >= inputs.stop or least < inputs.start or len(node.outputs) not in outputs:
        raise InvalidModelError(
            f"has {given} inputs and {len(node.outputs)} outputs; the operator takes "
            f"{_counted(inputs)} and gives {_counted(outputs)}",
            context=describe(node),
            hint=REEXPORT,
        )


def _counted(counts: range) -> str:
    if len(counts) == 1:
        return str(counts.start)
    return (
        f"{counts.start} to {counts.stop - 1}" if len(counts) < 100 else f"{counts.start} or more"
    )
