"""From a model as its file states it to an `ExecutionGraph`: run everything that can be run now.

One walk in topological order. A node whose operands are all known is evaluated and becomes a
constant; `Shape` of any tensor is known, because every shape is; control flow with known
conditions and trip counts, sequences and optionals disappear into the nodes they stand for.
What is left are operators on tensors, with the spec of every result.
"""

from __future__ import annotations

import itertools
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from aegis_pipe.errors import (
    DynamicShapeError,
    InvalidModelError,
    UnsupportedOperatorError,
)
from aegis_pipe.execution.folding import fold
from aegis_pipe.execution.graph import (
    NO_TENSOR,
    ExecutionGraph,
    GraphAttribute,
    OperatorNode,
    Subgraph,
    reads_of,
)
from aegis_pipe.execution.onnx_types import STRING
from aegis_pipe.execution.operators.table import OperatorContext, OperatorTable
from aegis_pipe.execution.reference_operators import (
    optional_outputs,
    serialise_body,
)
from aegis_pipe.execution.shape_inference import (
    OperandValueNeeded,
    UnknownOperandError,
    infer_outputs,
)
from aegis_pipe.execution.source_model import (
    SourceGraph,
    SourceModel,
    SourceNode,
    SourceValue,
    bodies_of,
    describe,
    nodes_in_order,
    source_reads,
)
from aegis_pipe.tensor import TensorId, TensorSpec

FOLDED_BYTES_MAX = 2 << 30
"""Bytes that folding may add to a model; beyond, operators stay operators."""

RANDOM_OPERATORS = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}
    | {"Bernoulli", "Multinomial"}
)

_KEPT_OPERATORS = frozenset({"DequantizeLinear", "com.microsoft.DequantizeLinear"})
"""Not folded at load: quantised weights stay small, and passes may compute with them as such."""


class TensorSequence(NamedTuple):
    """A sequence whose length is known; exists while loading only."""

    elements: tuple[TensorId, ...]


class EmptyOptional(NamedTuple):
    """An optional without a value; exists while loading only."""


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Layers(ChainMap[_Key, _Value]):
    """Facts of a graph over those of the graphs around it; nearly always there is one layer."""

    def __getitem__(self, key: _Key) -> _Value:
        for layer in self.maps:
            if key in layer:
                return layer[key]
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        for layer in self.maps:  # noqa: SIM110 - `any` costs more, and this is asked of every tensor
            if key in layer:
                return True
        return False

    def known_at(self, keys: Sequence[_Key]) -> dict[int, _Value]:
        """Return what is known of keys, by their positions."""
        found: dict[int, _Value] = {}
        for position, key in enumerate(keys):
            for layer in self.maps:
                if key in layer:
                    found[position] = layer[key]
                    break
        return found

    def known(self, key: _Key) -> _Value | None:
        """Return what is known of a key, None if nothing is."""
        for layer in self.maps:
            if key in layer:
                return layer[key]
        return None


Value = TensorId | TensorSequence | EmptyOptional
Scope = Layers[str, Value]
"""What the names of a source graph stand for, inner graphs first."""

Rule = Callable[["Frame", SourceNode, Scope, str], bool]
"""Deals with one operator its own way; returns False to have it treated as any other."""


OpenRule = Callable[["Frame", OperatorNode], None]
"""Adds an operator with an operand as long as the data says, or refuses it."""


@dataclass(slots=True)
class Names:
    """Gives out names that nothing else has."""

    taken: set[str] = field(default_factory=set)

    def unique(self, wanted: str) -> str:
        """Return `wanted`, or the first of `wanted.1`, `wanted.2`, ... that is free."""
        if wanted and wanted not in self.taken:
            self.taken.add(wanted)
            return wanted
        candidates = itertools.chain(
            (wanted,), (f"{wanted}.{number}" for number in itertools.count(1))
        )
        name = next(name for name in candidates if name and name not in self.taken)
        self.taken.add(name)
        return name


@dataclass(slots=True)
class Session:
    """What all frames of one load share."""

    table: OperatorTable
    rules: Mapping[str, Rule]
    open_rule: OpenRule
    opsets: Mapping[str, int]
    inputs: frozenset[TensorId]
    tensor_names: Names
    node_names: Names
    folded_bytes: int = 0


class Frame:
    """A graph in the making: the model's own, or that of a body that stays one."""

    def __init__(self, session: Session, parent: Frame | None = None) -> None:
        self.session = session
        self.operators: list[OperatorNode] = []
        self.specs: Layers[TensorId, TensorSpec] = Layers()
        self.constants: Layers[TensorId, np.ndarray] = Layers()
        self.writers: Layers[TensorId, OperatorNode] = Layers()
        self.lengths: Layers[TensorId, Mapping[int, TensorId]] = Layers()
        """Open axes of tensors as long as the data says, and where their true lengths are."""
        self.most: Layers[TensorId, int] = Layers()
        """How large each of those lengths can be."""
        self.sizes: Layers[TensorId, tuple[int | TensorId, ...]] = Layers()
        """What shapes are made of that hold such a length."""
        if parent is not None:
            self.lengths = parent.lengths.new_child()
            self.most = parent.most.new_child()
            self.sizes = parent.sizes.new_child()
            self.specs = parent.specs.new_child()
            self.constants = parent.constants.new_child()
            self.writers = parent.writers.new_child()

    def run(self, graph: SourceGraph, scope: Scope, path: str = "") -> list[Value]:
        """Evaluate a graph's nodes into this frame; return what its outputs stand for.

        `scope` gains the graph's names; `path` leads those of inlined graphs.
        """
        nodes = nodes_in_order(graph, set(scope) - {value.name for value in graph.inputs})
        read = set(graph.outputs).union(*map(source_reads, nodes))
        for name, load in graph.initialisers.items():
            if name in read and name not in scope.maps[0]:
                scope[name] = self.add_constant(load(), path, name)
        for node in nodes:
            self._visit(_without_unread(node, read, self.session.opsets), graph, scope, path)
        return [scope[name] for name in graph.outputs]

    def tensor(self, scope: Scope, name: str, reader: SourceNode) -> TensorId:
        """Return the tensor a name stands for. Raises if it is a sequence or an optional."""
        value = scope[name] if name else NO_TENSOR
        if isinstance(value, str):
            return value
        kind = "a sequence" if isinstance(value, TensorSequence) else "an empty optional"
        raise UnsupportedOperatorError(
            f"operand `{name}` is {kind}, which only exists while loading",
            context=describe(reader),
            hint="export the model with tensors only",
        )

    def constant(self, tensor: TensorId) -> np.ndarray | None:
        """Return a tensor's value if it is known."""
        return self.constants.known(tensor)

    def add_constant(self, array: np.ndarray, path: str, name: str) -> TensorId:
        """Add a tensor of known value."""
        tensor = self.new_tensor(path, name)
        self.specs[tensor] = TensorSpec(array.dtype, array.shape)
        self.constants[tensor] = array
        return tensor

    def add_input(self, spec: TensorSpec, path: str, name: str) -> TensorId:
        """Add a tensor whose value comes with the request, or with the iteration of a body."""
        tensor = self.new_tensor(path, name)
        self.specs[tensor] = spec
        return tensor

    def new_tensor(self, path: str, name: str) -> TensorId:
        """Return a name for a tensor; those of the model's own graph (no path) stay as they are."""
        return TensorId(self.session.tensor_names.unique(path + name) if path else name)

    def emit(
        self,
        operator: str,
        inputs: Sequence[TensorId],
        output: TensorId,
        attributes: Mapping[str, GraphAttribute] | None = None,
    ) -> TensorId:
        """Add an ai.onnx operator with one output; return its result."""
        self.apply(
            OperatorNode(
                self.session.node_names.unique(output),
                operator,
                "",
                self.session.opsets[""],
                attributes or {},
                tuple(inputs),
                (output,),
            )
        )
        return output

    def apply(self, node: OperatorNode, declared: Sequence[SourceValue | None] = ()) -> None:
        """Evaluate a node if its operands are known, otherwise infer its results and keep it."""
        open_ones: Sequence[Collection[TensorId]] = (*self.lengths.maps, *self.sizes.maps)
        if any(open_ones) and any(tensor in layer for layer in open_ones for tensor in node.inputs):
            self.session.open_rule(self, node)
        else:
            self.apply_plain(node, declared)

    def apply_plain(self, node: OperatorNode, declared: Sequence[SourceValue | None] = ()) -> None:
        """Do so as if all operands were as long as planned."""
        specs_of, values_of = self.specs, self.constants
        context = OperatorContext(
            node,
            tuple([specs_of[tensor] if tensor else None for tensor in node.inputs]),
            values_of.known_at(node.inputs),
        )
        known = _known_from_specs(context)
        if known is not None:
            self._settle(node, [known])
            return
        all_known = len(context.constants) == len(node.inputs) - node.inputs.count(NO_TENSOR)
        foldable = (
            all_known and is_deterministic(node) and node.qualified_operator not in _KEPT_OPERATORS
        )
        try:
            specs = self._infer(context, declared)
        except (DynamicShapeError, InvalidModelError):
            # The shape depends on data, but all data is known: evaluating tells. So it does for
            # operands that inference is stricter about than every runtime (Range of [1]).
            if not foldable or not self._fold(context):
                raise
            return
        if foldable and self._has_room(specs, context) and self._fold(context):
            return
        if all(spec is None or spec.element_count == 0 for spec in specs):
            self._settle(node, [np.zeros(s.shape, s.dtype) if s else None for s in specs])
            return
        self.keep(node, specs)

    def keep(self, node: OperatorNode, specs: Iterable[TensorSpec | None]) -> None:
        """Add an operator of the resulting graph."""
        for tensor, spec in zip(node.outputs, specs, strict=False):
            if tensor and spec is not None:
                self.specs[tensor] = spec
                self.writers[tensor] = node
        for tensor in (*reads_of(node), *filter(None, node.outputs)):
            if self.specs[tensor].dtype == STRING:
                raise UnsupportedOperatorError(
                    f"tensor `{tensor}` holds strings",
                    context=describe(node),
                    hint="export the model without its text processing, and do that part in "
                    "a transform",
                )
        self.operators.append(node)

    def unknown_operand(
        self, node: OperatorNode, position: int, operand: TensorId
    ) -> UnknownOperandError:
        """Return the error for an operand whose value has to be known, with what decides it."""
        return UnknownOperandError(node, position, operand, self.deciding_inputs(operand))

    def body(self) -> Frame:
        """Return a frame for a body that stays a graph of its own."""
        return Frame(self.session, self)

    def as_subgraph(
        self,
        name: str,
        inputs: Sequence[TensorId],
        outputs: Sequence[TensorId],
    ) -> Subgraph:
        """Write this frame as a body."""
        local = self.specs.maps[0]
        reads = itertools.chain(*map(reads_of, self.operators), outputs)
        captures = tuple([t for t in dict.fromkeys(reads) if t not in local])
        serialised = serialise_body(
            name,
            {tensor: self.specs[tensor] for tensor in inputs},
            self.operators,
            self.constants.maps[0],
            outputs,
            {tensor: position for position, tensor in enumerate(captures)},
        )
        return Subgraph(serialised, captures)

    def mark(self) -> tuple[int, ...]:
        """Return a point to `roll_back` to."""
        sizes = (len(layer) for layer in self._layers())
        return (len(self.operators), self.session.folded_bytes, *sizes)

    def roll_back(self, mark: tuple[int, ...]) -> None:
        """Forget everything added since `mark`."""
        operator_count, self.session.folded_bytes, *sizes = mark
        del self.operators[operator_count:]
        for layer, size in zip(self._layers(), sizes, strict=True):
            for tensor in list(layer)[size:]:
                del layer[tensor]

    def _layers(self) -> tuple[MutableMapping[TensorId, Any], ...]:
        chains = (self.specs, self.constants, self.writers, self.lengths, self.most, self.sizes)
        return tuple([chain.maps[0] for chain in chains])

    def _visit(self, node: SourceNode, graph: SourceGraph, scope: Scope, path: str) -> None:
        rule = self.session.rules.get(node.qualified_operator)
        if rule is not None and rule(self, node, scope, path):
            return
        inputs = [self.tensor(scope, name, node) for name in node.inputs]
        outputs = tuple(
            [self.new_tensor(path, name) if name else NO_TENSOR for name in node.outputs]
        )
        self.apply(
            self.operator_node(node, inputs, outputs, path),
            [graph.declared.get(name) for name in node.outputs],
        )
        for name, output in zip(node.outputs, outputs, strict=True):
            if name:
                scope[name] = output

    def operator_node(
        self,
        node: SourceNode,
        inputs: Sequence[TensorId],
        outputs: Sequence[TensorId],
        path: str,
        bodies: Mapping[str, Subgraph] | None = None,
    ) -> OperatorNode:
        """Return a source node with its operands resolved and a name of its own."""
        if bodies_of(node) and not bodies:
            raise UnsupportedOperatorError(
                "this version of the operator is not supported",
                context=describe(node),
                hint="convert the model to a newer opset",
            )
        opset = self.session.opsets.get(node.domain)
        if opset is None:
            raise InvalidModelError(
                f"the model imports no operator set `{node.domain}`", context=describe(node)
            )
        plain = {k: v for k, v in node.attributes.items() if not isinstance(v, SourceGraph)}
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        return OperatorNode(
            self.session.node_names.unique(path + node.name if node.name else node.operator),
            node.operator,
            node.domain,
            opset,
            {**plain, **bodies} if bodies else plain,
            tuple(inputs),
            tuple(outputs),
        )

    def _infer(
        self, context: OperatorContext, declared: Sequence[SourceValue | None]
    ) -> tuple[TensorSpec | None, ...]:
        node = context.node
        padded = (*declared, *[None] * (len(node.outputs) - len(declared)))
        try:
            return infer_outputs(context, self.session.table, padded)
        except OperandValueNeeded as needed:
            operand = node.inputs[needed.position]
            raise self.unknown_operand(node, needed.position, operand) from None

    def _has_room(self, specs: Sequence[TensorSpec | None], context: OperatorContext) -> bool:
        results = sum(spec.size_bytes for spec in specs if spec)
        growth = results - sum(array.nbytes for array in context.constants.values())
        if self.session.folded_bytes + max(0, growth) > FOLDED_BYTES_MAX:
            return False
        self.session.folded_bytes += max(0, growth)
        return True

    def _fold(self, context: OperatorContext) -> bool:
        """Evaluate a node now; return False if that can not be."""
        operands = [context.constants.get(i) for i in range(len(context.node.inputs))]
        results = fold(context.node, operands)
        if results is None:
            return False
        self._settle(context.node, results)
        return True

    def _settle(self, node: OperatorNode, values: Sequence[np.ndarray | None]) -> None:
        for tensor, value in zip(node.outputs, values, strict=False):
            if tensor and value is not None:
                self.specs[tensor] = TensorSpec(value.dtype, value.shape)
                self.constants[tensor] = value

    def deciding_inputs(self, tensor: TensorId) -> tuple[str, ...]:
        """Return the graph inputs whose values decide a tensor's value, as they are found."""
        found: dict[str, None] = {}
        seen = {tensor}
        pending = [tensor]
        while pending:
            current = pending.pop()
            if current in self.session.inputs:
                found[current] = None
            elif current in self.writers:
                unknown = [t for t in reads_of(self.writers[current]) if t not in self.constants]
                pending.extend(t for t in reversed(unknown) if t not in seen)
                seen.update(unknown)
        return tuple(found)


def evaluate_model(
    model: SourceModel,
    table: OperatorTable,
    rules: Mapping[str, Rule],
    open_rule: OpenRule,
    inputs: Mapping[str, TensorSpec],
    bound: Mapping[str, np.ndarray],
    name: str,
) -> ExecutionGraph:
    """Turn a model with fixed inputs into an ExecutionGraph.

    `inputs` are the graph's inputs with their specs; `bound` maps names of inputs and
    initialisers to the values they shall have. Each has been checked against the model.

    Raises InvalidModelError, UnsupportedOperatorError or DynamicShapeError.
    """
    graph = model.graph
    session = Session(
        table,
        rules,
        open_rule,
        model.opsets,
        frozenset(map(TensorId, inputs)),
        Names(
            {name for node in graph.nodes for name in node.outputs} | {*graph.initialisers, *inputs}
        ),
        Names(),
    )
    frame = Frame(session)
    scope: Scope = Layers()
    for input_name, spec in inputs.items():
        scope[input_name] = frame.add_input(spec, "", input_name)
    for bound_name, value in bound.items():
        scope[bound_name] = frame.add_constant(value, "", bound_name)
    values = frame.run(graph, scope)
    outputs = [
        _named_output(frame, name, value) for name, value in zip(graph.outputs, values, strict=True)
    ]
    lengths = {tensor: frame.lengths[tensor] for tensor in outputs if tensor in frame.lengths}
    counts = [length for axes in lengths.values() for length in axes.values()]
    outputs += dict.fromkeys(length for length in counts if length not in outputs)
    used = {tensor for node in frame.operators for tensor in reads_of(node)} | set(outputs)
    constants = {t: array for t, array in frame.constants.items() if t in used}
    written = {tensor for node in frame.operators for tensor in filter(None, node.outputs)}
    kept = used | written | session.inputs
    return ExecutionGraph.build(
        name=name,
        operators=frame.operators,
        specs={tensor: spec for tensor, spec in frame.specs.items() if tensor in kept},
        constants=constants,
        inputs=[TensorId(input_name) for input_name in inputs],
        outputs=outputs,
        lengths=lengths,
        metadata=model.metadata,
    )


def is_deterministic(node: OperatorNode) -> bool:
    """Return whether the same operands always give the same results."""
    if node.operator in RANDOM_OPERATORS:
        return False
    # A training-mode dropout is random; which mode it is, is an operand. Bodies may be random.
    for value in node.attributes.values():
        if type(value) is Subgraph:
            return False
    return node.operator != "Dropout" or len(node.inputs) < 3


def _without_unread(node: SourceNode, read: set[str], opsets: Mapping[str, int]) -> SourceNode:
    """Leave out optional outputs that nobody reads (the mask of a Dropout, say)."""
    if len(node.outputs) == 1 and node.outputs[0] in read:
        return node
    outputs = list(node.outputs)
    optional = optional_outputs(node.operator, opsets.get(node.domain, 1), node.domain)
    for position in optional:
        if position < len(outputs) and outputs[position] not in read:
            outputs[position] = ""
    while outputs and not outputs[-1]:
        del outputs[-1]
    if len(outputs) == len(node.outputs) and tuple(outputs) == node.outputs:
        return node
    return replace(node, outputs=tuple(outputs))


def _known_from_specs(context: OperatorContext) -> np.ndarray | None:
    """Value of `Shape` and `Size`, which specs alone decide."""
    node = context.node
    spec = context.inputs[0] if context.inputs else None
    if node.domain or spec is None:
        return None
    if node.operator == "Size":
        return np.array(spec.element_count, np.int64)
    if node.operator == "Shape":
        start, end = node.attributes.get("start"), node.attributes.get("end")
        first = start if isinstance(start, int) else None
        last = end if isinstance(end, int) else None
        return np.array(spec.shape[first:last], np.int64)
    return None


def _named_output(frame: Frame, name: str, value: Value) -> TensorId:
    """Make sure that an output of the model is a tensor of that name."""
    if not isinstance(value, str):
        kind = "sequence" if isinstance(value, TensorSequence) else "optional"
        raise InvalidModelError(
            f"output `{name}` is a {kind}; only tensors can leave a model",
            context=f"graph output `{name}`",
            hint="export the model with tensor outputs",
        )
    if value == name:
        return value
    return frame.emit("Identity", [value], TensorId(name))
