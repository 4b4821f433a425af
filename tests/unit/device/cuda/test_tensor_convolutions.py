"""Convolutions on tensor cores: what is offered to whom, and sources that compile without a GPU."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

pytest.importorskip("cuda.bindings.nvrtc", reason="no CUDA bindings")
pytest.importorskip("aegis_pipe.device.cuda.driver", reason="no CUDA bindings")
from aegis_pipe.device.cuda import driver
from aegis_pipe.device.cuda.kernels import (
    convolution_products,
    tensor_convolutions,
    tensor_tilings,
)
from aegis_pipe.device.cuda.kernels.tensor_convolution_source import source_of
from aegis_pipe.device.cuda.kernels.tensor_tilings import TensorConvolution, Tiling

MULTIPROCESSORS = 132
WINDOW = (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)
DEEP = TensorConvolution("float16", 1, (7, 7), 512, 512, (7, 7), *WINDOW, bias=True)
WIDE = TensorConvolution("bfloat16", 1, (56, 56), 64, 256, (56, 56), bias=True, residual=True)
UNEVEN = TensorConvolution("float16", 1, (14, 14), 24, 52, (14, 14))


@pytest.mark.parametrize(
    ("convolution", "tiling"),
    [
        (DEEP, Tiling(32, 64, 8)),
        (replace(DEEP, dtype="bfloat16", strides=(2, 2), result=(4, 4)), Tiling(64, 128, 2)),
        (WIDE, Tiling(64, 64, 1)),
        (UNEVEN, Tiling(64, 32, 1)),
    ],
)
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_sources_compile(convolution: TensorConvolution, tiling: Tiling, architecture: str) -> None:
    source = source_of(convolution, tiling)
    assert driver.compile_cubin(source, architecture)


@pytest.mark.parametrize("convolution", [DEEP, WIDE, UNEVEN])
def test_what_is_tried_fits(convolution: TensorConvolution) -> None:
    found = tensor_tilings.tilings(convolution, MULTIPROCESSORS)
    assert 0 < len(found) <= tensor_tilings.TRIED_MAX
    for tiling in found:
        assert tiling.shared_bytes(convolution) <= tensor_tilings.SHARED_BYTES_MAX
        assert tiling.splits <= convolution.steps
        splits, columns, rows = tiling.grid(convolution)
        assert splits * tiling.steps(convolution) >= convolution.steps
        assert columns * tiling.columns >= convolution.filters
        assert rows * tiling.rows >= convolution.rows
        # Every thread of a block brings whole lines, and blocks share a tile evenly.
        assert tiling.rows % (tiling.threads // 8) == tiling.columns % (tiling.threads // 8) == 0
        assert tiling.rows * tiling.columns // 4 % tiling.splits == 0


def test_a_deep_one_is_split_and_a_large_one_is_left_to_the_libraries() -> None:
    best = tensor_tilings.tilings(DEEP, MULTIPROCESSORS)[0]
    assert best.splits > 1
    assert math.prod(best.grid(DEEP)) >= MULTIPROCESSORS // 2
    many = replace(DEEP, batch=64, space=(28, 28), result=(28, 28))
    assert tensor_tilings.tilings(many, MULTIPROCESSORS) == ()
    # Few tiles, but enough to do in each.
    assert tensor_tilings.tilings(replace(DEEP, batch=4), MULTIPROCESSORS)
    assert tensor_tilings.tilings(replace(DEEP, batch=8), MULTIPROCESSORS) == ()


def test_equal_convolutions_are_shared_out_once() -> None:
    found = tensor_tilings.tilings(DEEP, MULTIPROCESSORS)
    assert tensor_tilings.tilings(replace(DEEP), MULTIPROCESSORS) is found
    assert tensor_tilings.tilings(DEEP, MULTIPROCESSORS // 8) != found


def test_what_a_choice_is_remembered_by_stays() -> None:
    """Files that are on disk are asked for the same words."""
    what = tensor_convolutions._what(UNEVEN, (Tiling(64, 32, 1), Tiling(32, 64, 1)))
    assert what == (
        "TensorConvolution(dtype='float16', batch=1, space=(14, 14), channels=24, filters=52, "
        "result=(14, 14), window=(1, 1), strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), "
        "bias=False, residual=False, activation='a') of "
        "[Tiling(rows=64, columns=32, splits=1), Tiling(rows=32, columns=64, splits=1)]"
    )


def request(channels: int, window: int, dtype: type = np.float16, group: int = 1) -> KernelRequest:
    shapes = ((1, 8, 8, channels), (16, channels // group, window, window))
    specs = tuple(TensorSpec(np.dtype(dtype), shape) for shape in shapes)
    side = 8 - window + 1
    attributes = {
        "kernel_shape": (window, window),
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
        "group": group,
        "activation": "Relu",
        "activation_params": (),
    }
    result = TensorSpec(np.dtype(dtype), (1, side, side, 16))
    constants = {1: np.zeros(shapes[1], dtype)}
    return KernelRequest(
        "com.microsoft.NhwcFusedConv", "node", attributes, specs, (result,), constants
    )


@pytest.mark.parametrize(
    ("asked", "is_taken"),
    [
        (request(64, 3), True),
        (request(24, 1), True),
        # Channels that a line of the depth is not made of, or that are not loaded in eights.
        (request(96, 3), False),
        (request(20, 1), False),
        (request(64, 3, np.float32), False),
        (request(64, 3, group=16), False),
        (replace(request(64, 3), constants={}), False),
    ],
)
def test_who_is_taken(asked: KernelRequest, is_taken: bool) -> None:
    assert (tensor_convolutions._convolution_of(asked) is not None) is is_taken


def test_weights_lie_by_filter_window_and_channel() -> None:
    asked = request(24, 1)
    weights = np.arange(16 * 24).reshape(16, 24, 1, 1).astype(np.float16)
    packed = convolution_products.packed_channels_last(asked)
    found = packed.pack(weights).view(np.float16).reshape(16, 1, 1, 24)
    assert np.array_equal(found, weights.transpose(0, 2, 3, 1))
    assert packed.size_bytes == weights.nbytes
