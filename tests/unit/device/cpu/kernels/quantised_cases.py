"""Operators on bytes on which the compiled kernels are tested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node

CONTRIBUTED = "com.microsoft"
INT8, UINT8 = np.dtype(np.int8), np.dtype(np.uint8)


def levels(dtype: np.dtype, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    generator = np.random.default_rng(seed + sum(shape))
    return generator.integers(limits.min, limits.max + 1, shape).astype(dtype)


def scale(value: float = 0.02) -> np.ndarray:
    return np.array(value, np.float32)


def zero(dtype: np.dtype, level: int) -> np.ndarray:
    return np.array(level, dtype)


def _node(operator: str, values: Sequence[np.ndarray | None], **attributes: object):
    names = [f"i{i}" if value is not None else "" for i, value in enumerate(values)]
    while not names[-1]:
        names.pop()
    domain = "" if operator in ("MatMulInteger", "QLinearMatMul") else CONTRIBUTED
    return make_node(operator, names, domain=domain, **attributes)


SHAPES = (
    ((5, 7), (7, 9)),
    ((1, 130), (130, 65)),
    ((2, 64), (64, 16)),
    ((3, 200), (200, 40)),
    ((17, 64), (64, 33)),
    ((33, 128), (128, 70)),
    ((40, 19), (19, 17)),
    ((70, 65), (65, 20)),
    ((100, 192), (192, 48)),
)
BATCHES = (((3, 4, 5, 6), (6, 33)), ((3, 4, 5, 6), (3, 4, 6, 40)), ((1, 4, 20, 6), (3, 1, 6, 17)))


def integer_products() -> dict[str, Case]:
    cases = {}
    for constant in (True, False):
        kernel = "native.bytes.gemm" if constant else "native.bytes.gemm_dynamic"
        for a, b in (*SHAPES, *BATCHES):
            if not constant and a[-2] < 4 and len(a) == 2:
                continue
            for a_type, b_type in ((UINT8, INT8), (UINT8, UINT8), (INT8, INT8), (INT8, UINT8)):
                values = [
                    levels(a_type, *a),
                    levels(b_type, *b),
                    zero(a_type, 3),
                    zero(b_type, 5),
                ]
                # ONNX Runtime does not multiply signed by unsigned bytes.
                known = (a_type, b_type) != (INT8, UINT8)
                name = f"integers {a} {b} {a_type}{b_type} {constant}"
                cases[name] = Case(
                    kernel,
                    _node("MatMulInteger", values),
                    values,
                    (1, 3) if constant else (),
                    like_onnxruntime=known,
                )
    plain = [levels(UINT8, 9, 40), levels(INT8, 40, 24)]
    cases["integers without zeros"] = Case(
        "native.bytes.gemm", _node("MatMulInteger", plain), plain, (1,)
    )
    columns = [*plain, zero(UINT8, 200), levels(INT8, 24)]
    cases["integers with a zero a column"] = Case(
        "native.bytes.gemm", _node("MatMulInteger", columns), columns, (1, 3)
    )
    extreme = [np.full((20, 300), 255, np.uint8), np.full((300, 20), -128, np.int8)]
    cases["integers at the end of their range"] = Case(
        "native.bytes.gemm", _node("MatMulInteger", extreme), extreme, (1,)
    )
    return cases


def quantised_products() -> dict[str, Case]:
    cases = {}
    for dtype in (UINT8, INT8):
        for by_column in (False, True):
            columns = 37
            b_scale = np.abs(random(columns)) / 100 if by_column else scale(0.01)
            b_zero = np.zeros(columns, INT8) if by_column else zero(INT8, 0)
            values = [
                levels(dtype, 21, 90),
                scale(),
                zero(dtype, 11),
                levels(INT8, 90, columns),
                b_scale,
                b_zero,
                scale(0.35),
                zero(dtype, 20),
            ]
            cases[f"linear {dtype} {by_column}"] = Case(
                "native.bytes.gemm",
                _node("QLinearMatMul", values),
                values,
                (3, 4, 5),
                tolerance=1.001 / 128,
            )
    for trans_b in (0, 1):
        shape = (40, 90) if trans_b else (90, 40)
        values = [
            levels(UINT8, 21, 90),
            scale(),
            zero(UINT8, 128),
            levels(INT8, *shape),
            scale(0.01),
            zero(INT8, 0),
            levels(UINT8, 40).astype(np.int32) * 100,
            scale(0.5),
            zero(UINT8, 90),
        ]
        for quantised in (True, False):
            given = values if quantised else values[:7]
            cases[f"gemm {trans_b} {quantised}"] = Case(
                "native.bytes.gemm",
                _node("QGemm", given, transA=0, transB=trans_b, alpha=0.5),
                given,
                (3, 4, 5),
                tolerance=1.001 / 128 if quantised else 3e-6,
            )
    return cases


def products_to_float() -> dict[str, Case]:
    cases = {}
    for a, b in (*SHAPES, BATCHES[0]):
        bias = random(b[-1])
        by_column = np.abs(random(b[-1])) / 100
        values = [levels(UINT8, *a), levels(INT8, *b), scale(), by_column, zero(UINT8, 100)]
        values += [np.zeros(b[-1], INT8), bias]
        cases[f"to float {a} {b}"] = Case(
            "native.bytes.gemm", _node("MatMulIntegerToFloat", values), values, (1, 3, 5)
        )
        dynamic = [random(*a), levels(INT8, *b), scale(0.01), zero(INT8, 3), bias]
        cases[f"dynamic {a} {b}"] = Case(
            "native.bytes.gemm", _node("DynamicQuantizeMatMul", dynamic), dynamic, (1, 2, 3)
        )
    return cases


def _conv_values(
    dtype: np.dtype, data: Sequence[int], weights: Sequence[int], by_map: bool, w_type: np.dtype
) -> list[np.ndarray | None]:
    maps, taps = weights[0], int(np.prod(weights[1:]))
    return [
        levels(dtype, *data),
        scale(),
        zero(dtype, 12),
        levels(w_type, *weights),
        np.abs(random(maps)) / 100 if by_map else scale(0.01),
        np.full(maps, 3, w_type) if by_map else zero(w_type, 3),
        scale(0.012 * taps**0.5),
        zero(dtype, 30),
        (random(maps) * 3000).astype(np.int32),
    ]


CONVOLUTIONS = (
    ("3x3", (1, 64, 12, 11), (64, 64, 3, 3), {"pads": [1] * 4}),
    ("7x7 of colours", (1, 3, 30, 37), (20, 3, 7, 7), {"pads": [3] * 4, "strides": [2, 2]}),
    ("many maps", (1, 8, 5, 5), (100, 8, 3, 3), {"pads": [1] * 4}),
    ("batch", (3, 5, 9, 9), (7, 5, 3, 3), {"pads": [1] * 4}),
    ("groups", (2, 32, 9, 8), (36, 8, 3, 3), {"pads": [1] * 4, "group": 4, "strides": [2, 2]}),
    ("dilated", (1, 8, 15, 17), (18, 8, 3, 3), {"pads": [2] * 4, "dilations": [2, 2]}),
    ("uneven", (1, 9, 13, 20), (17, 9, 2, 5), {"pads": [0, 3, 1, 1], "strides": [1, 3]}),
    ("1x1", (2, 24, 13, 17), (33, 24, 1, 1), {}),
    ("1x1 of whole lines", (2, 128, 7, 9), (40, 128, 1, 1), {}),
    ("1x1 strided", (1, 64, 9, 10), (19, 64, 1, 1), {"strides": [2, 2]}),
    ("1x1 in padding", (1, 64, 4, 5), (19, 64, 1, 1), {"pads": [1, 0, 0, 2]}),
    ("one dimension", (2, 16, 50), (24, 16, 3), {"pads": [1, 1]}),
    ("depthwise", (2, 35, 9, 38), (35, 1, 3, 3), {"pads": [1] * 4, "group": 35}),
    ("depthwise inside", (1, 16, 9, 8), (16, 1, 3, 3), {"group": 16}),
    (
        "depthwise strided",
        (1, 32, 15, 14),
        (32, 1, 5, 5),
        {"pads": [2] * 4, "group": 32, "strides": [2, 2]},
    ),
    (
        "depthwise dilated",
        (1, 20, 14, 15),
        (20, 1, 3, 3),
        {"group": 20, "dilations": [2, 3], "pads": [1] * 4},
    ),
)


def convolutions() -> dict[str, Case]:
    cases = {}
    for name, data, weights, attributes in CONVOLUTIONS:
        kernel = "native.bytes.conv" + "_depthwise" * name.startswith("depthwise")
        for dtype, w_type, by_map in (
            (UINT8, INT8, True),
            (INT8, INT8, False),
            (UINT8, UINT8, False),
        ):
            values = _conv_values(dtype, data, weights, by_map, w_type)
            node = make_node("QLinearConv", 9, **attributes)
            cases[f"conv {name} {dtype}{w_type}"] = Case(
                kernel, node, values, (3, 4, 5, 8), tolerance=1.001 / 128
            )
        values = _conv_values(UINT8, data, weights, False, INT8)
        integers = [values[0], values[3], values[2], values[5]]
        cases[f"integers of conv {name}"] = Case(
            kernel, make_node("ConvInteger", 4, **attributes), integers, (1, 3)
        )
        last = [np.ascontiguousarray(np.moveaxis(values[0], 1, -1)), *values[1:]]
        node = make_node(
            "QLinearConv", 9, domain=CONTRIBUTED, channels_last=1, levels=[40, 200], **attributes
        )
        cases[f"conv channels last {name}"] = Case(
            kernel, node, last, (3, 4, 5, 8), like_onnxruntime=False, tolerance=1.001 / 128
        )
    return cases


def between_floats_and_bytes() -> dict[str, Case]:
    cases = {}
    for dtype in (UINT8, INT8):
        for shape in ((3, 5, 7), (2, 3, 40), (33,)):
            for by_part in (False, True):
                count = shape[-2] if by_part and len(shape) > 1 else 1
                axis = len(shape) - 2 if count > 1 else 0
                given = () if count == 1 else (count,)
                step = np.abs(random(*given)).astype(np.float32) / 50 if given else scale()
                middle = levels(dtype, *given) if given else zero(dtype, 9)
                real = [random(*shape) * 3, step, middle]
                name = f"{dtype} {shape} {by_part}"
                cases[f"quantise {name}"] = Case(
                    "native.bytes.quantise", make_node("QuantizeLinear", 3, axis=axis), real
                )
                quantised = [levels(dtype, *shape), step, middle]
                cases[f"dequantise {name}"] = Case(
                    "native.bytes.dequantise",
                    make_node("DequantizeLinear", 3, axis=axis),
                    quantised,
                )
    for name, values in (
        ("mixed", random(5, 67)),
        ("positive", np.abs(random(70)) + 1),
        ("negative", -np.abs(random(16)) - 1),
        ("zeros", np.zeros(5, np.float32)),
    ):
        cases[f"quantise dynamically {name}"] = Case(
            "native.bytes.quantise_dynamically",
            make_node("DynamicQuantizeLinear", 1, 3),
            [values.astype(np.float32)],
        )
    return cases


def pairs_and_maps() -> dict[str, Case]:
    cases = {}
    for dtype in (UINT8, INT8):
        for operator in ("QLinearAdd", "QLinearMul"):
            for a, b in (
                ((2, 3, 67), (2, 3, 67)),
                ((2, 5, 9, 10), (5, 1, 1)),
                ((30, 1), (1, 20)),
                ((3, 40), (1,)),
            ):
                values = [
                    levels(dtype, *a),
                    scale(),
                    zero(dtype, 5),
                    levels(dtype, *b),
                    scale(0.03),
                ]
                values += [zero(dtype, 7), scale(0.05), zero(dtype, 20)]
                cases[f"{operator} {dtype} {a} {b}"] = Case(
                    "native.bytes.pair", _node(operator, values), values, tolerance=1.001 / 128
                )
        for operator in ("QLinearLeakyRelu", "QLinearSigmoid"):
            values = [
                levels(dtype, 3, 45),
                scale(0.05),
                zero(dtype, 5),
                scale(0.01),
                zero(dtype, 0),
            ]
            cases[f"{operator} {dtype}"] = Case(
                "native.bytes.map", _node(operator, values), values, tolerance=1.001 / 128
            )
        for shape, axis, opset in (
            ((3, 5, 40), -1, 13),
            ((3, 5, 40), 1, 13),
            ((2, 3, 4, 50), 2, 12),
            ((70,), 0, 13),
            ((9, 3), 1, 13),
            ((6, 1000), 1, 13),
        ):
            values = [levels(dtype, *shape), scale(0.05), zero(dtype, 5), scale(1 / 256)]
            values.append(zero(dtype, np.iinfo(dtype).min))
            node = _node("QLinearSoftmax", values, axis=axis)
            # A name that makers of nodes keep to themselves.
            node.attribute.append(onnx.helper.make_attribute("opset", opset))
            cases[f"QLinearSoftmax {dtype} {shape} {axis}"] = Case(
                "native.bytes.softmax", node, values, tolerance=1.001 / 128
            )
        values = [levels(dtype, 3, 45), scale(0.05), zero(dtype, 5), scale(0.07), zero(dtype, 2)]
        clip = make_node("QLinearClip", 5, domain="aegis", levels=[2, 90])
        cases[f"QLinearClip {dtype}"] = Case(
            "native.bytes.map", clip, values, like_onnxruntime=False, tolerance=1.001 / 128
        )
        parts = [scale(0.03), zero(dtype, 10)]
        for index, width in enumerate((5, 16, 33)):
            parts += [levels(dtype, 2, width, 3), scale(0.02 + 0.01 * index), zero(dtype, index)]
        cases[f"QLinearConcat {dtype}"] = Case(
            "native.bytes.map", _node("QLinearConcat", parts, axis=1), parts, tolerance=1.001 / 128
        )
    return cases


POOLS = (
    ((2, 7, 9, 80), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}),
    ((1, 6, 5, 19), {"kernel_shape": [2, 3], "dilations": [2, 1], "pads": [0, 2, 1, 1]}),
)


def pools() -> dict[str, Case]:
    """With channels last: ONNX Runtime has but some of them."""
    cases = {}
    for dtype in (UINT8, INT8):
        for data, attributes in POOLS:
            images = levels(dtype, *data)
            node = make_node("NhwcMaxPool", 1, domain=CONTRIBUTED, **attributes)
            cases[f"max {dtype} {data}"] = Case(
                "native.bytes.max_pool", node, [images], like_onnxruntime=False
            )
            values = [images, scale(), zero(dtype, 9), scale(0.015), zero(dtype, 2)]
            for counts in (0, 1) if "dilations" not in attributes else ():
                node = make_node(
                    "QLinearAveragePool",
                    5,
                    domain=CONTRIBUTED,
                    channels_last=1,
                    count_include_pad=counts,
                    **attributes,
                )
                cases[f"average {dtype} {data} {counts}"] = Case(
                    "native.bytes.average_pool",
                    node,
                    values,
                    like_onnxruntime=False,
                    tolerance=1.001 / 128,
                )
            node = make_node("QLinearGlobalAveragePool", 5, domain=CONTRIBUTED, channels_last=1)
            cases[f"average of all {dtype} {data}"] = Case(
                "native.bytes.average_pool", node, values, tolerance=1.001 / 128
            )
    return cases


QUANTISED: dict[str, Case] = {
    **pools(),
    **convolutions(),
    **between_floats_and_bytes(),
    **pairs_and_maps(),
    **integer_products(),
    **quantised_products(),
    **products_to_float(),
}
