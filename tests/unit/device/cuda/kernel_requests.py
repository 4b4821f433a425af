"""Requests for every operator of the GPU's table, from ONNX's cases and from nodes made here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

from aegis_pipe.errors import AegisError
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec
from tests.unit.device.cpu.kernels.chain_cases import CHAINS
from tests.unit.kernel_driver import lower, make_node, operator_node

Example = tuple[KernelRequest, list[np.ndarray | None]]
"""A request and the values of its operands."""

_FLOAT32 = np.dtype(np.float32)
_INT64 = np.dtype(np.int64)


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape).astype(np.uint8)


def _scale(value: float = 0.05) -> np.ndarray:
    return np.array(value, np.float32)


_ZERO = np.array(7, np.uint8)


def _example(proto: onnx.NodeProto, values: Sequence[np.ndarray | None], opset: int) -> Example:
    request, positions = lower(operator_node(proto, opset), values)
    return request, [values[at] if at >= 0 else None for at in positions]


def _array(value: object) -> np.ndarray:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def _of_onnx() -> Iterator[Example]:
    """Yield what the cases of one node ask for."""
    with warnings.catch_warnings():
        # The generators overflow and divide by zero on purpose.
        warnings.simplefilter("ignore")
        cases = sorted(collect_testcases(None), key=lambda case: case.name)
    for case in cases:
        graph = case.model.graph
        if len(graph.node) != 1:
            continue
        (node,) = graph.node
        opsets = {each.domain: each.version for each in case.model.opset_import}
        inputs, _ = case.data_sets[0]
        names = [value.name for value in graph.input]
        given = dict(zip(names, inputs, strict=True))
        values = [given.get(name) for name in node.input]
        try:
            arrays = [None if value is None else _array(value) for value in values]
            yield _example(node, arrays, opsets[node.domain])
        except (AegisError, AssertionError, ValueError, TypeError, AttributeError):
            # Strings, sequences, shapes that data decides: no kernel is asked for.
            continue


def _contributed() -> Iterator[Example]:
    """Yield operators of com.microsoft."""

    def node(operator: str, values: Sequence[np.ndarray | None], **attributes: object) -> Example:
        names = [f"i{at}" if value is not None else "" for at, value in enumerate(values)]
        proto = make_node(operator, names, domain="com.microsoft", **attributes)
        return _example(proto, values, 1)

    data, unary = _bytes(2, 5, 6, 7), [_scale(), _ZERO, _scale(0.04), _ZERO]
    for name in ("QLinearSigmoid", "QLinearLeakyRelu"):
        yield node(name, [data, *unary])
    for name in ("QLinearAdd", "QLinearMul"):
        pair = [data, _scale(), _ZERO, _bytes(6, 7), _scale(), _ZERO]
        yield node(name, [*pair, _scale(0.1), _ZERO])
    yield node("QLinearSoftmax", [_bytes(3, 9), *unary], axis=-1, opset=13)
    yield node("QLinearGlobalAveragePool", [data, *unary], channels_last=0)
    yield node("QLinearAveragePool", [data, *unary], kernel_shape=[2, 2], channels_last=1)
    parts = [each for _ in range(2) for each in (data, _scale(), _ZERO)]
    yield node("QLinearConcat", [_scale(), _ZERO, *parts], axis=1)
    weights = [_bytes(4, 5, 3, 3), _scale(), _ZERO, _scale(0.2), _ZERO, None]
    yield node("QLinearConv", [_bytes(2, 6, 7, 5), _scale(), _ZERO, *weights], channels_last=1)
    yield node("DynamicQuantizeMatMul", [_random(5, 12), _bytes(12, 9), _scale(), _ZERO])
    yield node("QGemm", [_bytes(5, 12), _scale(), _ZERO, _bytes(12, 9), _scale(), _ZERO])
    yield node("Attention", [_random(2, 5, 12), _random(12, 24), _random(24)], num_heads=2)
    yield node("FusedMatMul", [_random(2, 3, 4), _random(2, 4, 5)], alpha=0.5)
    yield node("FusedGemm", [_random(3, 4), _random(4, 5), _random(5)], activation="Relu")
    yield node("FusedGemm", [_random(3, 4), _random(4, 5), _random(5)], activation="FastGelu")
    yield node("FusedConv", [_random(1, 3, 6, 6), _random(4, 3, 3, 3)], activation="Relu")
    yield node(
        "NhwcFusedConv", [_random(1, 6, 6, 3), _random(4, 3, 3, 3)], activation="LeakyRelu",
        activation_params=[0.1],
    )  # fmt: skip
    yield node("NhwcMaxPool", [_bytes(1, 6, 6, 3)], kernel_shape=[2, 2])
    yield node("BiasGelu", [_random(3, 8), _random(8)])
    yield node("SkipLayerNormalization", [_random(2, 3, 8)] * 2 + [_random(8)] * 2)
    yield node("SkipSimplifiedLayerNormalization", [_random(2, 3, 8)] * 2 + [_random(8)])
    ids = np.array([[1, 2, 0], [3, 1, 2]], np.int32)
    tables = [_random(9, 8), _random(5, 8), _random(2, 8), _random(8), _random(8)]
    yield node("EmbedLayerNormalization", [ids, ids // 2, *tables])
    scales = np.abs(_random(9, 2)) + 0.1
    yield node(
        "MatMulNBits", [_random(3, 32), _bytes(9, 2, 8), scales], K=32, N=9, bits=4, block_size=16
    )
    yield node(
        "GatherBlockQuantized", [_bytes(9, 16), ids, scales], bits=4, block_size=16,
        gather_axis=0, quantize_axis=1,
    )  # fmt: skip
    cache = [_random(8, 2), _random(8, 2)]
    yield node("RotaryEmbedding", [_random(2, 3, 8), np.array([2], np.int64), *cache], num_heads=2)
    lengths, total = np.array([4, 3], np.int32), np.array(5, np.int32)
    past = [_random(2, 1, 5, 4)] * 2
    yield node(
        "GroupQueryAttention",
        [_random(2, 2, 8), _random(2, 2, 4), _random(2, 2, 4), *past, lengths, total, *cache],
        num_heads=2, kv_num_heads=1, do_rotary=1,
    )  # fmt: skip
    quantised = [_bytes(1, 3, 16), _bytes(1, 4, 16), None, None, None, None, None]
    each_scale = [np.array([0.01], np.float32), np.array([128], np.uint8)]
    yield node("DynamicQuantizeLSTM", [_random(4, 2, 3), *quantised, *each_scale * 2],
               hidden_size=4)  # fmt: skip


def _classical() -> Iterator[Example]:
    """Yield operators of ai.onnx.ml that ONNX has no case for."""

    def node(operator: str, values: Sequence[np.ndarray], **attributes: object) -> Example:
        outputs = 2 if operator.endswith("Classifier") else 1
        proto = make_node(operator, len(values), outputs, domain="ai.onnx.ml", **attributes)
        return _example(proto, values, 3)

    data = _random(5, 2)
    yield node("Scaler", [data], offset=[0.5, 1.0], scale=[2.0, 3.0])
    yield node("Normalizer", [data], norm="L2")
    yield node("Imputer", [data], imputed_value_floats=[1.0, 2.0], replaced_value_float=0.0)
    yield node("FeatureVectorizer", [data, data], inputdimensions=[2, 2])
    yield node("OneHotEncoder", [np.array([1, 3, 4])], cats_int64s=[4, 1, 3])
    yield node("LabelEncoder", [np.array([1, 3, 9])], keys_int64s=[1, 3], values_floats=[0.5, 1.5])
    linear = {"coefficients": [0.5, -1.0, 0.25, 2.0], "intercepts": [0.1, -0.1]}
    yield node("LinearRegressor", [data], targets=2, **linear)
    yield node("LinearClassifier", [data], classlabels_ints=[3, 7], post_transform="SOFTMAX",
               multi_class=1, **linear)  # fmt: skip
    vectors = [0.1, 0.2, 0.3, -0.4, 0.5, 0.6]
    machine = {"kernel_type": "RBF", "kernel_params": [0.5, 0.0, 3.0], "rho": [0.1]}
    yield node("SVMRegressor", [data], support_vectors=vectors, n_supports=3,
               coefficients=[0.4, -0.2, 0.7], **machine)  # fmt: skip
    yield node("SVMClassifier", [data], support_vectors=vectors, vectors_per_class=[2, 1],
               coefficients=[0.4, -0.2, 0.7], classlabels_ints=[0, 1], prob_a=[1.5], prob_b=[0.2],
               **machine)  # fmt: skip
    tree = {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [1, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_values": [0.3, 0.0, 0.0],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
    }  # fmt: skip
    yield node("TreeEnsembleClassifier", [data], class_treeids=[0, 0], class_nodeids=[1, 2],
               class_ids=[0, 1], class_weights=[1.0, 1.0], classlabels_int64s=[4, 9],
               **tree)  # fmt: skip


def _internal() -> Iterator[Example]:
    """Yield what only this project's passes and loader write."""
    data, nothing = _random(3, 4), TensorSpec(_INT64, ())
    spec = TensorSpec(_FLOAT32, (3, 4))

    def own(name: str, values: list[np.ndarray | None], outputs: tuple, **more: object) -> Example:
        specs = [None if each is None else TensorSpec(each.dtype, each.shape) for each in values]
        return KernelRequest(name, "node", more, tuple(specs), outputs), values

    yield own("aegis.NonZero", [data], (TensorSpec(_INT64, (2, 12)), nothing))
    flat, places = TensorSpec(_FLOAT32, (12,)), TensorSpec(_INT64, (12,))
    yield own("aegis.Unique", [data], (flat, *[places] * 3, nothing), axis=None, sorted=1)
    kept = np.array([True, False, True])
    rows = TensorSpec(_FLOAT32, (3, 4))
    yield own("aegis.Compress", [data, kept], (rows, nothing), axis=0)
    boxes, scores = np.abs(_random(1, 6, 4)), _random(1, 2, 6)
    selected = TensorSpec(_INT64, (8, 3))
    yield own(
        "aegis.NonMaxSuppression",
        [boxes, scores, _scale(0.5), _scale(0.0), None],
        (selected, nothing),
        boxes_per_class=4,
        center_point_box=0,
    )
    image = _bytes(2, 5, 6, 7)
    same = TensorSpec(image.dtype, image.shape)
    unary: list[np.ndarray | None] = [image, _scale(), _ZERO, _scale(0.04), _ZERO]
    yield own("aegis.QLinearClip", unary, (same,), levels=(7, 200))
    pooled = TensorSpec(_FLOAT32, (1, 2, 2, 3))
    windows = {"kernel_shape": (2, 2), "strides": (2, 2), "dilations": (1, 1), "pads": (0,) * 4}
    yield own("aegis.NhwcAveragePool", [_random(1, 4, 4, 3)], (pooled,), **windows,
              count_include_pad=0)  # fmt: skip
    chained = CHAINS["chain gates"]
    yield _example(chained.node, chained.values, chained.opset)
    yield own("Identity", [data], (spec,))
    yield own("ConstantOfShape", [], (spec,), value=np.array(2, np.float32))
    start, delta = np.float32(1), np.float32(0.5)
    yield own("Range", [], (flat,), start=np.asarray(start), delta=np.asarray(delta))
    for name in ("RandomNormal", "RandomUniform"):
        yield own(name, [], (spec,), seed=3, mean=0.0, scale=1.0, low=0.0, high=1.0)
    drawn = TensorSpec(_INT64, (3, 7))
    yield own("Multinomial", [data], (drawn,), seed=3)
    yield own("Constant", [], (spec,), value=data)
    regions = np.array([[0, 1, 1, 5, 4], [0, 0, 2, 3, 5]], np.float32)
    bins = TensorSpec(_FLOAT32, (2, 2, 2, 3))
    yield own("MaxRoiPool", [_random(1, 2, 6, 7), regions], (bins,), output_height=2,
              output_width=3, spatial_scale=1.0)  # fmt: skip
    yield own("GlobalLpPool", [_random(1, 2, 6, 7)], (TensorSpec(_FLOAT32, (1, 2, 1, 1)),), p=2)
    tensor = TensorSpec(_FLOAT32, (2, 4))
    chosen = np.array([0, 2])
    yield own("Compress", [data], (tensor,), axis=0, indices=chosen)
    yield own("SimplifiedLayerNormalization", [data, _random(4)], (spec,), axis=1, epsilon=1e-5)


def examples() -> Iterator[Example]:
    """Yield all of them; constants that kernels want known are."""
    for request, values in (*_internal(), *_contributed(), *_classical(), *_of_onnx()):
        yield replace(request, reference=None), values
