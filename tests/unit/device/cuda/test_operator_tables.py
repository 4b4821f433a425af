"""The GPU's kernel table beside the CPU's: the same names, and a refusal that names the rest."""

import pytest

from aegis_pipe.device.cpu.kernels import KERNELS as CPU_KERNELS

pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda.kernels import KERNELS

_BEYOND = {"Identity", "aegis.PlanarConv", "aegis.QLinearConvAdd"}
"""Asked for by the device conformance suite alone, and made by a pass for GPUs alone."""


def test_every_name_is_canonical() -> None:
    assert set(KERNELS.operators()) - set(CPU_KERNELS.operators()) <= _BEYOND


_NOT_HERE = {"ImageDecoder", "aegis.InvertedResidual"}
"""Refused by name (docs/decisions/0021), and made by a pass for the CPU alone."""


def test_every_operator_of_the_cpu_is_there_or_known_to_be_refused() -> None:
    assert set(CPU_KERNELS.operators()) - set(KERNELS.operators()) == _NOT_HERE


def test_what_common_networks_need_is_there() -> None:
    needed = {
        *("Conv", "com.microsoft.FusedConv", "com.microsoft.NhwcFusedConv", "ConvTranspose"),
        *("MaxPool", "AveragePool", "GlobalAveragePool", "com.microsoft.NhwcMaxPool"),
        *("MatMul", "Gemm", "com.microsoft.FusedGemm", "com.microsoft.FusedMatMul", "Attention"),
        *("LayerNormalization", "com.microsoft.SkipLayerNormalization", "Softmax", "Gather"),
        *("Add", "Mul", "Where", "Cast", "Concat", "Split", "Slice", "Transpose", "Reshape"),
    }
    assert needed <= set(KERNELS.operators())
