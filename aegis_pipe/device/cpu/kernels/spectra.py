"""Fourier transforms, in double precision: NumPy has no other, and would convert unplanned."""

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


_FLOAT64, _COMPLEX128 = np.dtype(np.float64), np.dtype(np.complex128)
_Transform = Callable[..., np.ndarray]


def _dft_transform(request: KernelRequest) -> tuple[_Transform, np.dtype, np.dtype]:
    """Return the transform, and the dtypes of what goes in and what comes out."""
    onesided = bool(operands.integer(request, "onesided"))
    if operands.integer(request, "inverse"):
        if onesided:
            return np.fft.irfft, _COMPLEX128, _FLOAT64
        return np.fft.ifft, _COMPLEX128, _COMPLEX128
    if onesided and operands.input_spec(request, 0).shape[-1] == 1:
        return np.fft.rfft, _FLOAT64, _COMPLEX128
    return np.fft.fft, _COMPLEX128, _COMPLEX128


def _dft_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return what goes in and what comes out, the transformed axis last."""
    shape = [*operands.input_spec(request, 0).shape[:-1]]
    shape.append(shape.pop(operands.integer(request, "axis")))
    transform, before, after = _dft_transform(request)
    length = operands.integer(request, "dft_length")
    bins = length // 2 + 1 if transform is np.fft.rfft else length
    return (TensorSpec(before, tuple(shape)), TensorSpec(after, (*shape[:-1], bins)))


def _bind_dft(
    request: KernelRequest,
    inputs: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    scratch: Sequence[np.ndarray],
) -> Callable[[], None]:
    before, after = scratch
    axis, length = operands.integer(request, "axis"), operands.integer(request, "dft_length")
    data = np.moveaxis(_numbers(operands.required(inputs)), axis, -1)
    result = np.moveaxis(_numbers(operands.required(outputs)), axis, -1)
    transform, _, _ = _dft_transform(request)
    wanted = after[..., : result.shape[-1]]

    def run() -> None:
        np.copyto(before, data)
        transform(before, n=length, axis=-1, out=after)
        np.copyto(result, wanted, casting="same_kind")

    return run


def _is_complex_signal(request: KernelRequest) -> bool:
    shape = operands.input_spec(request, 0).shape
    return len(shape) == 3 and shape[2] == 2


def _stft_scratch(request: KernelRequest) -> Sequence[TensorSpec]:
    """Return the frames of one signal, and their spectra."""
    frames = operands.output_spec(request).shape[1]
    length = operands.integer(request, "frame_length")
    is_half = operands.integer(request, "onesided") and not _is_complex_signal(request)
    bins = length // 2 + 1 if is_half else length
    return (
        TensorSpec(_FLOAT64 if is_half else _COMPLEX128, (frames, length)),
        TensorSpec(_COMPLEX128, (frames, bins)),
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
    framed, spectra = scratch
    step, stride = operands.integer(request, "frame_step"), signals.strides[-1]
    views = [as_strided(each, framed.shape, (stride * step, stride)) for each in signals]
    transform: _Transform = np.fft.fft if np.iscomplexobj(framed) else np.fft.rfft
    wanted = spectra[:, : results.shape[-1]]

    def run() -> None:
        for frames, result in zip(views, results, strict=True):
            np.copyto(framed, frames)
            if window is not None:
                np.multiply(framed, window, out=framed)
            transform(framed, axis=-1, out=spectra)
            np.copyto(result, wanted, casting="same_kind")

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
