"""However large its operands, no kernel holds more than NumPy's fixed buffers beside its plan."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.kernel_driver import drive, make_node, operator_node

HIDDEN_BYTES_MAX = 200 << 10
"""NumPy's loops buffer up to 8192 elements of each of their operands."""


def _random(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def _bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


IMAGE = _random(2, 32, 96, 96)
WORDS = _random(2, 256, 512)
SCALE = np.array(0.02, np.float32)
ZERO = np.array(120, np.uint8)

CASES = {
    "Conv pointwise": ({}, [IMAGE, _random(32, 32, 1, 1), _random(32)]),
    "com.microsoft.FusedConv": ({"activation": "LeakyRelu"}, [IMAGE, _random(32, 32, 1, 1)]),
    "Conv columns": ({"pads": [1] * 4}, [IMAGE, _random(32, 32, 3, 3), _random(32)]),
    "Conv depthwise": ({"pads": [1] * 4, "group": 32}, [IMAGE, _random(32, 1, 3, 3)]),
    "Conv half": (
        {"pads": [1] * 4},
        [IMAGE.astype(np.float16), _random(32, 32, 3, 3, dtype=np.float16)],
    ),
    "ConvTranspose": ({"strides": [2, 2]}, [IMAGE, _random(32, 8, 2, 2), _random(8)]),
    "ConvInteger": ({}, [_bytes(2, 32, 96, 96), _bytes(32, 32, 3, 3), ZERO, ZERO]),
    "QLinearConv": (
        {"pads": [1] * 4},
        [_bytes(2, 32, 96, 96), SCALE, ZERO, _bytes(32, 32, 3, 3), SCALE, ZERO, SCALE, ZERO],
    ),
    "MaxPool": ({"kernel_shape": [3, 3], "pads": [1] * 4}, [IMAGE]),
    "MaxPool indices": ({"kernel_shape": [3, 3], "pads": [1] * 4}, [IMAGE]),
    "AveragePool": ({"kernel_shape": [3, 3], "pads": [1] * 4}, [IMAGE]),
    "LpPool": ({"kernel_shape": [3, 3], "p": 3}, [IMAGE]),
    "MatMul": ({}, [WORDS, _random(512, 512)]),
    "MatMulInteger": ({}, [_bytes(2, 256, 512), _bytes(512, 512), ZERO, ZERO]),
    "Gemm": (
        {"beta": 0.5, "transA": 1},
        [_random(512, 512), _random(512, 512), _random(512, 512)],
    ),
    "BatchNormalization": ({}, [IMAGE, *(np.abs(_random(32)) for _ in range(4))]),
    "InstanceNormalization": ({}, [IMAGE, _random(32), _random(32)]),
    "LayerNormalization": ({}, [WORDS, _random(512), _random(512)]),
    "LpNormalization": ({"axis": 1}, [WORDS]),
    "MeanVarianceNormalization": ({}, [IMAGE]),
    "LRN": ({"size": 5}, [IMAGE]),
    "Softmax": ({"axis": 1}, [WORDS]),
    "LogSoftmax": ({}, [WORDS]),
    "Hardmax": ({}, [WORDS]),
    "Hardmax scattered": ({"axis": 1}, [WORDS]),
    "LSTM": ({"hidden_size": 128}, [WORDS, _random(1, 512, 512), _random(1, 512, 128)]),
    "GRU": ({"hidden_size": 128}, [WORDS, _random(1, 384, 512), _random(1, 384, 128)]),
    "Attention": ({"q_num_heads": 8, "kv_num_heads": 8, "is_causal": 1}, [WORDS] * 3),
    "RotaryEmbedding": (
        {"num_heads": 8},
        [WORDS, _random(300, 32), _random(300, 32), np.arange(512).reshape(2, 256) % 300],
    ),
    "Einsum": ({"equation": "bij,kj->bki"}, [WORDS, _random(512, 512)]),
    "DepthToSpace": ({"blocksize": 4}, [IMAGE]),
    "com.microsoft.BiasGelu": ({}, [WORDS, _random(512)]),
    "com.microsoft.SkipLayerNormalization": ({}, [WORDS, WORDS, _random(512)]),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_large_is_hidden(name: str) -> None:
    attributes, values = CASES[name]
    domain, _, operator = name.split()[0].rpartition(".")
    output_count = 2 if name.endswith("indices") else 1
    proto = make_node(operator, len(values), output_count, domain=domain, **attributes)
    driven = drive(operator_node(proto, 23), values, range(1, len(values)))
    assert driven is not None
    assert max(array.nbytes for array in driven.outputs) > HIDDEN_BYTES_MAX
    assert driven.hidden_bytes < HIDDEN_BYTES_MAX
