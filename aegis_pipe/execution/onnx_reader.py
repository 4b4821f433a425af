"""Reads an ONNX file into plain values, with external data and its own functions inlined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.graph import GraphAttribute
from aegis_pipe.execution.model_file import REEXPORT, mapped_file
from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE, SUB_BYTE_TYPES
from aegis_pipe.execution.onnx_weights import without_weights
from aegis_pipe.execution.source_model import (
    UNNAMED_SYMBOLS,
    Dimension,
    SourceGraph,
    SourceModel,
    SourceNode,
    SourceValue,
)

OLDEST_OPSET = 1
"""Before opset 6, only operators that mean the same in it are known; the loader looks."""

ModelProto = onnx.ModelProto

_FIELDS: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "float_data",
    onnx.TensorProto.DOUBLE: "double_data",
    onnx.TensorProto.INT32: "int32_data",
    onnx.TensorProto.INT64: "int64_data",
}
"""Where elements lie that are not raw bytes, for dtypes that a field has for itself."""
_PLAIN_KINDS = "fiu"
"""Kinds of dtypes whose elements lie in a file as they lie in memory."""


def read_onnx(data: bytes | memoryview, folder: Path) -> SourceModel:
    """Read a serialised model; `folder` is where its external data lies.

    Reads of `data` when weights are asked for. Raises InvalidModelError for anything that is not a
    sound model.
    """
    slim = without_weights(memoryview(data))
    return _source_model(_parse(slim.data), folder, slim.weights)


def external_files(data: bytes | memoryview, folder: Path) -> frozenset[Path]:
    """Return the files in which tensors of a serialised model lie; see `read_onnx`."""
    slim = bytes(without_weights(memoryview(data)).data)
    if b"location" not in slim:  # the key that such a tensor has; most models have none
        return frozenset()
    proto = _parse(slim)
    bodies = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    tensors: list[onnx.TensorProto] = []
    while bodies:
        graph = bodies.pop()
        tensors += graph.initializer
        for sparse in graph.sparse_initializer:
            tensors += (sparse.values, sparse.indices)
        nodes += graph.node
        while nodes:
            for attribute in nodes.pop().attribute:
                tensors += (attribute.t, *attribute.tensors)
                bodies += (attribute.g, *attribute.graphs)
    return frozenset(
        folder / _name(entry.value)
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if _name(entry.key) == "location"
    )


def source_model_of(model: onnx.ModelProto) -> SourceModel:
    """Return a model that is in memory in plain values; the model stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return _source_model(copy, None, {})


def _parse(data: bytes | memoryview) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(data))
    except DecodeError as error:
        raise InvalidModelError(
            "is not an ONNX model, or is cut short",
            hint="check that the download is complete (compare its size or sha256)",
        ) from error
    return model


def _source_model(
    proto: onnx.ModelProto, folder: Path | None, weights: Mapping[int, memoryview]
) -> SourceModel:
    """Return the model in plain values. Raises InvalidModelError if its frame is not sound."""
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise InvalidModelError("is not an ONNX model: it has no graph", hint=REEXPORT)
    if proto.ir_version > onnx.IR_VERSION:
        raise InvalidModelError(
            f"its format (IR version {proto.ir_version}) is newer than the newest known "
            f"({onnx.IR_VERSION})",
            hint="install a newer `onnx`, or export for an older IR version",
        )
    opsets = _opsets(proto)
    initialisers = {
        _name(tensor.name): partial(_array, tensor, folder, weights.get(position))
        for position, tensor in enumerate(proto.graph.initializer)
    }
    if proto.functions:
        proto = _inlined(proto)
    graph = _graph(proto.graph, folder)
    graph = SourceGraph(
        graph.name,
        graph.nodes,
        {**graph.initialisers, **initialisers},
        graph.inputs,
        graph.outputs,
        graph.declared,
    )
    return SourceModel(graph, opsets, _metadata(proto))


def _opsets(proto: onnx.ModelProto) -> dict[str, int]:
    opsets = {_domain(item.domain): item.version for item in proto.opset_import}
    newest = onnx.defs.onnx_opset_version()
    version = opsets.setdefault("", newest)
    odd = [domain for domain, number in opsets.items() if not 0 < number < 1 << 31]
    if odd:
        raise InvalidModelError(
            f"imports opset {opsets[odd[0]]} of `{odd[0] or 'ai.onnx'}`, which can not be",
            hint=REEXPORT,
        )
    if version > newest:
        raise InvalidModelError(
            f"opset {version} is newer than the newest known ({newest})",
            hint="install a newer `onnx`, or export the model for an older opset",
        )
    if version < OLDEST_OPSET:
        raise InvalidModelError(
            f"opset {version} is older than the oldest supported ({OLDEST_OPSET})",
            hint="convert the model with `onnx.version_converter`",
        )
    return opsets


def _domain(domain: str | bytes) -> str:
    return "" if domain == "ai.onnx" else _name(domain)


def _name(text: str | bytes) -> str:
    """Return text of the file; protobuf hands out bytes where it is no UTF-8."""
    return text if isinstance(text, str) else text.decode(errors="backslashreplace")


def _names(texts: Iterable[str | bytes]) -> tuple[str, ...]:
    return tuple([text if isinstance(text, str) else _name(text) for text in texts])


def _metadata(proto: onnx.ModelProto) -> dict[str, str]:
    facts = {
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "ir_version": str(proto.ir_version),
        "opsets": ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in proto.opset_import),
    }
    return facts | {_name(item.key): _name(item.value) for item in proto.metadata_props}


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with calls of its own functions replaced by their bodies."""
    _check_recursion(proto)
    # The inliner serialises the whole model: weights stay out of it, only their names go in.
    slim = onnx.ModelProto()
    weights = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    slim.CopyFrom(proto)
    proto.graph.initializer.extend(weights)
    slim.graph.initializer.extend(
        onnx.TensorProto(name=w.name, dims=w.dims, data_type=w.data_type) for w in weights
    )
    try:
        return onnx.inliner.inline_local_functions(slim, convert_version=True)
    except RuntimeError as error:
        raise InvalidModelError(
            f"its functions can not be inlined: {str(error).strip().splitlines()[0]}",
            hint=REEXPORT,
        ) from error


def _check_recursion(proto: onnx.ModelProto) -> None:
    functions = {(f.domain, f.name): f for f in proto.functions}
    done: set[tuple[str, str]] = set()

    def visit(key: tuple[str, str], callers: tuple[tuple[str, str], ...]) -> None:
        if key in callers:
            raise InvalidModelError(f"its function `{key[1]}` calls itself", hint=REEXPORT)
        if key in functions and key not in done:
            for called in _calls(functions[key].node):
                visit(called, (*callers, key))
            done.add(key)

    for key in functions:
        visit(key, ())


def _calls(nodes: Iterable[onnx.NodeProto]) -> Iterable[tuple[str, str]]:
    for node in nodes:
        yield node.domain, node.op_type
        for attribute in node.attribute:
            yield from _calls(attribute.g.node)


def _graph(proto: onnx.GraphProto, folder: Path | None) -> SourceGraph:
    initialisers: dict[str, Callable[[], np.ndarray]] = {
        _name(tensor.name): partial(_array, tensor, folder) for tensor in proto.initializer
    }
    for sparse in proto.sparse_initializer:
        initialisers[_name(sparse.values.name)] = partial(_dense, sparse, folder)
    return SourceGraph(
        _name(proto.name),
        tuple([_node(node, index, folder) for index, node in enumerate(proto.node)]),
        initialisers,
        tuple(map(_value, proto.input)),
        tuple([_name(output.name) for output in proto.output]),
        _DeclaredValues((*proto.value_info, *proto.output)),
    )


class _DeclaredValues(Mapping[str, SourceValue]):
    """What a graph declares, read when it is asked for: files declare much, few ask."""

    def __init__(self, protos: Iterable[onnx.ValueInfoProto]) -> None:
        self._protos = {_name(proto.name): proto for proto in protos}

    def __getitem__(self, name: str) -> SourceValue:
        return _value(self._protos[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._protos)

    def __len__(self) -> int:
        return len(self._protos)


def _node(proto: onnx.NodeProto, index: int, folder: Path | None) -> SourceNode:
    operator = _name(proto.op_type)
    name = _name(proto.name) or f"{operator}_{index}"
    attributes: dict[str, GraphAttribute | SourceGraph] = {}
    for attribute in proto.attribute:
        value = _attribute(attribute, name, folder)
        if value is not None:
            attributes[_name(attribute.name)] = value
    return SourceNode(
        name,
        operator,
        _domain(proto.domain),
        attributes,
        _names(proto.input),
        _names(proto.output),
    )


def _attribute(
    proto: onnx.AttributeProto, node: str, folder: Path | None
) -> GraphAttribute | SourceGraph | None:
    """Return an attribute's value; None for types, which only sequences and optionals have."""
    read = _ATTRIBUTES.get(proto.type)
    if read is not None:
        return read(proto, folder)
    raise InvalidModelError(
        f"attribute `{proto.name}` has a type this runtime does not read ({proto.type})",
        context=f"node `{node}`",
        hint=REEXPORT,
    )


_ATTRIBUTES: Mapping[
    int, Callable[[onnx.AttributeProto, Path | None], GraphAttribute | SourceGraph | None]
] = {
    onnx.AttributeProto.INT: lambda proto, _: proto.i,
    onnx.AttributeProto.FLOAT: lambda proto, _: proto.f,
    onnx.AttributeProto.STRING: lambda proto, _: _text(proto.s),
    onnx.AttributeProto.INTS: lambda proto, _: tuple(proto.ints),
    onnx.AttributeProto.FLOATS: lambda proto, _: tuple(proto.floats),
    onnx.AttributeProto.STRINGS: lambda proto, _: tuple(map(_text, proto.strings)),
    onnx.AttributeProto.TENSOR: lambda proto, folder: _array(proto.t, folder),
    onnx.AttributeProto.SPARSE_TENSOR: lambda proto, folder: _dense(proto.sparse_tensor, folder),
    onnx.AttributeProto.GRAPH: lambda proto, folder: _graph(proto.g, folder),
    onnx.AttributeProto.TYPE_PROTO: lambda *_: None,
}


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


_KINDS = {
    "tensor_type": "tensor",
    "sequence_type": "sequence",
    "optional_type": "optional",
    "map_type": "map",
    "sparse_tensor_type": "sparse tensor",
    "opaque_type": "opaque value",
}


def _value(proto: onnx.ValueInfoProto) -> SourceValue:
    kind = _KINDS.get(proto.type.WhichOneof("value") or "tensor_type", "unknown value")
    tensor = proto.type.tensor_type
    shape: tuple[Dimension, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(map(_dimension, tensor.shape.dim))
    return SourceValue(_name(proto.name), kind, DTYPE_OF_ELEMENT_TYPE.get(tensor.elem_type), shape)


def _dimension(proto: onnx.TensorShapeProto.Dimension) -> Dimension:
    # Exporters write 0 or -1 for sizes they do not know; a true 0 can be pinned by `shapes`.
    if proto.HasField("dim_value") and proto.dim_value > 0:
        return int(proto.dim_value)
    symbol = _name(proto.dim_param)
    return None if symbol in UNNAMED_SYMBOLS else symbol


def _array(
    proto: onnx.TensorProto, folder: Path | None, raw_data: memoryview | None = None
) -> np.ndarray:
    """Return a tensor's value; external data is mapped into memory, not read.

    `raw_data` are the bytes that were left out of it.
    """
    if proto.data_type not in DTYPE_OF_ELEMENT_TYPE:
        raise InvalidModelError(
            f"tensor `{proto.name}` has an unknown element type ({proto.data_type})", hint=REEXPORT
        )
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        return _external_array(proto, folder)
    dtype = DTYPE_OF_ELEMENT_TYPE[proto.data_type]
    data = proto.raw_data if raw_data is None else raw_data
    shape = tuple(proto.dims)
    is_plain = dtype.kind in _PLAIN_KINDS and min(shape, default=1) > 0
    if is_plain and len(data) == math.prod(shape) * dtype.itemsize:
        array = np.frombuffer(data, dtype).reshape(shape)
        # Copied, since it may lie anywhere in the file, and the file may change.
        return array if raw_data is None else array.copy()
    if raw_data is not None:
        proto.raw_data = bytes(raw_data)
    field = None if data or proto.HasField("segment") else _FIELDS.get(proto.data_type)
    try:
        if field is not None:
            return np.array(getattr(proto, field), dtype).reshape(shape)
        array = onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise InvalidModelError(
            f"tensor `{proto.name}` is damaged: {error}", hint=REEXPORT
        ) from error
    return np.ascontiguousarray(array).reshape(array.shape)


def _external_array(proto: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    entries = {_name(entry.key): _name(entry.value) for entry in proto.external_data}
    dtype, shape = DTYPE_OF_ELEMENT_TYPE[proto.data_type], tuple(proto.dims)
    data = _map_external(proto.name, entries.get("location", ""), folder)
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(len(data) - offset)))
    except ValueError as error:
        raise InvalidModelError(
            f"external data of tensor `{_name(proto.name)}` has no sound place: {error}",
            hint=REEXPORT,
        ) from error
    packed = proto.data_type in SUB_BYTE_TYPES
    needed = math.prod(shape) * dtype.itemsize
    fits = offset >= 0 and length >= 0 and offset + length <= len(data)
    if not fits or (length < needed and not packed):
        raise InvalidModelError(
            f"external data of tensor `{proto.name}` is cut short: "
            f"{entries['location']} has {len(data)} bytes",
            hint="copy or download the data file again",
        )
    if packed:
        inline = onnx.TensorProto(
            dims=proto.dims, data_type=proto.data_type, raw_data=bytes(data[offset:][:length])
        )
        return _array(inline, None)
    array = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)
    return array if array.flags.aligned else array.copy()


def _map_external(tensor: str, location: str, folder: Path | None) -> memoryview:
    context = f"external data of tensor `{tensor}`"
    if folder is None:
        raise InvalidModelError("a model in memory has no external data", context=context)
    hint = "copy the data file next to the model"
    path = folder / location
    if "\0" in location:
        raise InvalidModelError("the name of its file is none", context=context, hint=REEXPORT)
    if not path.resolve().is_relative_to(folder.resolve()):
        what = f"`{location}` leads out of the model's folder"
        raise InvalidModelError(what, context=context, hint=hint)
    try:
        return mapped_file(path)
    except InvalidModelError as error:
        raise InvalidModelError(
            f"`{location}` {error.message}",
            context=context,
            hint=error.hint if path.exists() else hint,
        ) from error


def _dense(proto: onnx.SparseTensorProto, folder: Path | None) -> np.ndarray:
    values, indices = _array(proto.values, folder), _array(proto.indices, folder)
    dense = np.zeros(tuple(proto.dims), values.dtype)
    try:
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (IndexError, ValueError) as error:
        raise InvalidModelError(
            f"sparse tensor `{proto.values.name}` is damaged: {error}", hint=REEXPORT
        ) from error
    return dense
