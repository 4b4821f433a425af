"""Sequences and optionals, dissolved while loading: rules as those of `flattening`."""

from __future__ import annotations

import numpy as np

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.flattened_values import (
    add_reshape,
    add_slice,
    add_stack,
    add_take,
    bind_names,
    elements_of,
    int_attribute,
    known_value,
    number_of,
    path_inside,
    position_of,
    tensors_of,
)
from aegis_pipe.execution.partial_evaluation import (
    EmptyOptional,
    Frame,
    Rule,
    Scope,
    TensorSequence,
)
from aegis_pipe.execution.source_model import SourceNode, describe
from aegis_pipe.tensor import TensorId


def _sequence_construct(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    elements = tuple(frame.tensor(scope, name, node) for name in node.inputs)
    scope[node.outputs[0]] = TensorSequence(elements)
    return True


def _sequence_empty(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    scope[node.outputs[0]] = TensorSequence(())
    return True


def _sequence_at(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    elements = elements_of(scope, node)
    position = position_of(frame, node, scope, 1, len(elements) - 1)
    scope[node.outputs[0]] = elements[position]
    return True


def _sequence_insert(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    elements = elements_of(scope, node)
    inserted = frame.tensor(scope, node.inputs[1], node)
    at = len(elements)
    if len(node.inputs) > 2 and node.inputs[2]:
        at = position_of(frame, node, scope, 2, len(elements))
    scope[node.outputs[0]] = TensorSequence((*elements[:at], inserted, *elements[at:]))
    return True


def _sequence_erase(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    elements = elements_of(scope, node)
    at = len(elements) - 1
    if len(node.inputs) > 1 and node.inputs[1]:
        at = position_of(frame, node, scope, 1, len(elements) - 1)
    scope[node.outputs[0]] = TensorSequence((*elements[:at], *elements[at + 1 :]))
    return True


def _sequence_length(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    length = np.array(len(elements_of(scope, node)), np.int64)
    scope[node.outputs[0]] = frame.add_constant(length, path, node.outputs[0])
    return True


def _concat_from_sequence(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    elements, axis = elements_of(scope, node), int_attribute(node, "axis", 0)
    if not elements:
        raise InvalidModelError("the sequence is empty", context=describe(node))
    if int_attribute(node, "new_axis", 0):
        result = add_stack(frame, elements, axis, path_inside(node, path))
    else:
        output = frame.new_tensor(path, node.outputs[0])
        result = frame.emit("Concat", elements, output, {"axis": axis})
    scope[node.outputs[0]] = result
    return True


def _split_to_sequence(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    tensor = frame.tensor(scope, node.inputs[0], node)
    shape = frame.specs[tensor].shape
    axis = int_attribute(node, "axis", 0) % max(1, len(shape))
    size, inside = shape[axis], path_inside(node, path)
    if len(node.inputs) < 2 or not node.inputs[1]:
        elements = [add_take(frame, tensor, i, axis, inside) for i in range(size)]
        if int_attribute(node, "keepdims", 1):
            kept = (*shape[:axis], 1, *shape[axis + 1 :])
            elements = [add_reshape(frame, element, kept, inside) for element in elements]
    else:
        split = known_value(frame, node, scope, 1)
        step = number_of(split, node) if split.ndim == 0 else 0
        sizes = [min(step, size - s) for s in range(0, size, step)] if step else split.tolist()
        ends = np.cumsum(sizes)
        elements = [
            add_slice(frame, tensor, int(end) - count, int(end), axis, inside)
            for end, count in zip(ends, sizes, strict=True)
        ]
    scope[node.outputs[0]] = TensorSequence(tuple(elements))
    return True


def _sequence_map(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    body = node.body("body")
    values = [scope[name] for name in node.inputs]
    collected: list[list[TensorId]] = [[] for _ in body.outputs]
    for index in range(len(elements_of(scope, node))):
        inner = scope.new_child()
        arguments = [v.elements[index] if isinstance(v, TensorSequence) else v for v in values]
        bind_names(inner, [value.name for value in body.inputs], arguments)
        results = frame.run(body, inner, f"{path_inside(node, path)}{index}/")
        for column, tensor in zip(collected, tensors_of(results, node), strict=True):
            column.append(tensor)
    bind_names(scope, node.outputs, [TensorSequence(tuple(column)) for column in collected])
    return True


def _optional(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    scope[node.outputs[0]] = scope[node.inputs[0]] if node.inputs else EmptyOptional()
    return True


def _optional_has_element(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    given = bool(node.inputs and node.inputs[0])
    there = given and not isinstance(scope[node.inputs[0]], EmptyOptional)
    scope[node.outputs[0]] = frame.add_constant(np.array(there), path, node.outputs[0])
    return True


def _optional_get_element(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    value = scope[node.inputs[0]]
    if isinstance(value, EmptyOptional):
        raise InvalidModelError("the optional is empty", context=describe(node))
    scope[node.outputs[0]] = value
    return True


SEQUENCE_RULES: dict[str, Rule] = {
    "ConcatFromSequence": _concat_from_sequence,
    "Optional": _optional,
    "OptionalGetElement": _optional_get_element,
    "OptionalHasElement": _optional_has_element,
    "SequenceAt": _sequence_at,
    "SequenceConstruct": _sequence_construct,
    "SequenceEmpty": _sequence_empty,
    "SequenceErase": _sequence_erase,
    "SequenceInsert": _sequence_insert,
    "SequenceLength": _sequence_length,
    "SequenceMap": _sequence_map,
    "SplitToSequence": _split_to_sequence,
}
