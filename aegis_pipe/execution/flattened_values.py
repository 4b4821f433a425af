"""What rules of `flattening` ask of a node's values, and the operators they add to a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.errors import DynamicShapeError, InvalidModelError
from aegis_pipe.execution.graph import NO_TENSOR, OperatorNode
from aegis_pipe.execution.partial_evaluation import (
    Frame,
    Scope,
    TensorSequence,
    Value,
)
from aegis_pipe.execution.source_model import SourceNode, describe
from aegis_pipe.tensor import TensorId, TensorSpec


def path_inside(node: SourceNode, path: str) -> str:
    """Return the path of what a node contains."""
    return f"{path}{node.name or node.operator}/"


def bind_names(scope: Scope, names: Sequence[str], values: Sequence[Value]) -> None:
    """Give names values in their order; raises InvalidModelError if there are too few."""
    if len(names) > len(values):
        raise InvalidModelError(f"`{names[len(values)]}` is given no value")
    scope.update((name, value) for name, value in zip(names, values, strict=False) if name)


def new_outputs(frame: Frame, node: SourceNode, path: str) -> list[TensorId]:
    """Add a tensor for each of a node's outputs that is used."""
    return [frame.new_tensor(path, name) if name else NO_TENSOR for name in node.outputs]


def tensors_of(values: Sequence[Value], node: SourceNode) -> list[TensorId]:
    """Return values that have to be tensors; raises DynamicShapeError if one is none."""
    if all(isinstance(value, str) for value in values):
        return [value for value in values if isinstance(value, str)]
    raise DynamicShapeError(
        "carries a sequence or an optional, but how often or whether it runs is not known",
        context=describe(node),
        hint="export the model with tensors only",
    )


def elements_of(scope: Scope, node: SourceNode) -> tuple[TensorId, ...]:
    """Return the elements of a node's sequence; raises InvalidModelError if it is none."""
    value = scope[node.inputs[0]]
    if isinstance(value, TensorSequence):
        return value.elements
    raise InvalidModelError(f"`{node.inputs[0]}` is not a sequence", context=describe(node))


def known_value(frame: Frame, node: SourceNode, scope: Scope, operand: int) -> np.ndarray:
    """Return an operand's value; raises DynamicShapeError if the data decides it."""
    tensor = frame.tensor(scope, node.inputs[operand], node)
    value = frame.constant(tensor)
    if value is None:
        stand_in = frame.operator_node(node, [tensor], (), "")
        raise frame.unknown_operand(stand_in, operand, tensor)
    return value


def position_of(frame: Frame, node: SourceNode, scope: Scope, operand: int, last: int) -> int:
    """Return a known position in a sequence, counted from the front."""
    value = known_value(frame, node, scope, operand)
    position = number_of(value, node)
    length = last + 1 if node.operator != "SequenceInsert" else last
    if not -length <= position <= last:
        raise InvalidModelError(
            f"position {position} is outside of a sequence of {length}", context=describe(node)
        )
    return position if position >= 0 else position + length


def number_of(value: np.ndarray, node: SourceNode | OperatorNode) -> int:
    """Return the only number of an array; raises InvalidModelError if it has others."""
    if value.size != 1:
        raise InvalidModelError(
            f"an operand of shape {list(value.shape)} stands where one number has to",
            context=describe(node),
        )
    return int(value.item())


def flag_of(value: np.ndarray, node: SourceNode | OperatorNode) -> bool:
    """Return the only truth value of an array."""
    return bool(number_of(value, node))


def int_attribute(node: SourceNode, attribute: str, default: int) -> int:
    """Return a whole number; raises InvalidModelError if it is none."""
    value = node.attributes.get(attribute, default)
    if not isinstance(value, int):
        raise InvalidModelError(f"attribute `{attribute}` is not an int", context=describe(node))
    return value


def int_attributes(node: SourceNode, attribute: str, count: int) -> list[int]:
    """Return so many whole numbers, zeros if absent; raises InvalidModelError for others."""
    value = node.attributes.get(attribute, (0,) * count)
    if not isinstance(value, tuple) or len(value) != count:
        raise InvalidModelError(
            f"attribute `{attribute}` does not have {count} values", context=describe(node)
        )
    return [int(item) for item in value]


def add_reshape(frame: Frame, tensor: TensorId, shape: Sequence[int], path: str) -> TensorId:
    """Add an operator that gives a tensor another shape of as many elements."""
    target = frame.add_constant(np.array(shape, np.int64), path, "shape")
    return frame.emit("Reshape", [tensor, target], frame.new_tensor(path, "reshaped"))


def add_take(frame: Frame, tensor: TensorId, at: int, axis: int, path: str) -> TensorId:
    """Return one slice without its axis."""
    index = frame.add_constant(np.array(at, np.int64), path, "index")
    return frame.emit("Gather", [tensor, index], frame.new_tensor(path, "taken"), {"axis": axis})


def add_slice(
    frame: Frame, tensor: TensorId, start: int, end: int, axis: int, path: str
) -> TensorId:
    """Add an operator that keeps [start, end) of an axis."""
    bounds = [
        frame.add_constant(np.array([number], np.int64), path, what)
        for what, number in (("start", start), ("end", end), ("axis", axis))
    ]
    return frame.emit("Slice", [tensor, *bounds], frame.new_tensor(path, "sliced"))


def add_stack(frame: Frame, parts: Sequence[TensorId], axis: int, path: str) -> TensorId:
    """Join tensors along a new axis; every shape is known, so reshape and concat do."""
    raised = [
        add_reshape(frame, part, stacked_spec(frame.specs[part], 1, axis).shape, path)
        for part in parts
    ]
    rank = len(frame.specs[raised[0]].shape)
    stacked = frame.new_tensor(path, "stacked")
    return frame.emit("Concat", raised, stacked, {"axis": axis % rank})


def stacked_spec(spec: TensorSpec, count: int, axis: int) -> TensorSpec:
    """Return the spec of so many tensors stacked along a new axis."""
    axis %= len(spec.shape) + 1
    return TensorSpec(spec.dtype, (*spec.shape[:axis], count, *spec.shape[axis:]))
