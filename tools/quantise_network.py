"""Convolutional networks in 8 bits, as quantisers write them: QuantizeLinear, DequantizeLinear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from aegis_pipe.onnx_backend import AegisBackend


def quantised(model: onnx.ModelProto, image: np.ndarray) -> onnx.ModelProto:
    """Return a convolutional network in QDQ form, its BatchNormalizations part of convolutions.

    Weights are int8 and symmetric, with a scale for each filter; what convolutions, products and
    sums take is uint8, of the range that it has on `image`.
    """
    graph = model.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # What convolutions are followed by.
    followers = {n.input[0]: n for n in graph.node if n.op_type == "BatchNormalization"}
    taken = {node.input[0] for node in graph.node if node.op_type in ("Conv", "Gemm")}
    taken |= {name for node in graph.node if node.op_type == "Add" for name in node.input}
    ranges = _ranges(model, sorted(taken), image)
    net = QuantisedNetwork()
    for value in graph.input:
        net.quantise(value.name, ranges)
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [f"{name}.dq" if name in ranges else name for name in node.input]
        if node.op_type in ("Conv", "Gemm"):
            w = weights[node.input[1]]
            b = weights[node.input[2]] if len(node.input) > 2 else np.zeros(len(w), np.float32)
            follower = followers.get(node.output[0])
            if follower is not None:
                gain, shift, mean, variance = (weights[name] for name in follower.input[1:])
                factor = gain / np.sqrt(variance + np.float32(1e-5))
                w, b = (w.T * factor).T, (b - mean) * factor + shift
                copy.output[0] = follower.output[0]
            copy.input[1:] = [net.bytes_of(node.input[1], w), net.constant(f"{node.name}.b", b)]
        net.nodes.append(copy)
        net.quantise(copy.output[0], ranges)
    read = {name for node in net.nodes for name in node.input}
    net.constants += [tensor for tensor in graph.initializer if tensor.name in read]
    whole = helper.make_graph(
        net.nodes, f"{graph.name}-qdq", graph.input, graph.output, net.constants
    )
    return helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)


class QuantisedNetwork:
    """Nodes and constants of a network in QDQ form, in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a constant."""
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def quantise(self, name: str, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Have a tensor pass through uint8 if it has a range, as NAME.dq."""
        if name in ranges:
            low, high = ranges[name]
            scale = np.float32((high - low) / 255)
            levels = self._levels(name, scale, np.array(round(-low / scale), np.uint8))
            self.nodes.append(helper.make_node("QuantizeLinear", [name, *levels], [f"{name}.q"]))
            given = [f"{name}.q", *levels]
            self.nodes.append(helper.make_node("DequantizeLinear", given, [f"{name}.dq"]))

    def bytes_of(self, name: str, weights: np.ndarray) -> str:
        """Add weights as int8, with a scale for each of their first axis, and return NAME.dq."""
        scale = (np.abs(weights).reshape(len(weights), -1).max(1) / 127).astype(np.float32)
        integers = np.rint(weights.T / scale).T.astype(np.int8)
        given = [self.constant(f"{name}.q", np.ascontiguousarray(integers))]
        given += self._levels(name, scale, np.zeros(len(weights), np.int8))
        node = helper.make_node("DequantizeLinear", given, [f"{name}.dq"], axis=0)
        self.nodes.append(node)
        return f"{name}.dq"

    def _levels(self, name: str, scale: np.ndarray | np.generic, zero: np.ndarray) -> list[str]:
        return [
            self.constant(f"{name}.scale", np.asarray(scale)),
            self.constant(f"{name}.zero", zero),
        ]


def _ranges(
    model: onnx.ModelProto, names: Sequence[str], image: np.ndarray
) -> dict[str, tuple[float, float]]:
    """Return the least and the largest value of tensors on an image; zero is between them."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    given = {value.name for value in model.graph.input}
    made = [name for name in names if name not in given]
    del watched.graph.output[:]
    watched.graph.output.extend(map(helper.make_empty_tensor_value_info, made))
    found = dict(zip(made, AegisBackend.prepare(watched).run([image]), strict=True))
    found |= dict.fromkeys(given & set(names), image)
    return {name: (min(0.0, float(a.min())), max(0.0, float(a.max()))) for name, a in found.items()}
