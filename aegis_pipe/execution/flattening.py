"""Control flow, dissolved while loading, and the rules for all that is.

Each rule handles one operator in a `Frame`: it returns True when the node is dealt with, False
when it has to be treated as any other operator. A rule never looks at data that is not known.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.errors import DynamicShapeError, InvalidModelError
from aegis_pipe.execution import bounded
from aegis_pipe.execution.decompositions import DECOMPOSITIONS
from aegis_pipe.execution.flattened_sequences import SEQUENCE_RULES
from aegis_pipe.execution.flattened_values import (
    add_reshape,
    add_stack,
    add_take,
    bind_names,
    flag_of,
    int_attribute,
    int_attributes,
    new_outputs,
    number_of,
    path_inside,
    stacked_spec,
    tensors_of,
)
from aegis_pipe.execution.graph import NO_TENSOR, OperatorNode, Subgraph
from aegis_pipe.execution.partial_evaluation import (
    Frame,
    Rule,
    Scope,
    Value,
)
from aegis_pipe.execution.shape_inference import UnknownOperandError
from aegis_pipe.execution.source_model import SourceGraph, SourceNode, describe
from aegis_pipe.tensor import TensorId, TensorSpec

_NO_BODY = {"body": Subgraph(b"", ())}

UNROLLED_OPERATORS_MAX = 4096
"""A loop whose unrolled body would be longer stays a loop."""


def _if(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    condition = frame.tensor(scope, node.inputs[0], node)
    known = frame.constant(condition)
    if known is None:
        return _if_unknown(frame, node, scope, path, condition)
    branch = node.body("then_branch" if flag_of(known, node) else "else_branch")
    values = frame.run(branch, scope.new_child(), path_inside(node, path))
    bind_names(scope, node.outputs, values)
    return True


def _if_unknown(
    frame: Frame, node: SourceNode, scope: Scope, path: str, condition: TensorId
) -> bool:
    """Run both branches and select; their results have to be alike.

    Which branch a request takes, nobody knows when memory is planned: both have their place, and
    the time of a request does not hang on its data.
    """
    branches: list[list[TensorId]] = []
    for attribute in ("then_branch", "else_branch"):
        inner = path_inside(node, path) + attribute + "/"
        try:
            values = frame.run(node.body(attribute), scope.new_child(), inner)
        except InvalidModelError as error:
            _hint_at_binding(error, frame.deciding_inputs(condition))
            raise
        branches.append(tensors_of(values, node))
    for pair in zip(*branches, strict=True):
        if frame.specs[pair[0]] != frame.specs[pair[1]]:
            stand_in = frame.operator_node(node, [condition], (), path, _NO_BODY)
            raise frame.unknown_operand(stand_in, 0, condition)
    flag = condition
    if frame.specs[condition].shape:
        flag = add_reshape(frame, condition, (), path_inside(node, path))
    for name, pair in zip(node.outputs, zip(*branches, strict=True), strict=True):
        if name:
            output = frame.new_tensor(path, name)
            scope[name] = frame.emit("Where", [flag, *pair], output)
    return True


def _hint_at_binding(error: InvalidModelError, inputs: Sequence[str]) -> None:
    """Say what to do about a branch that is wrong because these shapes never lead into it."""
    if inputs:
        named = ", ".join(f"`{name}`" for name in inputs)
        error.hint = f"{named} decides whether this branch runs; `bind` it, and only one is loaded"


def _loop(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    names = (*node.inputs, "", "")
    trip_count = frame.tensor(scope, names[0], node)
    condition = frame.tensor(scope, names[1], node)
    initial = [scope[name] for name in node.inputs[2:]]
    _check_body_outputs(node.body("body"), 1 + len(initial), node)
    if _unroll_loop(frame, node, scope, path, trip_count, condition, initial):
        return True
    _keep_loop(frame, node, scope, path, trip_count, condition, initial)
    return True


def _unroll_loop(
    frame: Frame,
    node: SourceNode,
    scope: Scope,
    path: str,
    trip_count: TensorId,
    condition: TensorId,
    states: Sequence[Value],
) -> bool:
    """Write the iterations one after the other, if it is known how many there are."""
    limit = frame.constant(trip_count)
    start = frame.constant(condition) if condition else np.array(True)
    if start is None or (trip_count and limit is None):
        return False
    going, last = flag_of(start, node), None if limit is None else number_of(limit, node)
    body, mark = node.body("body"), frame.mark()
    stacks: list[list[Value]] = [[] for _ in body.outputs[1 + len(states) :]]
    iteration = 0
    while going and (last is None or iteration < last):
        inner, inside = scope.new_child(), f"{path_inside(node, path)}{iteration}/"
        counter = frame.add_constant(np.array(iteration, np.int64), inside, "iteration")
        flag = frame.add_constant(np.array(True), inside, "condition")
        bind_names(inner, [value.name for value in body.inputs], (counter, flag, *states))
        going_on, *results = frame.run(body, inner, inside)
        known = frame.constant(going_on) if isinstance(going_on, str) else None
        if known is None or len(frame.operators) - mark[0] > UNROLLED_OPERATORS_MAX:
            frame.roll_back(mark)
            return False
        going, states = flag_of(known, node), results[: len(states)]
        for stack, value in zip(stacks, results[len(states) :], strict=True):
            stack.append(value)
        iteration += 1
    if iteration == 0 and stacks:
        frame.roll_back(mark)
        return False
    stacked = [add_stack(frame, tensors_of(s, node), 0, path_inside(node, path)) for s in stacks]
    bind_names(scope, node.outputs, (*states, *stacked))
    return True


def _keep_loop(
    frame: Frame,
    node: SourceNode,
    scope: Scope,
    path: str,
    trip_count: TensorId,
    condition: TensorId,
    initial: Sequence[Value],
) -> None:
    """Keep the body; what it carries must not change its spec, and what it stacks be counted."""
    source, states = node.body("body"), tensors_of(initial, node)
    body, inside = frame.body(), path_inside(node, path)
    inputs = [
        body.add_input(TensorSpec(np.dtype(np.int64), ()), inside, "iteration"),
        body.add_input(TensorSpec(np.dtype(np.bool_), ()), inside, "condition"),
        *(body.add_input(frame.specs[tensor], inside, "state") for tensor in states),
    ]
    inner = scope.new_child()
    # Whenever the body runs, the condition it is given holds.
    holds = body.add_constant(np.array(True), inside, "holds")
    bind_names(inner, [v.name for v in source.inputs], (inputs[0], holds, *inputs[2:]))
    operands = [trip_count, condition, *states]
    try:
        results = tensors_of(body.run(source, inner, inside), node)
    except UnknownOperandError:
        # With its control operands known, the loop would have been unrolled.
        _raise_for_control(frame, frame.operator_node(node, operands, (), path, _NO_BODY))
        raise
    subgraph = body.as_subgraph("body", inputs, results)
    outputs = new_outputs(frame, node, path)
    operator = frame.operator_node(node, operands, outputs, path, {"body": subgraph})
    specs = [body.specs[tensor] for tensor in results[1 : 1 + len(states)]]
    for state, spec in zip(states, specs, strict=True):
        if frame.specs[state] != spec:
            raise DynamicShapeError(
                f"carried tensor `{state}` changes from {frame.specs[state]} to {spec}",
                context=describe(node),
                hint="export the model with a fixed number of iterations",
            )
    stacked = results[1 + len(states) :]
    if stacked:
        count = _iterations(frame, body, operator, results[0])
        specs += [stacked_spec(body.specs[tensor], count, 0) for tensor in stacked]
    bounded.keep_with_body(frame, operator, specs)
    bind_names(scope, node.outputs, outputs)


def _iterations(frame: Frame, body: Frame, operator: OperatorNode, going_on: TensorId) -> int:
    """Return how often a kept loop runs, if its trip count alone decides."""
    _raise_for_control(frame, operator)
    padded = (*operator.inputs, NO_TENSOR, NO_TENSOR)
    trip_count, condition = padded[:2]
    limit, going = frame.constant(trip_count), body.constant(going_on)
    start = frame.constant(condition) if condition else np.array(True)
    if start is not None and not flag_of(start, operator):
        return 0
    always = going is not None and flag_of(going, operator)
    count = None if limit is None else max(0, number_of(limit, operator))
    if count is not None and (always or count <= 1):
        return count
    raise DynamicShapeError(
        "the number of iterations depends on data, and outputs are as long as that",
        context=describe(operator),
        hint="export the model with a fixed number of iterations",
    )


def _check_body_outputs(body: SourceGraph, least: int, node: SourceNode) -> None:
    if len(body.outputs) < least:
        raise InvalidModelError(
            f"its body has {len(body.outputs)} outputs, it needs at least {least}",
            context=describe(node),
        )


def _raise_for_control(frame: Frame, operator: OperatorNode) -> None:
    """Raise UnknownOperandError if the trip count or the condition is not known."""
    for position, operand in enumerate(operator.inputs[:2]):
        if operand and frame.constant(operand) is None:
            raise frame.unknown_operand(operator, position, operand)


def _scan(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    if frame.session.opsets.get("", 0) < 9:
        return False
    operands = [frame.tensor(scope, name, node) for name in node.inputs]
    scan = _ScanShape(frame, node, operands)
    if not _unroll_scan(frame, node, scope, path, scan):
        _keep_scan(frame, node, scope, path, scan)
    return True


class _ScanShape:
    """A Scan's operands and attributes, with axes resolved and lists filled in."""

    def __init__(self, frame: Frame, node: SourceNode, operands: Sequence[TensorId]) -> None:
        self.body = node.body("body")
        scanned_count = int_attribute(node, "num_scan_inputs", 1)
        self.state_count = len(operands) - scanned_count
        if scanned_count < 1 or self.state_count < 0:
            raise InvalidModelError(
                f"scans {scanned_count} of {len(operands)} inputs", context=describe(node)
            )
        _check_body_outputs(self.body, self.state_count, node)
        self.states = list(operands[: self.state_count])
        self.scanned = list(operands[self.state_count :])
        stacked_count = len(self.body.outputs) - self.state_count
        self.stacked_count = stacked_count
        ranks = [len(frame.specs[tensor].shape) for tensor in self.scanned]
        axes = int_attributes(node, "scan_input_axes", scanned_count)
        self.axes = [axis % rank for axis, rank in zip(axes, ranks, strict=True)]
        self.backward = int_attributes(node, "scan_input_directions", scanned_count)
        self.stacked_axes = int_attributes(node, "scan_output_axes", stacked_count)
        self.prepend = int_attributes(node, "scan_output_directions", stacked_count)
        sizes = {
            frame.specs[tensor].shape[axis]
            for tensor, axis in zip(self.scanned, self.axes, strict=True)
        }
        if len(sizes) != 1:
            raise InvalidModelError(
                f"scanned inputs differ in length: {sorted(sizes)}", context=describe(node)
            )
        self.length = sizes.pop()


def _unroll_scan(frame: Frame, node: SourceNode, scope: Scope, path: str, scan: _ScanShape) -> bool:
    body, mark, inside = scan.body, frame.mark(), path_inside(node, path)
    states: list[Value] = list(scan.states)
    stacks: list[list[Value]] = [[] for _ in range(scan.stacked_count)]
    for step in range(scan.length):
        slices = []
        for tensor, axis, backward in zip(scan.scanned, scan.axes, scan.backward, strict=True):
            at = scan.length - 1 - step if backward else step
            slices.append(add_take(frame, tensor, at, axis, f"{inside}{step}/"))
        inner = scope.new_child()
        bind_names(inner, [value.name for value in body.inputs], (*states, *slices))
        results = frame.run(body, inner, f"{inside}{step}/")
        if len(frame.operators) - mark[0] > UNROLLED_OPERATORS_MAX:
            frame.roll_back(mark)
            return False
        states = results[: scan.state_count]
        for stack, value in zip(stacks, results[scan.state_count :], strict=True):
            stack.append(value)
    if scan.length == 0:
        return False
    stacked = []
    for stack, axis, prepend in zip(stacks, scan.stacked_axes, scan.prepend, strict=True):
        parts = tensors_of(stack[:: -1 if prepend else 1], node)
        stacked.append(add_stack(frame, parts, axis, inside))
    bind_names(scope, node.outputs, (*states, *stacked))
    return True


def _keep_scan(frame: Frame, node: SourceNode, scope: Scope, path: str, scan: _ScanShape) -> None:
    body, inside = frame.body(), path_inside(node, path)
    specs_in = [frame.specs[tensor] for tensor in scan.states]
    for tensor, axis in zip(scan.scanned, scan.axes, strict=True):
        spec = frame.specs[tensor]
        specs_in.append(TensorSpec(spec.dtype, spec.shape[:axis] + spec.shape[axis + 1 :]))
    names = [value.name for value in scan.body.inputs]
    inputs = [
        body.add_input(spec, inside, name) for spec, name in zip(specs_in, names, strict=True)
    ]
    inner = scope.new_child()
    bind_names(inner, names, inputs)
    results = tensors_of(body.run(scan.body, inner, inside), node)
    subgraph = body.as_subgraph("body", inputs, results)
    outputs = new_outputs(frame, node, path)
    operator = frame.operator_node(
        node, [*scan.states, *scan.scanned], outputs, path, {"body": subgraph}
    )
    specs = [body.specs[tensor] for tensor in results[: scan.state_count]]
    stacked = results[scan.state_count :]
    specs += [
        stacked_spec(body.specs[tensor], scan.length, axis)
        for tensor, axis in zip(stacked, scan.stacked_axes, strict=True)
    ]
    bounded.keep_with_body(frame, operator, specs)
    bind_names(scope, node.outputs, outputs)


def _constant(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    """Any of the attributes in which `Constant` keeps its value."""
    if len(node.attributes) != 1:
        raise InvalidModelError(
            f"takes one attribute, has {len(node.attributes)}", context=describe(node)
        )
    ((name, value),) = node.attributes.items()
    if not isinstance(value, np.ndarray):
        dtypes: dict[str, type] = {"value_float": np.float32, "value_floats": np.float32}
        dtypes |= {"value_int": np.int64, "value_ints": np.int64}
        value = np.array(value, dtypes.get(name, object))
    scope[node.outputs[0]] = frame.add_constant(value, path, node.outputs[0])
    return True


def _identity(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    """Only sequences and optionals: of a tensor, it is an operator like others."""
    value = scope[node.inputs[0]]
    if isinstance(value, str):
        return False
    scope[node.outputs[0]] = value
    return True


def _counted(frame: Frame, node: SourceNode, scope: Scope, path: str) -> bool:
    """Plan a result for the most it can be, unless its operands are known and so is its size."""
    operands = [frame.tensor(scope, name, node) for name in node.inputs]
    decides = operands[1:2] if node.operator in ("TopK", "Compress") else operands
    if all(frame.constant(tensor) is not None for tensor in filter(None, decides)):
        return False
    if node.operator == "TopK" and len(node.inputs) < 2:
        return False
    outputs = new_outputs(frame, node, path)
    operator = frame.operator_node(node, operands, outputs, path)
    if node.operator == "TopK":
        bounded.add_top_k(frame, operator)
    else:
        bounded.add_counted(frame, operator, outputs, path)
    scope.update((n, t) for n, t in zip(node.outputs, outputs, strict=True) if n)
    return True


RULES: dict[str, Rule] = {
    **dict.fromkeys((*bounded.COUNTED, "TopK"), _counted),
    "Constant": _constant,
    "Identity": _identity,
    "If": _if,
    "Loop": _loop,
    "Scan": _scan,
    **SEQUENCE_RULES,
    **DECOMPOSITIONS,
}
