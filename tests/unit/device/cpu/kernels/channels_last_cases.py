"""Cases for images with their channels last; ONNX Runtime has these operators for halves only."""

from __future__ import annotations

from collections.abc import Sequence

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node

_BY_TILES = 3e-5
"""Results by tiles are sums of larger numbers that cancel."""


def _conv(
    kernel: str,
    data: Sequence[int],
    weights: Sequence[int],
    *,
    residual: Sequence[int] | None = None,
    tolerance: float = 3e-6,
    **attributes: object,
) -> Case:
    values = [random(*data), random(*weights), random(weights[0])]
    values += [] if residual is None else [random(*residual)]
    node = make_node("NhwcFusedConv", len(values), domain="com.microsoft", **attributes)
    return Case(
        f"native.conv.{kernel}", node, values, (1, 2), like_onnxruntime=False, tolerance=tolerance
    )


def _pool(operator: str, domain: str, data: Sequence[int], **attributes: object) -> Case:
    kernel = "max" if "Max" in operator else "average"
    node = make_node(operator, 1, domain=domain, **attributes)
    return Case(
        f"native.pool.{kernel}_channels_last", node, [random(*data)], like_onnxruntime=False
    )


def cases() -> dict[str, Case]:
    one, two = [1] * 4, [2, 2]
    relu = {"activation": "Relu"}
    clip = {"activation": "Clip", "activation_params": [-1.0, 2.0]}
    max_pool, average = ("NhwcMaxPool", "com.microsoft"), ("NhwcAveragePool", "aegis")
    return {
        "last 1x1": _conv("channels", (2, 9, 7, 24), (70, 24, 1, 1), **relu),
        "last 1x1 added": _conv(
            "channels", (1, 9, 7, 24), (70, 24, 1, 1), residual=(1, 9, 7, 70), **relu
        ),
        "last 1x1 in blocks": _conv("channels", (1, 31, 23, 96), (200, 96, 1, 1), **clip),
        "last 1x1 strided": _conv("channels", (2, 9, 7, 24), (40, 24, 1, 1), strides=two),
        "last 3x3 of colours": _conv(
            "channels", (1, 33, 40, 3), (20, 3, 3, 3), pads=one, strides=two, **clip
        ),
        "last uneven": _conv("channels", (2, 9, 11, 5), (7, 5, 3, 2), pads=[2, 0, 1, 1]),
        "last inside": _conv("channels", (1, 9, 11, 5), (7, 5, 3, 3)),
        "last dilated": _conv(
            "channels", (1, 15, 14, 6), (9, 6, 3, 3), pads=[2] * 4, dilations=two
        ),
        "last grouped": _conv("channels", (2, 8, 8, 12), (18, 4, 3, 3), group=3, pads=one),
        "last deep": _conv("channels", (1, 3, 3, 150), (20, 150, 3, 3), pads=one, strides=two),
        "last deep 1x1": _conv("channels", (1, 5, 5, 1300), (70, 1300, 1, 1)),
        "last line": _conv("channels", (2, 50, 12), (18, 12, 5), pads=[2, 2], strides=[2]),
        "tiles of 4": _conv(
            "winograd", (1, 40, 37, 32), (70, 32, 3, 3), pads=one, tolerance=_BY_TILES, **relu
        ),
        "tiles of 4 added": _conv(
            "winograd",
            (1, 30, 30, 20),
            (33, 20, 3, 3),
            residual=(1, 30, 30, 33),
            pads=one,
            # What is clipped to 2 was 20 times as large.
            tolerance=20 * _BY_TILES,
            **clip,
        ),
        "tiles of 2": _conv(
            "winograd", (2, 7, 9, 130), (140, 130, 3, 3), pads=one, tolerance=_BY_TILES
        ),
        "tiles without pads": _conv(
            "winograd", (1, 21, 23, 16), (16, 16, 3, 3), tolerance=_BY_TILES
        ),
        "last depthwise": _conv(
            "depthwise_channels_last", (2, 11, 13, 37), (37, 1, 3, 3), group=37, pads=one, **clip
        ),
        "last depthwise by 2": _conv(
            "depthwise_channels_last",
            (2, 13, 28, 37),
            (37, 1, 3, 3),
            residual=(2, 7, 14, 37),
            group=37,
            pads=one,
            strides=two,
            **clip,
        ),
        "last depthwise in strips": _conv(
            "depthwise_channels_last", (1, 40, 60, 50), (50, 1, 3, 3), group=50, pads=one
        ),
        "last depthwise narrow": _conv(
            "depthwise_channels_last", (1, 6, 1, 16), (16, 1, 3, 3), group=16, pads=one
        ),
        "last depthwise narrow by 2": _conv(
            "depthwise_channels_last",
            (1, 2, 2, 20),
            (20, 1, 3, 3),
            group=20,
            pads=[3, 3, 2, 2],
            strides=two,
        ),
        "last depthwise of wide pads": _conv(
            "depthwise_channels_last", (1, 5, 2, 20), (20, 1, 3, 3), group=20, pads=[4, 3, 2, 5]
        ),
        "last depthwise uneven": _conv(
            "depthwise_channels_last",
            (1, 9, 10, 20),
            (20, 1, 3, 3),
            group=20,
            pads=one,
            strides=[1, 2],
        ),
        "last depthwise strided": _conv(
            "depthwise_channels_last",
            (1, 12, 13, 16),
            (16, 1, 5, 5),
            group=16,
            pads=[2] * 4,
            strides=two,
            **relu,
        ),
        "last depthwise added": _conv(
            "depthwise_channels_last",
            (1, 6, 5, 18),
            (18, 1, 3, 3),
            residual=(1, 6, 5, 18),
            group=18,
            pads=one,
        ),
        "last max": _pool(
            *max_pool, (2, 13, 12, 35), kernel_shape=[3, 3], strides=two, pads=[0, 1, 1, 0]
        ),
        "last max dilated": _pool(*max_pool, (1, 13, 12, 16), kernel_shape=[2, 3], dilations=two),
        "last average": _pool(
            *average, (1, 13, 12, 21), kernel_shape=[3, 3], strides=two, pads=one
        ),
        "last average with pads": _pool(
            *average, (1, 13, 12, 21), kernel_shape=[3, 3], pads=one, count_include_pad=1
        ),
        "last average of all": _pool(*average, (2, 7, 7, 33), kernel_shape=[7, 7]),
    }
