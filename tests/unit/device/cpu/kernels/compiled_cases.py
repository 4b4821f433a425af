"""Operators on which the compiled kernels are tested: every branch of the loop nests is in one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels.product_endings import ENDINGS
from tests.unit.device.cpu.kernels import channels_last_cases
from tests.unit.device.cpu.kernels.attention_cases import ATTENTION
from tests.unit.device.cpu.kernels.block_cases import BLOCKS
from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.device.cpu.kernels.chain_cases import CHAINS
from tests.unit.device.cpu.kernels.indexing_cases import INDEXING
from tests.unit.device.cpu.kernels.inverted_residual_cases import inverted_residuals
from tests.unit.device.cpu.kernels.quantised_cases import QUANTISED
from tests.unit.device.cpu.kernels.recurrent_cases import RECURRENT
from tests.unit.device.cpu.kernels.resizing_cases import RESIZING
from tests.unit.device.cpu.kernels.value_cases import VALUES
from tests.unit.kernel_driver import make_node


def _conv(
    kernel: str,
    data: Sequence[int],
    weights: Sequence[int],
    bias: bool = True,
    **attributes: object,
) -> Case:
    values = [random(*data), random(*weights)] + [random(weights[0])] * bias
    return Case(
        f"native.conv.{kernel}", make_node("Conv", len(values), **attributes), values, (1, 2)
    )


def _pads(size: int) -> list[int]:
    return [size] * 4


def convolutions() -> dict[str, Case]:
    s2, d2 = [2, 2], [2, 2]
    return {
        "3x3": _conv("channels", (1, 64, 12, 11), (64, 64, 3, 3), pads=_pads(1)),
        "3x3 large": _conv("channels", (1, 48, 40, 37), (40, 48, 3, 3), pads=_pads(1)),
        "7x7 of colours": _conv(
            "channels", (1, 3, 64, 60), (20, 3, 7, 7), pads=_pads(3), strides=s2
        ),
        "many maps": _conv("channels", (1, 8, 5, 5), (200, 8, 3, 3), pads=_pads(1)),
        "batch": _conv("channels", (3, 5, 9, 9), (7, 5, 3, 3), pads=_pads(1), bias=False),
        "groups": _conv(
            "channels", (2, 32, 14, 14), (36, 8, 3, 3), pads=_pads(1), group=4, strides=s2
        ),
        "dilated": _conv("channels", (1, 8, 25, 37), (18, 8, 3, 3), pads=_pads(2), dilations=d2),
        "dilated strided": _conv(
            "channels", (1, 8, 25, 37), (18, 8, 3, 3), strides=s2, dilations=[3, 2]
        ),
        "uneven": _conv(
            "channels", (1, 9, 13, 20), (17, 9, 2, 5), pads=[0, 3, 1, 1], strides=[1, 3]
        ),
        "1x1 small": _conv("channels", (2, 16, 5, 7), (24, 16, 1, 1)),
        "1x1 in padding": _conv("channels", (1, 4, 9, 9), (4, 4, 1, 1), pads=_pads(2)),
        "1x1 strided padding": _conv(
            "channels", (1, 4, 9, 9), (6, 4, 1, 1), pads=[0, 0, 2, 2], strides=s2
        ),
        "padding beyond": _conv(
            "channels", (1, 4, 3, 3), (4, 4, 1, 1), pads=[0, 7, 0, 0], strides=[1, 8]
        ),
        "one dimension": _conv("channels", (2, 16, 50), (24, 16, 3), pads=[1, 1]),
        "1x1": _conv("pixels", (2, 16, 13, 17), (24, 16, 1, 1)),
        "1x1 grouped": _conv("pixels", (2, 16, 12, 12), (10, 8, 1, 1), group=2),
        "1x1 strided": _conv("pixels", (2, 40, 28, 70), (19, 40, 1, 1), strides=s2),
        "1x1 strided by 3": _conv("pixels", (1, 8, 40, 41), (19, 8, 1, 1), strides=[2, 3]),
        "depthwise": _conv(
            "depthwise_pixels", (1, 33, 15, 37), (33, 1, 3, 3), pads=_pads(1), group=33
        ),
        "depthwise strided": _conv(
            "depthwise_pixels", (2, 9, 49, 70), (9, 1, 3, 3), pads=_pads(1), group=9, strides=s2
        ),
        "depthwise 5x5 by 3": _conv(
            "depthwise_pixels", (1, 4, 70, 61), (4, 1, 5, 5), pads=_pads(2), group=4, strides=[3, 3]
        ),
        "depthwise dilated": _conv(
            "depthwise_pixels", (1, 4, 60, 61), (4, 1, 3, 3), group=4, strides=s2, dilations=[3, 3]
        ),
        "depthwise small": _conv(
            "depthwise_channels", (2, 35, 7, 7), (35, 1, 3, 3), pads=_pads(1), group=35
        ),
        "depthwise small strided": _conv(
            "depthwise_channels",
            (2, 32, 14, 15),
            (32, 1, 5, 5),
            pads=_pads(2),
            group=32,
            strides=s2,
        ),
        "depthwise small dilated": _conv(
            "depthwise_channels",
            (1, 20, 14, 15),
            (20, 1, 3, 3),
            bias=False,
            group=20,
            dilations=[2, 3],
        ),
    }


def fused_convolutions() -> dict[str, Case]:
    """Every kernel with a bias or without, another tensor added, then clipped."""
    cases = {}
    for name, data, weights, attributes in (
        ("channels", (2, 9, 13, 10), (37, 9, 3, 3), {"pads": _pads(1)}),
        ("channels", (2, 8, 7, 7), (70, 4, 1, 1), {"group": 2}),
        ("pixels", (2, 16, 13, 17), (22, 8, 1, 1), {"group": 2}),
        ("depthwise_pixels", (2, 5, 17, 33), (5, 1, 3, 3), {"pads": _pads(1), "group": 5}),
        ("depthwise_pixels", (1, 5, 7, 7), (5, 1, 3, 3), {"pads": _pads(1), "group": 5}),
    ):
        for activation, parameters in (("Relu", ()), ("Clip", (-3.0, 20.0))):
            node = make_node(
                "FusedConv",
                ["i0", "i1", "i2", "i3"],
                domain="com.microsoft",
                activation=activation,
                kernel_shape=weights[2:],
                **({"activation_params": parameters} if parameters else {}),
                **attributes,
            )
            spatial = data[2:]
            result = random(data[0], weights[0], *spatial)
            values = [random(*data), random(*weights), random(weights[0]), result]
            cases[f"fused {name} {data} {activation}"] = Case(
                f"native.conv.{name}", node, values, (1, 2)
            )
    return cases


def _matmul(a: Sequence[int], b: Sequence[int], constant: bool) -> Case:
    kernel = "native.gemm" if constant else "native.gemm_dynamic"
    return Case(kernel, make_node("MatMul", 2), [random(*a), random(*b)], (1,) * constant)


def _gemm(trans_a: int, trans_b: int, addend: Sequence[int] | None, constant: bool) -> Case:
    values = [random(*((7, 5), (5, 7))[1 - trans_a]), random(*((7, 39), (39, 7))[trans_b])]
    values += [random(*addend)] if addend is not None else []
    node = make_node("Gemm", len(values), transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)
    kernel = "native.gemm" if constant else "native.gemm_dynamic"
    return Case(kernel, node, values, (1,) * constant)


def _ended(activation: str, constant: bool) -> Case:
    """A depth of several chunks; columns that fill a panel and some that do not."""
    known_elsewhere = activation in ("LeakyRelu", "Sigmoid", "Tanh")
    node = make_node(
        "FusedGemm", 3, domain="com.microsoft", activation=activation, activation_alpha=0.7
    )
    values = [random(13, 350) * np.float32(0.1), random(350, 75), random(75)]
    kernel = "native.gemm" if constant else "native.gemm_dynamic"
    return Case(kernel, node, values, (1,) * constant, like_onnxruntime=known_elsewhere)


def products() -> dict[str, Case]:
    cases = {}
    for activation in ENDINGS:
        for constant in (False, True):
            cases[f"{activation} behind gemm {constant}"] = _ended(activation, constant)
    for constant in (False, True):
        for a, b in (
            ((5, 7), (7, 9)),
            ((64, 130), (130, 65)),
            ((3, 4, 5, 6), (6, 33)),
            ((3, 4, 5, 6), (3, 4, 6, 40)),
            ((1, 4, 5, 6), (3, 1, 6, 17)),
            ((300, 500), (500, 70)),
            ((140, 1500), (1500, 70)),
            # Two blocks of rows, two stretches of the depth.
            ((370, 1300), (1300, 200)),
            ((50, 512), (512, 200)),
            ((2, 7, 1030), (2, 1030, 5)),
        ):
            cases[f"matmul {a} {b} {constant}"] = _matmul(a, b, constant)
        for trans_a, trans_b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            for addend in (None, (39,), (1, 39), (5, 1), (5, 39), (), (1,)):
                name = f"gemm {trans_a}{trans_b} {addend} {constant}"
                cases[name] = _gemm(trans_a, trans_b, addend, constant)
    cases["vector"] = _matmul((1000,), (1000, 100), True)
    fused = make_node("FusedMatMul", 2, domain="com.microsoft", transA=1, transB=1, alpha=0.25)
    cases["fused"] = Case("native.gemm_dynamic", fused, [random(2, 9, 5), random(2, 33, 9)])
    return cases


def _map(operator: str, scale: float = 3, kernel: str = "native.map", **attributes: object) -> Case:
    values = [random(3, 5, 67) * np.float32(scale)]
    return Case(kernel, make_node(operator, 1, **attributes), values)


def _pair(operator: str, a: Sequence[int], b: Sequence[int]) -> Case:
    return Case("native.pair", make_node(operator, 2), [random(*a), random(*b)])


def elementwise() -> dict[str, Case]:
    cases = {
        "relu": _map("Relu"),
        "leaky relu": _map("LeakyRelu", alpha=0.1),
        "sigmoid": _map("Sigmoid", 20),
        "tanh": _map("Tanh"),
        "tanh small": _map("Tanh", 0.01),
        "exp": _map("Exp", 8),
        "erf": _map("Erf"),
        "erf small": _map("Erf", 0.01),
        "gelu": _map("Gelu"),
        "gelu tanh": _map("Gelu", approximate="tanh"),
        "hard sigmoid": _map("HardSigmoid", alpha=0.3),
        "hard swish": _map("HardSwish"),
        "neg": _map("Neg"),
        "abs": _map("Abs"),
        "reciprocal": _map("Reciprocal"),
    }
    bounds = [random(2, 3, 67), np.float32(-0.5), np.float32(0.75)]
    cases["clip"] = Case(
        "native.map", make_node("Clip", 3), [bounds[0], *map(np.asarray, bounds[1:])], (1, 2)
    )
    cases["sqrt"] = Case("native.map", make_node("Sqrt", 1), [np.abs(random(70))])
    forms = (
        ((2, 3, 67), (2, 3, 67)),
        ((2, 3, 67), (67,)),
        ((2, 5, 9, 10), (5, 1, 1)),
        ((2, 1, 5, 33), (4, 1, 33)),
        ((1, 20), (30, 1)),
        ((3, 40), ()),
        ((1,), (3, 40)),
        ((7,), (7,)),
        ((2, 1, 4, 1, 30), (1, 3, 1, 5, 30)),
    )
    for operator in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        for a, b in forms if operator == "Sub" else forms[:3]:
            if len(a) < 5:
                cases[f"{operator} {a} {b}"] = _pair(operator, a, b)
    cases["prelu"] = _pair("PRelu", (2, 3, 5, 9), (3, 1, 1))
    return cases


def _pool(operator: str, data: Sequence[int], **attributes: object) -> Case:
    kernel = "native.pool.max" if operator == "MaxPool" else "native.pool.average"
    return Case(kernel, make_node(operator, 1, **attributes), [random(*data)])


def pools() -> dict[str, Case]:
    cases = {}
    for name, data, attributes in (
        ("3x3 by 2", (1, 4, 17, 33), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": _pads(1)}),
        ("3x3", (2, 3, 40, 70), {"kernel_shape": [3, 3], "pads": _pads(1)}),
        ("2x2", (1, 5, 9, 100), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("5x5 by 3", (1, 2, 12, 13), {"kernel_shape": [5, 5], "strides": [3, 3], "pads": _pads(2)}),
        ("ceil", (1, 2, 14, 16), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        (
            "dilated",
            (1, 2, 30, 31),
            {"kernel_shape": [3, 2], "strides": [2, 2], "pads": _pads(1), "dilations": [2, 3]},
        ),
        ("one dimension", (2, 3, 45), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
        (
            "uneven",
            (1, 2, 20, 21),
            {"kernel_shape": [1, 4], "strides": [3, 1], "pads": [0, 2, 0, 3]},
        ),
    ):
        cases[f"max {name}"] = _pool("MaxPool", data, **attributes)
        for counts in (0, 1):
            average = _pool("AveragePool", data, count_include_pad=counts, **attributes)
            cases[f"average {name} {counts}"] = average
    for operator, kernel in (("GlobalAveragePool", "average"), ("GlobalMaxPool", "max")):
        for size in ((7, 7), (13, 21), (1, 1), (3, 5)):
            node = make_node(operator, 1)
            values = [random(2, 5, *size)]
            cases[f"{operator} {size}"] = Case(f"native.pool.global_{kernel}", node, values)
    return cases


def normalisations() -> dict[str, Case]:
    cases = {}
    for n in (1, 5, 16, 17, 100, 197):
        cases[f"softmax {n}"] = Case("native.softmax", make_node("Softmax", 1), [random(3, n) * 9])
        layer = [random(4, n) + 3, random(n), random(n)]
        cases[f"layer {n}"] = Case(
            "native.layer_normalisation", make_node("LayerNormalization", 3, 3), layer
        )
        batch = [random(2, 3, n), random(3), random(3), random(3), np.abs(random(3))]
        cases[f"batch {n}"] = Case(
            "native.batch_normalisation", make_node("BatchNormalization", 5), batch
        )
        logarithms = make_node("LogSoftmax", 1)
        cases[f"log softmax {n}"] = Case("native.softmax", logarithms, [random(3, n) * 9])
    for shape, axis in (((3, 9, 5), 1), ((20, 67), 0), ((2, 7, 150), 1), ((2, 3, 8, 16), 1)):
        for operator in ("Softmax", "LogSoftmax"):
            along = make_node(operator, 1, axis=axis)
            cases[f"{operator} of {shape}"] = Case("native.softmax", along, [random(*shape) * 9])
    of_several = make_node("Softmax", 1, axis=1)
    cases["softmax of several"] = Case("native.softmax", of_several, [random(2, 3, 5)], (), 12)
    for n in (5, 40):
        skipped = [random(2, 3, n), random(2, 3, n), random(n), random(n), random(n)]
        skip = make_node("SkipLayerNormalization", 5, domain="com.microsoft")
        with_sum = make_node("SkipLayerNormalization", 5, domain="com.microsoft")
        with_sum.output.extend(["", "", "sum"])
        cases[f"skip {n}"] = Case("native.skip_normalisation", skip, skipped)
        cases[f"skip with sum {n}"] = Case("native.skip_normalisation", with_sum, skipped)
    for shape, size, beta in (((2, 9, 5, 7), 5, 0.75), ((1, 3, 40), 4, 0.5), ((2, 1, 3), 3, 0.75)):
        local = make_node("LRN", 1, size=size, beta=beta, alpha=0.4, bias=2.0)
        # ONNX Runtime takes odd sizes and images only.
        theirs = len(shape) == 4
        cases[f"local response of {shape}"] = Case(
            "native.local_response", local, [random(*shape) * 3], like_onnxruntime=theirs
        )
    rows = make_node("LayerNormalization", 2, axis=1)
    cases["layer of planes"] = Case(
        "native.layer_normalisation", rows, [random(4, 5, 7), random(5, 7)]
    )
    return cases


def _conv_transpose(
    data: Sequence[int],
    weights: Sequence[int],
    *,
    maps: int = 0,
    constants: tuple[int, ...] = (1, 2),
    **attributes: object,
) -> Case:
    """With a bias if `maps` says how many output channels there are."""
    values = [random(*data), random(*weights)] + [random(maps)] * bool(maps)
    node = make_node("ConvTranspose", len(values), **attributes)
    return Case("native.conv_transpose", node, values, constants)


def transposed_convolutions() -> dict[str, Case]:
    s2 = [2, 2]
    return {
        "transposed apart": _conv_transpose((1, 24, 9, 70), (24, 24, 2, 2), maps=24, strides=s2),
        "transposed to one map": _conv_transpose((2, 24, 40, 37), (24, 1, 2, 2), strides=s2),
        "transposed overlapping": _conv_transpose(
            (2, 8, 9, 5), (8, 7, 3, 3), maps=7, strides=s2, pads=_pads(1), output_padding=[1, 1]
        ),
        "transposed blocks of maps": _conv_transpose(
            (1, 6, 9, 70), (6, 53, 4, 4), strides=s2, pads=_pads(1)
        ),
        "transposed weights computed": _conv_transpose(
            (1, 6, 9, 21), (6, 5, 4, 4), maps=5, constants=(), strides=s2, pads=_pads(1)
        ),
        "transposed grouped dilated": _conv_transpose(
            (2, 6, 9, 33), (6, 5, 3, 3), maps=10, group=2, dilations=[2, 3], pads=[0, 2, 1, 3]
        ),
        "transposed strips": _conv_transpose(
            (1, 300, 40, 41), (300, 3, 3, 3), strides=s2, pads=[1, 2, 1, 0]
        ),
        "transposed gaps": _conv_transpose(
            (1, 3, 5, 6), (3, 2, 2, 2), maps=2, strides=[4, 5], output_padding=[3, 4]
        ),
        "transposed one dimension": _conv_transpose(
            (2, 6, 19), (6, 4, 5), maps=4, strides=[3], dilations=[2], pads=[3, 1]
        ),
        "transposed three dimensions": _conv_transpose(
            (1, 4, 3, 4, 5),
            (4, 3, 3, 2, 3),
            maps=6,
            group=2,
            strides=[2, 3, 2],
            dilations=[1, 2, 1],
            pads=[1, 0, 2, 0, 1, 0],
        ),
    }


CASES: dict[str, Case] = {
    **convolutions(),
    **transposed_convolutions(),
    **channels_last_cases.cases(),
    **fused_convolutions(),
    **inverted_residuals(),
    **products(),
    **elementwise(),
    **pools(),
    **normalisations(),
    **ATTENTION,
    **BLOCKS,
    **CHAINS,
    **INDEXING,
    **QUANTISED,
    **RECURRENT,
    **RESIZING,
    **VALUES,
}
