"""Looks at a model file without loading it: names, shapes, operators, bytes of weights.

A reader of protobuf's wire format over a mapped file, which skips what it does not ask for; so
weights are never touched, and neither `onnx` nor a parser is needed. The field numbers are those
of `onnx.proto`, which never change.
"""

from __future__ import annotations

import difflib
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.known_operators import KNOWN_OPERATORS
from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE, DTYPE_OF_NAME
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.saved_ir import is_saved_graph, read_header
from aegis_pipe.execution.source_model import REEXPORT, UNNAMED_SYMBOLS


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
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise InvalidModelError(
            f"can not be read: {error}", context=str(path), hint="check the path"
        ) from error
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
            name: facts
            for name, facts in map(_value_facts, graph.messages(11))
            if name not in constant
        },
        dict(map(_value_facts, graph.messages(12))),
        seen.weight_bytes,
        operators,
        _unknown(operators, called),
        {_domain(opset.text(1)): opset.number(2) for opset in parts.messages(8)},
    )


class _Field(NamedTuple):
    number: int
    value: int
    """A varint's value; where the content begins otherwise."""
    end: int
    """Where the content ends; -1 for a varint."""


class _Message:
    """A message in the file; fields are found by walking over it once."""

    def __init__(self, data: memoryview, start: int, end: int) -> None:
        self._data = data
        self.size_bytes = end - start
        self._fields: dict[int, list[_Field]] = {}
        for found in _fields(data, start, end):
            self._fields.setdefault(found.number, []).append(found)

    def messages(self, number: int) -> list[_Message]:
        return [_Message(self._data, f.value, f.end) for f in self._content(number)]

    def message(self, number: int) -> _Message | None:
        found = self.messages(number)
        return found[-1] if found else None

    def has(self, number: int) -> bool:
        return number in self._fields

    def text(self, number: int) -> str:
        content = self._content(number)
        if not content:
            return ""
        return bytes(self._data[content[-1].value : content[-1].end]).decode(errors="replace")

    def number(self, number: int) -> int:
        found = self._fields.get(number)
        return _signed(found[-1].value) if found and found[-1].end < 0 else 0

    def numbers(self, number: int) -> list[int]:
        """Return a repeated integer, packed or not."""
        result = []
        for item in self._fields.get(number, ()):
            position = item.value
            if item.end < 0:
                result.append(_signed(item.value))
            while position < item.end:
                value, position = _varint(self._data, position, item.end)
                result.append(_signed(value))
        return result

    def _content(self, number: int) -> list[_Field]:
        return [item for item in self._fields.get(number, ()) if item.end >= 0]


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
            for attribute in node.messages(5):
                if operator == "Constant":
                    self.weight_bytes += sum(map(_tensor_bytes, attribute.messages(5)))
                for body in (*attribute.messages(6), *attribute.messages(11)):
                    self.graph(body)


def _tensor_bytes(tensor: _Message) -> int:
    dtype = DTYPE_OF_ELEMENT_TYPE.get(tensor.number(2))
    return math.prod(tensor.numbers(1)) * (dtype.itemsize if dtype else 0)


_KINDS = {4: "sequence", 5: "map", 8: "sparse tensor", 9: "optional"}


def _value_facts(value: _Message) -> tuple[str, TensorFacts]:
    kind = value.message(2)
    tensor = kind.message(1) if kind else None
    if kind is None or tensor is None:
        what = next((text for n, text in _KINDS.items() if kind and kind.has(n)), "unknown")
        return value.text(1), TensorFacts(what, ())
    dtype = DTYPE_OF_ELEMENT_TYPE.get(tensor.number(1))
    shape = tensor.message(2)
    dimensions = tuple(map(_dimension, shape.messages(1))) if shape else ()
    return value.text(1), TensorFacts(dtype.name if dtype else "unknown", dimensions)


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


def _fields(data: memoryview, position: int, end: int) -> Iterator[_Field]:
    """Yield a message's fields without looking into them."""
    while position < end:
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise InvalidModelError("is not an ONNX model", hint=REEXPORT)
        if wire == 0:
            value, position = _varint(data, position, end)
            yield _Field(number, value, -1)
            continue
        if wire == 2:
            length, position = _varint(data, position, end)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise InvalidModelError("is not an ONNX model", hint=REEXPORT)
        if position + length > end:
            raise InvalidModelError("is not an ONNX model, or is cut short", hint=REEXPORT)
        yield _Field(number, position, position + length)
        position += length


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    """Return a base-128 integer, and where it ends."""
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
