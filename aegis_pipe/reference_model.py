"""A model file as other runtimes run it: with what its manifest binds as constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from aegis_pipe.errors import InvalidModelError
from aegis_pipe.execution.deployment import ModelOrder
from aegis_pipe.execution.input_binding import fixed_inputs
from aegis_pipe.execution.onnx_reader import read_onnx
from aegis_pipe.execution.saved_ir import is_saved_graph


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceModel:
    """The model file as others run it: with its bound inputs as constants."""

    path: Path
    proto: onnx.ModelProto
    edited: bool
    """Whether the file is not what is to be run."""
    inputs: Mapping[str, np.ndarray]

    def with_outputs(self, tensors: Sequence[str]) -> ReferenceModel:
        """Return the model with other outputs: any tensors of its outermost graph."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        del proto.graph.output[:]
        # Types are left out: who runs the model infers them.
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
        return replace(self, proto=proto, edited=True)

    def going_on_from(self, tensors: Mapping[str, np.ndarray]) -> ReferenceModel:
        """Return the model with the values of some tensors given, not computed."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        graph = proto.graph
        for node in graph.node:
            for place, name in enumerate(node.output):
                if name in tensors:
                    # Under a name of its own, which nobody reads.
                    node.output[place] = f"{name}, as computed"
        known = {value.name for value in graph.input}
        kept = [value for value in graph.value_info if value.name not in tensors]
        del graph.value_info[:]
        graph.value_info.extend(kept)
        graph.input.extend(
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in tensors.items()
            if name not in known
        )
        return replace(self, proto=proto, edited=True, inputs={**self.inputs, **tensors})

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, in order."""
        return [output.name for output in self.proto.graph.output]

    def tensor_names(self) -> set[str]:
        """Return the tensors that nodes of the outermost graph write."""
        return {name for node in self.proto.graph.node for name in node.output if name}


def read_reference_model(order: ModelOrder, inputs: Mapping[str, np.ndarray]) -> ReferenceModel:
    """Read the file anew, bound as the order says. Raises InvalidModelError for saved graphs."""
    data = order.path.read_bytes()
    if is_saved_graph(data):
        raise InvalidModelError(
            "is a saved graph, which no other runtime reads",
            context=str(order.path),
            hint="verify the ONNX file it was made from",
        )
    bound = fixed_inputs(read_onnx(data, order.path.parent).graph, order.options)[1]
    proto = onnx.load(order.path)
    _bind(proto.graph, bound)
    return ReferenceModel(order.path, proto, bool(bound), inputs)


def _bind(graph: onnx.GraphProto, bound: Mapping[str, np.ndarray]) -> None:
    inputs = [value for value in graph.input if value.name not in bound]
    initialisers = [tensor for tensor in graph.initializer if tensor.name not in bound]
    del graph.input[:], graph.initializer[:]
    graph.input.extend(inputs)
    graph.initializer.extend(initialisers)
    graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in bound.items())
