"""The `onnx` package's light models with weights that are drawn.

As they come, all weights of a tensor are one number: each gives the same result for every input, a
thousand times one thousandth, and so can not tell a right kernel from a wrong one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

_NORMALISED = {1: (0.8, 1.2), 4: (0.5, 1.5)}
"""Range of a BatchNormalization's gain and variance, by position."""


def drawn_model(name: str) -> onnx.ModelProto:
    """Return light_NAME.onnx with other weights; the same every time."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    graph, random = model.graph, np.random.default_rng(11)
    shapes = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    readers = {
        tensor: (node.op_type, position)
        for node in graph.node
        for position, tensor in enumerate(node.input)
    }
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes:
            kept.append(node)
            continue
        (tensor,), shape = node.output, tuple(shapes[node.input[0]])
        operator, position = readers[tensor]
        if operator == "BatchNormalization" and position in _NORMALISED:
            values = random.uniform(*_NORMALISED[position], shape)
        elif len(shape) == 1:
            values = 0.1 * random.standard_normal(shape)
        else:
            values = random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), tensor))
    del graph.node[:]
    graph.node.extend(kept)
    # Constants need not be inputs as well.
    model.ir_version = 8
    return model
