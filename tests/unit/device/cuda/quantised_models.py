"""Small quantised models: whole ones as ONNX Runtime's tool quantises them, and single layers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
_TYPES = {
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int32): TensorProto.INT32,
}

RESNET_INPUT, ENCODER_INPUT = (2, 3, 12, 12), (1, 6, 16)

_RESNET = """
resnet (float[2,3,12,12] x) => (float[2,10] y) {
  c0 = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  r0 = Relu (c0)
  p0 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r0)
  c1 = Conv <pads = [1, 1, 1, 1]> (p0, w1, b1)
  r1 = Relu (c1)
  c2 = Conv (r1, w2, b2)
  a = Add (c2, p0)
  ra = Relu (a)
  c3 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (ra, w3, b3)
  r3 = Relu (c3)
  g = GlobalAveragePool (r3)
  f = Flatten (g)
  y = Gemm (f, w4, b4)
}
"""
_RESNET_WEIGHTS = ((16, 3, 3, 3), (16, 16, 3, 3), (16, 16, 1, 1), (32, 16, 3, 3), (32, 10))

_HEAD = "".join(
    f"""
  m{t} = MatMul (x, w{t})
  a{t} = Add (m{t}, b{t})
  s{t} = Reshape (a{t}, heads)
  t{t} = Transpose <perm = [0, 2, {"3, 1" if t == "k" else "1, 3"}]> (s{t})"""
    for t in "qkv"
)
_ENCODER = f"""
encoder (float[1,6,16] x) => (float[1,6,16] y) {{{_HEAD}
  qk = MatMul (tq, tk)
  scaled = Mul (qk, factor)
  p = Softmax <axis = -1> (scaled)
  o = MatMul (p, tv)
  ot = Transpose <perm = [0, 2, 1, 3]> (o)
  joined = Reshape (ot, whole)
  mo = MatMul (joined, wo)
  ao = Add (mo, bo)
  res = Add (ao, x)
  ln = LayerNormalization <axis = -1> (res, gain, bn)
  h1 = MatMul (ln, w1)
  h1b = Add (h1, b1)
  h1r = Relu (h1b)
  h2 = MatMul (h1r, w2)
  h2b = Add (h2, b2)
  res2 = Add (h2b, ln)
  y = LayerNormalization <axis = -1> (res2, gain, bn)
}}
"""
_ENCODER_WEIGHTS = {"q": (16, 16), "k": (16, 16), "v": (16, 16), "o": (16, 16), "1": (16, 64),
                    "2": (64, 16)}  # fmt: skip


def _random(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng([*name.encode()]).standard_normal(shape)
    return numpy_helper.from_array((0.1 * values).astype(np.float32), name)


def _model(text: str, initialisers: list[onnx.TensorProto]) -> onnx.ModelProto:
    header = '<ir_version: 9, opset_import: ["" : 17]>'
    model = onnx.parser.parse_model(header + text)
    model.graph.initializer.extend(initialisers)
    return model


def resnet() -> onnx.ModelProto:
    """Return a stem, a residual block, a strided convolution and a classifier, in float32."""
    tensors = []
    for at, shape in enumerate(_RESNET_WEIGHTS):
        filters = shape[1] if len(shape) == 2 else shape[0]
        tensors += [_random(f"w{at}", *shape), _random(f"b{at}", filters)]
    return _model(_RESNET, tensors)


def encoder() -> onnx.ModelProto:
    """Return a layer of a transformer's encoder, spelled out, in float32."""
    tensors = []
    for at, shape in _ENCODER_WEIGHTS.items():
        tensors += [_random(f"w{at}", *shape), _random(f"b{at}", shape[1])]
    constants = {
        "heads": np.array([1, 6, 2, 8]),
        "whole": np.array([1, 6, 16]),
        "factor": np.array(0.35, np.float32),
        "gain": np.ones(16, np.float32),
        "bn": np.zeros(16, np.float32),
    }
    tensors += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return _model(_ENCODER, tensors)


def quantised(
    model: onnx.ModelProto, folder: Path, *, data: str, weights: str, per_channel: bool
) -> Path:
    """Return the QDQ form that ONNX Runtime makes, with types `QInt8` or `QUInt8`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            rng = np.random.default_rng(5)
            self._rows = iter(
                [{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._rows, None)

    source, target = folder / "float.onnx", folder / "quantised.onnx"
    onnx.save(model, source)
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(source),
            str(target),
            Reader(),
            per_channel=per_channel,
            activation_type=QuantType[data],
            weight_type=QuantType[weights],
        )
    finally:
        logging.disable(logging.NOTSET)
    return target


def layer(
    operator: str,
    data: np.ndarray,
    operands: list[np.ndarray | None],
    result: tuple[type, tuple[int, ...]],
    *,
    domain: str = "",
    **attributes: object,
) -> onnx.ModelProto:
    """Return a model of one operator; its first operand is the input `x`, others are constants."""
    names = ["x", *("" if value is None else f"c{at}" for at, value in enumerate(operands))]
    constants = [
        numpy_helper.from_array(value, f"c{at}")
        for at, value in enumerate(operands)
        if value is not None
    ]
    node = helper.make_node(operator, names, ["y"], domain=domain, **attributes)
    dtype, shape = result
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", _TYPES[data.dtype], data.shape)],
        [helper.make_tensor_value_info("y", _TYPES[np.dtype(dtype)], shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=_OPSETS, ir_version=9)
