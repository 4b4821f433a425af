"""Takes large weights out of a serialised ONNX model, so that parsing it does not copy them.

Protobuf would copy a model's weights twice, once to parse it and once for each tensor that is read.
This walks the few fields on the way from model to graph to initialiser (encoding:
https://protobuf.dev/programming-guides/encoding) and leaves out the raw bytes of large ones; what
it does not understand it leaves alone, for the parser to say what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

LARGE_BYTES = 16 << 10
"""Smaller tensors are not worth the trouble; nor are models that have no larger one."""

_GRAPH, _INITIALISER, _RAW_DATA = 7, 5, 9
"""Numbers of `ModelProto.graph`, `GraphProto.initializer` and `TensorProto.raw_data`."""
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
"""How a field is encoded."""


class SlimModel(NamedTuple):
    """A serialised model without its large weights."""

    data: bytes | memoryview
    weights: Mapping[int, memoryview]
    """Raw bytes that were left out, by position of the initialiser in the graph."""


class _NotUnderstoodError(Exception):
    """The bytes are no protobuf, or none of the common form."""


class _Field(NamedTuple):
    number: int
    start: int
    """Where the field begins, tag included."""
    content: int
    """Where its content begins: what follows tag and length."""
    end: int


def without_weights(data: memoryview) -> SlimModel:
    """Return the model without the raw bytes of initialisers from `LARGE_BYTES` on."""
    try:
        return _without_weights(data) if len(data) >= LARGE_BYTES else SlimModel(data, {})
    except _NotUnderstoodError:
        return SlimModel(data, {})


def _without_weights(data: memoryview) -> SlimModel:
    graphs = [field for field in _fields(data, 0, len(data)) if field.number == _GRAPH]
    if len(graphs) != 1:
        raise _NotUnderstoodError
    (graph,) = graphs
    pieces: list[bytes | memoryview] = []
    weights: dict[int, memoryview] = {}
    position, copied = 0, graph.content
    for field in _fields(data, graph.content, graph.end):
        if field.number != _INITIALISER:
            continue
        raw = _raw_data(data, field)
        if raw is not None:
            weights[position] = data[raw.content : raw.end]
            kept = (data[field.content : raw.start], data[raw.end : field.end])
            pieces += [data[copied : field.start], *_message(_INITIALISER, kept)]
            copied = field.end
        position += 1
    pieces.append(data[copied : graph.end])
    parts = [data[: graph.start], *_message(_GRAPH, pieces), data[graph.end :]]
    return SlimModel(b"".join(parts), weights)


def _raw_data(data: memoryview, tensor: _Field) -> _Field | None:
    """Return a tensor's raw bytes if they are many and there once."""
    if tensor.end - tensor.content < LARGE_BYTES:
        return None
    found = [
        field
        for field in _fields(data, tensor.content, tensor.end)
        if field.number == _RAW_DATA and field.end - field.content >= LARGE_BYTES
    ]
    return found[0] if len(found) == 1 else None


def _message(number: int, pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return a field of that number whose content are the pieces."""
    return [_encoded(number << 3 | _LENGTH), _encoded(sum(map(len, pieces))), *pieces]


def _encoded(value: int) -> bytes:
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a message. Raises _NotUnderstoodError."""
    at = start
    while at < end:
        first = at
        # Nearly all tags, and most lengths, are one byte.
        tag = data[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(data, first, end)
        kind, content = tag & 7, at
        if kind == _LENGTH:
            length = data[at] if at < end else 0x80
            content = at + 1
            if length >= 0x80:
                length, content = _varint(data, at, end)
            at = content + length
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
            at += 4 if kind == _FOUR_BYTES else 8
        else:
            raise _NotUnderstoodError
        if at > end:
            raise _NotUnderstoodError
        yield _Field(tag >> 3, first, content, at)


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends."""
    value = shift = 0
    while at < end and shift < 64:
        group = data[at]
        at += 1
        value |= (group & 0x7F) << shift
        if group < 0x80:
            return value, at
        shift += 7
    raise _NotUnderstoodError
