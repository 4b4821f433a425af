"""A float32 graph in half precision: tensors become float16 or bfloat16 where operators allow it.

Inputs and outputs of the graph stay as they are, with casts behind and before them. Operators that
half precision suits keep their sums in float32 inside of their kernels (products, normalisations,
softmax, reductions); all others, whose intermediate values may be too large or too fine, stay in
float32, between casts. Constants that are too large become the largest finite value, as masks of
"minus infinity" want it.

Statistics are such intermediate values, too: what is computed of sums alone (a variance as the
difference of a mean of squares and a squared mean, in a normalisation spelled out). They are
easily larger than float16 can tell, and lose all their digits to the difference. So they stay in
float32, as do the squares that only sums read, and what they do to a whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import ml_dtypes
import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, GraphAttribute, OperatorNode, reads_of
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.passes.rewriting import rewritten
from aegis_pipe.parallel import cores, run_all
from aegis_pipe.tensor import TensorId, TensorSpec

_FLOAT32 = np.dtype(np.float32)
_ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
"""ONNX's numbers, for `to` of Cast."""

HALF_DTYPES: Mapping[str, np.dtype] = {
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
"""Element types by the manifest's `precision`."""

_PART = 1 << 18
"""Elements that a thread rounds at a time."""
_SMALL = 1 << 16
"""Fewer are rounded before a thread has started."""

_NAMES = """
Abs Add Attention AveragePool BatchNormalization Clip Concat Conv ConvTranspose DepthToSpace Div
Elu Equal
Expand Flatten Gather Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GroupNormalization
HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less MatMul Max
MaxPool Min Mish Mul Neg PRelu Pad RMSNormalization ReduceMax ReduceMean Relu Reshape Sigmoid
SimplifiedLayerNormalization Slice Softmax SpaceToDepth Split Squeeze Sub Sum Swish Tanh Tile
Transpose Unsqueeze Where aegis.NhwcAveragePool aegis.StridedAttention
com.microsoft.BiasGelu com.microsoft.FastGelu
com.microsoft.FusedConv com.microsoft.FusedGemm com.microsoft.FusedMatMul com.microsoft.Gelu
com.microsoft.NhwcFusedConv com.microsoft.NhwcMaxPool com.microsoft.QuickGelu
com.microsoft.SkipLayerNormalization com.microsoft.SkipSimplifiedLayerNormalization
"""
_SUITED = frozenset(_NAMES.split())
_NORMALISATIONS = frozenset(name for name in _SUITED if name.endswith("LayerNormalization"))
_STATISTICS = (1, 2)
"""Results of these that stay in float32: mean and deviation."""
_SUMS = frozenset(
    {"ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceSum"}
    | {"ReduceSumSquare"}
)
_ARITHMETIC = frozenset({"Abs", "Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub", "Sum"})
_ROOTS = frozenset({"Exp", "Log", "Pow", "Reciprocal", "Sqrt"})
"""Arithmetic that half precision does not suit anyway."""
_MOVING = frozenset({"Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_DERIVING = _ARITHMETIC | _ROOTS | _MOVING


def convert(graph: ExecutionGraph, precision: str) -> ExecutionGraph:
    """Return the graph in `fp16` or `bf16`; its inputs, outputs and their specs stay."""
    return _Conversion(graph, HALF_DTYPES[precision]).run()


def rounded(arrays: Sequence[np.ndarray], half: np.dtype) -> list[np.ndarray]:
    """Return float32 values in half precision; what is finite stays finite. Uses all cores."""
    halves = [np.empty_like(array, half) for array in arrays]
    parts: list[Callable[[], None]] = []
    for array, result in zip(arrays, halves, strict=True):
        if array.size < _SMALL:
            _round(array, result)
            continue
        rows = max(1, len(array) * _PART // array.size)
        for first in range(0, len(array), rows):
            part = slice(first, first + rows)
            parts.append(partial(_round, array[part], result[part]))
    run_all(parts, cores())
    return halves


def _round(array: np.ndarray, halves: np.ndarray) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(halves, array, casting="unsafe")
    # What is not finite has the largest bits of its sign: their absence is seen quickly.
    bits, infinity = halves.view(np.uint16), int(np.array(np.inf, halves.dtype).view(np.uint16))
    largest_bits = int(bits.view(np.int16).max(initial=0)), int(bits.max(initial=0)) - 0x8000
    if max(largest_bits) >= infinity:
        largest = float(ml_dtypes.finfo(halves.dtype).max)  # type: ignore[no-untyped-call]
        too_large = np.isinf(halves) & np.isfinite(array)
        halves[too_large] = np.copysign(largest, array[too_large])


def _of_statistics(graph: ExecutionGraph) -> frozenset[str]:
    """Return the names of the operators that compute statistics, or with them, in float32."""
    statistics: set[TensorId] = set()
    kept: set[str] = set()
    for node in graph.operators:
        name = node.qualified_operator
        data = [tensor for tensor in node.reads if tensor not in graph.constants]
        derives = name in _DERIVING and data and statistics.issuperset(data)
        if name in _SUMS or derives:
            statistics.update(node.outputs)
            if name in _ARITHMETIC | _ROOTS:
                kept.add(node.name)
    # What leads to that arithmetic, and squares for sums alone.
    for node in reversed(graph.operators):
        read_by = [graph.operators[n] for t in node.outputs for n in graph.consumers.get(t, ())]
        leads = statistics.issuperset(node.outputs) and any(one.name in kept for one in read_by)
        is_square = node.qualified_operator == "Mul" and len(set(node.inputs)) == 1
        if leads or (is_square and read_by and all(n.qualified_operator in _SUMS for n in read_by)):
            kept.add(node.name)
    # What comes of it.
    wide: set[TensorId] = set()
    for node in graph.operators:
        if node.qualified_operator in _DERIVING and not wide.isdisjoint(node.inputs):
            kept.add(node.name)
        if node.name in kept:
            wide.update(statistics.intersection(node.outputs))
    return frozenset(kept)


class _Conversion:
    """Walks through the operators in order, and knows in which types each tensor exists."""

    def __init__(self, graph: ExecutionGraph, half: np.dtype) -> None:
        self._graph = graph
        self._half = half
        self._halves: dict[TensorId, TensorId] = {}
        """The half-precision form of a float32 tensor, where there is one."""
        self._missing: set[TensorId] = set()
        """Tensors that exist in that form only."""
        self._nodes: list[OperatorNode] = []
        self._rounded: dict[TensorId, np.ndarray] = {}
        """Constants that are to be rounded, by the name of that form."""
        self._specs: dict[TensorId, TensorSpec] = {}
        self._names = {node.name for node in graph.operators}
        self._wide = _of_statistics(graph)

    def run(self) -> ExecutionGraph:
        """Rewrite operator by operator."""
        for node in self._graph.operators:
            is_suited = node.qualified_operator in _SUITED and node.name not in self._wide
            if is_suited and self._has_floats(node):
                self._convert(node)
            else:
                for tensor in reads_of(node):
                    self._widen(tensor)
                self._nodes.append(node)
        for tensor in self._graph.outputs:
            self._widen(tensor)
        halves = rounded(list(self._rounded.values()), self._half)
        constants = dict(zip(self._rounded, halves, strict=True))
        return rewritten(self._graph, self._nodes, constants=constants, specs=self._specs)

    def _has_floats(self, node: OperatorNode) -> bool:
        data = [tensor for tensor in (*node.inputs, *node.outputs) if tensor]
        return any(self._graph.spec(tensor).dtype == _FLOAT32 for tensor in data)

    def _convert(self, node: OperatorNode) -> None:
        entry = OPERATORS.get(node.qualified_operator)
        static = entry.static_inputs if entry else ()
        inputs = tuple(
            [
                self._narrow(tensor) if position not in static else tensor
                for position, tensor in enumerate(node.inputs)
            ]
        )
        outputs = tuple(
            [
                self._result(tensor)
                if position not in _STATISTICS or node.qualified_operator not in _NORMALISATIONS
                else tensor
                for position, tensor in enumerate(node.outputs)
            ]
        )
        self._nodes.append(replace(node, inputs=inputs, outputs=outputs))

    def _result(self, tensor: TensorId) -> TensorId:
        if not tensor or self._graph.spec(tensor).dtype != _FLOAT32:
            return tensor
        self._missing.add(tensor)
        return self._form(tensor)

    def _form(self, tensor: TensorId) -> TensorId:
        """Return the name of a tensor's half-precision form, which is to be made."""
        name = f"{tensor}.{self._half.name}"
        while name in self._graph.specs or name in self._specs:
            name += "_"
        form = TensorId(name)
        self._halves[tensor] = form
        self._specs[form] = TensorSpec(self._half, self._graph.spec(tensor).shape)
        return form

    def _narrow(self, tensor: TensorId) -> TensorId:
        if not tensor or self._graph.spec(tensor).dtype != _FLOAT32:
            return tensor
        if tensor not in self._halves:
            form = self._form(tensor)
            if tensor in self._graph.constants:
                self._rounded[form] = self._graph.constants[tensor]
            else:
                self._cast(tensor, form, self._half)
        return self._halves[tensor]

    def _widen(self, tensor: TensorId) -> None:
        """Make a tensor that exists in half precision only."""
        if tensor in self._missing:
            self._missing.remove(tensor)
            self._cast(self._halves[tensor], tensor, _FLOAT32)

    def _cast(self, source: TensorId, target: TensorId, dtype: np.dtype) -> None:
        name = f"{target}.cast"
        while name in self._names:
            name += "_"
        self._names.add(name)
        attributes: dict[str, GraphAttribute] = {"to": _ELEMENT_TYPES[dtype.name]}
        self._nodes.append(OperatorNode(name, "Cast", "", 13, attributes, (source,), (target,)))
