"""Images get their channels last, from the first convolution on, for as far as that carries.

For devices whose kernels want it (`DeviceCapabilities.channels_last`). Convolutions and pools
become their channels-last forms; operators that do not care about the order of dimensions follow
their operands; where a reader does care, one transpose leads back. A BatchNormalization that no
convolution took in becomes a depthwise 1x1 convolution, with the Relu behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from aegis_pipe.execution.graph import (
    NO_TENSOR,
    ExecutionGraph,
    GraphAttribute,
    OperatorNode,
    reads_of,
)
from aegis_pipe.execution.operators.channels_last import channels_last
from aegis_pipe.execution.passes.matching import CONTRIBUTED, attribute, only_reader
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.execution.passes.sink_transposes import ELEMENTWISE
from aegis_pipe.tensor import TensorId

name = "channels_last"

OWN = "aegis"
"""Domain of operators that exist in no exchange format."""

_FLOAT32 = np.dtype(np.float32)


def run(graph: ExecutionGraph) -> ExecutionGraph:
    """Rewrite the graph; its inputs and outputs keep their order of dimensions."""
    if graph.kinds.isdisjoint(("Conv", "com.microsoft.FusedConv")):
        return graph  # nothing else begins it
    assignment = _Assignment(graph)
    for node in graph.operators:
        assignment.visit(node)
    return assignment.edit.result()


class _Assignment:
    """Walks through the operators in order, and knows which tensors have which form by now."""

    def __init__(self, graph: ExecutionGraph) -> None:
        self._graph = graph
        self.edit = GraphEdit(graph)
        self._last: dict[TensorId, TensorId] = {}
        """The channels-last form of a tensor, where there is one."""
        self._missing: set[TensorId] = set()
        """Tensors that exist in that form only."""
        self._new: list[OperatorNode] = []

    def visit(self, node: OperatorNode) -> None:
        """Rewrite one operator, or lead its operands back to the form it knows."""
        if self.edit.is_replaced(node):
            return
        self._new, old = [], [node]
        if not self._rewrite(node, old):
            for tensor in reads_of(node):
                self._lead_back(tensor)
            if self._new:
                self._new.append(node)
        else:
            for tensor in old[-1].outputs:
                if tensor in self._graph.outputs:
                    self._lead_back(tensor)
        if self._new:
            self.edit.replace(old, *self._new)

    def _rewrite(self, node: OperatorNode, old: list[OperatorNode]) -> bool:
        operator = node.qualified_operator
        if operator in ("Conv", "com.microsoft.FusedConv"):
            return self._convolution(node)
        if not self._follows(node):
            return False
        if operator in ("MaxPool", "AveragePool"):
            return self._pool(node)
        if operator in ("GlobalAveragePool", "GlobalMaxPool"):
            return self._global_pool(node)
        if operator == "BatchNormalization":
            return self._normalisation(node, old)
        if operator == "Concat":
            return self._concat(node)
        return operator in ELEMENTWISE and self._elementwise(node)

    def _follows(self, node: OperatorNode) -> bool:
        """Return whether most of what the operator reads has its channels last."""
        sizes = {True: 0, False: 0}
        for tensor in filter(None, node.inputs):
            if tensor not in self._graph.constants:
                sizes[tensor in self._last] += self._graph.spec(tensor).element_count
        return sizes[True] > sizes[False]

    def _is_image(self, tensor: TensorId) -> bool:
        spec = self._graph.spec(tensor)
        return spec.dtype == _FLOAT32 and len(spec.shape) in (3, 4) and spec.element_count > 0

    def _convolution(self, node: OperatorNode) -> bool:
        data, weights = node.inputs[:2]
        if not self._is_image(data) or weights not in self._graph.constants:
            return False
        groups = attribute(node, "group", 1)
        is_depthwise = (
            groups == self._graph.spec(weights).shape[0] == self._graph.spec(data).shape[1]
        )
        if self._crops(node):
            return False
        # Grouped ones read parts of a pixel, and their channels are shuffled before or after.
        if groups > 1 and not (is_depthwise and data in self._last):
            return False
        images = [
            self._to_last(tensor) if i in (0, 3) else tensor for i, tensor in enumerate(node.inputs)
        ]
        self._emit(node, "NhwcFusedConv", CONTRIBUTED, node.attributes, images)
        return True

    @staticmethod
    def _crops(node: OperatorNode) -> bool:
        pads = node.attributes.get("pads", ())
        assert isinstance(pads, tuple), f"{node.name}: pads are {pads!r}"
        return min(map(float, pads), default=0.0) < 0

    def _pool(self, node: OperatorNode) -> bool:
        if not self._is_image(node.inputs[0]) or any(node.outputs[1:]) or self._crops(node):
            return False
        domain = CONTRIBUTED if node.operator == "MaxPool" else OWN
        self._emit(
            node, f"Nhwc{node.operator}", domain, node.attributes, [self._to_last(node.inputs[0])]
        )
        return True

    def _global_pool(self, node: OperatorNode) -> bool:
        if not self._is_image(node.inputs[0]):
            return False
        operator, domain = {
            "GlobalAveragePool": ("NhwcAveragePool", OWN),
            "GlobalMaxPool": ("NhwcMaxPool", CONTRIBUTED),
        }[node.operator]
        kernel = {"kernel_shape": self._graph.spec(node.inputs[0]).shape[2:]}
        self._emit(node, operator, domain, kernel, [self._to_last(node.inputs[0])])
        return True

    def _normalisation(self, node: OperatorNode, old: list[OperatorNode]) -> bool:
        graph, known = self._graph, self._graph.constants
        if not self._is_image(node.inputs[0]) or any(node.outputs[1:]):
            return False
        if attribute(node, "training_mode", 0) or any(t not in known for t in node.inputs[1:5]):
            return False
        scale, bias, mean, variance = (known[t].astype(np.float64) for t in node.inputs[1:5])
        factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        rank = len(graph.spec(node.inputs[0]).shape)
        weights = factor.astype(np.float32).reshape(-1, *(1,) * (rank - 1))
        shift = (bias - mean * factor).astype(np.float32)
        attributes: dict[str, GraphAttribute] = {"group": len(factor)}
        reader = only_reader(graph, node.outputs[0])
        if reader is not None and reader.qualified_operator == "Relu":
            old.append(reader)
            attributes["activation"] = "Relu"
        operands = [
            self._to_last(node.inputs[0]),
            self.edit.constant(f"{node.name}.factor", weights),
            self.edit.constant(f"{node.name}.shift", shift),
        ]
        self._emit(old[-1], "NhwcFusedConv", CONTRIBUTED, attributes, operands)
        return True

    def _concat(self, node: OperatorNode) -> bool:
        if not all(map(self._is_image, node.inputs)):
            return False
        rank = len(self._graph.spec(node.outputs[0]).shape)
        axis = int(attribute(node, "axis", 1)) % rank
        moved = {0: 0, 1: rank - 1}.get(axis, axis - 1)
        operands = [self._to_last(tensor) for tensor in node.inputs]
        self._emit(node, "Concat", "", {"axis": moved}, operands, node.opset)
        return True

    def _elementwise(self, node: OperatorNode) -> bool:
        if len(node.outputs) != 1 or not self._is_image(node.outputs[0]):
            return False
        graph, rank = self._graph, len(self._graph.spec(node.outputs[0]).shape)
        for tensor in filter(None, node.inputs):
            shape = graph.spec(tensor).shape
            if tensor not in graph.constants and len(shape) != rank:
                return False
            if len(shape) > rank:
                return False
        operands = [self._operand(tensor, rank) if tensor else tensor for tensor in node.inputs]
        self._emit(node, node.operator, node.domain, node.attributes, operands, node.opset)
        return True

    def _operand(self, tensor: TensorId, rank: int) -> TensorId:
        array = self._graph.constants.get(tensor)
        if array is None:
            return self._to_last(tensor)
        if array.size == 1:
            return tensor
        aligned = array.reshape((1,) * (rank - array.ndim) + array.shape)
        moved = np.ascontiguousarray(np.moveaxis(aligned, 1, -1))
        return self.edit.constant(f"{tensor}.channels_last", moved)

    def _emit(
        self,
        node: OperatorNode,
        operator: str,
        domain: str,
        attributes: Mapping[str, GraphAttribute],
        operands: Sequence[TensorId],
        opset: int = 1,
    ) -> None:
        """Add an operator that writes the channels-last form of `node`'s result."""
        result = node.outputs[0]
        form = self.edit.tensor(f"{result}.channels_last", channels_last(self._graph.spec(result)))
        self._last[result] = form
        self._missing.add(result)
        self._new.append(
            OperatorNode(node.name, operator, domain, opset, attributes, tuple(operands), (form,))
        )

    def _to_last(self, tensor: TensorId) -> TensorId:
        if not tensor:
            return NO_TENSOR
        if tensor not in self._last:
            spec = self._graph.spec(tensor)
            form = self.edit.tensor(f"{tensor}.channels_last", channels_last(spec))
            rank = len(spec.shape)
            self._last[tensor] = form
            self._move(tensor, form, (0, *range(2, rank), 1), spec.shape)
        return self._last[tensor]

    def _lead_back(self, tensor: TensorId) -> None:
        """Make a tensor that exists with its channels last only."""
        if tensor not in self._missing:
            return
        self._missing.remove(tensor)
        source = self._last[tensor]
        rank = len(self._graph.spec(tensor).shape)
        shape = channels_last(self._graph.spec(tensor)).shape
        self._move(source, tensor, (0, rank - 1, *range(1, rank - 1)), shape)

    def _move(
        self, source: TensorId, target: TensorId, perm: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        """Add a transpose, or a reshape where no bytes would move."""
        node_name = self.edit.node_name(f"{target}.moved")
        moved = [axis for axis in perm if shape[axis] != 1]
        if moved == sorted(moved):
            wanted = [shape[axis] for axis in perm]
            self._new.append(self.edit.reshape(node_name, 13, source, target, wanted))
        else:
            attributes: dict[str, GraphAttribute] = {"perm": perm}
            self._new.append(
                OperatorNode(node_name, "Transpose", "", 13, attributes, (source,), (target,))
            )
