"""Fourier transforms, written straight into the result seen as complex numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from aegis_pipe.device.cpu.kernels import operands
from aegis_pipe.device.cpu.kernels.planned import planned_kernel
from aegis_pipe.device.cpu.kernels.registry import CpuKernel
from aegis_pipe.kernel import KernelRequest
from aegis_pipe.tensor import TensorSpec

_COMPLEX: dict[np.dtype, np.dtype] = {
    np.dtype(np.float32): np.dtype(np.complex64),
    np.dtype(np.float64): np.dtype(np.complex128),
}


def _accepts(request: KernelRequest) -> bool:
    specs = [spec for spec in request.inputs if spec]
    return all(spec.dtype in _COMPLEX and spec.element_count for spec in specs)


def _numbers(array: np.ndarray) -> np.ndarray:
    """Return real or complex numbers, without the dimension that holds their parts."""
    if array.shape[-1] == 1:
        return array[..., 0]
    return array.view(_COMPLEX[array.dtype])[..., 0]


def _bind_dft(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    data, result = _numbers(operands.required(inputs)), _numbers(operands.required(outputs))
    axis, length = operands.integer(request, "axis"), operands.integer(request, "dft_length")
    onesided = bool(operands.integer(request, "onesided"))
    if operands.integer(request, "inverse"):
        transform = np.fft.irfft if onesided else np.fft.ifft
    elif onesided and not np.iscomplexobj(data):
        transform = np.fft.rfft
    else:
        transform = np.fft.fft
    halved = transform is np.fft.fft and onesided
    whole = scratch[0] if halved else result
    kept = (slice(None),) * axis + (slice(length // 2 + 1),)

    def run() -> None:
        transform(data, n=length, axis=axis, out=whole)
        if halved:
            np.copyto(result, whole[kept])

    return run


def _dft_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return the whole spectrum, where only half is wanted of complex numbers."""
    data = operands.input_spec(request, 0)
    onesided = operands.integer(request, "onesided") and not operands.integer(request, "inverse")
    shape = [*data.shape[:-1]] if onesided and data.shape[-1] == 2 else [0]
    if shape != [0]:
        shape[operands.integer(request, "axis")] = operands.integer(request, "dft_length")
    return (TensorSpec(_COMPLEX[data.dtype], tuple(shape)),)


def _is_complex_signal(request: KernelRequest) -> bool:
    shape = operands.input_spec(request, 0).shape
    return len(shape) == 3 and shape[2] == 2


def _stft_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    signal, result = operands.input_spec(request, 0), operands.output_spec(request)
    is_complex = _is_complex_signal(request)
    dtype = _COMPLEX[signal.dtype] if is_complex else signal.dtype
    length = operands.integer(request, "frame_length")
    halved = is_complex and operands.integer(request, "onesided")
    frames = result.shape[1]
    return (
        TensorSpec(dtype, (frames, length)),
        TensorSpec(_COMPLEX[signal.dtype], (frames if halved else 0, length)),
    )


def _bind_stft(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    signal, window = operands.required(inputs), operands.optional(inputs, 1)
    signals = _numbers(signal if signal.ndim == 3 else signal[..., None])
    results = _numbers(operands.required(outputs))
    framed, whole = scratch
    halved = whole.size > 0
    step, bins = operands.integer(request, "frame_step"), results.shape[-1]
    stride = signals.strides[-1]
    views = [as_strided(each, framed.shape, (stride * step, stride)) for each in signals]
    is_real = not np.iscomplexobj(signals)
    onesided = bool(operands.integer(request, "onesided"))
    transform = np.fft.rfft if is_real and onesided else np.fft.fft

    def run() -> None:
        for frames, result in zip(views, results, strict=True):
            if window is None:
                np.copyto(framed, frames)
            else:
                np.multiply(frames, window, out=framed)
            transform(framed, axis=-1, out=whole if halved else result)
            if halved:
                np.copyto(result, whole[:, :bins])

    return run


def _cost(request: KernelRequest) -> float:
    result = operands.output_spec(request)
    return float(result.element_count * max(result.shape[-2], 2).bit_length())


KERNEL_FAMILY: tuple[CpuKernel, ...] = (
    planned_kernel("dft", ("DFT",), _bind_dft, accepts=_accepts, scratch=_dft_scratch, cost=_cost),
    planned_kernel(
        "stft", ("STFT",), _bind_stft, accepts=_accepts, scratch=_stft_scratch, cost=_cost
    ),
)
