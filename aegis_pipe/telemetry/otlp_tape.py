"""Spans to OTLP's protobuf in two steps: a tape of words, written here, and its bytes, in C.

What repeats in every trace (names, keys, texts) is encoded once by `otlp_proto.py` and from then on
one word on the tape; numbers are themselves. C (`native/c/otlp.c`) makes bytes of a whole batch
while requests have the interpreter. They are those of `otlp_proto.encode_request`, which needs no
compiled library.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import numpy as np

from aegis_pipe.telemetry import otlp_proto
from aegis_pipe.telemetry.native import LONG_CALLS
from aegis_pipe.telemetry.resources import Resources
from aegis_pipe.telemetry.spans import (
    Attributes,
    AttributeValue,
    Span,
    SpanBlock,
    SpanLink,
    Trace,
)

_MASK: Final = 2**64 - 1
_LENGTH_SHIFT: Final = 4
_OFFSET_SHIFT: Final = 32
CONSTANTS_MAX_BYTES: Final = 1 << 20
"""Beyond it the next batch starts with none, as texts need not repeat."""
_ROOM_BYTES: Final = 1 << 18
_NO_ROOM: Final = -1


class _Op(IntEnum):
    """What a word begins; the same as in `otlp.c`."""

    CONSTANT = 0
    INT = 1
    INTS = 2
    DOUBLES = 3
    SPAN = 4
    EVENT = 5
    END = 6
    BLOCK = 7


# Plain numbers: members of an enumeration are slower to combine.
_CONSTANT, _INT, _INTS, _DOUBLES, _SPAN, _EVENT, _END, _BLOCK = map(int, _Op)
_INTS_ONLY: Final = {int}
_DOUBLES_ONLY: Final = {float}


class OtlpEncoder:
    """Turns batches into `ExportTraceServiceRequest`s; for one thread.

    `library` is the compiled one; None has Python do it all.
    """

    def __init__(self, resources: Resources, library: ctypes.CDLL | None = LONG_CALLS) -> None:
        self._resources = resources
        self._native = None if library is None else library.aegis_encode_otlp
        if self._native is not None:
            self._native.restype = ctypes.c_int64
            self._native.argtypes = (
                *(ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p),
                *(ctypes.c_void_p, ctypes.c_int64),
            )
        self._constants = _Constants()
        self._out = np.empty(_ROOM_BYTES, np.uint8)

    def encode(self, batch: Trace) -> bytes:
        """Return the batch's bytes."""
        if self._native is None:
            return otlp_proto.encode_request(batch, self._resources)
        if self._constants.size_bytes > CONSTANTS_MAX_BYTES:
            self._constants = _Constants()
        host, device = _write_tapes(batch, self._constants)
        constants = self._constants.joined()
        tapes = [array("Q", tape) for tape in (host, device)]
        ends = self._run(tapes, constants)
        if not ends:  # A kernel took longer than its template has room for.
            return otlp_proto.encode_request(batch, self._resources)
        spans = self._out.data
        parts: list[bytes | memoryview] = []
        if host:
            parts += otlp_proto.service(self._resources.host, [spans[: ends[0]]])
        if device:
            parts += otlp_proto.service(self._resources.device, [spans[ends[0] : ends[1]]])
        return b"".join(parts)

    def _run(self, tapes: Sequence[array[int]], constants: bytes) -> list[int]:
        """Fill `_out` from one tape after the other; return where each ends, or nothing."""
        assert self._native is not None
        ends = [0]
        while len(ends) <= len(tapes):
            address, words = tapes[len(ends) - 1].buffer_info()
            room = len(self._out) - ends[-1]
            size = self._native(address, words, constants, self._out.ctypes.data + ends[-1], room)
            if size == _NO_ROOM:
                self._out, ends = np.empty(2 * len(self._out), np.uint8), [0]
            elif size < 0:
                return []
            else:
                ends.append(ends[-1] + size)
        return ends[1:]


class _Constants:
    """Bytes that tapes refer to, each encoded once."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._joined = b""
        self.size_bytes = 0
        self.names = _NameWords(self)
        self.event_names = _EventNameWords(self)
        self.span_attributes = _AttributeWords(self, b"\x4a")
        self.event_attributes = _AttributeWords(self, b"\x1a")
        self.links = _LinkWords(self)
        self.tails = _TailWords(self)

    def word(self, op: int, piece: bytes) -> int:
        """Keep bytes; return the word that begins `op` with them."""
        offset = self.size_bytes
        self._pieces.append(piece)
        self.size_bytes += len(piece)
        return op | len(piece) << _LENGTH_SHIFT | offset << _OFFSET_SHIFT

    def joined(self) -> bytes:
        """Return all that words point into."""
        if len(self._joined) != self.size_bytes:
            self._joined = b"".join(self._pieces)
            self._pieces = [self._joined]
        return self._joined


class _Words(dict):  # type: ignore[type-arg]  # each kind has keys of its own
    """Words by what they stand for, made when they are first asked for."""

    def __init__(self, constants: _Constants) -> None:
        super().__init__()
        self._word = constants.word


class _NameWords(_Words):
    def __missing__(self, name: str) -> int:
        word = self[name] = self._word(_SPAN, otlp_proto.text(b"\x2a", name))
        return word


class _EventNameWords(_Words):
    def __missing__(self, name: str) -> int:
        word = self[name] = self._word(_EVENT, otlp_proto.text(b"\x12", name))
        return word


class _LinkWords(_Words):
    def __missing__(self, link: SpanLink) -> int:
        word = self[link] = self._word(_CONSTANT, otlp_proto.field(b"\x6a", otlp_proto.link(link)))
        return word


class _TailWords(_Words):
    """By (error, whether the parent is remote)."""

    def __missing__(self, key: tuple[str, bool]) -> int:
        word = self[key] = self._word(_CONSTANT, otlp_proto.tail(*key))
        return word


class _KeyWords(_Words):
    """By the key of an attribute whose value follows."""

    def __init__(self, constants: _Constants, tag: bytes, op: int) -> None:
        super().__init__(constants)
        self._tag = tag
        self._op = op

    def __missing__(self, key: str) -> int:
        word = self[key] = self._word(self._op, self._tag + otlp_proto.text(b"\x0a", key))
        return word


class _PairWords(_Words):
    """By key and value, all of one type: True and 1 would be the same key."""

    def __init__(self, constants: _Constants, tag: bytes) -> None:
        super().__init__(constants)
        self._tag = tag

    def __missing__(self, pair: tuple[str, AttributeValue]) -> int:
        word = self[pair] = self._word(_CONSTANT, self._tag + otlp_proto.pair(*pair))
        return word


class _AttributeWords:
    """Words of attributes below one tag."""

    def __init__(self, constants: _Constants, tag: bytes) -> None:
        self._tag = tag
        self._word = constants.word
        self._ints = _KeyWords(constants, tag, _INT)
        self._texts = _PairWords(constants, tag)
        self._truths = _PairWords(constants, tag)
        self._int_arrays = _KeyWords(constants, tag, _INTS)
        self._double_arrays = _KeyWords(constants, tag, _DOUBLES)

    def write(self, tape: list[int], values: Attributes) -> None:
        """Append attributes."""
        append, ints, texts = tape.append, self._ints, self._texts
        for key, value in values.items():
            kind = type(value)
            if kind is int:
                append(ints[key])
                append(value & _MASK)  # type: ignore[operator]  # it is an int
            elif kind is str:
                append(texts[key, value])
            elif kind is bool:
                append(self._truths[key, value])
            else:
                self._write_rare(tape, key, value)

    def _write_rare(self, tape: list[int], key: str, value: AttributeValue) -> None:
        kinds = set(map(type, value)) if type(value) in (list, tuple) else ()  # type: ignore[arg-type]
        if kinds == _INTS_ONLY:
            tape += (self._int_arrays[key], len(value))  # type: ignore[arg-type]
            tape += [number & _MASK for number in value]  # type: ignore[operator, union-attr]
        elif kinds == _DOUBLES_ONLY:
            tape += (self._double_arrays[key], len(value))  # type: ignore[arg-type]
            # Their bits, as words.
            tape += array("Q", array("d", value).tobytes())  # type: ignore[arg-type, type-var]
        else:
            tape.append(self._word(_CONSTANT, self._tag + otlp_proto.pair(key, value)))


def _write_tapes(batch: Trace, constants: _Constants) -> tuple[list[int], list[int]]:
    """Return the tapes of the host's spans and of the device's."""
    host: list[int] = []
    device: list[int] = []
    for part in batch:
        if isinstance(part, SpanBlock):
            _write_block(device, part)
        else:
            _write_span(device if part.on_device else host, part, constants)
    return host, device


def _write_span(tape: list[int], span: Span, constants: _Constants) -> None:
    trace_id = span.trace_id
    tape += (
        constants.names[span.name],
        trace_id >> 64,
        trace_id & _MASK,
        span.span_id,
        span.parent_id,
        span.start_ns,
        span.end_ns,
    )
    constants.span_attributes.write(tape, span.attributes)
    for event in span.events:
        tape += (constants.event_names[event.name], event.at_ns)
        constants.event_attributes.write(tape, event.attributes)
        tape.append(_END)
    for link in span.links:
        tape.append(constants.links[link])
    tape += (constants.tails[span.error, span.parent_is_remote], _END)


def _write_block(tape: list[int], block: SpanBlock) -> None:
    template = otlp_proto.template(block.calls, block.stream)
    trace_id = block.trace_id
    tape += (
        *(_BLOCK, template.address, template.size_bytes, template.holes_address),
        *(block.kernels, trace_id >> 64, trace_id & _MASK, block.parent_id, block.first_id),
        block.columns.ctypes.data,
    )
