"""Inverted residual blocks: with and without each part, strips that share rows, uneven pads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.unit.device.cpu.kernels.case import Case, random
from tests.unit.kernel_driver import make_node

_INFINITY = float("inf")
_RELU6 = (0.0, 6.0)
_NONE = (-_INFINITY, _INFINITY)


def _weights(*shape: int) -> np.ndarray:
    """Return weights that keep the size of what they are multiplied with."""
    return random(*shape) / np.float32(np.sqrt(np.prod(shape[1:])))


def _block(
    data: Sequence[int],
    channels: int,
    maps: int,
    *,
    stride: int = 1,
    pads: Sequence[int] = (1, 1, 1, 1),
    widens: bool = True,
    biases: bool = True,
    added: Sequence[int] | None = None,
    bounds: Sequence[float] = (*_RELU6, *_RELU6, *_NONE),
) -> Case:
    def bias(count: int) -> np.ndarray | None:
        return random(count) if biases else None

    widening = [_weights(channels, data[3], 1, 1), bias(channels)] if widens else [None, None]
    values = [
        random(*data),
        *widening,
        *(_weights(channels, 1, 3, 3), bias(channels)),
        *(_weights(maps, channels, 1, 1), bias(maps)),
        random(*added) if added else None,
    ]
    node = make_node(
        "InvertedResidual",
        [f"i{i}" if value is not None else "" for i, value in enumerate(values)],
        domain="aegis",
        kernel_shape=[3, 3],
        strides=[stride, stride],
        pads=list(pads),
        bounds=list(bounds),
    )
    constants = tuple(i for i in range(1, 7) if values[i] is not None)
    return Case("native.inverted_residual", node, values, constants, like_onnxruntime=False)


def inverted_residuals() -> dict[str, Case]:
    return {
        "inverted residual": _block((2, 9, 11, 24), 70, 20, added=(2, 9, 11, 20)),
        "inverted residual in strips": _block((1, 41, 40, 16), 160, 24, added=(1, 41, 40, 24)),
        "inverted residual in strips by 2": _block((1, 50, 47, 8), 130, 33, stride=2),
        "inverted residual by 2": _block((3, 12, 13, 16), 48, 24, stride=2, pads=(0, 0, 1, 1)),
        "inverted residual without widening": _block(
            (2, 14, 15, 32), 32, 16, widens=False, bounds=(*_NONE, *_RELU6, 0.0, _INFINITY)
        ),
        "inverted residual without biases": _block(
            (1, 7, 7, 40), 100, 70, biases=False, bounds=_NONE * 3
        ),
        "inverted residual of one row": _block((1, 1, 30, 12), 36, 12, added=(1, 1, 30, 12)),
        "inverted residual in pads": _block((1, 4, 3, 5), 18, 7, pads=(4, 3, 5, 2)),
        "inverted residual in pads by 2": _block((1, 3, 4, 5), 18, 7, stride=2, pads=(5, 0, 6, 3)),
    }
