r"""Saves an `ExecutionGraph` with its weights in one file (`.aegis`), and loads it again.

The file, all numbers little-endian:

    offset  bytes
    0       8      magic `AEGISIR\n`
    8       4      format version (1)
    12      4      length of the header in bytes
    16      32     SHA-256 of the header
    48      ...    header: JSON text in ASCII
    ...            blobs, each at a multiple of 64 bytes from the start of the file

The header holds the graph; tensors and bodies of control flow are blobs, listed as
`[offset, size, sha256]` and referred to by their index. Weights are mapped into memory, so that
loading reads them once, to compare their digests, and copies nothing. Loading needs no `onnx`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.graph import ExecutionGraph, GraphAttribute, OperatorNode, Subgraph
from aegis_pipe.execution.model_file import mapped_file
from aegis_pipe.execution.onnx_types import DTYPE_OF_NAME, STRING
from aegis_pipe.tensor import TensorId, TensorSpec

MAGIC = b"AEGISIR\n"
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sII32s")
_ALIGNMENT_BYTES = 64


def is_saved_graph(data: bytes | memoryview) -> bool:
    """Return whether a file that starts with `data` claims to be a saved graph."""
    return bytes(data[: len(MAGIC)]) == MAGIC


def save_graph(graph: ExecutionGraph, path: Path) -> None:
    """Write a graph and its weights; the same graph gives the same bytes."""
    blobs = _BlobWriter()
    header = {
        "name": graph.name,
        "metadata": dict(graph.metadata),
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "lengths": [
            [tensor, axis, length]
            for tensor, axes in graph.lengths.items()
            for axis, length in axes.items()
        ],
        "tensors": [
            [tensor, spec.dtype.name, list(spec.shape)] for tensor, spec in graph.specs.items()
        ],
        "constants": [[tensor, blobs.add_array(a)] for tensor, a in graph.constants.items()],
        "operators": [_node_to_plain(node, blobs) for node in graph.operators],
    }
    # Blobs come after the header, whose length depends on their offsets: count these from the
    # first blob.
    header["blobs"] = blobs.listing
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    with path.open("wb") as file:
        digest = hashlib.sha256(text).digest()
        file.write(_PREFIX.pack(MAGIC, FORMAT_VERSION, len(text), digest))
        file.write(text)
        for data in blobs.data:
            file.write(bytes(-file.tell() % _ALIGNMENT_BYTES))
            file.write(data)


def load_graph(path: Path) -> ExecutionGraph:
    """Load a saved graph. Raises InvalidModelError if the file is damaged or of another format."""
    data = mapped_file(path)
    try:
        header, first_blob = read_header(data)
        return _graph_from_plain(header, _BlobReader(data, first_blob, header["blobs"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidModelError(
            f"the header does not describe a graph: {error!r}", context=str(path), hint=_SAVE_AGAIN
        ) from error
    except InvalidModelError as error:
        error.context = error.context or str(path)
        raise


def read_header(data: memoryview) -> tuple[dict[str, Any], int]:
    """Return the header and the offset where blobs begin. Raises InvalidModelError."""
    if len(data) < _PREFIX.size:
        raise InvalidModelError("the saved graph is cut short", hint=_SAVE_AGAIN)
    magic, version, length, digest = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise InvalidModelError("is not a saved graph", hint=_SAVE_AGAIN)
    if version != FORMAT_VERSION:
        raise InvalidModelError(
            f"has format version {version}, this runtime reads {FORMAT_VERSION}", hint=_SAVE_AGAIN
        )
    end = _PREFIX.size + length
    text = bytes(data[_PREFIX.size : end])
    if len(text) != length or hashlib.sha256(text).digest() != digest:
        raise InvalidModelError("the header is damaged or cut short", hint=_SAVE_AGAIN)
    return json.loads(text), end + -end % _ALIGNMENT_BYTES


_SAVE_AGAIN = "save the graph again from its ONNX file"


class _BlobWriter:
    """Collects blobs; equal ones are stored once."""

    def __init__(self) -> None:
        self.data: list[bytes | memoryview] = []
        self.listing: list[list[int | str]] = []
        self._index: dict[str, int] = {}
        self._end = 0

    def add(self, data: bytes | memoryview) -> int:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._index:
            self._index[digest] = len(self.data)
            self.listing.append([self._end, len(data), digest])
            self.data.append(data)
            self._end += len(data) + -len(data) % _ALIGNMENT_BYTES
        return self._index[digest]

    def add_array(self, array: np.ndarray) -> int:
        return self.add(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


class _BlobReader:
    """Hands out blobs that have the digest they were saved with."""

    def __init__(self, data: memoryview, first: int, listing: list[list[Any]]) -> None:
        self._data, self._first, self._listing = data, first, listing

    def read(self, index: int) -> memoryview:
        offset, size, digest = self._listing[index]
        blob = self._data[self._first + offset : self._first + offset + size]
        if hashlib.sha256(blob).hexdigest() != digest:
            raise InvalidModelError("weights are damaged or cut short", hint=_SAVE_AGAIN)
        return blob

    def read_array(self, index: int, spec: TensorSpec) -> np.ndarray:
        return np.frombuffer(self.read(index), spec.dtype).reshape(spec.shape)


def _node_to_plain(node: OperatorNode, blobs: _BlobWriter) -> dict[str, Any]:
    return {
        "name": node.name,
        "operator": node.operator,
        "domain": node.domain,
        "opset": node.opset,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        "attributes": {key: _to_plain(value, blobs) for key, value in node.attributes.items()},
    }


def _to_plain(value: GraphAttribute, blobs: _BlobWriter) -> list[Any]:
    """Return `[kind, ...]`; floats as hexadecimal text, which is exact and knows infinity."""
    match value:
        case int():
            return ["int", value]
        case float():
            return ["float", value.hex()]
        case str():
            return ["str", value]
        case bytes():
            return ["bytes", base64.b64encode(value).decode()]
        case tuple():
            return ["tuple", [_to_plain(item, blobs) for item in value]]
        case Subgraph():
            return ["body", blobs.add(value.serialised), list(value.captures)]
    if value.dtype == STRING:
        items = [_to_plain(item, blobs) for item in value.reshape(-1).tolist()]
        return ["strings", list(value.shape), items]
    return ["array", value.dtype.name, list(value.shape), blobs.add_array(value)]


def _from_plain(plain: list[Any], blobs: _BlobReader) -> GraphAttribute:
    kind, *parts = plain
    readers: dict[str, Callable[..., GraphAttribute]] = {
        "int": int,
        "float": float.fromhex,
        "str": str,
        "bytes": base64.b64decode,
        "tuple": lambda items: tuple(_from_plain(item, blobs) for item in items),  # type: ignore[misc]  # items are scalars
        "body": lambda blob, captures: Subgraph(bytes(blobs.read(blob)), tuple(captures)),
        "strings": lambda shape, items: np.array(
            [_from_plain(item, blobs) for item in items], STRING
        ).reshape(shape),
        "array": lambda dtype, shape, blob: blobs.read_array(
            blob, TensorSpec(DTYPE_OF_NAME[dtype], tuple(shape))
        ),
    }
    return readers[kind](*parts)


def _lengths_from_plain(
    listed: Sequence[tuple[str, int, str]],
) -> dict[TensorId, dict[int, TensorId]]:
    lengths: dict[TensorId, dict[int, TensorId]] = {}
    for tensor, axis, length in listed:
        lengths.setdefault(TensorId(tensor), {})[axis] = TensorId(length)
    return lengths


def _graph_from_plain(header: dict[str, Any], blobs: _BlobReader) -> ExecutionGraph:
    specs = {
        TensorId(tensor): TensorSpec(DTYPE_OF_NAME[dtype], tuple(shape))
        for tensor, dtype, shape in header["tensors"]
    }
    return ExecutionGraph.build(
        name=header["name"],
        operators=[
            OperatorNode(
                node["name"],
                node["operator"],
                node["domain"],
                node["opset"],
                {key: _from_plain(value, blobs) for key, value in node["attributes"].items()},
                tuple(map(TensorId, node["inputs"])),
                tuple(map(TensorId, node["outputs"])),
            )
            for node in header["operators"]
        ],
        specs=specs,
        constants={
            TensorId(tensor): blobs.read_array(blob, specs[TensorId(tensor)])
            for tensor, blob in header["constants"]
        },
        inputs=[TensorId(tensor) for tensor in header["inputs"]],
        outputs=[TensorId(tensor) for tensor in header["outputs"]],
        metadata=header["metadata"],
        lengths=_lengths_from_plain(header.get("lengths", ())),
    )
