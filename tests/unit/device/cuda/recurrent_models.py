"""Models of one recurrent layer, with all that it may have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from aegis_pipe.execution.graph import ExecutionGraph
from aegis_pipe.execution.model_loader import LoadOptions, ModelLoader

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


@dataclass(frozen=True)
class Layer:
    """What the layer is like."""

    operator: str
    directions: int = 1
    time: int = 3
    batch: int = 2
    inputs: int = 5
    hidden: int = 12
    linear: bool = True
    """Of a GRU: the candidate's product is reset, not the state ahead of it."""
    lengths: bool = False
    reverse: bool = False
    layout: int = 0
    starts: bool = True
    """It has states to begin with."""
    peepholes: bool = False
    activations: tuple[str, ...] = ()
    dtype: type = np.float32


CASES = {
    "gru": Layer("GRU", directions=2, lengths=True),
    "gru that resets first": Layer("GRU", directions=2, hidden=10, linear=False, lengths=True),
    "gru of odd size": Layer("GRU", hidden=7, linear=False, reverse=True, starts=False),
    "lstm": Layer("LSTM", directions=2, batch=3, hidden=10, lengths=True, peepholes=True),
    "lstm by batch": Layer("LSTM", hidden=40, layout=1),
    "halves": Layer("LSTM", directions=2, hidden=16, dtype=np.float16),
    "rnn": Layer("RNN", directions=2, hidden=16, lengths=True),
    "rnn of two kinds": Layer("RNN", directions=2, activations=("Tanh", "Relu")),
}


def graph_of(layer: Layer) -> ExecutionGraph:
    """Return the layer as a graph, its weights drawn."""
    random, gates = np.random.default_rng(1), _GATES[layer.operator]
    directions, hidden = layer.directions, layer.hidden

    def drawn(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(layer.dtype)

    constants = {
        "w": drawn(directions, gates * hidden, layer.inputs),
        "r": drawn(directions, gates * hidden, hidden),
        "b": drawn(directions, 2 * gates * hidden),
    }
    names = ["x", "w", "r", "b", "", "", "", ""]
    if layer.lengths:
        ends = [max(0, layer.time - n) for n in range(layer.batch)]
        constants["lengths"], names[4] = np.array(ends, np.int32), "lengths"
    state = (directions, layer.batch, hidden)
    if layer.layout:
        state = (layer.batch, directions, hidden)
    if layer.starts:
        constants["h0"], names[5] = drawn(*state), "h0"
    results = ["y", "yh"]
    if layer.operator == "LSTM":
        results.append("yc")
        if layer.starts:
            constants["c0"], names[6] = drawn(*state), "c0"
        if layer.peepholes:
            constants["p"], names[7] = drawn(directions, 3 * hidden), "p"
    else:
        del names[6:]
    attributes: dict[str, object] = {"hidden_size": hidden, "layout": layer.layout}
    attributes["direction"] = "bidirectional" if directions == 2 else "forward"
    if layer.reverse:
        attributes["direction"] = "reverse"
    if layer.operator == "GRU":
        attributes["linear_before_reset"] = int(layer.linear)
    if layer.activations:
        attributes["activations"] = list(layer.activations)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(layer.dtype))
    shape = (layer.batch, layer.time) if layer.layout else (layer.time, layer.batch)
    graph = helper.make_graph(
        [helper.make_node(layer.operator, names, results, **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", element, (*shape, layer.inputs))],
        [helper.make_tensor_value_info(name, element, None) for name in results],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", 17)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=9)
    return ModelLoader().load_proto(model, LoadOptions())
