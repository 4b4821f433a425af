"""Reads a model file into an `ExecutionGraph`.

ONNX (opset 7 to the newest the `onnx` package knows) or this runtime's own saved graph
(`.aegis`). Shapes are fixed here, once: by the file, by `LoadOptions.shapes`, by binding inputs to
constants. What stays open is an error that says what to write in the manifest.
"""

from __future__ import annotations

import difflib
import json
import math
import mmap
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from aegis_pipe.errors import (
    DynamicShapeError,
    InvalidModelError,
    UnsupportedOperatorError,
)
from aegis_pipe.execution.flattening import RULES
from aegis_pipe.execution.graph import ExecutionGraph, GraphAttribute
from aegis_pipe.execution.onnx_types import DTYPE_OF_ELEMENT_TYPE, STRING, SUB_BYTE_TYPES
from aegis_pipe.execution.operators import OPERATORS
from aegis_pipe.execution.operators.table import OperatorTable
from aegis_pipe.execution.partial_evaluation import evaluate_model
from aegis_pipe.execution.source_model import (
    REEXPORT,
    Dimension,
    SourceGraph,
    SourceModel,
    SourceNode,
    SourceValue,
    bodies_of,
    describe,
)
from aegis_pipe.tensor import TensorSpec

OLDEST_OPSET = 7

Constant = bool | int | float | list[Any] | np.ndarray
"""What an input can be bound to."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadOptions:
    """What the manifest adds to a model file."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes of inputs; they also settle the symbols that other inputs share."""
    bind: Mapping[str, Constant] = field(default_factory=dict)
    """Inputs or initialisers that become these constants."""
    name: str = ""
    """The graph's name; the file's name if empty."""


class ModelLoader:
    """Turns model files into execution graphs; holds no state but the operator table."""

    def __init__(self, table: OperatorTable = OPERATORS) -> None:
        self._table = table

    def load(self, path: Path, options: LoadOptions | None = None) -> ExecutionGraph:
        """Load a model file with its external data.

        Raises InvalidModelError, UnsupportedOperatorError or DynamicShapeError; each names the
        file and what to do.
        """
        options = options or LoadOptions()
        name = options.name or path.stem
        try:
            proto = _parse(_read(path))
            return self._evaluate(_source_model(proto, path.parent), options, name)
        except (InvalidModelError, UnsupportedOperatorError, DynamicShapeError) as error:
            if str(path) not in error.context:
                error.context = ": ".join(filter(None, (str(path), error.context)))
            raise

    def load_proto(
        self, model: onnx.ModelProto, options: LoadOptions | None = None
    ) -> ExecutionGraph:
        """Load a model that is in memory; the same as `load` otherwise."""
        options = options or LoadOptions()
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return self._evaluate(_source_model(copy, None), options, options.name or model.graph.name)

    def _evaluate(self, model: SourceModel, options: LoadOptions, name: str) -> ExecutionGraph:
        _check_operators(model.graph, model.opsets, self._table)
        inputs, bound = _fixed_inputs(model.graph, options)
        return evaluate_model(model, self._table, RULES, inputs, bound, name)


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise InvalidModelError("is a directory", context=str(path), hint="name the file in it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidModelError(
            f"can not be read: {error.strerror}", context=str(path), hint="check the path"
        ) from error
    if not data:
        raise InvalidModelError("the file is empty", context=str(path), hint=REEXPORT)
    return data


def _parse(data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise InvalidModelError(
            "is not an ONNX model, or is cut short",
            hint="check that the download is complete (compare its size or sha256)",
        ) from error
    return model


def _source_model(proto: onnx.ModelProto, folder: Path | None) -> SourceModel:
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
        tensor.name: partial(_array, tensor, folder) for tensor in proto.graph.initializer
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


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _metadata(proto: onnx.ModelProto) -> dict[str, str]:
    facts = {
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "ir_version": str(proto.ir_version),
        "opsets": ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in proto.opset_import),
    }
    return facts | {item.key: item.value for item in proto.metadata_props}


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
        tensor.name: partial(_array, tensor, folder) for tensor in proto.initializer
    }
    for sparse in proto.sparse_initializer:
        initialisers[sparse.values.name] = partial(_dense, sparse, folder)
    return SourceGraph(
        proto.name,
        tuple(_node(node, index, folder) for index, node in enumerate(proto.node)),
        initialisers,
        tuple(map(_value, proto.input)),
        tuple(output.name for output in proto.output),
        {info.name: _value(info) for info in (*proto.value_info, *proto.output)},
    )


def _node(proto: onnx.NodeProto, index: int, folder: Path | None) -> SourceNode:
    name = proto.name or f"{proto.op_type}_{index}"
    attributes = {
        attribute.name: value
        for attribute in proto.attribute
        if (value := _attribute(attribute, name, folder)) is not None
    }
    return SourceNode(
        name,
        proto.op_type,
        _domain(proto.domain),
        attributes,
        tuple(proto.input),
        tuple(proto.output),
    )


def _attribute(
    proto: onnx.AttributeProto, node: str, folder: Path | None
) -> GraphAttribute | SourceGraph | None:
    """Return an attribute's value; None for types, which only sequences and optionals have."""
    kinds = onnx.AttributeProto
    match proto.type:
        case kinds.INT:
            return int(proto.i)
        case kinds.FLOAT:
            return float(proto.f)
        case kinds.STRING:
            return _text(proto.s)
        case kinds.INTS:
            return tuple(map(int, proto.ints))
        case kinds.FLOATS:
            return tuple(map(float, proto.floats))
        case kinds.STRINGS:
            return tuple(map(_text, proto.strings))
        case kinds.TENSOR:
            return _array(proto.t, folder)
        case kinds.SPARSE_TENSOR:
            return _dense(proto.sparse_tensor, folder)
        case kinds.GRAPH:
            return _graph(proto.g, folder)
        case kinds.TYPE_PROTO:
            return None
    raise InvalidModelError(
        f"attribute `{proto.name}` has a type this runtime does not read ({proto.type})",
        context=f"node `{node}`",
        hint=REEXPORT,
    )


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
    return SourceValue(proto.name, kind, DTYPE_OF_ELEMENT_TYPE.get(tensor.elem_type), shape)


def _dimension(proto: onnx.TensorShapeProto.Dimension) -> Dimension:
    # Exporters write 0 or -1 for sizes they do not know; a true 0 can be pinned by `shapes`.
    if proto.HasField("dim_value") and proto.dim_value > 0:
        return int(proto.dim_value)
    return proto.dim_param or None


def _array(proto: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    """Return a tensor's value; external data is mapped into memory, not read."""
    if proto.data_type not in DTYPE_OF_ELEMENT_TYPE:
        raise InvalidModelError(
            f"tensor `{proto.name}` has an unknown element type ({proto.data_type})", hint=REEXPORT
        )
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        return _external_array(proto, folder)
    try:
        array = onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise InvalidModelError(
            f"tensor `{proto.name}` is damaged: {error}", hint=REEXPORT
        ) from error
    return np.ascontiguousarray(array).reshape(array.shape)


def _external_array(proto: onnx.TensorProto, folder: Path | None) -> np.ndarray:
    entries = {entry.key: entry.value for entry in proto.external_data}
    dtype, shape = DTYPE_OF_ELEMENT_TYPE[proto.data_type], tuple(proto.dims)
    data = _map_external(proto.name, entries.get("location", ""), folder)
    offset = int(entries.get("offset", "0"))
    length = int(entries.get("length", str(len(data) - offset)))
    packed = proto.data_type in SUB_BYTE_TYPES
    needed = math.prod(shape) * dtype.itemsize
    if offset + length > len(data) or (length < needed and not packed):
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
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidModelError(f"`{location}` leads out of the model's folder", context=context)
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise InvalidModelError(
            f"`{location}` can not be read: {error}",
            context=context,
            hint="copy the data file next to the model",
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


def _check_operators(graph: SourceGraph, opsets: Mapping[str, int], table: OperatorTable) -> None:
    """Raise UnsupportedOperatorError for the first operator that nobody defines."""
    for node in graph.nodes:
        for body in bodies_of(node):
            _check_operators(body, opsets, table)
        known = node.qualified_operator in table.names() or node.qualified_operator in RULES
        if known or onnx.defs.has(node.operator, opsets.get(node.domain, 1), node.domain):
            continue
        names = {*table.names(), *(_qualified(s) for s in onnx.defs.get_all_schemas())}
        near = difflib.get_close_matches(node.qualified_operator, sorted(names), 1, 0.0)
        raise UnsupportedOperatorError(
            f"no operator `{node.qualified_operator}` is known in opset "
            f"{opsets.get(node.domain, 'none')} of `{node.domain or 'ai.onnx'}`",
            context=describe(node),
            hint=f"the nearest is `{near[0]}`; export the model with standard operators",
        )


def _qualified(schema: onnx.defs.OpSchema) -> str:
    return f"{schema.domain}.{schema.name}" if schema.domain else str(schema.name)


def _fixed_inputs(
    graph: SourceGraph, options: LoadOptions
) -> tuple[dict[str, TensorSpec], dict[str, np.ndarray]]:
    """Return the specs of the inputs that stay inputs, and the values of bound ones."""
    declared = {value.name: value for value in graph.inputs}
    for key, name in [("shapes", n) for n in options.shapes] + [("bind", n) for n in options.bind]:
        if name not in declared and not (key == "bind" and name in graph.initialisers):
            raise _unknown_input(key, name, declared)
    bound = {
        name: _bound_value(graph, declared.get(name), name, value)
        for name, value in options.bind.items()
    }
    free = [
        value
        for value in graph.inputs
        if value.name not in bound
        and (value.name not in graph.initialisers or value.name in options.shapes)
    ]
    for value in free:
        _check_input_type(value)
    symbols = _symbols(free, options.shapes)
    shapes = {value.name: _settled_shape(value, options.shapes, symbols) for value in free}
    still_open = [value for value in free if _is_open(shapes[value.name])]
    if still_open:
        raise _open_shapes(still_open, shapes)
    specs = {}
    for value in free:
        assert value.dtype is not None
        shape = shapes[value.name] or ()
        specs[value.name] = TensorSpec(value.dtype, tuple(s for s in shape if isinstance(s, int)))
    return specs, bound


def _is_open(shape: tuple[Dimension, ...] | None) -> bool:
    return shape is None or not all(isinstance(size, int) for size in shape)


def _unknown_input(key: str, name: str, declared: Mapping[str, SourceValue]) -> InvalidModelError:
    near = difflib.get_close_matches(name, list(declared), 1)
    listed = ", ".join(f"`{known}`" for known in declared) or "none"
    return InvalidModelError(
        f"`{key}` names `{name}`, but the model has no such input",
        hint=f"did you mean `{near[0]}`?" if near else f"its inputs are {listed}",
    )


def _check_input_type(value: SourceValue) -> None:
    kind = "text tensor" if value.dtype == STRING else value.kind
    if kind != "tensor":
        raise UnsupportedOperatorError(
            f"is a {kind}; only tensors of numbers can enter a model",
            context=f"graph input `{value.name}`",
            hint="export the model with tensor inputs, or bind the input to a constant",
        )
    if value.dtype is None:
        raise InvalidModelError(
            "has no element type", context=f"graph input `{value.name}`", hint=REEXPORT
        )


def _symbols(free: list[SourceValue], pinned: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes that pinned shapes give to symbols. Raises if two disagree."""
    symbols: dict[str, int] = {}
    for value in free:
        if value.name not in pinned or value.shape is None:
            continue
        shape = tuple(pinned[value.name])
        context = f"graph input `{value.name}`"
        if len(shape) != len(value.shape):
            raise InvalidModelError(
                f"`shapes` gives it {len(shape)} dimensions, the model declares {len(value.shape)}",
                context=context,
                hint=f"the model declares [{', '.join(map(_shown, value.shape))}]",
            )
        for size, dimension in zip(shape, value.shape, strict=True):
            if size < 0:
                raise InvalidModelError(f"`shapes` gives it the size {size}", context=context)
            expected = dimension if isinstance(dimension, int) else None
            if isinstance(dimension, str):
                expected = symbols.setdefault(dimension, size)
            if expected is not None and expected != size:
                raise InvalidModelError(
                    f"`shapes` gives `{_shown(dimension)}` the size {size}, "
                    f"but it is {expected} elsewhere",
                    context=context,
                    hint=f"the model declares [{', '.join(map(_shown, value.shape))}]",
                )
    return symbols


def _settled_shape(
    value: SourceValue, pinned: Mapping[str, tuple[int, ...]], symbols: Mapping[str, int]
) -> tuple[Dimension, ...] | None:
    if value.name in pinned:
        return tuple(map(int, pinned[value.name]))
    if value.shape is None:
        return None
    return tuple(symbols.get(d, d) if isinstance(d, str) else d for d in value.shape)


def _shown(dimension: Dimension) -> str:
    return "?" if dimension is None else str(dimension)


def _open_shapes(
    values: list[SourceValue], shapes: Mapping[str, tuple[Dimension, ...] | None]
) -> DynamicShapeError:
    def listed(name: str, show: Callable[[Dimension], str]) -> str:
        shape = shapes[name]
        return "..." if shape is None else f"[{', '.join(map(show, shape))}]"

    said = ", ".join(f"`{v.name}` {listed(v.name, _shown)}" for v in values)
    line = ", ".join(
        f"{_toml_key(v.name)} = "
        + (listed(v.name, lambda d: str(d) if isinstance(d, int) else "1"))
        for v in values
    )
    return DynamicShapeError(
        f"the shapes of these inputs are open: {said}",
        hint=f"add `shapes = {{ {line} }}` to the model, with your sizes",
    )


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _bound_value(
    graph: SourceGraph, declared: SourceValue | None, name: str, value: Constant
) -> np.ndarray:
    """Return the constant an input is bound to, in the dtype the model declares."""
    context = f"graph input `{name}`"
    dtype = declared.dtype if declared else graph.initialisers[name]().dtype
    array = np.array(value)
    if dtype is None or (array.dtype != dtype and not np.can_cast(array.dtype, dtype, "unsafe")):
        raise InvalidModelError(f"can not be bound to {value!r}", context=context)
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    if array.dtype.kind in "iub" and not np.array_equal(converted.astype(array.dtype), array):
        raise InvalidModelError(f"{value!r} does not fit into {dtype.name}", context=context)
    if declared is None or declared.shape is None:
        return converted
    if converted.ndim == 0 and all(size == 1 for size in declared.shape):
        return converted.reshape(tuple(1 for _ in declared.shape))
    fits = converted.ndim == len(declared.shape) and all(
        not isinstance(expected, int) or expected == size
        for expected, size in zip(declared.shape, converted.shape, strict=True)
    )
    if not fits:
        raise InvalidModelError(
            f"is bound to a value of shape {list(converted.shape)}, the model declares "
            f"[{', '.join(map(_shown, declared.shape))}]",
            context=context,
        )
    return converted
