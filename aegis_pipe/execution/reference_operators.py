"""Operators as the `onnx` package defines them: results and shapes of single nodes.

The reference kernel of every device, constant folding and the inference of operators without an
entry in the operator table come from here. `onnx` is imported at the first call, so a saved graph
loads and runs without it as long as every operator has a kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from aegis_pipe.errors import (
    InvalidModelError,
    KernelError,
    PermanentError,
    UnsupportedOperatorError,
)
from aegis_pipe.execution.graph import GraphAttribute, OperatorNode, Subgraph, captures_of
from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE, ELEMENT_TYPE_OF_DTYPE, STRING
from aegis_pipe.execution.source_model import Dimension, describe
from aegis_pipe.kernel import ReferenceFunction
from aegis_pipe.tensor import TensorId, TensorSpec

InferredType = tuple[np.dtype | None, tuple[Dimension, ...] | None]
"""Dtype and dimensions as far as ONNX's inference gets."""

_LARGEST_SHAPE_DATA = 4096
"""Elements of an operand whose value is shown to ONNX's inference; shapes are shorter."""

_CAPTURE = "capture.{}"
_OPSET_PROPERTY = "opset."


def reference_function(
    node: OperatorNode, data_positions: tuple[int, ...], constants: Mapping[int, np.ndarray]
) -> ReferenceFunction:
    """Return a host evaluation of one node; matches `lowering.ReferenceFactory`.

    The function takes the operands at `data_positions` in that order (captures of bodies count
    after the inputs; -1 is ignored) and gets all others from `constants`. It returns one
    C-contiguous array per output of the node, of the dtype ONNX defines. It keeps no state.

    The function raises PermanentError if the `onnx` package is missing,
    UnsupportedOperatorError if it defines no such operator, and KernelError if the operator
    refuses its operands.
    """
    operand_count = len(node.inputs) + len(captures_of(node))
    evaluators: dict[tuple[str, ...], Callable[[Mapping[str, np.ndarray]], list[Any]]] = {}

    def evaluate(arrays: Sequence[np.ndarray | None]) -> Sequence[np.ndarray]:
        operands: list[np.ndarray | None] = [constants.get(i) for i in range(operand_count)]
        for position, array in zip(data_positions, arrays, strict=True):
            if position >= 0:
                operands[position] = array
        dtypes = tuple("" if array is None else str(array.dtype) for array in operands)
        if dtypes not in evaluators:
            evaluators[dtypes] = _evaluator(node, operands)
        feeds = {
            _operand_name(node, i): array for i, array in enumerate(operands) if array is not None
        }
        return evaluators[dtypes](feeds)

    return evaluate


@functools.cache
def arity_of(operator: str, opset: int, domain: str) -> tuple[range, range] | None:
    """Return how many inputs and outputs an operator may have; None if ONNX does not define it."""
    schema = _find_schema(operator, opset, domain)
    if schema is None:
        return None
    return (
        range(schema.min_input, schema.max_input + 1),
        range(schema.min_output, schema.max_output + 1),
    )


def changed_until(operator: str, opset: int, newer_opset: int) -> bool:
    """Return whether an ai.onnx operator means something else in a newer opset."""
    schemas = [_find_schema(operator, version, "") for version in (opset, newer_opset)]
    versions = {schema.since_version if schema else None for schema in schemas}
    return len(versions) > 1


def has_reference(node: OperatorNode) -> bool:
    """Return whether ONNX defines what this operator computes."""
    return _schema(node) is not None


@functools.cache
def optional_outputs(operator: str, opset: int, domain: str) -> tuple[int, ...]:
    """Return the positions of outputs that a node may leave out."""
    schema = _find_schema(operator, opset, domain)
    if schema is None:
        return ()
    optional = _onnx().defs.OpSchema.FormalParameterOption.Optional
    return tuple(i for i, output in enumerate(schema.outputs) if output.option == optional)


def infer_with_onnx(
    node: OperatorNode,
    inputs: Sequence[TensorSpec | None],
    constants: Mapping[int, np.ndarray],
) -> tuple[InferredType, ...]:
    """Return what ONNX's own inference says of each output.

    Raises UnsupportedOperatorError for an operator ONNX does not define, InvalidModelError if
    the operands do not fit it.
    """
    onnx = _onnx()
    schema = _schema(node)
    if schema is None:
        raise UnsupportedOperatorError(
            f"opset {node.opset} defines no operator `{node.qualified_operator}`",
            context=describe(node),
        )
    types = {_operand_name(node, i): _type_proto(spec) for i, spec in enumerate(inputs) if spec}
    data = {
        _operand_name(node, i): onnx.numpy_helper.from_array(array)
        for i, array in constants.items()
        if array.size <= _LARGEST_SHAPE_DATA
    }
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            schema, node_proto(node), types, data, opset_imports=_opset_imports(node)
        )
    except (
        onnx.shape_inference.InferenceError,
        onnx.checker.ValidationError,
        RuntimeError,
        ValueError,
    ) as error:
        raise InvalidModelError(
            f"the operands do not fit: {_first_line(error)}", context=describe(node)
        ) from error
    return tuple(_plain_type(inferred.get(_result_name(k))) for k in range(len(node.outputs)))


def serialise_body(
    name: str,
    inputs: Mapping[TensorId, TensorSpec],
    operators: Sequence[OperatorNode],
    constants: Mapping[TensorId, np.ndarray],
    outputs: Sequence[TensorId],
    captures: Mapping[TensorId, int],
) -> bytes:
    """Write a body of control flow as an ONNX GraphProto.

    Captured tensors are renamed `capture.<position>`, so that passes may rename them outside;
    positions count through all bodies of the node. The opset of each domain is kept in
    `metadata_props` (`opset.<domain>`).
    """
    onnx = _onnx()
    renamed = {tensor: _CAPTURE.format(position) for tensor, position in captures.items()}

    def name_of(tensor: TensorId) -> str:
        return renamed.get(tensor, tensor)

    nodes = [_body_node(node, name_of) for node in operators]
    graph = onnx.helper.make_graph(
        nodes,
        name,
        [onnx.helper.make_value_info(tensor, _type_proto(spec)) for tensor, spec in inputs.items()],
        [onnx.helper.make_empty_tensor_value_info(name_of(tensor)) for tensor in outputs],
        [onnx.numpy_helper.from_array(array, tensor) for tensor, array in constants.items()],
    )
    opsets = {node.domain: node.opset for node in operators}
    for node in operators:
        for value in node.attributes.values():
            if isinstance(value, Subgraph):
                opsets |= _body_opsets(_parse_body(value))
    for domain, version in sorted(opsets.items()):
        graph.metadata_props.add(key=_OPSET_PROPERTY + domain, value=str(version))
    return bytes(graph.SerializeToString(deterministic=True))


def node_proto(node: OperatorNode) -> Any:
    """Return the node as an ONNX NodeProto with operands named by position."""
    onnx = _onnx()
    schema = _schema(node)
    types = (
        {name: attribute.type for name, attribute in schema.attributes.items()} if schema else {}
    )
    proto = onnx.NodeProto(
        op_type=node.operator,
        domain=node.domain,
        name=node.name,
        input=[_operand_name(node, i) if t else "" for i, t in enumerate(node.inputs)],
        output=[_result_name(k) for k in range(len(node.outputs))],
    )
    for name, value in node.attributes.items():
        proto.attribute.append(_attribute_proto(name, value, types.get(name)))
    return proto


def _evaluator(
    node: OperatorNode, operands: Sequence[np.ndarray | None]
) -> Callable[[Mapping[str, np.ndarray]], list[Any]]:
    """Build the evaluation of a one-node model for operands of these dtypes."""
    onnx = _onnx()
    from onnx.reference import ReferenceEvaluator

    from aegis_pipe.execution.reference_corrections import CORRECTIONS

    if _schema(node) is None:
        raise UnsupportedOperatorError(
            f"the `onnx` package does not define `{node.qualified_operator}`, "
            "so it has no reference kernel",
            context=describe(node),
            hint="use a device with a kernel for this operator, or export the model without it",
        )
    specs = [None if a is None else TensorSpec(a.dtype, a.shape) for a in operands]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node_proto(node)],
            "node",
            [
                onnx.helper.make_value_info(_operand_name(node, i), _type_proto(spec))
                for i, spec in enumerate(specs)
                if spec
            ],
            [
                onnx.helper.make_empty_tensor_value_info(_result_name(k))
                for k in range(len(node.outputs))
            ],
        ),
        opset_imports=_opset_imports(node),
    )
    dtypes = [dtype for dtype, _ in _inferred_or_unknown(node, specs)]
    with _translated_errors(node):
        evaluator = ReferenceEvaluator(model, new_ops=list(CORRECTIONS))

    def evaluate(feeds: Mapping[str, np.ndarray]) -> list[Any]:
        with _translated_errors(node), np.errstate(all="ignore"):
            results = evaluator.run(None, dict(feeds))
        return [_as_defined(r, dtype) for r, dtype in zip(results, dtypes, strict=True)]

    return evaluate


def _inferred_or_unknown(
    node: OperatorNode, specs: Sequence[TensorSpec | None]
) -> Sequence[InferredType]:
    # Bodies are inferred when the graph is built; here only the types of plain operators matter.
    if any(isinstance(value, Subgraph) for value in node.attributes.values()):
        return [(None, None)] * len(node.outputs)
    return infer_with_onnx(node, specs, {})


def _as_defined(result: Any, dtype: np.dtype | None) -> Any:
    """Give a result the dtype ONNX defines; some reference operators compute in a wider one."""
    array = np.asarray(result)
    if dtype is not None and array.dtype != dtype and dtype != STRING:
        with np.errstate(all="ignore"):
            array = array.astype(dtype)
    return np.ascontiguousarray(array).reshape(array.shape)


class _translated_errors:  # noqa: N801 - a context manager reads as a phrase
    """Turn whatever a reference operator raises into an AegisError that names the node."""

    def __init__(self, node: OperatorNode) -> None:
        self._node = node

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, PermanentError):
            return
        if isinstance(error, NotImplementedError):
            raise UnsupportedOperatorError(
                f"no reference kernel: {_first_line(error)}", context=describe(self._node)
            ) from error
        raise KernelError(
            f"the reference kernel failed: {_first_line(error)}", context=describe(self._node)
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _onnx() -> ModuleType:
    try:
        import onnx
        import onnx.shape_inference
    except ImportError as error:
        raise PermanentError(
            "reference operators need the `onnx` package, which is not installed",
            hint="install `onnx`, or use a device that has kernels for every operator",
        ) from error
    return onnx


def _schema(node: OperatorNode) -> Any:
    return _find_schema(node.operator, node.opset, node.domain)


@functools.cache
def _find_schema(operator: str, opset: int, domain: str) -> Any:
    onnx = _onnx()
    try:
        return onnx.defs.get_schema(operator, opset, domain)
    except onnx.defs.SchemaError:
        return None


def _operand_name(node: OperatorNode, position: int) -> str:
    captured = position - len(node.inputs)
    return f"in.{position}" if captured < 0 else _CAPTURE.format(captured)


def _result_name(position: int) -> str:
    return f"out.{position}"


def _type_proto(spec: TensorSpec) -> Any:
    return _onnx().helper.make_tensor_type_proto(ELEMENT_TYPE_OF_DTYPE[spec.dtype], spec.shape)


def _plain_type(proto: Any) -> InferredType:
    if proto is None or not proto.HasField("tensor_type"):
        return None, None
    tensor = proto.tensor_type
    dtype = DTYPE_OF_ELEMENT_TYPE.get(tensor.elem_type)
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, tuple(
        d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim
    )


def _opset_imports(node: OperatorNode) -> list[Any]:
    onnx = _onnx()
    opsets = {"": onnx.defs.onnx_opset_version(), node.domain: node.opset}
    for value in node.attributes.values():
        if isinstance(value, Subgraph):
            opsets |= _body_opsets(_parse_body(value))
    return [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]


def _attribute_proto(name: str, value: GraphAttribute, kind: Any) -> Any:
    onnx = _onnx()
    if isinstance(value, Subgraph):
        return onnx.helper.make_attribute(name, _parse_body(value))
    if isinstance(value, np.ndarray):
        return onnx.helper.make_attribute(name, onnx.numpy_helper.from_array(value))
    if isinstance(value, tuple) and not value:
        lists = (onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS)
        known = kind.value if kind is not None else None
        listed = known if known in lists else onnx.AttributeProto.INTS
        return onnx.helper.make_attribute(name, [], attr_type=listed)
    return onnx.helper.make_attribute(name, value)


def _parse_body(subgraph: Subgraph) -> Any:
    return _onnx().GraphProto.FromString(subgraph.serialised)


def _body_opsets(graph: Any) -> dict[str, int]:
    return {
        item.key.removeprefix(_OPSET_PROPERTY): int(item.value)
        for item in graph.metadata_props
        if item.key.startswith(_OPSET_PROPERTY)
    }


def _body_node(node: OperatorNode, name_of: Callable[[TensorId], str]) -> Any:
    """Return a node of a body, its tensors (and those its own bodies capture) by name."""
    proto = node_proto(node)
    proto.input[:] = [name_of(tensor) for tensor in node.inputs]
    proto.output[:] = list(node.outputs)
    captured = {_CAPTURE.format(i): name_of(t) for i, t in enumerate(captures_of(node))}
    for attribute in proto.attribute:
        if attribute.HasField("g"):
            _rename_reads(attribute.g, captured)
    return proto


def _rename_reads(graph: Any, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_reads(attribute.g, names)
    for output in graph.output:
        output.name = names.get(output.name, output.name)
