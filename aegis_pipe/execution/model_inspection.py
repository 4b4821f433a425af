"""Looks at a model file without loading it: names, shapes, operators, bytes of weights.

A reader of protobuf's wire format over a mapped file, which skips what it does not ask for; so
weights are never touched, and neither `onnx` nor a parser is needed. The field numbers are those
of `onnx.proto`, which never change.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.known_operators import KNOWN_OPERATORS
from aegis_pipe.execution.model_file import REEXPORT, mapped_file
from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE, DTYPE_OF_NAME
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.saved_ir import is_saved_graph, read_header
from aegis_pipe.execution.source_model import UNNAMED_SYMBOLS


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """What a file says of an input or output."""

    dtype: str
    """NumPy's name; `object` for strings; `sequence` and the like for what is no tensor."""
    shape: tuple[int | str | None, ...]
    """Sizes, symbols, and None for what is open; empty also if the file gives no shape."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model file holds."""

    inputs: Mapping[str, TensorFacts]
    """Without those that have an initialiser."""
    outputs: Mapping[str, TensorFacts]
    weight_bytes: int
    """Bytes of all initialisers and `Constant`s once loaded; bodies and external data too."""
    operators: tuple[tuple[str, str], ...]
    """(node name, qualified operator) of every node, bodies and functions included."""
    unknown_operators: tuple[tuple[str, str, str], ...]
    """(node name, operator, nearest known operator) of those that this runtime does not know."""
    opsets: Mapping[str, int]
    """Version by domain; ai.onnx is the empty one."""


def inspect_model(path: Path) -> ModelFacts:
    """Return the facts of an ONNX file or a saved graph.

    Raises InvalidModelError if the file is missing, empty, cut short or something else.
    """
    data = mapped_file(path)
    try:
        return _saved_facts(data) if is_saved_graph(data) else _onnx_facts(data)
    except InvalidModelError as error:
        error.context = error.context or str(path)
        raise
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise InvalidModelError(
            "is not an ONNX model, or is damaged", context=str(path), hint=REEXPORT
        ) from error


def _saved_facts(data: memoryview) -> ModelFacts:
    header, _ = read_header(data)
    specs = {tensor: (dtype, tuple(shape)) for tensor, dtype, shape in header["tensors"]}
    operators = tuple(
        (node["name"], _qualified(node["domain"], node["operator"])) for node in header["operators"]
    )
    return ModelFacts(
        {name: TensorFacts(*specs[name]) for name in header["inputs"]},
        {name: TensorFacts(*specs[name]) for name in header["outputs"]},
        sum(_bytes_of(*specs[tensor]) for tensor, _ in header["constants"]),
        operators,
        _unknown(operators, frozenset()),
        {node["domain"]: node["opset"] for node in header["operators"]},
    )


def _bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPE_OF_NAME[dtype].itemsize


def _onnx_facts(data: memoryview) -> ModelFacts:
    parts = _Message(data, 0, len(data))
    graph = parts.message(7)
    if graph is None:
        raise InvalidModelError("is not an ONNX model: it has no graph", hint=REEXPORT)
    seen = _Seen()
    seen.graph(graph)
    functions = parts.messages(25)
    for function in functions:
        seen.nodes(function.messages(7))
    called = frozenset(_qualified(f.text(10), f.text(1)) for f in functions)
    constant = {tensor.text(8) for tensor in graph.messages(5)}
    operators = tuple(item for item in seen.operators if item[1] not in called)
    return ModelFacts(
        {
            value.text(1): _value_facts(value)
            for value in graph.messages(11)
            if value.text(1) not in constant
        },
        {value.text(1): _value_facts(value) for value in graph.messages(12)},
        seen.weight_bytes,
        operators,
        _unknown(operators, called),
        {_domain(opset.text(1)): opset.number(2) for opset in parts.messages(8)},
    )


_Field = tuple[int, int]
"""Where a field's content begins and ends; for a varint its value and -1."""


class _Message:
    """A message in the file; its fields are found by walking over it once, when first asked."""

    def __init__(self, data: memoryview, start: int, end: int) -> None:
        self._data = data
        self._start = start
        self._end = end

    @cached_property
    def _fields(self) -> dict[int, list[_Field]]:
        return _walk(self._data, self._start, self._end)

    def messages(self, number: int) -> list[_Message]:
        return [_Message(self._data, *found) for found in self._content(number)]

    def message(self, number: int) -> _Message | None:
        found = self.messages(number)
        return found[-1] if found else None

    def has(self, number: int) -> bool:
        return number in self._fields

    def text(self, number: int) -> str:
        content = self._content(number)
        if not content:
            return ""
        start, end = content[-1]
        return str(self._data[start:end], "utf-8", "replace")

    def number(self, number: int) -> int:
        found = self._fields.get(number)
        return _signed(found[-1][0]) if found and found[-1][1] < 0 else 0

    def numbers(self, number: int) -> list[int]:
        """Return a repeated integer, packed or not."""
        result = []
        for position, end in self._fields.get(number, ()):
            if end < 0:
                result.append(_signed(position))
            while position < end:
                value, position = _varint(self._data, position, end)
                result.append(_signed(value))
        return result

    def _content(self, number: int) -> list[_Field]:
        return [found for found in self._fields.get(number, ()) if found[1] >= 0]


_LOOKED_INTO = frozenset({"Constant", "If", "Loop", "Scan", "SequenceMap", "FlexAttention"})
"""Operators of ai.onnx whose attributes hold tensors or bodies; of other domains, all may."""


@dataclass(slots=True)
class _Seen:
    """What has been found so far in graphs and their bodies."""

    operators: list[tuple[str, str]] = field(default_factory=list)
    weight_bytes: int = 0

    def graph(self, graph: _Message) -> None:
        self.weight_bytes += sum(map(_tensor_bytes, graph.messages(5)))
        for sparse in graph.messages(15):
            values = sparse.message(1)
            self.weight_bytes += _tensor_bytes(values) if values else 0
        self.nodes(graph.messages(1))

    def nodes(self, nodes: list[_Message]) -> None:
        for index, node in enumerate(nodes):
            operator = node.text(4)
            name = node.text(3) or f"{operator}_{index}"
            self.operators.append((name, _qualified(node.text(7), operator)))
            if operator not in _LOOKED_INTO and not _domain(node.text(7)):
                continue
            for attribute in node.messages(5):
                if operator == "Constant":
                    self.weight_bytes += sum(map(_tensor_bytes, attribute.messages(5)))
                for body in (*attribute.messages(6), *attribute.messages(11)):
                    self.graph(body)


def _tensor_bytes(tensor: _Message) -> int:
    dtype = DTYPE_OF_ELEMENT_TYPE.get(tensor.number(2))
    return math.prod(tensor.numbers(1)) * (dtype.itemsize if dtype else 0)


_KINDS = {4: "sequence", 5: "map", 8: "sparse tensor", 9: "optional"}


def _value_facts(value: _Message) -> TensorFacts:
    kind = value.message(2)
    tensor = kind.message(1) if kind else None
    if kind is None or tensor is None:
        what = next((text for n, text in _KINDS.items() if kind and kind.has(n)), "unknown")
        return TensorFacts(what, ())
    dtype = DTYPE_OF_ELEMENT_TYPE.get(tensor.number(1))
    shape = tensor.message(2)
    dimensions = tuple(map(_dimension, shape.messages(1))) if shape else ()
    return TensorFacts(dtype.name if dtype else "unknown", dimensions)


def _dimension(dimension: _Message) -> int | str | None:
    size = dimension.number(1)
    symbol = dimension.text(2)
    return size if size > 0 else None if symbol in UNNAMED_SYMBOLS else symbol


def _unknown(
    operators: tuple[tuple[str, str], ...], functions: frozenset[str]
) -> tuple[tuple[str, str, str], ...]:
    known = {*KNOWN_OPERATORS, *OPERATORS.names()}
    unknown = [item for item in operators if item[1] not in known | functions]
    names = sorted(known)
    nearest = {
        operator: difflib.get_close_matches(operator, names, 1, 0.0)[0]
        for operator in dict.fromkeys(operator for _, operator in unknown)
    }
    return tuple((node, operator, nearest[operator]) for node, operator in unknown)


def _qualified(domain: str, operator: str) -> str:
    return f"{_domain(domain)}.{operator}" if _domain(domain) else operator


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _walk(data: memoryview, position: int, end: int) -> dict[int, list[_Field]]:
    """Find a message's fields by their numbers, without looking into them.

    One loop without helpers where it can: a model has tens of thousands of fields.
    """
    fields: dict[int, list[_Field]] = {}
    while position < end:
        key = data[position]
        position += 1
        if key >= 0x80:
            key, position = _varint(data, position - 1, end)
        wire = key & 7
        if wire == 2 and position < end:
            length = data[position]
            position += 1
            if length >= 0x80:
                length, position = _varint(data, position - 1, end)
        elif wire == 0:
            value, position = _varint(data, position, end)
            fields.setdefault(key >> 3, []).append((value, -1))
            continue
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise InvalidModelError("is not an ONNX model", hint=REEXPORT)
        if key < 8 or position + length > end:
            raise InvalidModelError("is not an ONNX model, or is cut short", hint=REEXPORT)
        fields.setdefault(key >> 3, []).append((position, position + length))
        position += length
    return fields


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """Return a base-128 integer, and where it ends."""
    # Nearly all are a single byte.
    if position < end and data[position] < 0x80:
        return data[position], position + 1
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise InvalidModelError("is not an ONNX model, or is cut short", hint=REEXPORT)


def _signed(value: int) -> int:
    """Read an int64 from its two's complement."""
    return value - (1 << 64) if value >> 63 else value
