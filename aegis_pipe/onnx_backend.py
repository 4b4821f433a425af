"""The ONNX backend interface, so that ONNX's own conformance tests run against this runtime.

    rep = aegis_pipe.onnx_backend.prepare(model, device="CPU")
    outputs = rep.run([x, y])

Shapes are fixed when a graph is compiled here, but known only with the inputs there: so each new
set of input shapes is compiled on its first run. Inputs whose values decide shapes (the target of
a Reshape, the bounds of a Slice) become constants of that graph; which ones, the loader says.
"""

from __future__ import annotations

import atexit
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend, BackendRep

from aegis_pipe.clock import Clock, SystemClock
from aegis_pipe.device.protocols import DeviceContext, DeviceStream
from aegis_pipe.device.registry import open_device
from aegis_pipe.errors import (
    DeviceUnavailableError,
    DynamicShapeError,
    InvalidInputError,
    InvalidModelError,
    UnsupportedOperatorError,
)
from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader
from aegis_pipe.execution.shape_inference import UnknownOperandError
from aegis_pipe.execution.standalone import StandaloneGraph

COMPILED_GRAPHS_MAX = 8
"""Specialisations that a prepared model keeps; the least recently used goes first."""


def open_backend_device(device: str) -> tuple[DeviceContext, DeviceStream, Clock]:
    """Open `CPU`, `CUDA` or `CUDA:1` once, for all prepared models; closed with the process.

    Raises InvalidInputError for another name, DeviceUnavailableError if it can not be had.
    """
    kind, _, index = device.lower().partition(":")
    number = index or "0"
    if kind not in ("cpu", "cuda") or not (number.isascii() and number.isdigit()):
        raise InvalidInputError(
            f"device `{device}` is not supported", hint="use `CPU`, `CUDA` or `CUDA:1`"
        )
    return _opened(kind, int(number))


@cache
def _opened(kind: str, index: int) -> tuple[DeviceContext, DeviceStream, Clock]:
    clock = SystemClock()
    context = open_device(kind, index=index, clock=clock).context
    atexit.register(context.close)
    return context, context.create_stream(0), clock


class AegisBackendRep(BackendRep):
    """A prepared model; compiles for each new set of input shapes."""

    def __init__(self, model: onnx.ModelProto, device: str) -> None:
        self._model = model
        self._device = device
        self._loader = ModelLoader()
        self._bound_names: tuple[str, ...] = ()
        self._compiled: OrderedDict[Hashable, tuple[ExecutionGraph, StandaloneGraph]]
        self._compiled = OrderedDict()
        # The interface has no close: what is left is released with this object.
        weakref.finalize(self, _close_all, self._compiled)
        constant = {tensor.name for tensor in model.graph.initializer}
        self._all_inputs = [value.name for value in model.graph.input]
        self._inputs = [name for name in self._all_inputs if name not in constant]

    def run(self, inputs: Any, **_: Any) -> tuple[np.ndarray, ...]:
        """Return the model's outputs; `inputs` by position (None: left out) or by name.

        Raises an AegisError for inputs that do not fit or a model that can not be loaded.
        """
        arrays = self._named(inputs)
        graph, standalone = self._specialised(arrays)
        results = standalone.run({name: arrays[name] for name in graph.inputs})
        return tuple(results[name] for name in graph.results)

    @property
    def reference_operators(self) -> tuple[str, ...]:
        """Operators that run as reference kernels in what has been compiled so far."""
        return tuple(
            step.operator
            for _, standalone in self._compiled.values()
            for step in standalone.compiled.reference_steps
        )

    def _named(self, inputs: Any) -> dict[str, np.ndarray]:
        if not isinstance(inputs, Mapping):
            values = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            names = self._all_inputs if len(values) == len(self._all_inputs) else self._inputs
            if len(values) > len(names):
                raise InvalidInputError(f"takes {len(names)} inputs, got {len(values)}")
            inputs = dict(zip(names, values, strict=False))
        lists = [name for name, value in inputs.items() if isinstance(value, list)]
        if lists:
            raise InvalidInputError(f"input `{lists[0]}` is a sequence; only tensors can enter")
        return {name: np.asarray(v) for name, v in inputs.items() if v is not None}

    def _specialised(
        self, arrays: Mapping[str, np.ndarray]
    ) -> tuple[ExecutionGraph, StandaloneGraph]:
        key = self._key(arrays)
        if key not in self._compiled:
            graph = self._load(arrays)
            # Loading may have found further inputs that have to be bound.
            key = self._key(arrays)
            opened = open_backend_device(self._device)
            self._compiled[key] = graph, StandaloneGraph(graph, *opened)
            if len(self._compiled) > COMPILED_GRAPHS_MAX:
                self._compiled.popitem(last=False)[1][1].close()
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _key(self, arrays: Mapping[str, np.ndarray]) -> Hashable:
        return tuple(
            (name, array.dtype.str, array.shape, array.tobytes())
            if name in self._bound_names
            else (name, array.dtype.str, array.shape)
            for name, array in arrays.items()
        )

    def _load(self, arrays: Mapping[str, np.ndarray]) -> ExecutionGraph:
        """Load, binding one input after the other until no unknown value blocks a shape."""
        while True:
            bind = {name: arrays[name] for name in self._bound_names if name in arrays}
            shapes = {name: array.shape for name, array in arrays.items() if name not in bind}
            try:
                return self._loader.load_proto(self._model, LoadOptions(shapes, bind))
            except UnknownOperandError as error:
                new = [n for n in error.inputs if n in arrays and n not in self._bound_names]
                if not new:
                    raise
                self._bound_names += tuple(new)


def _close_all(compiled: dict[Hashable, tuple[ExecutionGraph, StandaloneGraph]]) -> None:
    while compiled:
        compiled.popitem()[1][1].close()


class AegisBackend(Backend):
    """The interface as the class that `onnx.backend.test.BackendTest` expects."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> bool:
        """Return whether the model loads, shapes that are open still left aside."""
        try:
            ModelLoader().load_proto(model)
        except DynamicShapeError:
            pass
        except (InvalidModelError, UnsupportedOperatorError):
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **_: Any) -> AegisBackendRep:
        """Return the model ready to run; it is compiled on its first run.

        Raises InvalidInputError for a device of no such name, and DeviceUnavailableError, which
        says what was looked for, for one that is not here.
        """
        open_backend_device(device)
        return AegisBackendRep(model, device)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **_: Any
    ) -> tuple[np.ndarray, ...]:
        """Prepare and run a model once."""
        return cls.prepare(model, device).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **options: Any,
    ) -> tuple[np.ndarray, ...]:
        """Run a single node; `opset_imports` gives versions other than the newest."""
        arrays = [np.asarray(value) for value in inputs]
        names = [name for name in node.input if name]
        values = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in zip(names, arrays, strict=True)
        ]
        results = [onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", values, results)
        imports = options.get("opset_imports")
        model = onnx.helper.make_model(graph, opset_imports=imports)
        return cls.run_model(model, arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Return whether models can be prepared for this device."""
        try:
            open_backend_device(device)
        except (InvalidInputError, DeviceUnavailableError):
            return False
        return True


is_compatible = AegisBackend.is_compatible
prepare = AegisBackend.prepare
run_model = AegisBackend.run_model
run_node = AegisBackend.run_node
supports_device = AegisBackend.supports_device
