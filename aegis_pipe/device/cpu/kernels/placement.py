"""Values put into a larger tensor, or cut out of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.errors import KernelError
from aegis_pipe.kernel import KernelRequest

_BLOCK = 8 << 10


def _accepts_any(_request: KernelRequest) -> bool:
    return True


def _refused(request: KernelRequest, message: str, hint: str) -> KernelError:
    return KernelError(message, context=f"node `{request.node}` ({request.operator})", hint=hint)


def _bind_unpool(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, indices = (operands.required(inputs, i).reshape(-1) for i in range(2))
    result = operands.required(outputs)
    counted = operands.integers(request, "counted_shape")
    total = math.prod(counted)
    flat = result.reshape(-1)
    is_direct = counted == result.shape
    blocks = [slice(first, first + _BLOCK) for first in range(0, len(data), _BLOCK)]

    def run() -> None:
        if indices.size and not 0 <= indices.min() <= indices.max() < total:
            raise _refused(
                request,
                f"indices reach from {indices.min()} to {indices.max()} of {total} elements",
                "give the indices of the max pool that this operator undoes",
            )
        result.fill(0)
        for block in blocks:
            if is_direct:
                flat[indices[block]] = data[block]
            else:
                # A larger result has the unpooled tensor in its corner.
                result[np.unravel_index(indices[block], counted)] = data[block]

    return run


def _accepts_unpool(request: KernelRequest) -> bool:
    counted = operands.integers(request, "counted_shape")
    shape = operands.output_spec(request).shape
    return all(size <= room for size, room in zip(counted, shape, strict=True))


def _middle(size: int, wanted: int) -> slice:
    """Return the middle of `size` elements, as many as `wanted` at most."""
    start = max(size - wanted, 0) // 2
    return slice(start, start + min(size, wanted))


def _bind_crop(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = operands.required(inputs), operands.required(outputs)
    pairs = list(zip(data.shape, result.shape, strict=True))
    source = data[tuple([_middle(size, wanted) for size, wanted in pairs])]
    target = result[tuple([_middle(wanted, size) for size, wanted in pairs])]

    def run() -> None:
        if target.size < result.size:
            result.fill(0)
        np.copyto(target, source)

    return run


def _bind_scatter(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    past, result = operands.required(inputs), operands.required(outputs)
    axis = operands.integer(request, "axis")
    given = operands.optional(inputs, 2)
    cache = np.moveaxis(result, axis, 1)
    update = np.moveaxis(operands.required(inputs, 1), axis, 1)
    room, length = cache.shape[1], update.shape[1]
    circular = operands.text(request, "mode") == "circular"
    starts = [0] * len(cache)

    def run() -> None:
        np.copyto(result, past)
        for image, index in enumerate(starts if given is None else given.tolist()):
            start = index % room if circular else index
            if start < 0 or (start + length > room and not circular):
                raise _refused(
                    request,
                    f"an update of {length} at {start} does not fit a cache of {room}",
                    "give a larger cache, or start a new sequence",
                )
            straight = min(length, room - start)
            cache[image, start : start + straight] = update[image, :straight]
            cache[image, : length - straight] = update[image, straight:]

    return run


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("max_unpool", ("MaxUnpool",), _bind_unpool, accepts=_accepts_unpool),
    planned_kernel("center_crop_pad", ("CenterCropPad",), _bind_crop, accepts=_accepts_any),
    planned_kernel(
        "tensor_scatter",
        ("TensorScatter",),
        _bind_scatter,
        accepts=_accepts_any,
        in_place=((0, 0),),
    ),
)
