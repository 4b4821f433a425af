"""Write networks as exporters write them, for `aegis-pipe verify` and tools/bench_cpu.py.

    python tools/make_networks.py FOLDER [NAME ...]      all of them, unless named

Architectures as published, in the operators that PyTorch's exporter emits, with random weights of
a fixed seed. The statistics of BatchNormalization are those of data that ran through, layer by
layer: with made-up ones the signal of a deep network would vanish. Files are about 960 MB
together; a manifest of them, `networks.toml`, lies beside them.

    resnet50     He et al. 2015               mobilenetv2   Sandler et al. 2018
    bert-base    Devlin et al. 2018           vit-b16       Dosovitskiy et al. 2020
    detector     YOLOv8's shape: C2f blocks, decoupled heads, NonMaxSuppression at its end
    gru          two bidirectional layers     lstm          two layers
    resnet50-qdq     in 8 bits, as quantisers write it: weights by channel, activations by tensor
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from quantise_network import quantised

from aegis_pipe.onnx_backend import AegisBackend

OPSET = 17

Shape = tuple[int, ...]


class Network:
    """An ONNX graph in the making; tensors are names, weights are drawn as they are needed."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Add an input; text stands for an open size."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, array: np.ndarray) -> str:
        """Add a constant."""
        name = self._name("weight")
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *shape: int, scale: float) -> str:
        """Add normally distributed weights."""
        return self.weight((self.random.standard_normal(shape) * scale).astype(np.float32))

    def ints(self, *values: int) -> str:
        """Add a list of integers."""
        return self.weight(np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """Add a float."""
        return self.weight(np.array(value, np.float32))

    def add(self, operator: str, *inputs: str, **attributes: object) -> str:
        """Add a node with one output."""
        return self.outputs(operator, 1, *inputs, **attributes)[0]

    def outputs(self, operator: str, count: int, *inputs: str, **attributes: object) -> list[str]:
        """Add a node with several outputs."""
        names = [self._name(operator) for _ in range(count)]
        node = helper.make_node(operator, inputs, names, f"/{names[0]}", **attributes)
        self._nodes.append(node)
        return names

    def model(self, **outputs: tuple[str, int, Sequence[int | str]]) -> onnx.ModelProto:
        """Return the model, its outputs named."""
        infos = []
        for name, (tensor, dtype, shape) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [tensor], [name], f"/{name}"))
            infos.append(helper.make_tensor_value_info(name, dtype, shape))
        graph = helper.make_graph(self._nodes, self.name, self._inputs, infos, self._weights)
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8)

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


# Convolutional networks


def convolution(
    net: Network, x: str, sizes: tuple[int, int], kernel: int, stride: int = 1, group: int = 1
) -> str:
    """Add Conv and BatchNormalization, whose statistics `settle_statistics` fills in."""
    before, after = sizes
    fan_in = before // group * kernel * kernel
    weights = net.normal(after, before // group, kernel, kernel, scale=math.sqrt(2 / fan_in))
    pad = kernel // 2
    y = net.add(
        "Conv",
        x,
        weights,
        dilations=[1, 1],
        group=group,
        kernel_shape=[kernel, kernel],
        pads=[pad] * 4,
        strides=[stride, stride],
    )
    scale = net.weight(net.random.uniform(0.8, 1.2, after).astype(np.float32))
    shift = net.normal(after, scale=0.1)
    mean = net.weight(np.zeros(after, np.float32))
    variance = net.weight(np.ones(after, np.float32))
    return net.add("BatchNormalization", y, scale, shift, mean, variance, epsilon=1e-5)


def bottleneck(net: Network, x: str, before: int, width: int, stride: int) -> str:
    """Add a residual block of ResNet-50."""
    y = net.add("Relu", convolution(net, x, (before, width), 1))
    y = net.add("Relu", convolution(net, y, (width, width), 3, stride))
    y = convolution(net, y, (width, width * 4), 1)
    if before != width * 4 or stride != 1:
        x = convolution(net, x, (before, width * 4), 1, stride)
    return net.add("Relu", net.add("Add", y, x))


def classified(net: Network, x: str, channels: int) -> onnx.ModelProto:
    """Add the head of a classifier of a thousand classes."""
    pooled = net.add("Flatten", net.add("GlobalAveragePool", x), axis=1)
    weights = net.normal(1000, channels, scale=1 / math.sqrt(channels))
    scores = net.add("Gemm", pooled, weights, net.normal(1000, scale=0.1), transB=1)
    return net.model(logits=(scores, TensorProto.FLOAT, ["batch", 1000]))


def resnet50() -> onnx.ModelProto:
    """Return ResNet-50 (v1.5: the stride is in the 3x3 convolutions)."""
    net = Network("resnet50", 50)
    x = net.input("image", TensorProto.FLOAT, ["batch", 3, 224, 224])
    x = net.add("Relu", convolution(net, x, (3, 64), 7, 2))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2])
    before = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            x = bottleneck(net, x, before, width, 2 if stage and not block else 1)
            before = width * 4
    return classified(net, x, before)


_INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
_INVERTED += ((6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and first stride of MobileNetV2's stages."""


def clipped(net: Network, x: str) -> str:
    """Add ReLU6."""
    return net.add("Clip", x, net.scalar(0.0), net.scalar(6.0))


def mobilenetv2() -> onnx.ModelProto:
    """Return MobileNetV2 of width 1."""
    net = Network("mobilenetv2", 2)
    x = net.input("image", TensorProto.FLOAT, ["batch", 3, 224, 224])
    x = clipped(net, convolution(net, x, (3, 32), 3, 2))
    before = 32
    for expansion, after, blocks, first in _INVERTED:
        for block in range(blocks):
            stride, width = (1 if block else first), before * expansion
            y = clipped(net, convolution(net, x, (before, width), 1)) if expansion > 1 else x
            y = clipped(net, convolution(net, y, (width, width), 3, stride, width))
            y = convolution(net, y, (width, after), 1)
            x = net.add("Add", x, y) if stride == 1 and before == after else y
            before = after
    return classified(net, clipped(net, convolution(net, x, (before, 1280), 1)), 1280)


def silu(net: Network, x: str) -> str:
    """Add x * sigmoid(x), as it is exported."""
    return net.add("Mul", x, net.add("Sigmoid", x))


def convolved(net: Network, x: str, sizes: tuple[int, int], kernel: int, stride: int = 1) -> str:
    """Add a detector's unit: Conv, BatchNormalization, SiLU."""
    return silu(net, convolution(net, x, sizes, kernel, stride))


def split_block(net: Network, x: str, sizes: tuple[int, int], repeats: int, adds: bool) -> str:
    """Add a C2f block: half of the channels go through bottlenecks, every result is kept."""
    before, after = sizes
    half = after // 2
    y = convolved(net, x, (before, after), 1)
    parts = net.outputs("Split", 2, y, net.ints(half, half), axis=1)
    for _ in range(repeats):
        last = convolved(net, convolved(net, parts[-1], (half, half), 3), (half, half), 3)
        parts.append(net.add("Add", parts[-1], last) if adds else last)
    joined = net.add("Concat", *parts, axis=1)
    return convolved(net, joined, (half * len(parts), after), 1)


def pooled_pyramid(net: Network, x: str, channels: int) -> str:
    """Add SPPF: the same pool three times, all results side by side."""
    y = convolved(net, x, (channels, channels // 2), 1)
    parts = [y]
    for _ in range(3):
        parts.append(
            net.add("MaxPool", parts[-1], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1])
        )
    return convolved(net, net.add("Concat", *parts, axis=1), (channels * 2, channels), 1)


def doubled(net: Network, x: str) -> str:
    """Add an upsampling by 2, as it is exported."""
    factors = net.weight(np.array([1, 1, 2, 2], np.float32))
    return net.add(
        "Resize",
        x,
        "",
        factors,
        coordinate_transformation_mode="asymmetric",
        mode="nearest",
        nearest_mode="floor",
    )


_KINDS, _SIDE, _MOST = 80, 320, 100


def detector_features(net: Network, image: str) -> list[tuple[str, int, int]]:
    """Add backbone and neck; return (features, channels, stride) of three scales."""
    x = convolved(net, convolved(net, image, (3, 16), 3, 2), (16, 32), 3, 2)
    x = split_block(net, x, (32, 32), 1, adds=True)
    fine = split_block(net, convolved(net, x, (32, 64), 3, 2), (64, 64), 2, adds=True)
    middle = split_block(net, convolved(net, fine, (64, 128), 3, 2), (128, 128), 2, adds=True)
    coarse = split_block(net, convolved(net, middle, (128, 256), 3, 2), (256, 256), 1, adds=True)
    coarse = pooled_pyramid(net, coarse, 256)
    x = net.add("Concat", doubled(net, coarse), middle, axis=1)
    middle = split_block(net, x, (384, 128), 1, adds=False)
    x = net.add("Concat", doubled(net, middle), fine, axis=1)
    fine = split_block(net, x, (192, 64), 1, adds=False)
    x = net.add("Concat", convolved(net, fine, (64, 64), 3, 2), middle, axis=1)
    middle = split_block(net, x, (192, 128), 1, adds=False)
    x = net.add("Concat", convolved(net, middle, (128, 128), 3, 2), coarse, axis=1)
    coarse = split_block(net, x, (384, 256), 1, adds=False)
    return [(fine, 64, 8), (middle, 128, 16), (coarse, 256, 32)]


def branch(
    net: Network, x: str, channels: int, width: int, after: int, scale: float, shift: float
) -> str:
    """Add one of a stride's two heads; `scale` and `shift` make boxes rare, as training does."""
    y = convolved(net, convolved(net, x, (channels, width), 3), (width, width), 3)
    weights = net.normal(after, width, 1, 1, scale=scale / math.sqrt(width))
    bias = net.weight(np.full(after, shift, np.float32))
    return net.add("Conv", y, weights, bias, kernel_shape=[1, 1])


def detector() -> onnx.ModelProto:
    """Return a detector of one image of 320 x 320, from pixels to the boxes it keeps."""
    net = Network("detector", 8)
    image = net.input("image", TensorProto.FLOAT, [1, 3, _SIDE, _SIDE])
    sides, kinds, centres, strides = [], [], [], []
    for features, channels, stride in detector_features(net, image):
        cells = _SIDE // stride
        box = branch(net, features, channels, 64, 64, 1.0, 1.0)
        kind = branch(net, features, channels, 80, _KINDS, 0.03, -2.5)
        sides.append(net.add("Reshape", box, net.ints(1, 64, -1)))
        kinds.append(net.add("Reshape", kind, net.ints(1, _KINDS, -1)))
        grid = np.stack(np.meshgrid(np.arange(cells), np.arange(cells))) + 0.5
        centres.append(grid.reshape(2, -1))
        strides.append(np.full(cells * cells, stride))
    # Each side's distance is the mean of a distribution over 16 bins.
    spread = net.add("Reshape", net.add("Concat", *sides, axis=2), net.ints(1, 4, 16, -1))
    shares = net.add("Softmax", net.add("Transpose", spread, perm=[0, 2, 1, 3]), axis=1)
    bins = net.weight(np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1))
    far = net.add("Conv", shares, bins, kernel_shape=[1, 1])
    far = net.add("Reshape", far, net.ints(1, 4, -1))
    near, away = net.outputs("Split", 2, far, net.ints(2, 2), axis=1)
    centre = net.weight(np.concatenate(centres, axis=1)[None].astype(np.float32))
    scale = net.weight(np.concatenate(strides).astype(np.float32))
    corners = net.add("Concat", net.add("Sub", centre, near), net.add("Add", centre, away), axis=1)
    boxes = net.add("Transpose", net.add("Mul", corners, scale), perm=[0, 2, 1])
    scores = net.add("Sigmoid", net.add("Concat", *kinds, axis=2))
    return kept_boxes(net, boxes, scores)


def kept_boxes(net: Network, boxes: str, scores: str) -> onnx.ModelProto:
    """Add what exporters put behind a detector: the boxes, scores and kinds that are kept."""
    chosen = net.add(
        "NonMaxSuppression",
        boxes,
        scores,
        net.ints(_MOST),
        net.weight(np.float32([0.5])),
        net.weight(np.float32([0.25])),
    )
    kind, place = (net.add("Gather", chosen, net.ints(column), axis=1) for column in (1, 2))
    flat = net.add("Squeeze", place, net.ints(1))
    kept = net.add("Gather", net.add("Squeeze", boxes, net.ints(0)), flat, axis=0)
    by_place = net.add("Concat", kind, place, axis=1)
    score = net.add("GatherND", net.add("Squeeze", scores, net.ints(0)), by_place)
    return net.model(
        boxes=(kept, TensorProto.FLOAT, ["kept", 4]),
        scores=(score, TensorProto.FLOAT, ["kept"]),
        kinds=(net.add("Squeeze", kind, net.ints(1)), TensorProto.INT64, ["kept"]),
    )


# Transformers


def linear(net: Network, x: str, before: int, after: int) -> str:
    """Add x W + b."""
    weights = net.normal(before, after, scale=1 / math.sqrt(before))
    return net.add("Add", net.normal(after, scale=0.02), net.add("MatMul", x, weights))


def normalised(net: Network, x: str, width: int) -> str:
    """Add a layer normalisation."""
    scale = net.weight(net.random.uniform(0.8, 1.2, width).astype(np.float32))
    return net.add("LayerNormalization", x, scale, net.normal(width, scale=0.02), axis=-1)


def heads_of(net: Network, x: str, heads: int, size: int, order: Sequence[int]) -> str:
    """Add the split into heads."""
    split = net.add("Reshape", x, net.ints(0, -1, heads, size))
    return net.add("Transpose", split, perm=list(order))


def attention(net: Network, x: str, width: int, heads: int, mask: str | None) -> str:
    """Add self-attention as `scaled_dot_product_attention` is exported."""
    size = width // heads
    query = heads_of(net, linear(net, x, width, width), heads, size, (0, 2, 1, 3))
    key = heads_of(net, linear(net, x, width, width), heads, size, (0, 2, 3, 1))
    value = heads_of(net, linear(net, x, width, width), heads, size, (0, 2, 1, 3))
    root = net.scalar(size**-0.25)
    scores = net.add("MatMul", net.add("Mul", query, root), net.add("Mul", key, root))
    if mask is not None:
        scores = net.add("Add", scores, mask)
    mixed = net.add("MatMul", net.add("Softmax", scores, axis=-1), value)
    joined = net.add("Transpose", mixed, perm=[0, 2, 1, 3])
    return linear(net, net.add("Reshape", joined, net.ints(0, -1, width)), width, width)


def gelu(net: Network, x: str) -> str:
    """Add GELU, as it is exported."""
    error = net.add("Erf", net.add("Div", x, net.scalar(math.sqrt(2))))
    product = net.add("Mul", x, net.add("Add", error, net.scalar(1.0)))
    return net.add("Mul", product, net.scalar(0.5))


def feed_forward(net: Network, x: str, width: int) -> str:
    """Add the two products of a layer."""
    return linear(net, gelu(net, linear(net, x, width, width * 4)), width * 4, width)


def bert_base() -> onnx.ModelProto:
    """Return BERT-base; its length is open, as in exports."""
    net = Network("bert-base", 12)
    size: list[int | str] = ["batch", "length"]
    words = net.input("input_ids", TensorProto.INT64, size)
    seen = net.input("attention_mask", TensorProto.INT64, size)
    kinds = net.input("token_type_ids", TensorProto.INT64, size)
    length = net.add("Gather", net.add("Shape", words), net.ints(1), axis=0)
    places = net.add(
        "Slice", net.weight(np.arange(512)[None]), net.ints(0), length, net.ints(1), net.ints(1)
    )
    parts = [
        net.add("Gather", net.normal(rows, 768, scale=0.5), index)
        for rows, index in ((30522, words), (2, kinds), (512, places))
    ]
    x = net.add("Add", net.add("Add", parts[0], parts[1]), parts[2])
    x = normalised(net, x, 768)
    wide = net.add("Cast", net.add("Unsqueeze", seen, net.ints(1, 2)), to=TensorProto.FLOAT)
    hidden = net.add("Sub", net.scalar(1.0), wide)
    mask = net.add("Mul", hidden, net.scalar(float(np.finfo(np.float32).min)))
    for _ in range(12):
        x = normalised(net, net.add("Add", x, attention(net, x, 768, 12, mask)), 768)
        x = normalised(net, net.add("Add", x, feed_forward(net, x, 768)), 768)
    first = net.add("Gather", x, net.weight(np.array(0)), axis=1)
    pooled = net.add("Tanh", linear(net, first, 768, 768))
    return net.model(
        last_hidden_state=(x, TensorProto.FLOAT, [*size, 768]),
        pooler_output=(pooled, TensorProto.FLOAT, ["batch", 768]),
    )


def vit_b16() -> onnx.ModelProto:
    """Return ViT-B/16 of 224 x 224 pixels."""
    net = Network("vit-b16", 16)
    image = net.input("image", TensorProto.FLOAT, ["batch", 3, 224, 224])
    weights, bias = net.normal(768, 3, 16, 16, scale=1 / math.sqrt(768)), net.normal(768, scale=0.1)
    x = net.add("Conv", image, weights, bias, kernel_shape=[16, 16], strides=[16, 16])
    x = net.add("Transpose", net.add("Reshape", x, net.ints(0, 768, 196)), perm=[0, 2, 1])
    batch = net.add("Gather", net.add("Shape", image), net.ints(0), axis=0)
    target = net.add("Concat", batch, net.ints(1, 768), axis=0)
    token = net.add("Expand", net.normal(1, 1, 768, scale=0.5), target)
    x = net.add("Concat", token, x, axis=1)
    x = net.add("Add", x, net.normal(1, 197, 768, scale=0.2))
    for _ in range(12):
        x = net.add("Add", x, attention(net, normalised(net, x, 768), 768, 12, None))
        x = net.add("Add", x, feed_forward(net, normalised(net, x, 768), 768))
    first = net.add("Gather", normalised(net, x, 768), net.weight(np.array(0)), axis=1)
    scores = linear(net, first, 768, 1000)
    return net.model(logits=(scores, TensorProto.FLOAT, ["batch", 1000]))


# Recurrent networks

_FRAMES, _FEATURES, _HIDDEN = 100, 80, 256


def recurrent(operator: str, gates: int, directions: int, seed: int) -> onnx.ModelProto:
    """Return two recurrent layers and a product, over a hundred frames of sound."""
    net = Network(operator.lower(), seed)
    sound = net.input("features", TensorProto.FLOAT, ["batch", _FRAMES, _FEATURES])
    batch = net.add("Gather", net.add("Shape", sound), net.ints(0), axis=0)
    shape = net.add("Concat", net.ints(directions), batch, net.ints(_HIDDEN), axis=0)
    start = net.add("ConstantOfShape", shape, value=helper.make_tensor("v", 1, [1], [0.0]))
    x, width, scale = net.add("Transpose", sound, perm=[1, 0, 2]), _FEATURES, 1 / math.sqrt(_HIDDEN)
    states = ["", start] + ([start] if operator == "LSTM" else [])
    linear_first = {"linear_before_reset": 1} if operator == "GRU" else {}
    for _ in range(2):
        weights = [
            net.normal(directions, gates * _HIDDEN, width, scale=scale),
            net.normal(directions, gates * _HIDDEN, _HIDDEN, scale=scale),
            net.normal(directions, 2 * gates * _HIDDEN, scale=scale),
        ]
        y = net.add(
            operator,
            x,
            *weights,
            *states,
            direction="bidirectional" if directions == 2 else "forward",
            hidden_size=_HIDDEN,
            **linear_first,
        )
        width = directions * _HIDDEN
        x = net.add("Transpose", y, perm=[0, 2, 1, 3])
        x = net.add("Reshape", x, net.ints(0, 0, -1))
    x = linear(net, net.add("Transpose", x, perm=[1, 0, 2]), width, 64)
    return net.model(scores=(x, TensorProto.FLOAT, ["batch", _FRAMES, 64]))


def settle_statistics(model: onnx.ModelProto) -> None:
    """Give each BatchNormalization the mean and variance of what reaches it.

    One run in training mode tells: there each normalises by what it sees, and returns that.
    """
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if not nodes:
        return
    training = onnx.ModelProto()
    training.CopyFrom(model)
    del training.graph.output[:]
    for node in training.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(helper.make_attribute("training_mode", 1))
            node.attribute.append(helper.make_attribute("momentum", 0.0))
            node.output.extend([f"{node.output[0]}.mean", f"{node.output[0]}.variance"])
            training.graph.output.extend(map(helper.make_empty_tensor_value_info, node.output[1:]))
    shape = [max(d.dim_value, 1) for d in model.graph.input[0].type.tensor_type.shape.dim]
    session = AegisBackend.prepare(training)
    found = dict(
        zip((o.name for o in training.graph.output), session.run([picture(shape)]), strict=True)
    )
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in nodes:
        for name, what in ((node.input[3], "mean"), (node.input[4], "variance")):
            value = found[f"{node.output[0]}.{what}"]
            weights[name].CopyFrom(numpy_helper.from_array(value, name))


def picture(shape: Sequence[int]) -> np.ndarray:
    """Return smooth colours with some noise, more like a photograph than noise alone."""
    generator = np.random.default_rng(0)
    _, channels, height, width = shape
    coarse = generator.standard_normal((channels, 8, 8))
    rows, columns = (np.arange(n) * 8 // n for n in (height, width))
    smooth = coarse[:, rows][:, :, columns]
    noisy = smooth + 0.3 * generator.standard_normal((channels, height, width))
    return noisy[None].astype(np.float32)


NETWORKS: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, Shape]]] = {
    "resnet50": (resnet50, {"image": (1, 3, 224, 224)}),
    "mobilenetv2": (mobilenetv2, {"image": (1, 3, 224, 224)}),
    "detector": (detector, {"image": (1, 3, _SIDE, _SIDE)}),
    "bert-base": (
        bert_base,
        dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (1, 128)),
    ),
    "vit-b16": (vit_b16, {"image": (1, 3, 224, 224)}),
    "gru": (lambda: recurrent("GRU", 3, 2, 3), {"features": (1, _FRAMES, _FEATURES)}),
    "lstm": (lambda: recurrent("LSTM", 4, 1, 4), {"features": (1, _FRAMES, _FEATURES)}),
    "resnet50-qdq": (resnet50, {"image": (1, 3, 224, 224)}),
}
"""How each is made, and the shapes of a batch of 1."""


def manifest(names: Sequence[str]) -> str:
    """Return the text of a manifest of these networks."""
    lines = ["manifest_version = 1", 'name = "networks"']
    for name in names:
        shapes = ", ".join(f"{key} = {list(shape)}" for key, shape in NETWORKS[name][1].items())
        lines += ["", "[[models]]", f'name = "{name}"', f'path = "{name}.onnx"']
        lines += [f"shapes = {{ {shapes} }}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    names = arguments.names or list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"there is no network {min(unknown)}; there are {', '.join(NETWORKS)}")
    for name in names:
        path = arguments.folder / f"{name}.onnx"
        if path.exists():
            continue
        model = NETWORKS[name][0]()
        settle_statistics(model)
        if name.endswith("-qdq"):
            model = quantised(model, picture([1, 3, 224, 224]))
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
        print(f"{path}  {path.stat().st_size / 1e6:.0f} MB", flush=True)
    present = [name for name in NETWORKS if (arguments.folder / f"{name}.onnx").exists()]
    (arguments.folder / "networks.toml").write_text(manifest(present), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
