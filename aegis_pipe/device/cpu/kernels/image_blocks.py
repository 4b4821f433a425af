"""Rearrangements between blocks of an image and its channels: one strided copy each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import all_float, planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.device.cpu.kernels.windows import AxisWindows, taps, window_axes
from aegis_pipe.kernel import KernelRequest


def _accepts_any(_request: KernelRequest) -> bool:
    return True


def _blocked(image: np.ndarray, size: int) -> np.ndarray:
    """Return a view [N, C, H, row in block, W, column in block] of the larger image."""
    batch, channels, height, width = image.shape
    return image.reshape(batch, channels, height // size, size, width // size, size)


def _stacked(image: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Return a view in the same order of the image that has its blocks in its channels."""
    batch, channels, height, width = image.shape
    depth = channels // (size * size)
    if mode == "DCR":
        split = image.reshape(batch, size, size, depth, height, width)
        return split.transpose(0, 3, 4, 1, 5, 2)
    split = image.reshape(batch, depth, size, size, height, width)
    return split.transpose(0, 1, 4, 2, 5, 3)


def _bind_blocks(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    size, mode = operands.integer(request, "blocksize"), operands.text(request, "mode")
    data, result = operands.required(inputs), operands.required(outputs)
    if request.operator == "DepthToSpace":
        source, target = _stacked(data, size, mode), _blocked(result, size)
    else:
        source, target = _blocked(data, size), _stacked(result, size, mode)

    def run() -> None:
        np.copyto(target, source)

    return run


def _col2im_axes(request: KernelRequest) -> tuple[AxisWindows, ...]:
    image = operands.output_spec(request).shape[2:]
    pads = operands.integers(request, "pads")
    rank = len(image)
    counts = [
        (size + begin + end - (kernel - 1) * dilation - 1) // stride + 1
        for size, begin, end, kernel, dilation, stride in zip(
            image,
            pads[:rank],
            pads[rank:],
            operands.integers(request, "kernel_shape"),
            operands.integers(request, "dilations"),
            operands.integers(request, "strides"),
            strict=True,
        )
    ]
    return window_axes(request, image, counts)


def _bind_col2im(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    axes = _col2im_axes(request)
    data, result = operands.required(inputs), operands.required(outputs)
    kernel = tuple(axis.kernel for axis in axes)
    columns = data.reshape(*result.shape[:2], *kernel, *(axis.count for axis in axes))
    every = (slice(None), slice(None))
    additions = []
    for index, windows, sources in taps(axes):
        tap = columns
        for position in index:
            tap = tap[:, :, position]
        additions.append((result[(*every, *sources)], tap[(*every, *windows)]))

    def run() -> None:
        result.fill(0)
        for total, tap in additions:
            np.add(total, tap, out=total)

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel(
        "image_blocks", ("DepthToSpace", "SpaceToDepth"), _bind_blocks, accepts=_accepts_any
    ),
    planned_kernel("col2im", ("Col2Im",), _bind_col2im, accepts=all_float),
)
