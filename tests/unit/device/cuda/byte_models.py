"""Models of one product of bytes each, that may be shared out in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx

from aegis_pipe.device.cuda.kernels.tensor_tilings import SPLITS, WARPS, Tiling
from tests.unit.device.cuda import quantised_models
from tests.unit.pass_driver import model_of

Case = tuple[onnx.ModelProto, np.ndarray]
_SCALE = np.array(0.03, np.float32)


def integers(dtype: type, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(sum(shape))
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def _convolution(
    data: type, shape: tuple[int, ...], filters: int, window: int, **attributes: object
) -> Case:
    x = integers(data, *shape)
    channels = shape[1]
    w = integers(np.int8, filters, channels, window, window)
    operands = [
        *(_SCALE, np.array(9, data), w),
        *(np.linspace(0.01, 0.02, filters, dtype=np.float32), np.zeros(filters, np.int8)),
        np.array(0.03 * np.sqrt(channels) * window, np.float32),
        np.array(100, data),
        np.arange(filters, dtype=np.int32) * 100,
    ]
    y = (data, ("n", "m", "h", "w"))
    return quantised_models.layer("QLinearConv", x, operands, y, **attributes), x


def _integers(rows: int, depth: int, columns: int) -> Case:
    x, w = integers(np.uint8, 2, rows, depth), integers(np.int8, depth, columns)
    operands = [w, np.array(120, np.uint8)]
    return quantised_models.layer("MatMulInteger", x, operands, (np.int32, (2, rows, columns))), x


def _gemm(rows: int, depth: int, columns: int) -> Case:
    x, w = integers(np.uint8, rows, depth), integers(np.int8, columns, depth)
    operands = [
        *(_SCALE, np.array(120, np.uint8), w, _SCALE, np.array(0, np.int8)),
        np.arange(columns, dtype=np.int32) * 50,
    ]
    y = (np.float32, (rows, columns))
    model = quantised_models.layer("QGemm", x, operands, y, domain="com.microsoft", transB=1)
    return model, x


def _residual() -> Case:
    x = integers(np.uint8, 2, 32, 9, 8)
    model = model_of(
        "(uint8[2,32,9,8] x) => (uint8[2,32,9,8] y) {"
        "c = QLinearConv <pads = [1, 1, 1, 1]> (x, s, x_zero, w, w_scale, w_zero, c_scale, c_zero)"
        "y = com.microsoft.QLinearAdd (x, s, x_zero, c, c_scale, c_zero, y_scale, y_zero) }",
        {
            **{"s": _SCALE, "x_zero": np.uint8(9), "w": integers(np.int8, 32, 32, 3, 3)},
            "w_scale": np.linspace(0.001, 0.003, 32, dtype=np.float32),
            "w_zero": np.zeros(32, np.int8),
            **{"c_scale": np.float32(0.07), "c_zero": np.uint8(101)},
            **{"y_scale": np.float32(0.09), "y_zero": np.uint8(77)},
        },
    )
    return model, x


CASES: Mapping[str, Callable[[], Case]] = {
    "window": lambda: _convolution(np.uint8, (2, 16, 9, 8), 68, 3, pads=[1, 1, 1, 1]),
    "strides": lambda: _convolution(
        np.int8, (1, 48, 11, 12), 16, 3, pads=[2, 0, 1, 3], strides=[2, 1], dilations=[1, 2]
    ),
    "pixels": lambda: _convolution(np.uint8, (3, 512, 5, 5), 132, 1),
    "integers": lambda: _integers(17, 1040, 72),
    "residual": _residual,
    "one row": lambda: _gemm(1, 128, 100),
}


def tilings(steps: int) -> Iterator[Tiling]:
    """Yield every way to share out a depth of so many lines."""
    for tile in WARPS:
        for splits in SPLITS:
            if splits <= steps:
                yield Tiling(*tile, splits)
