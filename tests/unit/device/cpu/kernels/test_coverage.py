"""Crosses the operator table with the CPU's kernels: what this device leaves to the reference."""

from __future__ import annotations

from aegis_pipe.device.cpu.kernels import KERNELS
from aegis_pipe.execution.operators import OPERATORS

# What an operator becomes in canonical form, where that has another name.
RENAMED = {
    "BlackmanWindow": "Constant",
    "CastLike": "Cast",
    "EyeLike": "Constant",
    "Flatten": "Reshape",
    "Gelu": "com.microsoft.BiasGelu",
    "HammingWindow": "Constant",
    "HannWindow": "Constant",
    "Identity": "Reshape",
    "RandomNormalLike": "RandomNormal",
    "RandomUniformLike": "RandomUniform",
    "MelWeightMatrix": "Constant",
    "Scatter": "ScatterElements",
    "Shape": "Constant",
    "Size": "Constant",
    "Squeeze": "Reshape",
    "Unsqueeze": "Reshape",
    "Upsample": "Resize",
    "ai.onnx.ml.ArrayFeatureExtractor": "Gather",
    "ai.onnx.ml.TreeEnsembleRegressor": "ai.onnx.ml.TreeEnsemble",
    "com.microsoft.DequantizeLinear": "DequantizeLinear",
    "com.microsoft.QuantizeLinear": "QuantizeLinear",
    "com.microsoft.DynamicQuantizeMatMul": "com.microsoft.QGemm",
    "com.microsoft.FastGelu": "com.microsoft.BiasGelu",
    "com.microsoft.Gelu": "com.microsoft.BiasGelu",
    "com.microsoft.GridSample": "GridSample",
    "com.microsoft.MatMulIntegerToFloat": "com.microsoft.QGemm",
    "com.microsoft.MultiHeadAttention": "Attention",
    "com.microsoft.QuickGelu": "Swish",
}

# Shapes of three depend on data, so that no device has kernels for them; the last is the GPU's.
LACKING = ["NonMaxSuppression", "NonZero", "Unique", "aegis.PlanarConv", "aegis.QLinearConvAdd"]


def _lacking() -> list[str]:
    known = set(KERNELS.operators())
    return [name for name in OPERATORS.names() if RENAMED.get(name, name) not in known]


def test_every_operator_but_these_has_a_kernel() -> None:
    assert _lacking() == LACKING


def test_every_kernel_can_be_reached() -> None:
    canonical = {RENAMED.get(name, name) for name in OPERATORS.names()}
    assert set(KERNELS.operators()) <= canonical
