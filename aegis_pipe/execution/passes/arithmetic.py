"""Recognises formulas however they are spelled: as polynomials in two tensors.

Exporters write x * sigmoid(x) or 0.5 * x * (1 + erf(x / sqrt 2)) with their factors in any order
and their constants as products or quotients. Written out, they are all one polynomial in x and
u = f(g(x)), with g another polynomial; so it is the polynomials that are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from aegis_pipe.execution.graph import ExecutionGraph, OperatorNode
from aegis_pipe.execution.passes.matching import EPSILON, is_close, only_reader, producer, scalar
from aegis_pipe.tensor import TensorId

Polynomial = Mapping[tuple[int, int], float]
"""Coefficients by powers of (x, u); none of them 0."""

X: Polynomial = {(1, 0): 1.0}
U: Polynomial = {(0, 1): 1.0}

_OPERATORS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Neg", "Sum"})
"""What polynomials are made of."""
_DEPTH_MAX = 6
_STEPS_MAX = 4


class Formula(NamedTuple):
    """A function of x as operators compute it: outer(x, u) with u = f(inner(x))."""

    inner: Polynomial | None
    """None for any multiple of x."""
    outer: Polynomial


class Match(NamedTuple):
    """Where a formula was found."""

    x: TensorId
    inner: Polynomial
    nodes: tuple[OperatorNode, ...]
    """All operators that compute it, the last one last."""


class Expression:
    """Writes tensors as polynomials in x and u, and notes what computes them."""

    def __init__(self, graph: ExecutionGraph, x: TensorId, u: TensorId | None = None) -> None:
        self._graph = graph
        self._leaves = {x: X} | ({u: U} if u else {})
        self.nodes: dict[str, OperatorNode] = {}

    def polynomial(self, tensor: TensorId, depth: int = _DEPTH_MAX) -> Polynomial | None:
        """Return a tensor as a polynomial; None if it is not one."""
        if tensor in self._leaves:
            return self._leaves[tensor]
        number = scalar(self._graph, tensor)
        if number is not None:
            return {(0, 0): number} if number else {}
        node = producer(self._graph, tensor)
        if node is None or node.domain or depth == 0:
            return None
        result = self._operation(node, depth - 1)
        if result is not None:
            self.nodes[node.name] = node
        return result

    def _operation(self, node: OperatorNode, depth: int) -> Polynomial | None:
        if node.operator not in _OPERATORS:
            return None
        terms = [self.polynomial(tensor, depth) for tensor in node.inputs]
        first, *others = [term for term in terms if term is not None] or [{}]
        if None in terms or len(others) != (node.operator != "Neg"):
            return None
        if node.operator == "Neg":
            return _scaled(first, -1)
        second = others[0]
        match node.operator:
            case "Add" | "Sum":
                return _sum(first, second)
            case "Sub":
                return _sum(first, _scaled(second, -1))
            case "Mul":
                return _product(first, second)
        number = second.get((0, 0), 0.0)
        if not number or len(second) > 1:
            return None
        if node.operator == "Div":
            return _scaled(first, 1 / number)
        return {2.0: _product(first, first), 3.0: _product(_product(first, first), first)}.get(
            number
        )


def find(graph: ExecutionGraph, function: OperatorNode, formula: Formula) -> Match | None:
    """Return where `function` computes u of such a formula.

    Only if nothing else needs a tensor in between, and all have x's dtype, one of `EPSILON`.
    """
    reader = only_reader(graph, function.outputs[0])
    if reader is None or reader.domain or reader.operator not in _OPERATORS:
        return None
    for x in _arguments(graph, function.inputs[0]):
        inside = Expression(graph, x)
        inner = inside.polynomial(function.inputs[0])
        dtype = graph.spec(x).dtype
        if inner is None or not _is_inner(inner, formula.inner, dtype):
            continue
        outside = _outer(graph, x, function, formula.outer)
        if not outside:
            continue
        nodes = inside.nodes | {function.name: function} | outside
        last = list(outside.values())[-1]
        ordered = (*(node for node in nodes.values() if node is not last), last)
        if _is_closed(graph, ordered, graph.spec(x).shape):
            return Match(x, inner, ordered)
    return None


def _is_inner(actual: Polynomial, wanted: Polynomial | None, dtype: np.dtype) -> bool:
    if wanted is None:
        return dtype in EPSILON and actual.keys() == {(1, 0)}
    return is_same(actual, wanted, dtype)


def is_same(actual: Polynomial, wanted: Polynomial, dtype: np.dtype) -> bool:
    """Return whether coefficients are equal as far as the dtype can tell."""
    return (
        dtype in EPSILON
        and actual.keys() == wanted.keys()
        and all(is_close(actual[powers], value, dtype) for powers, value in wanted.items())
    )


def _arguments(graph: ExecutionGraph, tensor: TensorId) -> Iterator[TensorId]:
    """Yield what a tensor may be a polynomial in, the nearest first."""
    found = [tensor]
    for one in found:
        if scalar(graph, one) is not None:
            continue
        yield one
        node = producer(graph, one)
        if node is not None and not node.domain and len(found) < 2**_DEPTH_MAX:
            found.extend(each for each in node.inputs if each and each not in found)


def _outer(
    graph: ExecutionGraph, x: TensorId, function: OperatorNode, wanted: Polynomial
) -> dict[str, OperatorNode] | None:
    """Return the operators from u to where the wanted polynomial is reached, that one last."""
    tensor = function.outputs[0]
    for _ in range(_STEPS_MAX):
        reader = only_reader(graph, tensor)
        if reader is None:
            return None
        outside = Expression(graph, x, function.outputs[0])
        outer = outside.polynomial(reader.outputs[0])
        if outer is None:
            return None
        if is_same(outer, wanted, graph.spec(x).dtype):
            return outside.nodes
        tensor = reader.outputs[0]
    return None


def _is_closed(
    graph: ExecutionGraph, nodes: tuple[OperatorNode, ...], shape: tuple[int, ...]
) -> bool:
    """Return whether only the last one's result is needed elsewhere, and x broadcasts nowhere."""
    names = {node.name for node in nodes}
    inner = [tensor for node in nodes[:-1] for tensor in node.outputs]
    readers = {graph.operators[i].name for tensor in inner for i in graph.consumers.get(tensor, ())}
    return (
        readers <= names
        and not set(inner).intersection(graph.outputs)
        and all(graph.spec(tensor).shape == shape for tensor in (*inner, *nodes[-1].outputs))
    )


def _sum(first: Polynomial, second: Polynomial) -> Polynomial:
    powers = {*first, *second}
    return _without_zeros({p: first.get(p, 0.0) + second.get(p, 0.0) for p in sorted(powers)})


def _scaled(polynomial: Polynomial, factor: float) -> Polynomial:
    return _without_zeros({powers: value * factor for powers, value in polynomial.items()})


def _product(first: Polynomial, second: Polynomial) -> Polynomial:
    total: dict[tuple[int, int], float] = {}
    for (x, u), value in first.items():
        for (other_x, other_u), other in second.items():
            powers = (x + other_x, u + other_u)
            total[powers] = total.get(powers, 0.0) + value * other
    return _without_zeros(total)


def _without_zeros(polynomial: Polynomial) -> Polynomial:
    return {powers: value for powers, value in polynomial.items() if value}
