"""A matrix product, then an activation: one `com.microsoft.FusedGemm`.

For devices whose products take the activation on the way out, each those that it names: GELU
proper, with erf, is not replaced by its form with tanh, as they differ by up to 5e-4, which is more
than half precision's own rounding where the result is small. Between both may lie a reshape, as
batches have one. A GELU's own bias is added by the product, if that adds nothing yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import pairwise

from aegis_pipe.execution.graph import NO_TENSOR, ExecutionGraph, GraphAttribute, OperatorNode
from aegis_pipe.execution.passes.matching import (
    CONTRIBUTED,
    EPSILON,
    attribute,
    only_reader,
    producer,
)
from aegis_pipe.execution.passes.rewriting import GraphEdit
from aegis_pipe.tensor import TensorId, TensorSpec


def _is_tanh(node: OperatorNode) -> bool:
    return node.attributes.get("approximate") in ("tanh", b"tanh")


_ALPHA: dict[str, tuple[str, float]] = {
    "LeakyRelu": ("LeakyRelu", 0.01),
    "Swish": ("Swish", 1.0),
    "com.microsoft.QuickGelu": ("Swish", 1.702),
}
"""By operator with a parameter: the activation, and the parameter's default."""
_NAMES: dict[str, Callable[[OperatorNode], str]] = {
    "Gelu": lambda node: "FastGelu" if _is_tanh(node) else "Gelu",
    "com.microsoft.BiasGelu": lambda _: "Gelu",
    "com.microsoft.FastGelu": lambda _: "FastGelu",
    "com.microsoft.Gelu": lambda _: "Gelu",
    **{name: lambda node: node.operator for name in ("HardSwish", "Sigmoid", "Tanh")},
    **{name: lambda node: _ALPHA[node.qualified_operator][0] for name in _ALPHA},
}


@dataclass(frozen=True, slots=True)
class _Chain:
    """A product, a reshape if there is one, and an activation."""

    product: OperatorNode
    reshape: OperatorNode | None
    end: OperatorNode
    name: str
    """The activation's."""

    @property
    def nodes(self) -> list[OperatorNode]:
        return [node for node in (self.product, self.reshape, self.end) if node is not None]

    @property
    def bias(self) -> TensorId:
        """What the activation adds first."""
        return self.end.inputs[1] if len(self.end.inputs) > 1 else NO_TENSOR


@dataclass(frozen=True, slots=True)
class FuseProductEnding:
    """The pass, for a device whose products end with these activations."""

    activations: Collection[str]
    """`Gelu`, `FastGelu` (by tanh), `HardSwish`, `LeakyRelu`, `Sigmoid`, `Swish`, `Tanh`."""
    name: str = "fuse_product_ending"

    def run(self, graph: ExecutionGraph) -> ExecutionGraph:
        """Replace every such pair."""
        edit = GraphEdit(graph)
        for node in graph.operators:
            chain = _chain(graph, node)
            if chain is None or chain.name not in self.activations:
                continue
            if not edit.is_replaced(*chain.nodes):
                edit.replace(chain.nodes, *_fused(graph, chain, edit))
        return edit.result()


def _chain(graph: ExecutionGraph, node: OperatorNode) -> _Chain | None:
    if node.qualified_operator not in _NAMES:
        return None
    product, reshape = producer(graph, node.inputs[0]), None
    if product is not None and product.qualified_operator == "Reshape":
        product, reshape = producer(graph, product.inputs[0]), product
    if product is None or not _is_product(graph, product):
        return None
    chain = _Chain(product, reshape, node, _NAMES[node.qualified_operator](node))
    is_alone = all(only_reader(graph, a.outputs[0]) is b for a, b in pairwise(chain.nodes))
    return chain if is_alone and _takes_bias(graph, chain) else None


def _is_product(graph: ExecutionGraph, node: OperatorNode) -> bool:
    """Return whether it is a Gemm, or a MatMul that could be one."""
    if node.qualified_operator == "Gemm":
        return True
    if node.qualified_operator != "MatMul":
        return False
    left, right = (graph.spec(tensor) for tensor in node.inputs)
    return (
        len(left.shape) >= 2
        and len(right.shape) == 2
        and left.dtype in EPSILON
        and left.element_count > 0
    )


def _takes_bias(graph: ExecutionGraph, chain: _Chain) -> bool:
    if not chain.bias:
        return True
    width = graph.spec(chain.product.outputs[0]).shape[-1:]
    return (
        not any(chain.product.inputs[2:])
        and chain.product.attributes.get("beta", 1.0) == 1
        and graph.spec(chain.bias).shape == width == graph.spec(chain.end.inputs[0]).shape[-1:]
    )


def _fused(graph: ExecutionGraph, chain: _Chain, edit: GraphEdit) -> list[OperatorNode]:
    product, reshape, end = chain.product, chain.reshape, chain.end
    data, result = product.inputs[0], end.outputs[0]
    spec = graph.spec(product.outputs[0])
    shape = (math.prod(spec.shape[:-1]), spec.shape[-1])
    nodes = []
    if len(spec.shape) > 2:
        rows = (shape[0], graph.spec(data).shape[-1])
        name = edit.node_name(f"{end.name}.rows")
        data = edit.tensor(f"{result}.rows", TensorSpec(spec.dtype, rows))
        nodes.append(edit.reshape(name, product.opset, product.inputs[0], data, rows))
    is_reshaped = reshape is not None or len(spec.shape) > 2
    written = (
        edit.tensor(f"{result}.product", TensorSpec(spec.dtype, shape)) if is_reshaped else result
    )
    attributes: dict[str, GraphAttribute] = {**product.attributes, "activation": chain.name}
    if end.qualified_operator in _ALPHA:
        default = _ALPHA[end.qualified_operator][1]
        attributes["activation_alpha"] = attribute(end, "alpha", default)
    added = (chain.bias,) if chain.bias else product.inputs[2:]
    inputs = (data, product.inputs[1], *added)
    nodes.append(
        OperatorNode(end.name, "FusedGemm", CONTRIBUTED, 1, attributes, inputs, (written,))
    )
    if reshape is not None:
        nodes.append(replace(reshape, inputs=(written, *reshape.inputs[1:]), outputs=(result,)))
    elif is_reshaped:
        name = edit.node_name(f"{end.name}.batch")
        whole = graph.spec(result).shape
        nodes.append(edit.reshape(name, product.opset, written, result, whole))
    return nodes
