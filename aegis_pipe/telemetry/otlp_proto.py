"""Spans to OTLP's protobuf bytes, written directly.

The SDK's encoder takes 30 us a span and holds the interpreter meanwhile, so that requests wait
for their own traces; this takes a fifth of that, and for kernels, whose bytes are the same in every
request but for ids and times, a hundredth: they are filled into a template of their segment.
Where C is compiled it makes the same bytes (`otlp_tape.py`), from this file's pieces.
A test compares the two encoders, message by message.
Field numbers are those of opentelemetry-proto 1.x (`trace.proto`, `common.proto`, `resource.proto`,
`trace_service.proto`), which are frozen; the encoding is protobuf's (protobuf.dev, "Encoding").
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import numpy as np

from aegis_pipe.telemetry import attributes as names
from aegis_pipe.telemetry.resources import SCOPE_NAME, Resources
from aegis_pipe.telemetry.spans import (
    AttributeValue,
    SegmentCalls,
    Span,
    SpanBlock,
    SpanEvent,
    SpanLink,
    Trace,
)

_INT64_MASK: Final = 2**64 - 1
_FLAG_REMOTENESS_KNOWN: Final = 0x100
_FLAG_PARENT_IS_REMOTE: Final = 0x200

_SPAN_IDS: Final = struct.Struct(">2s16s2sQ")
"""`trace_id` = 1 and `span_id` = 2, each with tag and length."""
_PARENT_ID: Final = struct.Struct(">2sQ")
_SPAN_TIMES: Final = struct.Struct("<2scQcQ")
"""`kind` = 6 (internal), `start_time_unix_nano` = 7, `end_time_unix_nano` = 8."""
_FLAGS: Final = struct.Struct("<2sI")
_FIXED64: Final = struct.Struct("<cQ")
_DOUBLE: Final = struct.Struct("<cd")
_DOUBLE_ITEM: Final = struct.Struct("<3sd")
"""An array's `AnyValue` with its tag and length."""


def encode_request(batch: Trace, resources: Resources) -> bytes:
    """Return a batch as an `ExportTraceServiceRequest`, the host's spans first."""
    host: list[bytes] = []
    device: list[bytes] = []
    for part in batch:
        if isinstance(part, Span):
            (device if part.on_device else host).append(field(b"\x12", _span(part)))
        else:
            device.append(_block(part))
    services = ((resources.host, host), (resources.device, device))
    return b"".join(
        [part for resource, spans in services if spans for part in service(resource, spans)]
    )


Piece = bytes | memoryview


def service(resource: Mapping[str, AttributeValue], spans: Sequence[Piece]) -> list[Piece]:
    """Return a `ResourceSpans` in pieces: the spans are large, and are joined once."""
    scope = field(b"\x0a", text(b"\x0a", SCOPE_NAME))
    scope_spans = b"\x12" + _varint(len(scope) + sum(map(len, spans))) + scope
    head = field(b"\x0a", _attributes(b"\x0a", resource)) + scope_spans
    length = len(head) + sum(map(len, spans))
    return [b"\x0a" + _varint(length) + head, *spans]


class Template:
    """The bytes of a segment's kernel spans, and where ids and times go.

    Durations are varints of a fixed length: continuation bits on bytes of value zero are legal.
    """

    DURATION_BYTES: Final = 5
    DURATION_MAX_NS: Final = 2 ** (7 * DURATION_BYTES) - 1
    _SHIFTS: Final = np.arange(DURATION_BYTES, dtype=np.int64) * 7
    _CONTINUED: Final = np.array([0x80] * (DURATION_BYTES - 1) + [0], np.uint8)

    def __init__(self, calls: SegmentCalls, stream: int) -> None:
        image = bytearray()
        firsts, places = [], []
        for call in range(len(calls.calls)):
            body, holes = self._span(calls, call, stream)
            message = field(b"\x12", body)
            start = len(image) + len(message) - len(body)
            firsts.append([start + first for first, _ in holes])
            places.append([start + offset for first, size in holes for offset in _run(first, size)])
            image += message
        self._image = np.frombuffer(bytes(image), np.uint8)
        self._places = np.array(places, np.intp)
        # Without the sixth: the end's hole is 9 bytes after the start's.
        self._holes = np.array(firsts, np.int32)[:, [0, 1, 2, 3, 5]].copy()
        self.size_bytes = len(image)
        self.address = self._image.ctypes.data
        """Of the bytes."""
        self.holes_address = self._holes.ctypes.data
        """Of int32[calls, 5]: offsets of trace id, span id, parent's id, start and duration."""

    def _span(
        self, calls: SegmentCalls, call: int, stream: int
    ) -> tuple[bytes, list[tuple[int, int]]]:
        """Return a span with holes, and (offset, size) of each hole."""
        head = _SPAN_IDS.pack(b"\x0a\x10", bytes(16), b"\x12\x08", 0)
        head += _PARENT_ID.pack(b"\x22\x08", 0) + text(b"\x2a", calls.names[call])
        times = _SPAN_TIMES.pack(b"\x30\x01", b"\x39", 0, b"\x41", 0)
        values = calls.attributes(call, stream, 0)
        del values[names.DURATION_NS]
        number = b"\x18" + bytes(self.DURATION_BYTES)
        pair = text(b"\x0a", names.DURATION_NS) + field(b"\x12", number)
        body = head + times + _attributes(b"\x4a", values) + field(b"\x4a", pair)
        holes = [
            (2, 16),
            (20, 8),
            (30, 8),
            (len(head) + 3, 8),
            (len(head) + 12, 8),
            (len(body) - self.DURATION_BYTES, self.DURATION_BYTES),
        ]
        return body + _FLAGS.pack(b"\x85\x01", _FLAG_REMOTENESS_KNOWN), holes

    def fill(self, block: SpanBlock) -> bytes:
        """Return the block's spans, each with its tag and length."""
        values = np.empty((block.kernels, self._places.shape[1]), np.uint8)
        values[:, 0:16] = np.frombuffer(block.trace_id.to_bytes(16, "big"), np.uint8)
        values[:, 16:24] = _bytes_of(block.span_ids, ">u8")
        values[:, 24:32] = np.frombuffer(block.parent_id.to_bytes(8, "big"), np.uint8)
        values[:, 32:40] = _bytes_of(block.columns[0], "<u8")
        values[:, 40:48] = _bytes_of(block.columns[1], "<u8")
        septets = (block.columns[2][:, None] >> self._SHIFTS) & 0x7F
        values[:, 48:] = septets.astype(np.uint8) | self._CONTINUED
        filled = self._image.copy()
        filled[self._places] = values
        return filled.tobytes()


template = lru_cache(maxsize=4_096)(Template)


def _run(first: int, size: int) -> range:
    return range(first, first + size)


def _bytes_of(numbers: np.ndarray, dtype: str) -> np.ndarray:
    return numbers.astype(dtype).view(np.uint8).reshape(len(numbers), 8)


def _block(block: SpanBlock) -> bytes:
    if int(block.columns[2].max(initial=0)) > Template.DURATION_MAX_NS:
        return b"".join(field(b"\x12", _span(span)) for span in block.spans())
    return template(block.calls, block.stream).fill(block)


def _span(span: Span) -> bytes:
    head = _SPAN_IDS.pack(b"\x0a\x10", span.trace_id.to_bytes(16, "big"), b"\x12\x08", span.span_id)
    parts = [
        head,
        _PARENT_ID.pack(b"\x22\x08", span.parent_id) if span.parent_id else b"",
        _name(span.name),
        _SPAN_TIMES.pack(b"\x30\x01", b"\x39", span.start_ns, b"\x41", span.end_ns),
        _attributes(b"\x4a", span.attributes),
    ]
    parts += [field(b"\x5a", _event(event)) for event in span.events]
    parts += [field(b"\x6a", link(each)) for each in span.links]
    parts.append(tail(span.error, span.parent_is_remote))
    return b"".join(parts)


def tail(error: str, parent_is_remote: bool) -> bytes:
    """Return what a span ends with: `status` = 15 and `flags` = 16."""
    # An empty status is written too, as the SDK does: it means "unset".
    status = field(b"\x7a", text(b"\x12", error) + b"\x18\x02" if error else b"")
    remoteness = _FLAG_PARENT_IS_REMOTE if parent_is_remote else 0
    return status + _FLAGS.pack(b"\x85\x01", _FLAG_REMOTENESS_KNOWN | remoteness)


@lru_cache(maxsize=4_096)
def _name(name: str) -> bytes:
    return text(b"\x2a", name)


def _event(event: SpanEvent) -> bytes:
    time = _FIXED64.pack(b"\x09", event.at_ns)
    return time + text(b"\x12", event.name) + _attributes(b"\x1a", event.attributes)


def link(each: SpanLink) -> bytes:
    """Return a `Span.Link`."""
    trace_id = each.target.trace_id.to_bytes(16, "big")
    return b"".join(
        (
            _SPAN_IDS.pack(b"\x0a\x10", trace_id, b"\x12\x08", each.target.span_id),
            _attributes(b"\x22", {names.LINK: each.reason}),
            struct.pack("<cI", b"\x35", _FLAG_REMOTENESS_KNOWN),
        )
    )


def _attributes(tag: bytes, values: Mapping[str, AttributeValue]) -> bytes:
    parts = []
    for key, value in values.items():
        kind = type(value)
        if kind is int:
            number = _varint(value & _INT64_MASK)  # type: ignore[operator]
            parts.append(_int_head(tag, key, len(number)) + number)
        elif kind is str or kind is bool:
            # Texts and truths repeat (names of kernels, nodes, rules), numbers hardly do.
            parts.append(tag + _known_pair(key, value))
        else:
            parts.append(tag + pair(key, value))
    return b"".join(parts)


@lru_cache(maxsize=4_096)
def _int_head(tag: bytes, key: str, number_bytes: int) -> bytes:
    """Return what stands before the varint of a whole number's `KeyValue`."""
    value = b"\x12" + _varint(1 + number_bytes) + b"\x18"
    name = text(b"\x0a", key)
    return tag + _varint(len(name) + len(value) + number_bytes) + name + value


def pair(key: str, value: AttributeValue) -> bytes:
    """Return a `KeyValue` with its length."""
    body = text(b"\x0a", key) + field(b"\x12", _any_value(value))
    return _varint(len(body)) + body


# Typed, because True == 1 and they are encoded differently.
_known_pair = lru_cache(maxsize=16_384, typed=True)(pair)


def _any_value(value: AttributeValue) -> bytes:
    if type(value) in (list, tuple):
        return _array(value)  # type: ignore[arg-type]
    match value:
        case bool():  # Before int: a bool is one.
            return b"\x10\x01" if value else b"\x10\x00"
        case str():
            return text(b"\x0a", value)
        case int():
            return b"\x18" + _varint(value & _INT64_MASK)
        case float():
            return _DOUBLE.pack(b"\x21", value)
        case _:
            return _array(value)


def _array(values: Sequence[str] | Sequence[int] | Sequence[float]) -> bytes:
    parts = []
    for value in values:
        if type(value) is int:
            number = _varint(value & _INT64_MASK)
            parts.append(b"\x0a" + _ONE_BYTE[1 + len(number)] + b"\x18" + number)
        elif type(value) is float:
            parts.append(_DOUBLE_ITEM.pack(b"\x0a\x09\x21", value))
        else:
            parts.append(field(b"\x0a", _any_value(value)))
    return field(b"\x2a", b"".join(parts))


def text(tag: bytes, value: str) -> bytes:
    """Return a text with its tag and length."""
    return field(tag, value.encode())


def field(tag: bytes, body: bytes) -> bytes:
    """Return bytes with their tag and length."""
    return tag + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    if value < _TWO_SEPTETS:
        return _SHORT[value]
    return _CONTINUED[value & _TWO_SEPTETS - 1] + _varint(value >> 14)


_TWO_SEPTETS: Final = 1 << 14
_ONE_BYTE: Final = [bytes([value]) for value in range(0x80)]
_SHORT: Final = _ONE_BYTE + [
    bytes([value & 0x7F | 0x80, value >> 7]) for value in range(0x80, _TWO_SEPTETS)
]
_CONTINUED: Final = [
    bytes([value & 0x7F | 0x80, value >> 7 | 0x80]) for value in range(_TWO_SEPTETS)
]
"""Two bytes after which more follow. Tables of 2 MB, as numbers are most of what is encoded."""
