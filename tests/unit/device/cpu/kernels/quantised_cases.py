"""Operators on bytes on which the compiled kernels are tested."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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


QUANTISED: dict[str, Case] = {
    **integer_products(),
    **quantised_products(),
    **products_to_float(),
}
